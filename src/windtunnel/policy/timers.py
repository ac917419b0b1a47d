"""The clocks of open requests: one heap per wake key, no timer per request."""

from __future__ import annotations

from heapq import heappop, heappush


class Timers:
    """Entries (at, request id, dispatch, kind) in time order; entries of requests that ended are dropped when met.

    O(log n) to add; the owner asks `first()` for the next wake and `due(now)` for what fired.
    """

    __slots__ = ("_heap", "_n")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str, int, str]] = []
        self._n = 0

    def add(self, at: float, request_id: str, dispatch: int, kind: str) -> None:
        self._n += 1
        heappush(self._heap, (at, self._n, request_id, dispatch, kind))

    def first(self) -> float | None:
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[tuple[str, int, str]]:
        """Entries with `at <= now`, removed, in order of time then of adding."""
        fired = []
        heap = self._heap
        while heap and heap[0][0] <= now:
            _, _, request_id, dispatch, kind = heappop(heap)
            fired.append((request_id, dispatch, kind))
        return fired

    def __len__(self) -> int:
        return len(self._heap)
