"""Priority classes: strict, by weight, or with linear ageing. Class 0 is the most urgent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import BuildContext, Param, check_number
from windtunnel.policy.queueing.fair import Eligible, FairTaskQueue, Queue
from windtunnel.policy.queueing.item import Group, Offered, QueueItem, QueueView, Selection, Shed
from windtunnel.policy.queueing.keyed import KeyedQueue
from windtunnel.policy.queueing.nested import SharedClasses, StrictClasses

MODES, INSIDE = ("strict", "weighted", "ageing"), ("fifo", "fair")


def ageing_queue(promote_after_s: float = 30.0) -> KeyedQueue:
    """Waiting `promote_after_s` makes up for one class: key `priority·promote_after_s + arrived_at`, which time does not reorder."""
    return KeyedQueue(lambda item: item.priority * promote_after_s + item.arrived_at)


class WeightedClasses:
    """A fair queue whose groups are the classes; inside a class, order of arrival. Items go in and come out as they are."""

    def __init__(self, weights: Mapping[int, float]) -> None:
        self.inner = FairTaskQueue()
        self._groups = {cls: Group(f"class-{cls}", weight) for cls, weight in weights.items()}
        self._mine: dict[str, QueueItem] = {}

    @property
    def sequence_version(self) -> int:
        return self.inner.sequence_version

    def __len__(self) -> int:
        return len(self.inner)

    def _as_class(self, item: QueueItem) -> QueueItem:
        cls = item.priority
        if cls not in self._groups:
            self._groups[cls] = Group(f"class-{cls}", 1.0)
        return replace(item, group=self._groups[cls])

    def offer(self, items: Iterable[QueueItem], now: float) -> Offered:
        mine = list(items)
        answer = self.inner.offer([self._as_class(item) for item in mine], now)
        taken = {item.id for item in answer.accepted}
        accepted = []
        for item in mine:  # of equal ids the first one is in
            if item.id in taken:
                taken.discard(item.id)
                self._mine[item.id] = item
                accepted.append(item)
        return Offered(tuple(accepted), answer.duplicates)

    def shed(self, now: float) -> tuple[Shed, ...]:
        return ()

    def select(self, eligible: Eligible, now: float) -> Selection | None:
        found = self.inner.select(lambda item, view: eligible(self._mine[item.id], view), now)
        return None if found is None else Selection(self._mine[found.item.id], found.queue_view, found.sequence_version)

    def commit(self, selection: Selection, now: float) -> QueueItem | None:
        return self._out(self.inner.commit(selection, now))

    def restore(self, item: QueueItem, now: float) -> None:
        self.inner.restore(self._as_class(item), now)
        self._mine[item.id] = item

    def straight(self, item: QueueItem, now: float) -> bool:
        return not len(self.inner) and self.inner.straight(self._as_class(item), now)

    def discard(self, item_id: str, now: float) -> QueueItem | None:
        return self._out(self.inner.discard(item_id, now))

    def _out(self, item: QueueItem | None) -> QueueItem | None:
        return None if item is None else self._mine.pop(item.id)

    def discard_where(self, pred: Callable[[QueueItem], bool], now: float) -> tuple[QueueItem, ...]:
        gone = self.inner.discard_where(lambda item: pred(self._mine[item.id]), now)
        return tuple(self._mine.pop(item.id) for item in gone)

    def view(self) -> QueueView:
        return self.inner.view()

    def next_deadline(self) -> float | None:
        return self.inner.next_deadline()


@dataclass(frozen=True, slots=True)
class Classes:
    """Config. strict: the most urgent class first, the others starve by design; weighted: shares; ageing: waiting makes up for class.

    inside: within a class, strict or weighted, all go in order of arrival, or tenants share fairly (then only the first of each tenant can be
    next, so hard pre-emption finds a place for one of them at a time). Ageing is one line for everybody.
    """

    mode: Annotated[Literal["strict", "weighted", "ageing"], Param(choices=MODES, label="mode", help="how classes share")] = "weighted"
    weights: Annotated[Mapping[int, float], Param(unit="shares", label="weights", help="share by class, above 0 (weighted)", knob=False)] = field(
        default_factory=lambda: {0: 8.0, 1: 1.0})
    promote_after_s: Annotated[float, Param(1, 600, 1, "s", "promotion", "waiting that makes up for one class (ageing)")] = 30.0
    inside: Annotated[Literal["fifo", "fair"], Param(choices=INSIDE, label="inside", help="within a class: order of arrival, or tenants share "
                                                                                          "fairly (strict, weighted)")] = "fifo"

    def __post_init__(self) -> None:
        for name, known in (("mode", MODES), ("inside", INSIDE)):
            if getattr(self, name) not in known:
                raise ConfigValueError(name, f"expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        check_number("promote_after_s", self.promote_after_s, above=0.0)
        for cls, weight in self.weights.items():
            check_number(f"weights.{cls}", weight, above=0.0)

    def build(self, ctx: BuildContext) -> Queue:
        if self.mode != "ageing" and self.inside == "fair":
            return StrictClasses(FairTaskQueue) if self.mode == "strict" else SharedClasses(FairTaskQueue, self.weights)
        if self.mode == "weighted":
            return WeightedClasses(self.weights)
        return ageing_queue(self.promote_after_s) if self.mode == "ageing" else KeyedQueue(lambda item: item.priority)
