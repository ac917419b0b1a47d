"""Newest first while there is a backlog: fresh requests are answered in time, instead of all being late (adaptive LIFO, Facebook, ACM Queue 2015)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from windtunnel.policy.admission.denial import make_denial
from windtunnel.policy.param import BuildContext, Param, check_number
from windtunnel.policy.queueing.fair import Eligible
from windtunnel.policy.queueing.fifo import FifoQueue
from windtunnel.policy.queueing.item import Offered, QueueItem, Selection, Shed, went_backwards


class AdaptiveLifoQueue(FifoQueue):
    """FIFO until the queue has been non-empty for `interval_s` without a break, then newest first until it is empty once.

    controlled_delay: items that waited `interval_s` (`target_s` while backlogged) are shed, `queue_delay`. O(1) per item.
    """

    def __init__(self, config: AdaptiveLifo | None = None) -> None:
        super().__init__()
        self.config = config or AdaptiveLifo()
        self._filled_at: float | None = None

    def backlogged(self, now: float) -> bool:
        """Has it been non-empty for the whole interval?"""
        return self._filled_at is not None and now - self._filled_at >= self.config.interval_s

    def offer(self, items: Iterable[QueueItem], now: float) -> Offered:
        offered = super().offer(items, now)
        self._watch(now)
        return offered

    def restore(self, item: QueueItem, now: float) -> None:
        super().restore(item, now)
        self._watch(now)

    def discard(self, item_id: str, now: float) -> QueueItem | None:
        item = super().discard(item_id, now)
        self._watch(now)
        return item

    def _watch(self, now: float) -> None:
        if not self._items:
            self._filled_at = None
        elif self._filled_at is None:
            self._filled_at = now

    def _first(self, now: float) -> QueueItem | None:
        if not self._items:
            return None
        return next(reversed(self._items.values())) if self.backlogged(now) else next(iter(self._items.values()))

    def ahead(self, item: QueueItem, now: float) -> int:
        """Waiting items that go before the one that has just been queued, as things stand: nobody while backlogged."""
        return 0 if self.backlogged(now) else len(self._items) - 1

    def select(self, eligible: Eligible, now: float) -> Selection | None:
        """The item whose turn it is, if it is eligible."""
        if now < self._now:
            raise went_backwards(now, self._now)
        head, view = self._first(now), self.view()
        return Selection(head, view, self.sequence_version) if head is not None and eligible(head, view) else None

    def commit(self, selection: Selection, now: float) -> QueueItem | None:
        """Take the selected item; None if the queue has moved on since."""
        self._tick(now)
        if selection.sequence_version != self.sequence_version or selection.item.id not in self._items:
            return None
        return self.discard(selection.item.id, now)

    def shed(self, now: float) -> tuple[Shed, ...]:
        """With controlled delay: the oldest items that waited too long."""
        out: list[Shed] = []
        while self.config.controlled_delay and self._items:
            oldest = next(iter(self._items.values()))
            longest_s = self.config.target_s if self.backlogged(now) else self.config.interval_s
            if now - oldest.arrived_at < longest_s:
                break
            self.discard(oldest.id, now)
            out.append(Shed(oldest, make_denial("queue", "queue_delay")))
        return tuple(out)


@dataclass(frozen=True, slots=True)
class AdaptiveLifo:
    """Config. For LLM queues: interval_s = the TTFT objective, target_s 5 to 10 % of it."""

    interval_s: Annotated[float, Param(0.01, 10, 0.01, "s", "interval", "non-empty for this long means backlogged")] = 0.1
    controlled_delay: Annotated[bool, Param(label="controlled delay", help="shed what waited too long")] = False
    target_s: Annotated[float, Param(0.001, 5, 0.001, "s", "target", "longest wait while backlogged")] = 0.005

    def __post_init__(self) -> None:
        check_number("interval_s", self.interval_s, above=0.0)
        check_number("target_s", self.target_s, above=0.0)

    def build(self, ctx: BuildContext) -> AdaptiveLifoQueue:
        return AdaptiveLifoQueue(self)
