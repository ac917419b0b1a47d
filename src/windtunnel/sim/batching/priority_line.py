"""The engine's queue by priority class: who is more urgent goes first, then who arrived first; a preempted request keeps its place."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush

from windtunnel.sim.attempt import Attempt


class PriorityLine:
    """As much of a deque as an engine's queue uses. O(log n)."""

    __slots__ = ("_arrivals", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Attempt]] = []
        self._arrivals = 0

    def append(self, a: Attempt) -> None:
        """In line: at the end of its class, or where it was before."""
        if not a.line:
            self._arrivals += 1
            a.line = self._arrivals
        heappush(self._heap, (a.priority, a.line, a))

    def popleft(self) -> Attempt:
        return heappop(self._heap)[2]

    def __getitem__(self, i: int) -> Attempt:
        """Only the first one (i = 0) is in any order."""
        return self._heap[i][2]

    def __iter__(self) -> Iterator[Attempt]:
        return (a for _, _, a in sorted(self._heap, key=lambda entry: entry[:2]))

    def clear(self) -> None:
        self._heap.clear()
