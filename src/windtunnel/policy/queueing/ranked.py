"""Who came before whom: places in order of class and arrival, beside whatever order a queue serves in."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable

from windtunnel.policy.queueing.fair import Eligible, Queue
from windtunnel.policy.queueing.item import Offered, QueueItem, QueueView, Selection, Shed

Place = tuple[float, int]


class RankedQueue:
    """Wraps any queue and changes nothing in it. waiting: what is in it already, in order of arrival.

    Keeps the arrivals of each class as a sorted list: an entry or exit moves pointers in one block, `position` is O(classes + log n). It is
    put around a lane's queue when somebody first asks, so that runs in which nobody asks do not pay for it.
    """

    def __init__(self, inner: Queue, waiting: Iterable[QueueItem] = ()) -> None:
        self.inner = inner
        self.needs: frozenset[str] = getattr(inner, "needs", frozenset())
        self.straight: Callable[[QueueItem, float], bool] = inner.straight
        self._lines: dict[int, list[Place]] = {}
        self._places: dict[str, tuple[int, Place]] = {}
        self._came = self._returned = 0
        for item in waiting:
            self._enter(item)

    @property
    def sequence_version(self) -> int:
        return self.inner.sequence_version

    def __len__(self) -> int:
        return len(self.inner)

    def position(self, item_id: str) -> int | None:
        """Waiting items of more urgent classes, and those of its own that came before it; 0: nobody. None if it does not wait."""
        found = self._places.get(item_id)
        if found is None:
            return None
        cls, place = found
        return sum(len(line) for other, line in self._lines.items() if other < cls) + bisect_left(self._lines[cls], place)

    def _enter(self, item: QueueItem, *, returned: bool = False) -> None:
        if returned:
            self._returned -= 1
        else:
            self._came += 1
        place = (item.arrived_at, self._returned if returned else self._came)  # of equal times, who has been served once was before
        self._places[item.id] = item.priority, place
        insort(self._lines.setdefault(item.priority, []), place)

    def _leave(self, item: QueueItem | None) -> QueueItem | None:
        if item is not None:
            cls, place = self._places.pop(item.id)
            line = self._lines[cls]
            del line[bisect_left(line, place)]
            if not line:
                del self._lines[cls]
        return item

    def offer(self, items: Iterable[QueueItem], now: float) -> Offered:
        offered = self.inner.offer(items, now)
        for item in offered.accepted:
            self._enter(item)
        for victim in offered.evicted:
            self._leave(victim.item)
        return offered

    def shed(self, now: float) -> tuple[Shed, ...]:
        gone = self.inner.shed(now)
        for one in gone:
            self._leave(one.item)
        return gone

    def select(self, eligible: Eligible, now: float) -> Selection | None:
        return self.inner.select(eligible, now)

    def commit(self, selection: Selection, now: float) -> QueueItem | None:
        return self._leave(self.inner.commit(selection, now))

    def restore(self, item: QueueItem, now: float) -> None:
        self.inner.restore(item, now)
        self._enter(item, returned=True)

    def discard(self, item_id: str, now: float) -> QueueItem | None:
        return self._leave(self.inner.discard(item_id, now))

    def discard_where(self, pred: Callable[[QueueItem], bool], now: float) -> tuple[QueueItem, ...]:
        gone = self.inner.discard_where(pred, now)
        for item in gone:
            self._leave(item)
        return gone

    def view(self) -> QueueView:
        return self.inner.view()

    def next_deadline(self) -> float | None:
        return self.inner.next_deadline()
