"""One measurement of planning, and the percentiles that it is made from."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement. bars: the most that value and p99 may be on a quiet machine; ratio: to the reference of the same run."""

    name: str
    unit: str
    value: float
    p99: float | None = None
    bar: float | None = None
    bar_p99: float | None = None
    ratio: float | None = None

    @property
    def passed(self) -> bool:
        return (self.bar is None or self.value <= self.bar) and (self.bar_p99 is None or self.p99 is None or self.p99 <= self.bar_p99)


def percentiles(took: Sequence[float]) -> tuple[float, float]:
    """Median and p99."""
    ordered = sorted(took)
    return ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]


@contextmanager
def no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
