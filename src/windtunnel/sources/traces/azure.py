"""The Azure LLM inference traces of 2023 and 2024: wall-clock times and token counts, nothing else."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from windtunnel.sources.traces.lines import Faults, RowFault, not_header, read, whole_text
from windtunnel.sources.traces.row import INT32_MAX, TraceRow, batch_of

NAMES = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
HEADER = ",".join(NAMES).encode()
TIME = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.(\d{0,7}))?(Z|[+-]\d\d:\d\d)?")
PLAIN_TIME = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{1,7}$"
EPOCH = datetime(1970, 1, 1)
TICKS = 10_000_000  # of 100 ns, the files' resolution


def refuses(path: Path, first: bytes) -> str | None:
    """Why this is no such file, or None."""
    return not_header(first, NAMES)


def batches(path: Path, faults: Faults) -> Iterator[pa.RecordBatch]:
    """Batches; times are s from the first row's, exact to 100 ns (rows before the first one's time get negative times)."""
    return read(path, _Azure(), faults)


class _Azure:
    header: bytes | None = HEADER

    def __init__(self) -> None:
        self._zero: int | None = None  # 100 ns ticks since 1970

    def bulk(self, lines: Sequence[bytes], first: int) -> pa.RecordBatch | None:
        table = read_plain_csv(lines, {"TIMESTAMP": pa.string(), "ContextTokens": pa.int64(), "GeneratedTokens": pa.int64()})
        if table is None or not (in_range(table["ContextTokens"]) and in_range(table["GeneratedTokens"])):
            return None
        try:
            if not pc.all(pc.match_substring_regex(table["TIMESTAMP"], PLAIN_TIME)).as_py():
                return None
            ticks = table["TIMESTAMP"].cast(pa.timestamp("ns")).cast(pa.int64()).to_numpy() // 100
        except pa.ArrowInvalid:
            return None
        if self._zero is None:
            self._zero = int(ticks[0])
        return batch_of({"request_id": ids(first - 2, len(ticks)), "arrival_s": (ticks - self._zero) / TICKS,
                         "input_tokens": table["ContextTokens"], "output_tokens": table["GeneratedTokens"]}, len(ticks))

    def row(self, text: str, line: int) -> TraceRow:
        stamp, context, generated = fields_of(text, NAMES)
        ticks = _ticks(stamp)
        tokens = whole_text("ContextTokens", context), whole_text("GeneratedTokens", generated)
        if self._zero is None:
            self._zero = ticks
        return TraceRow(str(line - 2), (ticks - self._zero) / TICKS, *tokens)


def ids(first: int, n: int) -> pa.Array:
    """Request ids of a format that has none: the number of the row in the file, from 0."""
    return pa.array(np.arange(first, first + n)).cast(pa.string())


def in_range(column: pa.ChunkedArray) -> bool:
    """True if all known values are ints that the table can hold."""
    ends = pc.min_max(column).as_py()
    return ends["min"] is None or (ends["min"] >= 0 and ends["max"] <= INT32_MAX)


def read_plain_csv(lines: Sequence[bytes], types: dict[str, pa.DataType], nulls: Sequence[str] = ()) -> pa.Table | None:
    """Lines without quotes as a table, one row a line; None if any is unusual."""
    text = b"".join(lines)
    try:
        table = pa_csv.read_csv(
            io.BytesIO(text),
            read_options=pa_csv.ReadOptions(use_threads=False, column_names=list(types), block_size=len(text) + 1),
            parse_options=pa_csv.ParseOptions(quote_char=False, ignore_empty_lines=False),
            convert_options=pa_csv.ConvertOptions(column_types=types, null_values=list(nulls), strings_can_be_null=False),
        )
    except pa.ArrowInvalid:
        return None
    return table if table.num_rows == len(lines) else None


def fields_of(text: str, names: Sequence[str]) -> list[str]:
    """The fields of one CSV line; raises RowFault unless there are as many as names."""
    values = [value.strip() for value in next(csv.reader([text.rstrip("\r\n")]), [])]
    if len(values) < len(names):
        raise RowFault(names[len(values)], "row.missing", f"expected {len(names)} fields, got {len(values)}")
    if len(values) > len(names):
        raise RowFault("", "row.key", f"expected {len(names)} fields, got {len(values)}")
    return values


def _ticks(stamp: str) -> int:
    match = TIME.fullmatch(stamp)
    try:
        if match is None:
            raise ValueError
        wall = datetime.fromisoformat(match[1] + (match[3] or ""))
        if wall.tzinfo is not None:
            wall = wall.replace(tzinfo=None) - (wall.utcoffset() or EPOCH - EPOCH)
    except ValueError:
        raise RowFault("TIMESTAMP", "row.time" if stamp else "row.missing",
                       f"expected YYYY-MM-DD HH:MM:SS with up to 7 decimals, got {stamp[:40]!r}") from None
    since = wall - EPOCH
    return (since.days * 86400 + since.seconds) * TICKS + int((match[2] or "").ljust(7, "0"))
