"""One row of a trace, and batches of rows as Arrow columns: the one table that all formats are read into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

BATCH_ROWS = 8192
INT32_MAX = 2**31 - 1
SCHEMA = pa.schema([
    pa.field("request_id", pa.string(), nullable=False),
    pa.field("arrival_s", pa.float64()),
    pa.field("input_tokens", pa.int32(), nullable=False),
    pa.field("output_tokens", pa.int32()),
    pa.field("tenant", pa.string()),
    pa.field("priority", pa.string()),
    pa.field("model", pa.string()),
    pa.field("session", pa.string()),
    pa.field("parent_session", pa.string()),
    pa.field("branch", pa.string()),
    pa.field("turn", pa.int32()),
    pa.field("delay_s", pa.float64()),
    pa.field("deadline_in_s", pa.float64()),
    pa.field("subagent_type", pa.string()),
    pa.field("blocks", pa.list_(pa.int64())),
    pa.field("messages", pa.string()),
])


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a trace; unknown is None, never 0.

    arrival_s: s from the trace's zero, None for a later turn that comes `delay_s` after the one before it. deadline_in_s: s after
    the arrival. priority: `interactive` or `batch`. branch: `fork` or `spawn`. blocks: prefix-chained ids of the prompt's blocks.
    """

    request_id: str
    arrival_s: float | None
    input_tokens: int
    output_tokens: int | None = None
    tenant: str | None = None
    priority: str | None = None
    model: str | None = None
    session: str | None = None
    parent_session: str | None = None
    branch: str | None = None
    turn: int | None = None
    delay_s: float | None = None
    deadline_in_s: float | None = None
    subagent_type: str | None = None
    blocks: tuple[int, ...] | None = None
    messages: str | None = None


NAMES = tuple(f.name for f in fields(TraceRow))


def batch_of(columns: Mapping[str, Any], n: int) -> pa.RecordBatch:
    """A batch of n rows from Arrow arrays, NumPy arrays or lists by column name; columns that are not given are null."""
    return pa.RecordBatch.from_arrays([_column(columns.get(f.name), f.type, n) for f in SCHEMA], schema=SCHEMA)


def batch_from_rows(rows: Sequence[TraceRow]) -> pa.RecordBatch:
    """A batch of these rows."""
    return batch_of({name: [getattr(row, name) for row in rows] for name in NAMES}, len(rows))


def rows_of(batch: pa.RecordBatch) -> Iterator[TraceRow]:
    """The rows of a batch."""
    for values in zip(*(values_of(batch, name) for name in NAMES)):
        yield TraceRow(*values)


def values_of(batch: pa.RecordBatch, name: str) -> list[Any]:
    """A column as Python values; blocks as tuples."""
    column = batch.column(name)
    if column.null_count == len(column):
        return [None] * len(column)
    if name == "blocks":
        return _block_tuples(column)
    if column.null_count or pa.types.is_string(column.type):
        return list(column.to_pylist())
    return list(column.to_numpy(zero_copy_only=False).tolist())


def all_null(batch: pa.RecordBatch, name: str) -> bool:
    """True if no row of the batch has a value in this column."""
    return bool(batch.column(name).null_count == batch.num_rows)


def floats_of(batch: pa.RecordBatch, name: str) -> NDArray[np.float64]:
    """A numeric column as float64, unknown as NaN."""
    values: NDArray[np.float64] = batch.column(name).to_numpy(zero_copy_only=False).astype(np.float64, copy=False)
    return values


def with_column(batch: pa.RecordBatch, name: str, values: Any) -> pa.RecordBatch:
    """The batch with one column replaced."""
    i = SCHEMA.get_field_index(name)
    return batch.set_column(i, SCHEMA.field(i), _column(values, SCHEMA.field(i).type, batch.num_rows))


def rebatch(table: pa.Table) -> Iterator[pa.RecordBatch]:
    """A table as batches of at most 8192 rows."""
    return iter(table.combine_chunks().to_batches(max_chunksize=BATCH_ROWS))


def _column(values: Any, kind: pa.DataType, n: int) -> pa.Array:
    if values is None:
        return pa.nulls(n, kind)
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.Array):
        return values if values.type == kind else values.cast(kind)
    return pa.array(values, kind)


def _block_tuples(column: pa.ListArray) -> list[tuple[int, ...] | None]:
    offsets = column.offsets.to_numpy()
    flat = column.values.slice(offsets[0], offsets[-1] - offsets[0]).to_numpy(zero_copy_only=False).tolist()
    ends = (offsets - offsets[0]).tolist()
    cut: list[tuple[int, ...] | None] = [tuple(flat[a:b]) for a, b in pairwise(ends)]
    return [None if null else ids for ids, null in zip(cut, column.is_null().to_pylist())] if column.null_count else cut
