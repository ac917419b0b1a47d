"""First in, first out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from windtunnel.policy.param import BuildContext
from windtunnel.policy.queueing.fair import Eligible
from windtunnel.policy.queueing.item import Offered, QueueItem, QueueView, Selection, Shed


class FifoQueue:
    """One line for everybody; an ineligible head blocks the line. Every call O(1) but `discard_where`."""

    def __init__(self) -> None:
        self.sequence_version = 0
        self._items: OrderedDict[str, QueueItem] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def offer(self, items: Iterable[QueueItem], now: float) -> Offered:
        accepted, duplicates = [], []
        for item in items:
            if item.id in self._items:
                duplicates.append(item.id)
            else:
                self._items[item.id] = item
                accepted.append(item)
        if accepted:
            self.sequence_version += 1
        return Offered(tuple(accepted), tuple(duplicates))

    def shed(self, now: float) -> tuple[Shed, ...]:
        return ()

    def select(self, eligible: Eligible, now: float) -> Selection | None:
        if not self._items:
            return None
        head, view = next(iter(self._items.values())), self.view()
        return Selection(head, view, self.sequence_version) if eligible(head, view) else None

    def commit(self, selection: Selection, now: float) -> QueueItem | None:
        item = selection.item
        if selection.sequence_version != self.sequence_version or self._items.get(item.id) is not item:
            return None
        del self._items[item.id]
        self.sequence_version += 1
        return item

    def restore(self, item: QueueItem, now: float) -> None:
        """Back to the head of the line."""
        self._items[item.id] = item
        self._items.move_to_end(item.id, last=False)
        self.sequence_version += 1

    def straight(self, item: QueueItem, now: float) -> bool:
        if self._items:
            return False
        self.sequence_version += 2
        return True

    def discard(self, item_id: str, now: float) -> QueueItem | None:
        item = self._items.pop(item_id, None)
        if item is not None:
            self.sequence_version += 1
        return item

    def discard_where(self, pred: Callable[[QueueItem], bool], now: float) -> tuple[QueueItem, ...]:
        doomed = tuple(i for i in self._items.values() if pred(i))
        for item in doomed:
            self.discard(item.id, now)
        return doomed

    def view(self) -> QueueView:
        return QueueView(self, self._read, self.sequence_version)

    def _read(self) -> Mapping[str, Any]:
        by_group: dict[str, int] = {}
        for item in self._items.values():
            by_group[item.group.key] = by_group.get(item.group.key, 0) + 1
        return {"queued_total": len(self._items), "queued_by_group": by_group, "head": next(iter(self._items.values()), None)}

    def next_deadline(self) -> float | None:
        return min((i.deadline for i in self._items.values() if i.deadline is not None), default=None)


@dataclass(frozen=True, slots=True)
class Fifo:
    """Config of the plain line: no parameters."""

    def build(self, ctx: BuildContext) -> FifoQueue:
        return FifoQueue()
