"""Recorded sessions of coding agents as Parquet: a row a model call, times from its session's start, blocks numbered within it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from windtunnel.errors import TraceFormatError
from windtunnel.policy.routing.hashing import session_block
from windtunnel.sources.traces.azure import in_range
from windtunnel.sources.traces.lines import Faults, RowFault, seconds, whole
from windtunnel.sources.traces.row import BATCH_ROWS, TraceRow, batch_from_rows

BLOCK_TOKENS = 64
MAIN = "main"
NEEDED = ("session", "agent", "t_s", "input_tokens", "block64_ids")
MORE = ("model", "output_tokens", "stop", "api_time_s", "think_time_s", "system_tokens", "tool_tokens")
READ = (*NEEDED, "output_tokens", "think_time_s")


def refuses(path: Path, first: bytes) -> str | None:
    """Why this is no such file, or None."""
    if not first.startswith(b"PAR1"):
        return "not a Parquet file"
    try:
        names = pq.read_schema(path).names
    except (pa.ArrowInvalid, OSError) as error:
        return f"a damaged Parquet file ({str(error).splitlines()[0]})"
    missing, strange = [n for n in NEEDED if n not in names], [n for n in names if n not in (*NEEDED, *MORE)]
    if missing:
        return f"no column {' and no '.join(missing)}"
    return f"unknown columns {', '.join(strange)}" if strange else None


def batches(path: Path, faults: Faults) -> Iterator[pa.RecordBatch]:
    """Batches; the line of a bad row is its number, from 1. Arrivals are seconds from the start of the row's own session (see `Stagger`).

    The calls of a sub-agent are a session of their own, `<session>/<agent>`, that its parent has spawned. delay_s: what the client took
    after the answer before. The model that was recorded is not read: the calls are for whatever serves them now.
    """
    reader = _Reader(faults)
    try:
        file = pq.ParquetFile(path)
        for part in file.iter_batches(BATCH_ROWS, columns=[name for name in READ if name in file.schema_arrow.names]):
            batch = reader.batch(part)
            faults.rows += batch.num_rows
            if batch.num_rows:
                yield batch
    except (pa.ArrowInvalid, OSError) as error:
        raise TraceFormatError(f"a damaged Parquet file ({str(error).splitlines()[0]})", where=str(path)) from None


class _Reader:
    def __init__(self, faults: Faults) -> None:
        self._faults, self._line = faults, 0
        self._turns: dict[str, int] = {}
        self._names: dict[str, _Names] = {}

    def batch(self, part: pa.RecordBatch) -> pa.RecordBatch:
        rows, blocks = [], []
        columns: Mapping[str, list[Any]] = {name: part.column(name).to_pylist() for name in part.schema.names if name != "block64_ids"}
        lists = part.column("block64_ids")
        for i in range(part.num_rows):
            self._line += 1
            try:
                row, own = self._row({name: values[i] for name, values in columns.items()}, lists[i])
            except RowFault as fault:
                self._faults.add(self._line, fault)
                continue
            rows.append(row)
            blocks.append(own)
        made = batch_from_rows(rows)
        return made if not rows else made.set_column(made.schema.get_field_index("blocks"), made.schema.field("blocks"), _lists(blocks))

    def _row(self, given: Mapping[str, Any], ids: pa.ListScalar) -> tuple[TraceRow, NDArray[np.int64]]:
        session, agent = (_text(name, given[name]) for name in ("session", "agent"))
        n, output = whole("input_tokens", given["input_tokens"]), given.get("output_tokens")
        at, think = seconds("t_s", given["t_s"]), given.get("think_time_s")
        known = None if output is None else whole("output_tokens", output)
        delay = None if think is None else seconds("think_time_s", think)
        blocks = self._blocks(session, ids, n)
        child = session if agent == MAIN else f"{session}/{agent}"
        turn = self._turns.get(child, 0)
        self._turns[child] = turn + 1
        parent, branch = (None, None) if agent == MAIN else (session, "spawn")
        return TraceRow(str(self._line - 1), at, n, known, session=child, parent_session=parent, branch=branch, turn=turn,
                        delay_s=delay if turn else None), blocks

    def _blocks(self, session: str, ids: pa.ListScalar, n: int) -> NDArray[np.int64]:
        values = ids.values
        if values is None or values.null_count or not (pa.types.is_integer(values.type) or not len(values)):
            raise RowFault("block64_ids", "row.type", "expected a list of ints")
        if not in_range(pa.chunked_array([values])):
            raise RowFault("block64_ids", "row.range", "expected block numbers from 0 to 2147483647")
        if len(values) and (len(values) - 1) * BLOCK_TOKENS >= n:
            raise RowFault("block64_ids", "row.blocks", f"{len(values)} blocks of {BLOCK_TOKENS} do not fit into {n} tokens")
        self._faults.fresh_tails += len(values) * BLOCK_TOKENS < n
        if session not in self._names:
            self._names[session] = _Names(session)
        return self._names[session].of(values.to_numpy(zero_copy_only=False).tolist())


class _Names(dict[int, int]):
    """What the blocks of a session are called anywhere: each is hashed once, when it is first met."""

    def __init__(self, session: str) -> None:
        super().__init__()
        self._session = session

    def __missing__(self, number: int) -> int:
        self[number] = called = session_block(self._session, number)
        return called

    def of(self, numbers: list[int]) -> NDArray[np.int64]:
        called = np.fromiter(map(self.__getitem__, numbers), dtype=np.uint64, count=len(numbers))
        return called.view(np.int64)  # the same 64 bits, as the table's column holds them


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise RowFault(name, "row.missing" if value is None else "row.type", f"expected a name, got {value!r}")
    return value


def _lists(blocks: list[NDArray[np.int64]]) -> pa.ListArray:
    ends = np.cumsum([0, *map(len, blocks)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(np.concatenate(blocks)))
