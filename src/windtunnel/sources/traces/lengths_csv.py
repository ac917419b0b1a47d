"""The smallest request file: `arrival_s,input_tokens,output_tokens`, as load generators write it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from windtunnel.sources.traces.azure import fields_of, ids, in_range, read_plain_csv
from windtunnel.sources.traces.lines import Faults, RowFault, not_header, read, seconds, whole_text
from windtunnel.sources.traces.row import TraceRow, batch_of

NAMES = ("arrival_s", "input_tokens", "output_tokens")
HEADER = ",".join(NAMES).encode()


def refuses(path: Path, first: bytes) -> str | None:
    """Why this is no such file, or None."""
    return not_header(first, NAMES)


def batches(path: Path, faults: Faults) -> Iterator[pa.RecordBatch]:
    """Batches; an empty output_tokens is unknown."""
    return read(path, _Lengths(), faults)


class _Lengths:
    header: bytes | None = HEADER

    def bulk(self, lines: Sequence[bytes], first: int) -> pa.RecordBatch | None:
        table = read_plain_csv(lines, {"arrival_s": pa.float64(), "input_tokens": pa.int64(), "output_tokens": pa.int64()}, nulls=("",))
        if table is None or table["arrival_s"].null_count or table["input_tokens"].null_count:
            return None
        times = table["arrival_s"].to_numpy()
        good = in_range(table["input_tokens"]) and in_range(table["output_tokens"]) and np.isfinite(times).all() and times.min() >= 0
        if not good:
            return None
        columns = {name: table[name] for name in NAMES}
        return batch_of({"request_id": ids(first - 2, len(times)), **columns}, len(times))

    def row(self, text: str, line: int) -> TraceRow:
        arrival, input_tokens, output_tokens = fields_of(text, NAMES)
        try:
            at = float(arrival)
        except ValueError:
            raise RowFault("arrival_s", "row.type" if arrival else "row.missing", f"expected a number >= 0, got {arrival[:40]!r}") from None
        known = whole_text("output_tokens", output_tokens) if output_tokens else None
        return TraceRow(str(line - 2), seconds("arrival_s", at), whole_text("input_tokens", input_tokens), known)
