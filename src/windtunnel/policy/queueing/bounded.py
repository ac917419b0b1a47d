"""A bound around any queue: how many may wait, in total and per class, and who goes when it is full."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sized
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
    capacity_by_class: Annotated[Mapping[int, int | None], Param(unit="requests", label="capacity by class", help="of each class that may wait",
                                                                 knob=False)] = field(default_factory=lambda: {0: 128, 1: 128})
    on_full_by_class: Annotated[Mapping[int, str], Param(label="when full", help="by class of the newcomer: reject, drop_lru or shed_low_priority",
                                                         knob=False)] = field(default_factory=lambda: {0: "reject", 1: "drop_lru"})

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


def _not_straight(item: QueueItem, now: float) -> bool:
    return False


class BoundedQueue:
    """Every victim is returned once, as `Offered.evicted`; a newcomer has at most one victim. O(classes) beyond the inner queue.

    completion_rate: completions/s at a run second, or None if unknown; set by whoever knows it, it gives refusals their `retry_after_s`.
    """

    def __init__(self, inner: Queue, capacity: int = 256, capacity_by_class: Mapping[int, int | None] | None = None,
                 on_full_by_class: Mapping[int, str] | None = None, *, completion_rate: Callable[[float], float | None] | None = None) -> None:
        self.inner, self.capacity = inner, capacity
        self.capacity_by_class = {0: 128, 1: 128} if capacity_by_class is None else dict(capacity_by_class)
        self.on_full_by_class = {0: "reject", 1: "drop_lru"} if on_full_by_class is None else dict(on_full_by_class)
        self.completion_rate = completion_rate
        self.may_shed = True  # does shed_low_priority find victims?
        self.needs: frozenset[str] = getattr(inner, "needs", frozenset())
        self._classes: dict[int, OrderedDict[str, QueueItem]] = {}  # oldest enqueued first
        self._class_of: dict[str, int] = {}
        self.members: Sized = self._class_of  # who waits, by its length
        self.straight: Callable[[QueueItem, float], bool] = getattr(inner, "straight", _not_straight)  # empty, it has room for one

    @property
    def sequence_version(self) -> int:
        return self.inner.sequence_version

    def __len__(self) -> int:
        return len(self._class_of)

    def offer(self, items: Iterable[QueueItem], now: float) -> Offered:
        """Item by item: each is queued (perhaps for a victim), refused, or already there."""
        accepted: list[QueueItem] = []
        duplicates: list[str] = []
        rejected: list[Shed] = []
        evicted: list[Shed] = []
        for item in items:
            if item.id in self._class_of:
                duplicates.append(item.id)
                continue
            refusal = self._make_room(item, evicted, now)
            if refusal is not None:
                rejected.append(refusal)
                continue
            offered = self.inner.offer((item,), now)
            if offered.rejected or offered.evicted:
                rejected.extend(offered.rejected)
                evicted.extend(offered.evicted)
                for victim in offered.evicted:
                    self._forget(victim.item)
            for newcomer in offered.accepted:
                self._note(newcomer)
                accepted.append(newcomer)
        return Offered(tuple(accepted), tuple(duplicates), tuple(rejected), tuple(evicted))

    def _make_room(self, item: QueueItem, evicted: list[Shed], now: float) -> Shed | None:
        """Room for one newcomer, at the cost of one victim at most; its refusal if there is none. A recovered request comes in over the
        bound: it had been accepted before."""
        bound = self.capacity_by_class.get(item.priority)
        class_full = bound is not None and len(self._classes.get(item.priority, ())) >= bound
        if (not class_full and len(self._class_of) < self.capacity) or item.recovered:
            return None
        policy = self.on_full_by_class.get(item.priority, "reject")
        victim = self._victim(item.priority, policy, class_full)
        if victim is None:
            return self._shed(item, "queue_full_drop_lru" if policy == "drop_lru" else "queue_full", now)
        denied = self._shed(victim, "queue_full_drop_lru" if policy == "drop_lru" else "shed_low_priority", now)
        self.discard(victim.id, now)
        evicted.append(denied)
        return None

    def _victim(self, newcomer: int, policy: str, class_full: bool) -> QueueItem | None:
        """The one who goes for a newcomer of that class. Victims of a full class come from the class itself."""
        if policy == "drop_lru":
            least_urgent = newcomer if class_full else max((c for c in self._classes if c >= newcomer), default=None)
            line = None if least_urgent is None else self._classes.get(least_urgent)
            return next(iter(line.values())) if line else None
        if policy == "shed_low_priority" and self.may_shed and not class_full:
            least_urgent = max((c for c in self._classes if c > newcomer), default=None)
            return None if least_urgent is None else next(reversed(self._classes[least_urgent].values()))
        return None

    def _shed(self, item: QueueItem, reason: str, now: float) -> Shed:
        rate_per_s = None if self.completion_rate is None else self.completion_rate(now)
        ahead = len(self._class_of) + 1 if reason == "queue_full_drop_lru" else 1
        return Shed(item, make_denial("queue", reason, now=now, retry_after_s=ahead / rate_per_s if rate_per_s else None))

    def _note(self, item: QueueItem) -> None:
        line = self._classes.get(item.priority)
        if line is None:
            line = self._classes[item.priority] = OrderedDict()
        line[item.id] = item
        self._class_of[item.id] = item.priority

    def _forget(self, item: QueueItem | None) -> QueueItem | None:
        if item is not None:
            cls = self._class_of.pop(item.id)
            line = self._classes[cls]
            del line[item.id]
            if not line:
                del self._classes[cls]
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
        """A further attempt is never refused for want of room; it counts as the oldest of its class."""
        self.inner.restore(item, now)
        self._note(item)
        self._classes[item.priority].move_to_end(item.id, last=False)

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
