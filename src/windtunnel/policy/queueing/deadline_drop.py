"""Drop at the queue what can no longer meet its deadline, before it costs an engine anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated

from windtunnel.policy.admission.denial import make_denial
from windtunnel.policy.param import BuildContext, Param, check_number
from windtunnel.policy.queueing.deadlines import Deadlines
from windtunnel.policy.queueing.fair import Eligible, Queue
from windtunnel.policy.queueing.item import Offered, QueueItem, QueueView, Selection, Shed


@dataclass(frozen=True, slots=True)
class DeadlineDrop:
    """Config. min_service_s: the least time an answer takes; items with less left are dropped."""

    min_service_s: Annotated[float, Param(0, 60, 0.1, "s", "least service", "time an answer takes at least")] = 0.0

    def __post_init__(self) -> None:
        check_number("min_service_s", self.min_service_s, lo=0.0)

    def wrap(self, queue: Queue, ctx: BuildContext) -> DeadlineDropQueue:
        return DeadlineDropQueue(queue, self.min_service_s)


class DeadlineDropQueue:
    """`shed` drops items with `now + min_service_s > deadline`, and any at its deadline; call it before each `select`. O(log n) per item."""

    def __init__(self, inner: Queue, min_service_s: float = 0.0) -> None:
        self.inner, self.min_service_s = inner, min_service_s
        self.needs: frozenset[str] = getattr(inner, "needs", frozenset())
        self._deadlines = Deadlines()
        self._inner_straight = getattr(inner, "straight", None)

    @property
    def sequence_version(self) -> int:
        return self.inner.sequence_version

    def __len__(self) -> int:
        return len(self.inner)

    def too_late(self, deadline: float, now: float) -> bool:
        """No answer can meet this deadline any more."""
        return now >= deadline or now + self.min_service_s > deadline

    def offer(self, items: Iterable[QueueItem], now: float) -> Offered:
        offered = self.inner.offer(items, now)
        for item in offered.accepted:
            self._deadlines.add(item)
        for victim in offered.evicted:
            self._deadlines.remove(victim.item.id)
        return offered

    def shed(self, now: float) -> tuple[Shed, ...]:
        """What the inner queue sheds, then the late ones, the earliest deadline first."""
        out = list(self.inner.shed(now))
        for one in out:
            self._deadlines.remove(one.item.id)
        while (first := self._deadlines.first()) is not None and self.too_late(first[0], now):
            self._deadlines.remove(first[1])
            item = self.inner.discard(first[1], now)
            if item is not None:
                out.append(Shed(item, make_denial("queue", "deadline_passed", now=now)))
        return tuple(out)

    def select(self, eligible: Eligible, now: float) -> Selection | None:
        return self.inner.select(eligible, now)

    def commit(self, selection: Selection, now: float) -> QueueItem | None:
        item = self.inner.commit(selection, now)
        if item is not None:
            self._deadlines.remove(item.id)
        return item

    def restore(self, item: QueueItem, now: float) -> None:
        self.inner.restore(item, now)
        self._deadlines.add(item)

    def straight(self, item: QueueItem, now: float) -> bool:
        """As the inner queue does it, unless the item would be shed before it is selected."""
        if self._inner_straight is None or (item.deadline is not None and self.too_late(item.deadline, now)):
            return False
        straight: bool = self._inner_straight(item, now)
        return straight

    def discard(self, item_id: str, now: float) -> QueueItem | None:
        item = self.inner.discard(item_id, now)
        if item is not None:
            self._deadlines.remove(item_id)
        return item

    def discard_where(self, pred: Callable[[QueueItem], bool], now: float) -> tuple[QueueItem, ...]:
        gone = self.inner.discard_where(pred, now)
        for item in gone:
            self._deadlines.remove(item.id)
        return gone

    def view(self) -> QueueView:
        return self.inner.view()

    def next_deadline(self) -> float | None:
        """The run second at which `shed` drops the next item, if nothing takes it before."""
        first = self._deadlines.first()
        if first is None:
            return None
        deadline = first[0]
        if not self.min_service_s:
            return deadline
        # The rule is `>`: a few ulps later it holds whatever the rounding, so that a wake at this time finds something to drop.
        return min(deadline, deadline - self.min_service_s + 4 * math.ulp(deadline))
