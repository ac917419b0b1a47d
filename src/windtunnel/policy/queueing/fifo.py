"""First in, first out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from windtunnel.errors import PolicyError
from windtunnel.policy.param import BuildContext
from windtunnel.policy.queueing.clocked import Clocked
from windtunnel.policy.queueing.deadlines import Deadlines
from windtunnel.policy.queueing.fair import Eligible
from windtunnel.policy.queueing.item import HeadStats, Offered, QueueItem, QueueView, ResourceVector, Selection, Shed


class FifoQueue(Clocked):
    """One line for everybody; an ineligible head blocks the line. Every call O(1) but `discard_where` and the reads of a view.

    In a view `head_by_group` is each group's first item, but only the head of the line can be selected; `heads_by_shape` counts that one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._items: OrderedDict[str, QueueItem] = OrderedDict()
        self._deadlines = Deadlines()

    def __len__(self) -> int:
        return len(self._items)

    def offer(self, items: Iterable[QueueItem], now: float) -> Offered:
        """Queue the items; an id that is queued already is reported and changes nothing."""
        self._tick(now)
        accepted: list[QueueItem] = []
        duplicates: list[str] = []
        for item in items:
            if item.id in self._items:
                duplicates.append(item.id)
                continue
            self._items[item.id] = item
            self._deadlines.add(item)
            accepted.append(item)
        if accepted:
            self.sequence_version += 1
        return Offered(tuple(accepted), tuple(duplicates))

    def shed(self, now: float) -> tuple[Shed, ...]:
        return ()

    def select(self, eligible: Eligible, now: float) -> Selection | None:
        """The head of the line, if it is eligible."""
        self._look(now)
        if not self._items:
            return None
        head, view = next(iter(self._items.values())), self.view()
        return Selection(head, view, self.sequence_version) if eligible(head, view) else None

    def commit(self, selection: Selection, now: float) -> QueueItem | None:
        """Take the selected item; None if the queue has moved on since, or the item is not its head."""
        self._tick(now)
        if selection.sequence_version != self.sequence_version or next(iter(self._items), None) != selection.item.id:
            return None
        return self.discard(selection.item.id, now)

    def restore(self, item: QueueItem, now: float) -> None:
        """Back to the head of the line. Raises PolicyError if it is still queued."""
        self._tick(now)
        if item.id in self._items:
            raise PolicyError(f"item {item.id!r} was restored while it is queued")
        self._items[item.id] = item
        self._items.move_to_end(item.id, last=False)
        self._deadlines.add(item)
        self.sequence_version += 1

    def straight(self, item: QueueItem, now: float) -> bool:
        """offer + select + commit in one, on an empty queue; False, and nothing done, on any other."""
        if self._items:
            return False
        self._tick(now)
        self.sequence_version += 2
        return True

    def discard(self, item_id: str, now: float) -> QueueItem | None:
        """Take an item out of the line; None if it is not queued."""
        self._tick(now)
        try:
            item = self._items.pop(item_id, None)
        except TypeError:  # not even hashable: nobody's id
            return None
        if item is not None:
            self._deadlines.remove(item_id)
            self.sequence_version += 1
        return item

    def discard_where(self, pred: Callable[[QueueItem], bool], now: float) -> tuple[QueueItem, ...]:
        """Take out all items that `pred` names, in their order. O(items)."""
        doomed = tuple(i for i in self._items.values() if pred(i))
        for item in doomed:
            self.discard(item.id, now)
        return doomed

    def view(self) -> QueueView:
        return QueueView(self, self.sequence_version)

    def lines(self) -> Mapping[str, Mapping[str, QueueItem]]:
        """Waiting items by group and id."""
        lines: dict[str, dict[str, QueueItem]] = {}
        for item in self._items.values():
            lines.setdefault(item.group.key, {})[item.id] = item
        return lines

    def heads_by_shape(self) -> Mapping[ResourceVector, HeadStats]:
        """Only the head of the line counts."""
        head = next(iter(self._items.values()), None)
        return {} if head is None else {head.resources: HeadStats(1, {head.group.weight: 1})}

    def next_deadline(self) -> float | None:
        """The earliest deadline that waits, run s."""
        first = self._deadlines.first()
        return None if first is None else first[0]


@dataclass(frozen=True, slots=True)
class Fifo:
    """Config of the plain line: no parameters."""

    def build(self, ctx: BuildContext) -> FifoQueue:
        return FifoQueue()
