"""Operations that choose rows; sessions and their children stay whole."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import check_number
from windtunnel.sources.traces.keys import Keys, Verdicts, points
from windtunnel.sources.traces.open import Trace
from windtunnel.sources.traces.row import all_null, floats_of, values_of, with_column


@dataclass(frozen=True, slots=True)
class Window:
    """Roots with t0 <= arrival < t1, with the whole of their sessions; t0 becomes 0. t1 None: to the end."""

    t0: float = 0.0
    t1: float | None = None

    def __post_init__(self) -> None:
        check_number("window.t0", self.t0)
        if self.t1 is not None:
            check_number("window.t1", self.t1, above=self.t0)

    def __call__(self, trace: Trace, salt: str) -> Trace:
        return trace.with_batches(lambda: self._kept(trace))

    def _kept(self, trace: Trace) -> Iterator[pa.RecordBatch]:
        verdicts = Verdicts()
        for batch in trace.batches():
            times = floats_of(batch, "arrival_s")
            inside = verdicts.of(batch, (times >= self.t0) & (times < (math.inf if self.t1 is None else self.t1)))
            batch = batch.filter(pa.array(inside))
            yield with_column(batch, "arrival_s", pc.subtract(batch.column("arrival_s"), float(self.t0)))


@dataclass(frozen=True, slots=True)
class Sample:
    """Whole sessions (or requests without one): each with probability p, or n of them, all equally likely."""

    p: float | None = None
    n: int | None = None

    def __post_init__(self) -> None:
        if (self.p is None) == (self.n is None):
            raise ConfigValueError("sample", "expected either p or n, and not both")
        if self.p is not None:
            check_number("sample.p", self.p, above=0, hi=1)
        else:
            check_number("sample.n", self.n, lo=1, whole=True)

    def __call__(self, trace: Trace, salt: str) -> Trace:
        return trace.with_batches(lambda: self._kept(trace, salt))

    def _kept(self, trace: Trace, salt: str) -> Iterator[pa.RecordBatch]:
        below = self.p if self.p is not None else self._threshold(trace, salt)
        keys = Keys()
        for batch in trace.batches():
            yield batch.filter(pa.array(points(salt, keys.of(batch)) < below))

    def _threshold(self, trace: Trace, salt: str) -> float:
        keys, seen = Keys(), set[float]()
        for batch in trace.batches():  # the n smallest of evenly spread points are a fair sample, in one pass
            seen.update(points(salt, keys.of(batch)).tolist())
            if len(seen) > 4 * (self.n or 0) + 4096:
                seen = set(heapq.nsmallest((self.n or 0) + 1, seen))
        smallest = heapq.nsmallest((self.n or 0) + 1, seen)
        return smallest[-1] if len(smallest) > (self.n or 0) else math.inf


@dataclass(frozen=True, slots=True)
class Splice:
    """The trace's roots before `at`, then another trace, shifted by `at`; if ids or sessions clash all get the prefixes a/ and b/."""

    other: Trace
    at: float

    def __post_init__(self) -> None:
        check_number("splice.at", self.at)

    def __call__(self, trace: Trace, salt: str) -> Trace:
        return trace.with_batches(lambda: self._both(trace), own_ids=trace.own_ids and self.other.own_ids,
                                  block_size=trace.block_size or self.other.block_size)

    def _both(self, trace: Trace) -> Iterator[pa.RecordBatch]:
        names = _names(trace)
        clash = any(not names.isdisjoint(_names_of(batch)) for batch in self.other.batches())
        for source, prefix, shift in ((_before(trace, self.at), "a/", 0.0), (self.other.batches(), "b/", float(self.at))):
            for batch in source:
                batch = _prefixed(batch, prefix) if clash else batch
                yield with_column(batch, "arrival_s", pc.add(batch.column("arrival_s"), shift))


def _before(trace: Trace, at: float) -> Iterator[pa.RecordBatch]:
    verdicts = Verdicts()
    for batch in trace.batches():
        yield batch.filter(pa.array(verdicts.of(batch, floats_of(batch, "arrival_s") < at)))


def _names_of(batch: pa.RecordBatch) -> set[str]:
    return {name for column in ("request_id", "session") for name in values_of(batch, column) if name is not None}


def _names(trace: Trace) -> set[str]:
    return set[str]().union(*(_names_of(batch) for batch in trace.batches()))


def _prefixed(batch: pa.RecordBatch, prefix: str) -> pa.RecordBatch:
    for name in ("request_id", "session", "parent_session"):
        if not all_null(batch, name):
            batch = with_column(batch, name, pc.binary_join_element_wise(pa.scalar(prefix), batch.column(name), ""))
    return batch
