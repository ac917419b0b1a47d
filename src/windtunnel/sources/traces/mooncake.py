"""The Mooncake JSONL format: millisecond times, token counts and prefix-chained ids of 512-token blocks."""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json

from windtunnel.sources.traces.azure import ids, in_range
from windtunnel.sources.traces.lines import Faults, RowFault, read, seconds, whole
from windtunnel.sources.traces.row import NAMES, TraceRow, batch_of, rows_of

if TYPE_CHECKING:
    from windtunnel.sources.traces.open import Trace

BLOCK_TOKENS = 512
PROMPTS = ("input_length", "text_input", "messages", "payload")
KEYS = (*PROMPTS, "timestamp", "output_length", "hash_ids", "delay", "session_id", "tools", "extra")
PLAIN = pa.schema([("timestamp", pa.float64()), ("input_length", pa.int64()), ("output_length", pa.int64()),
                   ("hash_ids", pa.list_(pa.int64()))])
HELD = {"arrival_s", "input_tokens", "output_tokens", "session", "delay_s", "blocks"}


def refuses(path: Path, first: bytes) -> str | None:
    """Why this is no such file, or None."""
    if ".jsonl" not in path.suffixes and ".json" not in path.suffixes:
        return "the suffix is not .jsonl"
    try:
        row = json.loads(first)
    except ValueError:  # a broken row of what looks like objects is a bad row, not another format
        return None if first.startswith(b"{") else "the first line is not JSON"
    if not isinstance(row, dict) or not row.keys() & {"input_length", "output_length", "hash_ids", "timestamp"}:
        return "the first line is no object with timestamp and input_length"
    return None


def batches(path: Path, faults: Faults) -> Iterator[pa.RecordBatch]:
    """Batches; times are the file's own, in s. faults.fresh_tails counts prompts that go on after their last block."""
    return read(path, _Mooncake(faults), faults)


def write(trace: Trace, path: Path) -> None:
    """Write a trace in this format (.gz by suffix is not made); what the format cannot hold is named in a warning."""
    dropped: set[str] = {"request_id"} if trace.own_ids else set()
    blocks_fit = trace.block_size in (None, BLOCK_TOKENS)
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for batch in trace.batches():
            dropped |= {name for name in NAMES[1:] if name not in HELD and batch.column(name).null_count < batch.num_rows}
            if not blocks_fit and batch.column("blocks").null_count < batch.num_rows:
                dropped.add("blocks")
            for row in rows_of(batch):
                out.write(json.dumps(_line(row, blocks_fit), separators=(", ", ": ")) + "\n")
    if dropped:
        warnings.warn(f"dropped: {', '.join(name for name in NAMES if name in dropped)}", stacklevel=3)


class _Mooncake:
    header: bytes | None = None

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def bulk(self, lines: Sequence[bytes], first: int) -> pa.RecordBatch | None:
        text = b"".join(lines)
        try:
            table = pa_json.read_json(
                io.BytesIO(text), read_options=pa_json.ReadOptions(use_threads=False, block_size=len(text) + 1),
                parse_options=pa_json.ParseOptions(explicit_schema=PLAIN, unexpected_field_behavior="error"))
        except pa.ArrowInvalid:
            return None
        if table.num_rows != len(lines) or any(table[name].null_count for name in PLAIN.names[:3]):
            return None
        tails = _fresh_tails(table)
        times = table["timestamp"].to_numpy()
        if tails is None or not (in_range(table["input_length"]) and in_range(table["output_length"])):
            return None
        if not (np.isfinite(times).all() and times.min() >= 0):
            return None
        self._faults.fresh_tails += tails
        columns = {"request_id": ids(first - 1, len(times)), "arrival_s": times / 1000.0, "input_tokens": table["input_length"],
                   "output_tokens": table["output_length"], "blocks": table["hash_ids"]}
        return batch_of(columns, len(times))

    def row(self, text: str, line: int) -> TraceRow:
        try:
            given = json.loads(text)
        except ValueError as error:
            raise RowFault("", "row.json", f"not JSON ({error})") from None
        if not isinstance(given, dict):
            raise RowFault("", "row.type", f"expected an object, got {text.strip()[:40]}")
        _check_keys(given)
        n = whole("input_length", given["input_length"])
        output = None if given["output_length"] is None else whole("output_length", given["output_length"])
        session = given.get("session_id")
        if session is not None and not isinstance(session, str):
            raise RowFault("session_id", "row.type", f"expected a string, got {session!r}")
        at, delay = (None if given.get(key) is None else seconds(key, given[key], 1000.0) for key in ("timestamp", "delay"))
        if at is None and (delay is None or session is None):
            raise RowFault("timestamp", "row.missing", "expected a time in ms, or a delay in a session")
        return TraceRow(str(line - 1), at, n, output, session=session, delay_s=delay, blocks=self._blocks(given.get("hash_ids"), n))

    def _blocks(self, given: Any, n: int) -> tuple[int, ...] | None:
        if given is None:
            return None
        if not isinstance(given, list) or any(isinstance(i, bool) or not isinstance(i, int) for i in given):
            raise RowFault("hash_ids", "row.type", "expected a list of ints")
        if any(not -(2**63) <= i < 2**63 for i in given):
            raise RowFault("hash_ids", "row.range", "expected ids of at most 64 bits")
        if given and (len(given) - 1) * BLOCK_TOKENS >= n:
            raise RowFault("hash_ids", "row.blocks", f"{len(given)} blocks of {BLOCK_TOKENS} do not fit into {n} tokens")
        self._faults.fresh_tails += len(given) * BLOCK_TOKENS < n
        return tuple(given)


def _check_keys(given: Mapping[str, Any]) -> None:
    forms = [key for key in PROMPTS if key in given]
    if len(forms) > 1:
        raise RowFault(forms[1], "row.both", f"expected one form of prompt, got {' and '.join(forms)}")
    if forms and forms[0] != "input_length":
        raise RowFault(forms[0], "row.key", "prompts as text cannot be read; give input_length")
    for key in ("input_length", "output_length"):
        if key not in given:
            raise RowFault(key, "row.missing", "expected an int >= 0, got nothing")
    for key in given:
        if key not in KEYS:
            raise RowFault(key, "row.key", f"unknown key; known: {', '.join(KEYS)}")


def _fresh_tails(table: pa.Table) -> int | None:
    """Prompts with tokens after their last block; None if some prompt is too short for its blocks or an id is unknown."""
    column = table["hash_ids"].combine_chunks()
    if column.null_count == len(column):
        return 0
    if column.values.null_count:
        return None
    counts = pc.list_value_length(column).drop_null().to_numpy(zero_copy_only=False)
    n = table["input_length"].to_numpy()[column.is_valid().to_numpy(zero_copy_only=False)]
    if ((counts > 0) & ((counts - 1) * BLOCK_TOKENS >= n)).any():
        return None
    return int((counts * BLOCK_TOKENS < n).sum())


def _line(row: TraceRow, with_blocks: bool) -> dict[str, Any]:
    line: dict[str, Any] = {} if row.arrival_s is None else {"timestamp": _ms(row.arrival_s)}
    line |= {"input_length": row.input_tokens, "output_length": row.output_tokens}
    if row.blocks is not None and with_blocks:
        line["hash_ids"] = list(row.blocks)
    if row.delay_s is not None:
        line["delay"] = _ms(row.delay_s)
    if row.session is not None:
        line["session_id"] = row.session
    return line


def _ms(at_s: float) -> float:
    """Milliseconds that give `at_s` again when divided by 1000 (where a float can: always for whole ms)."""
    exact = at_s * 1000.0
    for ms in (round(exact), round(exact, 3), exact, math.nextafter(exact, math.inf), math.nextafter(exact, 0.0)):
        if ms / 1000.0 == at_s:
            return ms
    return exact
