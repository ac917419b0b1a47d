"""The own Parquet format: all columns of a trace, with what the file is and where it came from in its metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from windtunnel.errors import TraceFormatError
from windtunnel.events import PRIORITIES
from windtunnel.sources.traces.azure import ids, in_range
from windtunnel.sources.traces.lines import Faults, RowFault, seconds, whole
from windtunnel.sources.traces.row import BATCH_ROWS, NAMES, SCHEMA, TraceRow, batch_from_rows, batch_of, floats_of

if TYPE_CHECKING:
    from windtunnel.sources.traces.open import Trace

VERSION = "1"
TIMES = ("arrival_s", "delay_s", "deadline_in_s")
COUNTS = ("input_tokens", "output_tokens", "turn")
TEXTS = tuple(f.name for f in SCHEMA if f.type == pa.string() and f.name != "request_id")


def refuses(path: Path, first: bytes) -> str | None:
    """Why this is no such file, or None: any Parquet file whose columns are a trace's is taken."""
    if not first.startswith(b"PAR1"):
        return "not a Parquet file"
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        return f"a damaged Parquet file ({str(error).splitlines()[0]})"
    version = _text(schema.metadata or {}, "windtunnel.trace_version", VERSION)
    if version != VERSION:
        return f"written by a newer version (trace_version {version})"
    strange = [name for name in schema.names if name not in NAMES]
    if strange or "input_tokens" not in schema.names:
        return f"unknown columns {', '.join(strange)}" if strange else "no column input_tokens"
    return None


def about(path: Path) -> dict[str, Any]:
    """block_size, block_scope, own_ids, source, licence and time_zero of a file."""
    schema = pq.read_schema(path)
    given = schema.metadata or {}
    size = _text(given, "block_size", "")
    return {"block_size": int(size) if size.isdecimal() else None, "block_scope": _text(given, "block_scope", "global"),
            "own_ids": "request_id" in schema.names and _text(given, "ids", "own") == "own",
            "source": _text(given, "source", ""), "licence": _text(given, "licence", ""), "time_zero": _text(given, "time_zero", "")}


def batches(path: Path, faults: Faults) -> Iterator[pa.RecordBatch]:
    """Batches of at most 8192 rows; the line of a bad row is its number, from 1."""
    first = 1
    try:
        for part in pq.ParquetFile(path).iter_batches(BATCH_ROWS):
            batch = _bulk(part, first)
            if batch is None:
                batch = _careful(part, first, faults)
            first += part.num_rows
            faults.rows += batch.num_rows
            if batch.num_rows:
                yield batch
    except (pa.ArrowInvalid, OSError) as error:
        raise TraceFormatError(f"a damaged Parquet file ({str(error).splitlines()[0]})", where=str(path)) from None


def write(trace: Trace, path: Path) -> None:
    """Write a trace; equal traces give equal bytes."""
    metadata = {"windtunnel.trace_version": VERSION, "block_size": str(trace.block_size or ""), "block_scope": trace.block_scope,
                "ids": "own" if trace.own_ids else "generated", "source": trace.source, "licence": trace.licence,
                "time_zero": trace.time_zero}
    schema = SCHEMA.with_metadata(metadata)
    with pq.ParquetWriter(path, schema, compression="zstd") as out:
        for batch in trace.batches():
            out.write_batch(batch.replace_schema_metadata(metadata))


def _bulk(part: pa.RecordBatch, first: int) -> pa.RecordBatch | None:
    names = set(part.schema.names)
    columns: dict[str, Any] = {name: part.column(name) for name in names}
    columns.setdefault("request_id", ids(first - 1, part.num_rows))
    try:
        if not all(_is_of_type(name, columns[name]) for name in names):
            return None
        batch = batch_of(columns, part.num_rows)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, TypeError):
        return None
    return batch if _is_clean(batch) else None


def _is_of_type(name: str, column: pa.Array) -> bool:
    kind = column.type
    if pa.types.is_null(kind):
        return True
    if name in COUNTS:
        return pa.types.is_integer(kind) and in_range(pa.chunked_array([column]))
    return name not in TEXTS or pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)


def _is_clean(batch: pa.RecordBatch) -> bool:
    if batch.column("request_id").null_count or batch.column("input_tokens").null_count:
        return False
    for name in TIMES:
        known = batch.column(name).drop_null()
        if len(known) and not (pc.all(pc.is_finite(known)).as_py() and pc.min(known).as_py() >= 0):
            return False
    if batch.column("blocks").values.null_count or (batch.column("arrival_s").null_count and not _turns_follow(batch)):
        return False
    priority, branch = batch.column("priority").drop_null(), batch.column("branch").drop_null()
    return set(pc.unique(priority).to_pylist()) <= set(PRIORITIES) and set(pc.unique(branch).to_pylist()) <= {"fork", "spawn"}


def _turns_follow(batch: pa.RecordBatch) -> bool:
    lost = floats_of(batch, "arrival_s") != floats_of(batch, "arrival_s")
    return not batch.column("session").filter(pa.array(lost)).null_count


def _careful(part: pa.RecordBatch, first: int, faults: Faults) -> pa.RecordBatch:
    rows = []
    for line, given in enumerate(part.to_pylist(), first):
        try:
            rows.append(_row(given, line))
        except RowFault as fault:
            faults.add(line, fault)
    return batch_from_rows(rows)


def _row(given: Mapping[str, Any], line: int) -> TraceRow:
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for name in ("request_id", "input_tokens"):
        if name in given and name not in values:
            raise RowFault(name, "row.missing", "expected a value, got null")
    for name in TIMES:
        if name in values:
            values[name] = seconds(name, values[name])
    for name in COUNTS:
        if name in values:
            whole(name, values[name])
    for name in TEXTS:
        if not isinstance(values.get(name, ""), str):
            raise RowFault(name, "row.type", f"expected a string, got {values[name]!r}")
    for name, known in (("priority", tuple(PRIORITIES)), ("branch", ("fork", "spawn"))):
        if name in values and values[name] not in known:
            raise RowFault(name, "row.range", f"expected {' or '.join(known)}, got {values[name]!r}")
    if "arrival_s" not in values and "session" not in values:
        raise RowFault("arrival_s", "row.missing", "expected a time in s; only a later turn of a session has none")
    if "blocks" in values:
        values["blocks"] = _blocks(values["blocks"])
    return TraceRow(**{"request_id": str(line - 1), "arrival_s": None, **values})


def _blocks(given: Any) -> tuple[int, ...]:
    if not isinstance(given, list) or any(not isinstance(i, int) for i in given):
        raise RowFault("blocks", "row.type", "expected a list of ints")
    return tuple(given)


def _text(metadata: Mapping[bytes, bytes], key: str, default: str) -> str:
    return metadata.get(key.encode(), default.encode()).decode()
