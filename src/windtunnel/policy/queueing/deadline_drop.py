"""Drop at the queue what can no longer meet its deadline, before it costs an engine anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Annotated

from windtunnel.policy.admission.denial import make_denial
from windtunnel.policy.param import BuildContext, Param, check_number
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
    """Sheds items with `now + min_service_s > deadline`, and any at its deadline. O(log n) per item with a deadline."""

    def __init__(self, inner: Queue, min_service_s: float = 0.0) -> None:
        self.inner, self.min_service_s = inner, min_service_s
        self._deadlines: list[tuple[float, int, str]] = []
        self._n = 0

    @property
    def sequence_version(self) -> int:
        return self.inner.sequence_version

    def __len__(self) -> int:
        return len(self.inner)

    def _watch(self, item: QueueItem) -> None:
        if item.deadline is not None:
            self._n += 1
            heappush(self._deadlines, (item.deadline, self._n, item.id))

    def offer(self, items: Iterable[QueueItem], now: float) -> Offered:
        offered = self.inner.offer(items, now)
        for item in offered.accepted:
            self._watch(item)
        return offered

    def shed(self, now: float) -> tuple[Shed, ...]:
        out = list(self.inner.shed(now))
        while self._deadlines and (now + self.min_service_s > self._deadlines[0][0] or now >= self._deadlines[0][0]):
            _, _, item_id = heappop(self._deadlines)
            item = self.inner.discard(item_id, now)
            if item is not None:
                out.append(Shed(item, make_denial("queue", "deadline_passed")))
        return tuple(out)

    def select(self, eligible: Eligible, now: float) -> Selection | None:
        return self.inner.select(eligible, now)

    def commit(self, selection: Selection, now: float) -> QueueItem | None:
        return self.inner.commit(selection, now)

    def restore(self, item: QueueItem, now: float) -> None:
        self._watch(item)
        self.inner.restore(item, now)

    def straight(self, item: QueueItem, now: float) -> bool:
        return self.inner.straight(item, now)

    def discard(self, item_id: str, now: float) -> QueueItem | None:
        return self.inner.discard(item_id, now)

    def discard_where(self, pred: Callable[[QueueItem], bool], now: float) -> tuple[QueueItem, ...]:
        return self.inner.discard_where(pred, now)

    def view(self) -> QueueView:
        return self.inner.view()

    def next_deadline(self) -> float | None:
        return self.inner.next_deadline()
