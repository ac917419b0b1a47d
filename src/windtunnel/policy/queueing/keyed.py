"""One line in the order of a key that is fixed when an item is offered: what ageing classes and earliest deadline share."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Mapping
from heapq import heapify, heappop, heappush
from typing import Any

from windtunnel.errors import PolicyError
from windtunnel.policy.queueing.clocked import Clocked
from windtunnel.policy.queueing.deadlines import Deadlines
from windtunnel.policy.queueing.fair import Eligible
from windtunnel.policy.queueing.item import HeadStats, Offered, QueueItem, QueueView, ResourceVector, Selection, Shed

SLACK = 64


class KeyedQueue(Clocked):
    """The smallest key first, ties by order of arrival. Blocked items are passed over, one after the other.

    A restored item keeps its key and its place among equals. offer, commit, discard O(log n); select O((1 + blocked) log n). Keys are also
    kept as a sorted list: an insertion moves pointers in one block, so 100 000 waiting items cost microseconds.
    """

    def __init__(self, key: Callable[[QueueItem], Any]) -> None:
        super().__init__()
        self._key = key
        self._heap: list[tuple[Any, int, QueueItem]] = []
        self._items: dict[str, tuple[int, QueueItem]] = {}
        self._keys: list[Any] = []
        self._deadlines = Deadlines()
        self._offered = self._restored = 0

    def __len__(self) -> int:
        return len(self._items)

    def offer(self, items: Iterable[QueueItem], now: float) -> Offered:
        """Queue the items; an id that is queued already is reported and changes nothing; `refusal` may turn a newcomer away."""
        self._tick(now)
        accepted: list[QueueItem] = []
        duplicates: list[str] = []
        rejected: list[Shed] = []
        for item in items:
            if item.id in self._items:
                duplicates.append(item.id)
                continue
            refused = self.refusal(item, now)
            if refused is not None:
                rejected.append(refused)
                continue
            self._offered += 1
            self._add(item, self._offered)
            accepted.append(item)
        if accepted:
            self.sequence_version += 1
        return Offered(tuple(accepted), tuple(duplicates), tuple(rejected))

    def refusal(self, item: QueueItem, now: float) -> Shed | None:
        """Why a newcomer is not let in; None: it is."""
        return None

    def _add(self, item: QueueItem, place: int) -> None:
        heap, key = self._heap, self._key(item)
        heappush(heap, (key, place, item))
        insort(self._keys, key)
        self._items[item.id] = (place, item)
        self._deadlines.add(item)
        if len(heap) > SLACK + 2 * len(self._items):
            self._heap = [e for e in heap if self._is_live(e)]
            heapify(self._heap)

    def _is_live(self, entry: tuple[Any, int, QueueItem]) -> bool:
        known = self._items.get(entry[2].id)
        return known is not None and known[0] == entry[1]

    def shed(self, now: float) -> tuple[Shed, ...]:
        return ()

    def select(self, eligible: Eligible, now: float) -> Selection | None:
        """The first eligible item in order; nothing changes, whatever `eligible` does."""
        self._look(now)
        heap, view = self._heap, self.view()
        passed: list[tuple[Any, int, QueueItem]] = []
        try:
            while heap:
                if not self._is_live(heap[0]):
                    heappop(heap)
                elif eligible(heap[0][2], view):
                    return Selection(heap[0][2], view, self.sequence_version)
                else:
                    passed.append(heappop(heap))
        finally:
            for entry in passed:
                heappush(heap, entry)
        return None

    def commit(self, selection: Selection, now: float) -> QueueItem | None:
        """Take the selected item; None if the queue has moved on since, or it is gone."""
        self._tick(now)
        known = self._items.get(selection.item.id)
        if selection.sequence_version != self.sequence_version or known is None:
            return None
        return self._take(known[1].id)

    def restore(self, item: QueueItem, now: float) -> None:
        """Back to its place. Raises PolicyError if it is still queued."""
        self._tick(now)
        if item.id in self._items:
            raise PolicyError(f"item {item.id!r} was restored while it is queued")
        self._restored -= 1
        self._add(item, self._restored)  # among equals it is the oldest
        self.sequence_version += 1

    def straight(self, item: QueueItem, now: float) -> bool:
        """offer + select + commit in one, on an empty queue that lets it in; False, and nothing done, otherwise."""
        if self._items or self.refusal(item, now) is not None:
            return False
        self._tick(now)
        self.sequence_version += 2
        return True

    def discard(self, item_id: str, now: float) -> QueueItem | None:
        """Take an item out of the line; None if it is not queued."""
        self._tick(now)
        return self._take(item_id)

    def _take(self, item_id: str) -> QueueItem | None:
        try:
            known = self._items.pop(item_id, None)
        except TypeError:  # not even hashable: nobody's id
            return None
        if known is None:
            return None
        self._deadlines.remove(item_id)
        del self._keys[bisect_left(self._keys, self._key(known[1]))]
        self.sequence_version += 1
        return known[1]

    def ahead(self, item: QueueItem, now: float) -> int:
        """Waiting items that go before this one, which waits or has yet to come: those with a smaller key and, before it is queued or while
        it is the youngest, those with an equal one."""
        known = self._items.get(item.id)
        if known is not None and known[0] != self._offered:
            return bisect_left(self._keys, self._key(item))
        return bisect_right(self._keys, self._key(item)) - (known is not None)

    def discard_where(self, pred: Callable[[QueueItem], bool], now: float) -> tuple[QueueItem, ...]:
        """Take out all items that `pred` names, in order of arrival. O(items)."""
        doomed = tuple(item for _, item in self._items.values() if pred(item))
        for item in doomed:
            self.discard(item.id, now)
        return doomed

    def view(self) -> QueueView:
        return QueueView(self, self.sequence_version)

    def head(self) -> QueueItem | None:
        """The first in line, eligible or not."""
        heap = self._heap
        while heap and not self._is_live(heap[0]):
            heappop(heap)
        return heap[0][2] if heap else None

    def lines(self) -> Mapping[str, Mapping[str, QueueItem]]:
        """Waiting items by group and id, each group in order. O(n log n)."""
        lines: dict[str, dict[str, QueueItem]] = {}
        for _, item in sorted(self._items.values(), key=lambda placed: (self._key(placed[1]), placed[0])):
            lines.setdefault(item.group.key, {})[item.id] = item
        return lines

    def heads_by_shape(self) -> Mapping[ResourceVector, HeadStats]:
        """Only the head of the line counts."""
        head = self.head()
        return {} if head is None else {head.resources: HeadStats(1, {head.group.weight: 1})}

    def next_deadline(self) -> float | None:
        """The earliest deadline that waits, run s."""
        first = self._deadlines.first()
        return None if first is None else first[0]
