"""Earliest deadline first, with refusal of what cannot be in time (Liu and Layland, JACM 1973, for the order)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Annotated

from windtunnel.policy.admission.denial import make_denial
from windtunnel.policy.param import BuildContext, Param, check_number
from windtunnel.policy.queueing.item import QueueItem, Shed
from windtunnel.policy.queueing.keyed import KeyedQueue


def _deadline(item: QueueItem) -> float:
    return inf if item.deadline is None else item.deadline


class EdfQueue(KeyedQueue):
    """Items without a deadline go last, ties by arrival. A newcomer at or past its deadline is refused, and one whose predicted end lies
    after it: items due no later than it, over the measured completion rate, plus `service_s`. Unknown rate or service, or a request that was
    accepted before a restart: let in.

    completion_rate: `(now) -> completions per second or None`, set by the lane. `shed` drops what can no longer be in time.
    """

    def __init__(self, config: Edf | None = None, *, completion_rate: Callable[[float], float | None] | None = None) -> None:
        super().__init__(_deadline)
        self.config = config or Edf()
        self.completion_rate = completion_rate

    def refusal(self, item: QueueItem, now: float) -> Shed | None:
        deadline = item.deadline
        if deadline is None:
            return None
        if now >= deadline:
            return Shed(item, make_denial("queue", "deadline_passed"))
        start_s = None if item.recovered else self.predicted_start_s(item, now)
        if start_s is not None and self.config.service_s is not None and start_s + self.config.service_s > deadline:
            return Shed(item, make_denial("queue", "deadline_infeasible", diagnostics={"predicted_start_s": start_s}))
        return None

    def predicted_start_s(self, item: QueueItem, now: float) -> float | None:
        """Run second at which the work before this item is done at the measured rate; None while no rate is known."""
        rate_per_s = None if self.completion_rate is None else self.completion_rate(now)
        if not rate_per_s:
            return None
        return now + self.ahead(item, now) / rate_per_s

    def shed(self, now: float) -> tuple[Shed, ...]:
        """What could end in time no more, the earliest deadline first."""
        out: list[Shed] = []
        while (first := self._deadlines.first()) is not None and (now >= first[0] or now + self.config.min_service_s > first[0]):
            item = self.discard(first[1], now)
            assert item is not None
            out.append(Shed(item, make_denial("queue", "deadline_passed" if now >= first[0] else "deadline_infeasible")))
        return tuple(out)


@dataclass(frozen=True, slots=True)
class Edf:
    """Config. service_s None: the service time is unknown, nothing is refused for being infeasible at arrival."""

    min_service_s: Annotated[float, Param(0, 60, 0.1, "s", "least service", "time an answer takes at least; later items are dropped")] = 0.0
    service_s: Annotated[float | None, Param(0, 60, 0.1, "s", "expected service", "predicted start + this must meet the deadline")] = None

    def __post_init__(self) -> None:
        check_number("min_service_s", self.min_service_s, lo=0.0)
        if self.service_s is not None:
            check_number("service_s", self.service_s, lo=0.0)

    def build(self, ctx: BuildContext) -> EdfQueue:
        return EdfQueue(self)
