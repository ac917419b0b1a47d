"""A bound around any queue: how many may wait, in total and per class, and who goes when it is full."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from windtunnel.errors import ConfigValueError
from windtunnel.policy.admission.denial import make_denial
from windtunnel.policy.param import BuildContext, Param, check_number
from windtunnel.policy.queueing.fair import Eligible, Queue
from windtunnel.policy.queueing.item import Offered, QueueItem, QueueView, Selection, Shed

POLICIES = ("reject", "drop_lru", "shed_low_priority")


@dataclass(frozen=True, slots=True)
class Bounded:
    """Config. capacity_by_class: class (0 interactive, 1 batch) to bound, missing = none; on_full_by_class: the newcomer's class decides:
    reject, drop_lru (oldest of the least urgent class not more urgent than it) or shed_low_priority (newest strictly less urgent)."""

    capacity: Annotated[int, Param(1, 10_000, 1, "requests", "queue capacity", "requests that may wait", "log")] = 256
    capacity_by_class: Mapping[int, int | None] = field(default_factory=lambda: {0: 128, 1: 128})
    on_full_by_class: Mapping[int, str] = field(default_factory=lambda: {0: "reject", 1: "drop_lru"})

    def __post_init__(self) -> None:
        check_number("capacity", self.capacity, lo=1, whole=True)
        for cls, bound in self.capacity_by_class.items():
            if bound is not None:
                check_number(f"capacity_by_class.{cls}", bound, lo=1, whole=True)
        for cls, policy in self.on_full_by_class.items():
            if policy not in POLICIES:
                raise ConfigValueError(f"on_full_by_class.{cls}", f"expected one of {', '.join(POLICIES)}, got {policy!r}")

    def wrap(self, queue: Queue, ctx: BuildContext) -> BoundedQueue:
        return BoundedQueue(queue, self.capacity, self.capacity_by_class, self.on_full_by_class)


class BoundedQueue:
    """Every victim is returned once, as `Offered.evicted`; a newcomer has at most one victim. O(1) beyond the inner queue."""

    def __init__(self, inner: Queue, capacity: int = 256, capacity_by_class: Mapping[int, int | None] | None = None,
                 on_full_by_class: Mapping[int, str] | None = None) -> None:
        self.inner, self.capacity = inner, capacity
        self.capacity_by_class = {0: 128, 1: 128} if capacity_by_class is None else dict(capacity_by_class)
        self.on_full_by_class = {0: "reject", 1: "drop_lru"} if on_full_by_class is None else dict(on_full_by_class)
        self._classes: dict[int, OrderedDict[str, QueueItem]] = {}
        self.needs: frozenset[str] = getattr(inner, "needs", frozenset())

    @property
    def sequence_version(self) -> int:
        return self.inner.sequence_version

    def __len__(self) -> int:
        return len(self.inner)

    def offer(self, items: Iterable[QueueItem], now: float) -> Offered:
        accepted: list[QueueItem] = []
        duplicates: list[str] = []
        rejected: list[Shed] = []
        evicted: list[Shed] = []
        for item in items:
            mine = self._classes.setdefault(item.priority, OrderedDict())
            if item.id in mine:
                duplicates.append(item.id)
                continue
            bound = self.capacity_by_class.get(item.priority)
            class_full = bound is not None and len(mine) >= bound
            if class_full or len(self.inner) >= self.capacity:
                policy = self.on_full_by_class.get(item.priority, "reject")
                victim = self._victim(item, policy, class_full)
                if victim is None:
                    reason = "queue_full_drop_lru" if policy == "drop_lru" else "queue_full"
                    rejected.append(Shed(item, make_denial("queue", reason)))
                    continue
                self.discard(victim.id, now)
                reason = "queue_full_drop_lru" if policy == "drop_lru" else "shed_low_priority"
                evicted.append(Shed(victim, make_denial("queue", reason)))
            offered = self.inner.offer((item,), now)
            accepted.extend(offered.accepted)
            duplicates.extend(offered.duplicates)
            if offered.accepted:
                mine[item.id] = item
        return Offered(tuple(accepted), tuple(duplicates), tuple(rejected), tuple(evicted))

    def _victim(self, newcomer: QueueItem, policy: str, class_full: bool) -> QueueItem | None:
        if policy == "reject":
            return None
        if policy == "drop_lru":
            classes = [newcomer.priority] if class_full else sorted((c for c in self._classes if c >= newcomer.priority), reverse=True)
            return next((next(iter(self._classes[c].values())) for c in classes if self._classes.get(c)), None)
        if class_full:
            return None  # victims of a full class come from that class, and none in it is less urgent
        classes = sorted((c for c in self._classes if c > newcomer.priority), reverse=True)
        return next((next(reversed(self._classes[c].values())) for c in classes if self._classes[c]), None)

    def _forget(self, item: QueueItem | None) -> QueueItem | None:
        if item is not None:
            self._classes[item.priority].pop(item.id, None)
        return item

    def shed(self, now: float) -> tuple[Shed, ...]:
        shed = self.inner.shed(now)
        for one in shed:
            self._forget(one.item)
        return shed

    def select(self, eligible: Eligible, now: float) -> Selection | None:
        return self.inner.select(eligible, now)

    def commit(self, selection: Selection, now: float) -> QueueItem | None:
        return self._forget(self.inner.commit(selection, now))

    def restore(self, item: QueueItem, now: float) -> None:
        """A further attempt is never refused for want of room."""
        mine = self._classes.setdefault(item.priority, OrderedDict())
        mine[item.id] = item
        mine.move_to_end(item.id, last=False)
        self.inner.restore(item, now)

    def straight(self, item: QueueItem, now: float) -> bool:
        return self.inner.straight(item, now)

    def discard(self, item_id: str, now: float) -> QueueItem | None:
        return self._forget(self.inner.discard(item_id, now))

    def discard_where(self, pred: Callable[[QueueItem], bool], now: float) -> tuple[QueueItem, ...]:
        gone = self.inner.discard_where(pred, now)
        for item in gone:
            self._forget(item)
        return gone

    def view(self) -> QueueView:
        return self.inner.view()

    def next_deadline(self) -> float | None:
        return self.inner.next_deadline()
