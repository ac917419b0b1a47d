"""A circuit breaker: closed, open after too many failures, half-open for one probe."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Annotated, Literal

from windtunnel.policy.param import BuildContext, Param, check_number

FAILURES = frozenset({"provider_failure", "provider_timeout", "unexpected_exception"})
State = Literal["closed", "open", "half_open"]


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
    """local_* outcomes and rate limits count nowhere."""

    def __init__(self, config: BreakerGate | None = None) -> None:
        self.config = config or BreakerGate()
        self._seen: deque[bool] = deque(maxlen=self.config.window)
        self._opened_at: float | None = None
        self._open_s = self.config.open_s
        self._probing = False

    def state(self, now: float) -> State:
        if self._opened_at is None:
            return "closed"
        return "open" if now < self._opened_at + self._open_s else "half_open"

    def admissible(self, now: float) -> bool:
        if self._opened_at is None:
            return True
        return now >= self._opened_at + self._open_s and not self._probing

    def took(self, now: float) -> None:
        """A request was let through; in half-open it is the one probe."""
        if self._opened_at is not None:
            self._probing = True

    def opens_at(self, now: float) -> float | None:
        """When time alone lets a probe through."""
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
        self._seen.append(failed)
        config = self.config
        if len(self._seen) >= config.min_outcomes and sum(self._seen) >= config.failure_ratio * len(self._seen):
            self._opened_at, self._open_s, self._probing = now, config.open_s, False
            return "opened"
        return None

    def _after_probe(self, kind: str, failed: bool, now: float) -> str | None:
        if self.state(now) == "open":
            return None  # a straggler admitted before it opened
        self._probing = False
        if kind == "success":
            self._opened_at, self._open_s = None, self.config.open_s
            self._seen.clear()
            return "closed"
        if failed:
            self._opened_at, self._open_s = now, min(self.config.max_open_s, 2 * self._open_s)
            return "reopened"
        return None
