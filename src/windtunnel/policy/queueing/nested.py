"""Classes with a queue of its own inside each: strictly by class, or by shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import inf

from windtunnel.errors import PolicyError
from windtunnel.policy.queueing.clocked import Clocked
from windtunnel.policy.queueing.fair import Eligible, Queue
from windtunnel.policy.queueing.item import (
    HeadStats,
    Offered,
    QueueItem,
    QueueView,
    ResourceVector,
    Selection,
    Shed,
    bad_cost,
)


class NestedClasses(Clocked):
    """The first class of which something may go; within a class, the order of its own queue (`inside`).

    Which class is first, a subclass says. Every call costs what the inner queue's costs, and O(classes log classes).
    """

    def __init__(self, inside: Callable[[], Queue]) -> None:
        super().__init__()
        self._inside = inside
        self._queues: dict[int, Queue] = {}
        self._class_of: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._class_of)

    def _of(self, cls: int) -> Queue:
        queue = self._queues.get(cls)
        if queue is None:
            queue = self._queues[cls] = self._inside()
        return queue

    def _waiting(self) -> list[int]:
        """Classes in which something waits, in the order in which they are asked."""
        return sorted(cls for cls, queue in self._queues.items() if len(queue))

    def _wakes(self, cls: int) -> None:
        """The first item of a class that was empty."""

    def _served(self, item: QueueItem) -> None:
        """An item goes to service; its class may have to pay."""

    def _gone(self, item: QueueItem | None) -> QueueItem | None:
        if item is not None:
            del self._class_of[item.id]
            self.sequence_version += 1
        return item

    def offer(self, items: Iterable[QueueItem], now: float) -> Offered:
        """Queue the items; an id that is queued already, in whatever class, is reported and changes nothing."""
        self._tick(now)
        accepted: list[QueueItem] = []
        duplicates: list[str] = []
        for item in items:
            if item.id in self._class_of:
                duplicates.append(item.id)
                continue
            queue = self._of(item.priority)
            first = not len(queue)
            queue.offer((item,), now)
            if first:
                self._wakes(item.priority)
            self._class_of[item.id] = item.priority
            if not accepted:
                self.sequence_version += 1
            accepted.append(item)
        return Offered(tuple(accepted), tuple(duplicates))

    def shed(self, now: float) -> tuple[Shed, ...]:
        return ()

    def select(self, eligible: Eligible, now: float) -> Selection | None:
        """What the first class would select that has something eligible; nothing changes."""
        self._look(now)
        view = self.view()
        for cls in self._waiting():
            found = self._queues[cls].select(lambda item, _: eligible(item, view), now)
            if found is not None:
                return Selection(found.item, view, self.sequence_version)
        return None

    def commit(self, selection: Selection, now: float) -> QueueItem | None:
        """Take the selected item; None if the queue has moved on since, or it could not be next in its class."""
        self._tick(now)
        cls = self._class_of.get(selection.item.id)
        if selection.sequence_version != self.sequence_version or cls is None:
            return None
        queue, wanted = self._queues[cls], selection.item.id
        found = queue.select(lambda item, _: item.id == wanted, now)
        item = None if found is None else queue.commit(found, now)
        if item is None:
            return None
        self._served(item)
        return self._gone(item)

    def restore(self, item: QueueItem, now: float) -> None:
        """Back to its class. Raises PolicyError if it is still queued."""
        self._tick(now)
        if item.id in self._class_of:
            raise PolicyError(f"item {item.id!r} was restored while it is queued")
        queue = self._of(item.priority)
        first = not len(queue)
        queue.restore(item, now)
        if first:
            self._wakes(item.priority)
        self._class_of[item.id] = item.priority
        self.sequence_version += 1

    def straight(self, item: QueueItem, now: float) -> bool:
        """offer + select + commit in one, on an empty queue; False, and nothing done, on any other."""
        if self._class_of:
            return False
        if not 0 < item.cost < inf:
            raise bad_cost(item)
        self._tick(now)
        if not self._of(item.priority).straight(item, now):
            return False
        self._wakes(item.priority)
        self._served(item)
        self.sequence_version += 2
        return True

    def discard(self, item_id: str, now: float) -> QueueItem | None:
        """Take an item out wherever it stands; no class is charged. None if it is not queued."""
        self._tick(now)
        cls = self._class_of.get(item_id) if isinstance(item_id, str) else None
        return None if cls is None else self._gone(self._queues[cls].discard(item_id, now))

    def discard_where(self, pred: Callable[[QueueItem], bool], now: float) -> tuple[QueueItem, ...]:
        """Take out all items that `pred` names, class by class. O(items)."""
        self._tick(now)
        gone = [item for cls in sorted(self._queues) for item in self._queues[cls].discard_where(pred, now)]
        for item in gone:
            self._gone(item)
        return tuple(gone)

    def view(self) -> QueueView:
        return QueueView(self, self.sequence_version)

    def lines(self) -> Mapping[str, Mapping[str, QueueItem]]:
        """Waiting items by group and id, the most urgent class of a group first. O(items)."""
        lines: dict[str, dict[str, QueueItem]] = {}
        for cls in sorted(self._queues):
            for key, items in self._queues[cls].view()._current().lines().items():
                lines.setdefault(key, {}).update(items)
        return lines

    def heads_by_shape(self) -> Mapping[ResourceVector, HeadStats]:
        """The heads of all classes' queues."""
        merged: dict[ResourceVector, dict[float, int]] = {}
        for queue in self._queues.values():
            for shape, stats in queue.view().heads_by_shape.items():
                weights = merged.setdefault(shape, {})
                for weight, n in stats.groups_by_weight.items():
                    weights[weight] = weights.get(weight, 0) + n
        return {shape: HeadStats(sum(weights.values()), weights) for shape, weights in merged.items()}

    def next_deadline(self) -> float | None:
        """The earliest deadline that waits, run s."""
        return min((at for queue in self._queues.values() if (at := queue.next_deadline()) is not None), default=None)


class StrictClasses(NestedClasses):
    """The most urgent class first; the others starve by design."""

    def ahead(self, item: QueueItem, now: float) -> int:
        """Waiting items of more urgent classes and of its own, when it has just been queued."""
        return sum(len(queue) for cls, queue in self._queues.items() if cls <= item.priority) - (item.id in self._class_of)


class SharedClasses(NestedClasses):
    """Classes share by weight, by start-time fair queueing as groups do in the fair queue; a class without a weight has 1."""

    def __init__(self, inside: Callable[[], Queue], weights: Mapping[int, float]) -> None:
        super().__init__(inside)
        self._weights = dict(weights)
        self.virtual_time = 0.0
        self._finish: dict[int, float] = {}
        self._tags: dict[int, tuple[float, int]] = {}  # (start tag, activation)
        self._activations = 0

    def _waiting(self) -> list[int]:
        return sorted(super()._waiting(), key=self._tags.__getitem__)

    def _wakes(self, cls: int) -> None:
        self._activations += 1
        self._tags[cls] = (self._finish.get(cls, self.virtual_time), self._activations)

    def _served(self, item: QueueItem) -> None:
        cls = item.priority
        self.virtual_time = max(self.virtual_time, self._finish.get(cls, self.virtual_time))
        self._finish[cls] = finish = self.virtual_time + item.cost / self._weights.get(cls, 1.0)
        self._activations += 1
        self._tags[cls] = (finish, self._activations)
