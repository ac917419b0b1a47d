"""The arithmetic of a concurrency limit: no waiting, no plumbing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

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
    """The limit moved, or a recovery ended. recovered: `soft_ceiling` (above the limit before the cut), `full` (at the maximum)."""

    before: int
    after: int
    reason: Literal["increase", "decrease", "recovered"]
    recovered: tuple[Literal["soft_ceiling", "full"], ...] = ()


class Limit(Protocol):
    """The arithmetic of a concurrency limit.

    A limit that ramps up may also have `first_use(now)`, `limit_at(now)` and `next_step(now)`, see AimdLimit. All reads are pure.
    """

    @property
    def limit(self) -> int:
        """Requests that may be in flight."""

    @property
    def blocked_until(self) -> float:
        """Run s before which nothing is admitted; -inf: nothing is held back."""

    @property
    def epoch(self) -> int:
        """Counts the cuts; a sample carries the count at the start of its attempt."""

    @property
    def needs(self) -> frozenset[str]:
        """Words of observations that its samples need, such as `first_token`."""

    def on_sample(self, sample: Sample, now: float) -> LimitChange | None:
        """An attempt has ended; what changed, if anything did."""

    def set_max(self, effective_max: int, now: float) -> None:
        """The ceiling of its resource has changed: the limit may not grow beyond it."""


LimitFactory = Callable[[int], Limit]


class FixedLimit:
    """A constant; the ceiling of its resource is applied by the admission."""

    needs: frozenset[str] = frozenset()

    def __init__(self, limit: int) -> None:
        self.limit, self.blocked_until, self.epoch = limit, float("-inf"), 0

    def on_sample(self, sample: Sample, now: float) -> LimitChange | None:
        return None

    def set_max(self, effective_max: int, now: float) -> None:
        """A constant stays."""


class NoLimit(FixedLimit):
    """Everything is admitted, up to the ceiling of the resource."""

    def __init__(self) -> None:
        super().__init__(NO_LIMIT)


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
        return lambda effective_max: NoLimit()
