"""Controlled delay at the head of a queue (Nichols and Jacobson, ACM Queue 2012; RFC 8289), for requests instead of packets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import sqrt
from typing import Annotated, Any

from windtunnel.policy.admission.denial import make_denial
from windtunnel.policy.param import BuildContext, Param, check_number
from windtunnel.policy.queueing.fair import Eligible, Queue
from windtunnel.policy.queueing.item import Offered, QueueItem, QueueView, Selection, Shed

MEMORY_INTERVALS = 16


class CoDelQueue:
    """Drops heads, at a rate that grows with the square root of their number, while heads wait longer than `target_s` for `interval_s`.

    Wraps any queue: its head is what it would select next. Call `shed` before each `select`. O(1) beside the inner queue's calls.
    """

    def __init__(self, inner: Queue, config: CoDel | None = None) -> None:
        self.inner, self.config = inner, config or CoDel()
        self.needs: frozenset[str] = getattr(inner, "needs", frozenset())
        self.straight: Callable[[QueueItem, float], bool] = inner.straight
        self._first_above: float | None = None
        self._dropping = False
        self._drop_next = 0.0
        self._count = self._last_count = 0

    @property
    def sequence_version(self) -> int:
        return self.inner.sequence_version

    def __len__(self) -> int:
        return len(self.inner)

    def shed(self, now: float) -> tuple[Shed, ...]:
        """Heads that are dropped at `now`, beside what the inner queue sheds."""
        out: list[Shed] = list(self.inner.shed(now))
        while (head := self._head_above(now)) is not None:
            if self._dropping:
                if now < self._drop_next:
                    break
                self._drop(head, now, out)
                self._count += 1
                self._drop_next += self._pause_s()
            elif self._first_above is None:
                self._first_above = now + self.config.interval_s
                break
            elif now < self._first_above:
                break
            else:
                self._begin(head, now, out)
        return tuple(out)

    def _head_above(self, now: float) -> QueueItem | None:
        """The head if it waits too long; otherwise the control starts anew."""
        found = self.inner.select(_anything, now)
        if found is not None and now - found.item.arrived_at >= self.config.target_s:
            return found.item
        self._first_above, self._dropping = None, False
        return None

    def _begin(self, head: QueueItem, now: float, out: list[Shed]) -> None:
        """The first drop of an episode; one soon after the last takes its rate up again."""
        self._drop(head, now, out)
        self._dropping = True
        since = self._count - self._last_count
        self._count = since if since > 1 and now - self._drop_next < MEMORY_INTERVALS * self.config.interval_s else 1
        self._last_count = self._count
        self._drop_next = now + self._pause_s()

    def _pause_s(self) -> float:
        return self.config.interval_s / sqrt(self._count)

    def _drop(self, head: QueueItem, now: float, out: list[Shed]) -> None:
        self.inner.discard(head.id, now)
        out.append(Shed(head, make_denial("queue", "queue_delay")))

    def offer(self, items: Iterable[QueueItem], now: float) -> Offered:
        return self.inner.offer(items, now)

    def select(self, eligible: Eligible, now: float) -> Selection | None:
        return self.inner.select(eligible, now)

    def commit(self, selection: Selection, now: float) -> QueueItem | None:
        return self.inner.commit(selection, now)

    def restore(self, item: QueueItem, now: float) -> None:
        self.inner.restore(item, now)

    def discard(self, item_id: str, now: float) -> QueueItem | None:
        return self.inner.discard(item_id, now)

    def discard_where(self, pred: Callable[[QueueItem], bool], now: float) -> tuple[QueueItem, ...]:
        return self.inner.discard_where(pred, now)

    def view(self) -> QueueView:
        return self.inner.view()

    def next_deadline(self) -> float | None:
        return self.inner.next_deadline()


def _anything(item: QueueItem, view: Any) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class CoDel:
    """Config. For LLM queues: interval_s = the TTFT objective, target_s 5 to 10 % of it."""

    target_s: Annotated[float, Param(0.001, 5, 0.001, "s", "target", "wait at the head that is fine for ever")] = 0.005
    interval_s: Annotated[float, Param(0.01, 10, 0.01, "s", "interval", "how long heads may wait longer before one is dropped")] = 0.1

    def __post_init__(self) -> None:
        check_number("target_s", self.target_s, above=0.0)
        check_number("interval_s", self.interval_s, above=0.0)

    def wrap(self, queue: Queue, ctx: BuildContext) -> CoDelQueue:
        return CoDelQueue(queue, self)
