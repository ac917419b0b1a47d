"""Fair between groups, earliest deadline first within one."""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heappop, heappush
from math import inf

from windtunnel.policy.queueing.fair import FairTaskQueue
from windtunnel.policy.queueing.item import QueueItem
from windtunnel.policy.queueing.order import ActiveGroup

Place = tuple[float, int, str]  # deadline (inf: none), number of arrival, item
SLACK = 64


class FairEdfQueue(FairTaskQueue):
    """The fair queue whose groups are served by deadline: the earliest first, those without last, ties by arrival.

    Shares are those of the fair queue: a deadline moves a request past those of its own group only. A restored item is the first among
    equals. offer, commit, discard O(log items) amortised.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lines: dict[str, list[Place]] = {}
        self._numbers: dict[str, int] = {}  # of the live entry of each item
        self._came = self._returned = 0

    def _add(self, item: QueueItem, *, front: bool = False) -> None:
        super()._add(item, front=front)
        if front:
            self._returned -= 1
        else:
            self._came += 1
        number = self._numbers[item.id] = self._returned if front else self._came
        heappush(self._lines.setdefault(item.group.key, []), (inf if item.deadline is None else item.deadline, number, item.id))
        self._settle_head(self._where[item.id])

    def _remove(self, active: ActiveGroup, item: QueueItem) -> None:
        del self._numbers[item.id]
        super()._remove(active, item)
        if active.line:
            self._settle_head(active)
        else:
            del self._lines[active.group.key]

    def _settle_head(self, active: ActiveGroup) -> None:
        """The item with the earliest deadline leads the group."""
        heap, numbers = self._lines[active.group.key], self._numbers
        if len(heap) > SLACK + 2 * len(active.line):
            heap[:] = [place for place in heap if numbers.get(place[2]) == place[1]]
            heapify(heap)
        while numbers.get(heap[0][2]) != heap[0][1]:
            heappop(heap)
        head = active.line[heap[0][2]]
        if head is not active.head:
            self._head_changes(active, head, active.group.weight)

    def lines(self) -> Mapping[str, Mapping[str, QueueItem]]:
        """Waiting items by group and id, each group in its order. O(items log items)."""
        numbers = self._numbers
        return {key: {place[2]: active.line[place[2]] for place in sorted(self._lines[key]) if numbers.get(place[2]) == place[1]}
                for key, active in self._active.items()}
