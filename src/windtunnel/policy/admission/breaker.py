"""A circuit breaker: closed, open after too many failures, half-open for one probe."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from windtunnel.events import Request
from windtunnel.policy.admission.denial import Denial
from windtunnel.policy.admission.gates import Gate
from windtunnel.policy.param import BuildContext, Param, check_number

if TYPE_CHECKING:
    from windtunnel.policy.admission.request import RequestAdmission

FAILURES = frozenset({"provider_failure", "provider_timeout", "unexpected_exception"})
State = Literal["closed", "open", "half_open"]
EPSILON = 1e-9  # 0.3 x 10 must not be more than 3


@dataclass(frozen=True, slots=True)
class BreakerGate:
    """Config: opens when failures / outcomes >= failure_ratio over the last `window` (at least `min_outcomes` seen)."""

    window: Annotated[int, Param(5, 200, 1, "requests", "window", "outcomes looked at")] = 20
    min_outcomes: Annotated[int, Param(1, 100, 1, "requests", "at least", "outcomes before it may open")] = 10
    failure_ratio: Annotated[float, Param(0.1, 1.0, 0.05, label="opens at", help="share of failures")] = 0.5
    open_s: Annotated[float, Param(1, 300, 1, "s", "open for", "first pause; doubles")] = 30.0
    max_open_s: Annotated[float, Param(1, 3600, 1, "s", "at most", "longest pause")] = 300.0

    def __post_init__(self) -> None:
        check_number("window", self.window, lo=1, whole=True)
        check_number("min_outcomes", self.min_outcomes, lo=1, hi=self.window, whole=True)
        check_number("failure_ratio", self.failure_ratio, above=0.0, hi=1.0)
        check_number("open_s", self.open_s, above=0.0)
        check_number("max_open_s", self.max_open_s, lo=self.open_s)

    def build(self, ctx: BuildContext) -> Breaker:
        return Breaker(self)


class Breaker:
    """local_* outcomes count nowhere, rate limits only through `trip`. O(1) per call.

    In half-open one probe is out at a time; an attempt granted before the breaker opened is a straggler and must not be reported.
    """

    def __init__(self, config: BreakerGate | None = None) -> None:
        self.config = config or BreakerGate()
        self._seen: deque[bool] = deque(maxlen=self.config.window)
        self._failures = 0
        self._opened_at: float | None = None
        self._open_s = self.config.open_s
        self._probing = False

    @property
    def closed(self) -> bool:
        return self._opened_at is None

    def state(self, now: float) -> State:
        if self._opened_at is None:
            return "closed"
        return "open" if now < self._opened_at + self._open_s else "half_open"

    def admissible(self, now: float) -> bool:
        if self._opened_at is None:
            return True
        return now >= self._opened_at + self._open_s and not self._probing

    def took(self, now: float) -> bool:
        """A request was let through; True if it is the one probe of half-open."""
        self._probing = self._opened_at is not None
        return self._probing

    def opens_at(self, now: float) -> float | None:
        """The run second at which time alone lets a probe through; None if closed, or while a probe is out."""
        if self._opened_at is None or self._probing:
            return None
        return self._opened_at + self._open_s

    def on_outcome(self, kind: str, now: float) -> str | None:
        """Count an outcome; returns `opened`, `closed` or `reopened` on a transition."""
        failed = kind in FAILURES
        if self._opened_at is not None:
            return self._after_probe(kind, failed, now)
        if kind != "success" and not failed:
            return None
        seen, config = self._seen, self.config
        if len(seen) == config.window:
            self._failures -= seen[0]
        seen.append(failed)
        self._failures += failed
        if len(seen) >= config.min_outcomes and self._failures >= config.failure_ratio * len(seen) - EPSILON:
            return self.trip(now)
        return None

    def _after_probe(self, kind: str, failed: bool, now: float) -> str | None:
        if not self._probing:
            return None
        self._probing = False
        if kind == "success":
            self._opened_at, self._open_s, self._failures = None, self.config.open_s, 0
            self._seen.clear()
            return "closed"
        return self.trip(now) if failed else None

    def trip(self, now: float) -> str | None:
        """Open now, whatever was counted: `opened`, or `reopened` (for twice as long) from half-open; None if it is open already."""
        state = self.state(now)
        if state == "open":
            return None
        self._open_s = self.config.open_s if state == "closed" else min(self.config.max_open_s, 2 * self._open_s)
        self._opened_at, self._probing = now, False
        return "opened" if state == "closed" else "reopened"


class BreakerDoor(Gate):
    """The breaker of an admission, asked at the door among other gates: nobody is made to wait for a service that is down."""

    def __init__(self, admission: RequestAdmission, resource: str) -> None:
        self._admission, self._resource = admission, resource

    def refusal(self, request: Request, now: float) -> Denial | None:
        breaker = self._admission.breaker
        return None if breaker is None or breaker.admissible(now) else self._admission.breaker_denial(self._resource, now)
