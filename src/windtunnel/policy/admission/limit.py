"""The arithmetic of a concurrency limit: no waiting, no plumbing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Protocol

from windtunnel.events import fact
from windtunnel.policy.param import BuildContext, Param, check_number

NO_LIMIT = 1 << 30


@fact
class Sample:
    """How one attempt ended. rtt_s: the latency signal in s or None; in_flight: at its end; admitted_limit, epoch: at its start."""

    kind: str
    rtt_s: float | None
    in_flight: int
    admitted_limit: int
    epoch: int
    retry_after_s: float | None = None


@fact
class LimitChange:
    """The limit moved."""

    before: int
    after: int
    reason: str


class Limit(Protocol):
    """limit: requests in flight; blocked_until: run s before which nothing is admitted; epoch: counts the cuts."""

    limit: int
    blocked_until: float
    epoch: int
    needs: frozenset[str]

    def on_sample(self, sample: Sample, now: float) -> LimitChange | None: ...
    def set_max(self, effective_max: int, now: float) -> None: ...
    def limit_at(self, now: float) -> int: ...
    def next_step(self, now: float) -> float | None: ...


LimitFactory = Callable[[int], Limit]


class FixedLimit:
    """A constant."""

    needs: frozenset[str] = frozenset()

    def __init__(self, limit: int) -> None:
        self.limit, self.blocked_until, self.epoch = limit, float("-inf"), 0

    def on_sample(self, sample: Sample, now: float) -> LimitChange | None:
        return None

    def set_max(self, effective_max: int, now: float) -> None:
        """A constant stays; the ceiling is applied by the admission."""

    def limit_at(self, now: float) -> int:
        return self.limit

    def next_step(self, now: float) -> float | None:
        return None


@dataclass(frozen=True, slots=True)
class Fixed:
    """Config: at most `limit` requests in flight."""

    limit: Annotated[int, Param(1, 1024, 1, "requests", "limit", "requests in flight at most", "log")] = 64

    def __post_init__(self) -> None:
        check_number("limit", self.limit, lo=1, whole=True)

    def build(self, ctx: BuildContext) -> LimitFactory:
        return lambda effective_max: FixedLimit(self.limit)


@dataclass(frozen=True, slots=True)
class Unlimited:
    """Config: everything is dispatched at once."""

    def build(self, ctx: BuildContext) -> LimitFactory:
        return lambda effective_max: FixedLimit(NO_LIMIT)
