"""Operations that change the load: its speed, its size, its lengths."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from windtunnel.policy.param import check_number
from windtunnel.sources.traces.keys import Keys, points
from windtunnel.sources.traces.open import Trace
from windtunnel.sources.traces.prompts import scramble
from windtunnel.sources.traces.row import INT32_MAX, SCHEMA, all_null, floats_of, rebatch, with_column


@dataclass(frozen=True, slots=True)
class TimeScale:
    """Arrivals x f (0.5: twice as fast); delays and deadlines too if `delays`."""

    f: float
    delays: bool = False

    def __post_init__(self) -> None:
        check_number("time_scale.f", self.f, above=0)

    def __call__(self, trace: Trace, salt: str) -> Trace:
        names = ("arrival_s", "delay_s", "deadline_in_s") if self.delays else ("arrival_s",)
        return trace.with_batches(lambda: (self._one(batch, names) for batch in trace.batches()))

    def _one(self, batch: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
        for name in names:
            batch = with_column(batch, name, pc.multiply(batch.column(name), self.f))
        return batch


@dataclass(frozen=True, slots=True)
class RateScale:
    """f times the load over the same span. f < 1 keeps a root with probability f; f > 1 makes floor(f) copies, one more with the rest.

    Copies get the suffix `~c` on ids and sessions, arrivals later by U(0, jitter_s) (None: 1 / mean rate), and block ids of their
    own unless share_prefix.
    """

    f: float
    jitter_s: float | None = None
    share_prefix: bool = False

    def __post_init__(self) -> None:
        check_number("rate_scale.f", self.f, above=0)
        if self.jitter_s is not None:
            check_number("rate_scale.jitter_s", self.jitter_s, lo=0)

    def __call__(self, trace: Trace, salt: str) -> Trace:
        return trace.with_batches(lambda: self._few(trace, salt) if self.f <= 1 else self._many(trace, salt))

    def _few(self, trace: Trace, salt: str) -> Iterator[pa.RecordBatch]:
        keys = Keys()
        for batch in trace.batches():
            yield batch.filter(pa.array(points(salt, keys.of(batch)) < self.f))

    def _many(self, trace: Trace, salt: str) -> Iterator[pa.RecordBatch]:
        jitter = _mean_gap(trace) if self.jitter_s is None else self.jitter_s
        copies, rest = math.floor(self.f), self.f - math.floor(self.f)
        keys, held = Keys(), SCHEMA.empty_table()
        for batch in trace.batches():
            names = keys.of(batch)
            made = [batch]
            for c in range(1, copies + 1):
                part, chosen = batch, names
                if c == copies:  # the copy that only some roots get
                    luck = points(salt, names) < rest
                    part, chosen = batch.filter(pa.array(luck)), [name for name, lucky in zip(names, luck) if lucky]
                shift = points(f"{salt}~{c}", chosen) * jitter
                made.append(_copy(part, f"~{c}", None if self.share_prefix else c, shift))
            ready, held = _settle(pa.concat_tables([held, *(pa.Table.from_batches([b], SCHEMA) for b in made)]), batch)
            yield from rebatch(ready)
        yield from rebatch(held)


@dataclass(frozen=True, slots=True)
class Clamp:
    """Longer prompts and answers are cut to these many tokens; blocks beyond the cut are dropped."""

    max_input: int | None = None
    max_output: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_input", "max_output"):
            if getattr(self, name) is not None:
                check_number(f"clamp.{name}", getattr(self, name), lo=1, whole=True)

    def __call__(self, trace: Trace, salt: str) -> Trace:
        return trace.with_batches(lambda: (self._one(batch, trace.block_size) for batch in trace.batches()))

    def _one(self, batch: pa.RecordBatch, block_size: int | None) -> pa.RecordBatch:
        for name, top in (("input_tokens", self.max_input), ("output_tokens", self.max_output)):
            if top is not None:
                batch = with_column(batch, name, pc.min_element_wise(batch.column(name), pa.scalar(top, pa.int32()), skip_nulls=False))
        if self.max_input is None or block_size is None or all_null(batch, "blocks"):
            return batch
        return with_column(batch, "blocks", _cut(batch.column("blocks"), np.ceil(floats_of(batch, "input_tokens") / block_size)))


@dataclass(frozen=True, slots=True)
class ScaleTokens:
    """Token counts x these factors, rounded half up, at least 1; scaled prompts lose their blocks."""

    input: float | None = None
    output: float | None = None

    def __post_init__(self) -> None:
        for name in ("input", "output"):
            if getattr(self, name) is not None:
                check_number(f"scale_tokens.{name}", getattr(self, name), above=0)

    def __call__(self, trace: Trace, salt: str) -> Trace:
        return trace.with_batches(lambda: (self._one(batch) for batch in trace.batches()))

    def _one(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        for name, factor in (("input_tokens", self.input), ("output_tokens", self.output)):
            if factor is not None:
                counts = np.clip(np.floor(floats_of(batch, name) * factor + 0.5), 1, INT32_MAX)
                batch = with_column(batch, name, pa.array(counts, mask=np.isnan(counts)).cast(pa.int32()))
        return batch if self.input is None else with_column(batch, "blocks", None)


@dataclass(frozen=True, slots=True)
class Repeat:
    """The trace k times, one after the other, a mean gap between them; copies as in `RateScale`."""

    k: int
    share_prefix: bool = False

    def __post_init__(self) -> None:
        check_number("repeat.k", self.k, lo=1, whole=True)

    def __call__(self, trace: Trace, salt: str) -> Trace:
        return trace.with_batches(lambda: self._all(trace))

    def _all(self, trace: Trace) -> Iterator[pa.RecordBatch]:
        yield from trace.batches()
        n, first, last = _extent(trace) if self.k > 1 else (0, 0.0, 0.0)
        period = (last - first) * (n / (n - 1)) if n > 1 else 0.0
        for c in range(1, self.k):
            for batch in trace.batches():
                yield _copy(batch, f"~{c}", None if self.share_prefix else c, np.full(batch.num_rows, c * period))


@dataclass(frozen=True, slots=True)
class Shift:
    """Arrivals s seconds later (a source that starts at the first arrival takes this away again)."""

    s: float

    def __post_init__(self) -> None:
        check_number("shift.s", self.s)

    def __call__(self, trace: Trace, salt: str) -> Trace:
        return trace.with_batches(
            lambda: (with_column(b, "arrival_s", pc.add(b.column("arrival_s"), float(self.s))) for b in trace.batches()))


@dataclass(frozen=True, slots=True)
class Stagger:
    """The sessions of a trace one after another: every_s later for each one before it in the file, its children with it. For traces whose
    times count from the start of each session."""

    every_s: float

    def __post_init__(self) -> None:
        check_number("stagger.every_s", self.every_s, lo=0)

    def __call__(self, trace: Trace, salt: str) -> Trace:
        return trace.with_batches(lambda: self._moved(trace))

    def _moved(self, trace: Trace) -> Iterator[pa.RecordBatch]:
        keys, place = Keys(), dict[str, int]()
        for batch in trace.batches():
            at = [place.setdefault(key, len(place)) for key in keys.of(batch)]
            yield with_column(batch, "arrival_s", pc.add(batch.column("arrival_s"), pa.array(np.array(at) * float(self.every_s))))


def _extent(trace: Trace) -> tuple[int, float, float]:
    """Rows with an arrival time, the first and the last time."""
    n, first, last = 0, math.inf, -math.inf
    for batch in trace.batches():
        times = batch.column("arrival_s").drop_null().to_numpy()
        if times.size:
            n, first, last = n + times.size, min(first, times.min()), max(last, times.max())
    return n, float(first), float(last)


def _mean_gap(trace: Trace) -> float:
    n, first, last = _extent(trace)
    return (last - first) / n if n else 0.0


def _cut(blocks: pa.ListArray, fit: NDArray[np.float64]) -> pa.ListArray:
    """Lists of at most so many blocks each."""
    ends = blocks.offsets.to_numpy().astype(np.int64) - blocks.offsets[0].as_py()
    lengths = np.diff(ends)
    kept = np.minimum(lengths, fit.astype(np.int64))
    if (kept == lengths).all():
        return blocks
    inside = np.arange(ends[-1]) - np.repeat(ends[:-1], lengths) < np.repeat(kept, lengths)
    values = blocks.values.slice(blocks.offsets[0].as_py(), int(ends[-1])).filter(pa.array(inside))
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *kept], dtype=np.int32)), values, mask=blocks.is_null())


def _copy(batch: pa.RecordBatch, suffix: str, blocks_of: int | None, shift: NDArray[np.float64]) -> pa.RecordBatch:
    for name in ("request_id", "session", "parent_session"):
        if not all_null(batch, name):
            batch = with_column(batch, name, pc.binary_join_element_wise(batch.column(name), suffix, ""))
    batch = with_column(batch, "arrival_s", pc.add(batch.column("arrival_s"), pa.array(shift)))
    blocks = batch.column("blocks")
    if blocks_of is None or all_null(batch, "blocks"):
        return batch
    ends = blocks.offsets.to_numpy()
    ids = blocks.values.slice(ends[0], ends[-1] - ends[0]).to_numpy().view(np.uint64)
    own = (scramble(blocks_of, ids) >> np.uint64(1)).view(np.int64)  # 63 bits: a signed column holds them
    made = pa.ListArray.from_arrays(pa.array(ends - ends[0]), pa.array(own), mask=blocks.is_null())
    return with_column(batch, "blocks", made)


def _settle(table: pa.Table, batch: pa.RecordBatch) -> tuple[pa.Table, pa.Table]:
    """What no later copy can come before, in order of time, and the rest. Without times for all rows nothing waits or moves."""
    if table.column("arrival_s").null_count or all_null(batch, "arrival_s"):
        return table, SCHEMA.empty_table()
    times = table.column("arrival_s").to_numpy()
    order = np.argsort(times, kind="stable")
    table = table.take(pa.array(order))
    ready = int(np.searchsorted(times[order], batch.column("arrival_s").to_numpy().max(), side="right"))
    return table.slice(0, ready), table.slice(ready)
