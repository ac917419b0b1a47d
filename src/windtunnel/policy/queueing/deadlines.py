"""The waiting items that have a deadline, earliest first."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from windtunnel.policy.queueing.item import QueueItem

SLACK = 64


class Deadlines:
    """A heap with lazy deletion: add, remove and first are O(log n) amortised; memory stays O(items watched)."""

    __slots__ = ("_added", "_heap", "_live")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str]] = []
        self._live: dict[str, int] = {}
        self._added = 0

    def add(self, item: QueueItem) -> None:
        """Watch an item; one without a deadline is ignored."""
        if item.deadline is None:
            return
        self._added += 1
        self._live[item.id] = self._added
        heappush(self._heap, (item.deadline, self._added, item.id))
        if len(self._heap) > SLACK + 2 * len(self._live):
            self._heap = [e for e in self._heap if self._live.get(e[2]) == e[1]]
            heapify(self._heap)

    def remove(self, item_id: str) -> None:
        self._live.pop(item_id, None)

    def first(self) -> tuple[float, str] | None:
        """(deadline in run s, item id) of the earliest, ties in the order added; None if nothing is watched."""
        heap, live = self._heap, self._live
        while heap:
            deadline, added, item_id = heap[0]
            if live.get(item_id) == added:
                return deadline, item_id
            heappop(heap)
        return None
