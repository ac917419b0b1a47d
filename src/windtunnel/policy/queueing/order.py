"""The order in which active groups are visited: a heap by (tag, activation) with lazy deletion."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any

from windtunnel.policy.queueing.item import Group, QueueItem, QueueView

STALE_SLACK = 64


class ActiveGroup:
    """A group with waiting items. finish: its finish tag, None before its first commit; activation: of its one live heap entry, 0 none."""

    __slots__ = ("activation", "finish", "group", "head", "line")

    def __init__(self, group: Group, finish: float | None, head: QueueItem) -> None:
        self.group, self.finish, self.head = group, finish, head
        self.line: OrderedDict[str, QueueItem] = OrderedDict()
        self.activation = 0


class Order:
    """Activations are counted, so two entries never tie. enter, leave O(log groups) amortised; memory O(groups)."""

    __slots__ = ("_heap", "_live", "activations")

    def __init__(self) -> None:
        self._heap: list[tuple[Any, int, ActiveGroup]] = []
        self._live = 0
        self.activations = 0

    def enter(self, active: ActiveGroup, tag: Any) -> None:
        """The group's next place; its older entry, if any, is stale from now on."""
        self.activations += 1
        self._live += not active.activation
        active.activation = self.activations
        heap, entry = self._heap, (tag, self.activations, active)
        if heap and heap[0][2] is active:
            heapreplace(heap, entry)
            return
        heappush(heap, entry)
        if len(heap) > STALE_SLACK + 2 * self._live:
            self._heap = [e for e in heap if e[2].activation == e[1]]
            heapify(self._heap)

    def least(self) -> ActiveGroup | None:
        """The group that is first now; None if none is active."""
        heap = self._heap
        while heap and heap[0][2].activation != heap[0][1]:
            heappop(heap)
        return heap[0][2] if heap else None

    def leave(self, active: ActiveGroup) -> None:
        """The group has nothing left to visit."""
        active.activation = 0
        self._live -= 1
        if self._heap and self._heap[0][2] is active:
            heappop(self._heap)

    def first(self, eligible: Callable[[QueueItem, QueueView], bool], view: QueueView) -> QueueItem | None:
        """The first eligible head. The order is as before, whatever `eligible` says or raises."""
        heap = self._heap
        passed: list[tuple[Any, int, ActiveGroup]] = []
        try:
            while heap:
                _, activation, active = heap[0]
                if active.activation != activation:
                    heappop(heap)
                elif eligible(active.head, view):
                    return active.head
                else:
                    passed.append(heappop(heap))
        finally:
            for entry in passed:
                heappush(heap, entry)
        return None
