"""One resource of the admission: its key, what is in flight, its ceiling, its limit, its rate; and the frozen picture of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple

from windtunnel.policy.admission.completion_rate import CompletionRate
from windtunnel.policy.admission.limit import Limit


class RequestResourceKey(NamedTuple):
    """What requests compete for: a domain of an endpoint (provider and model, by their canonical ids, never by an alias)."""

    provider: str
    model: str
    domain: str = "chat"

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}/{self.domain}"


ResourceKey = str | RequestResourceKey


@dataclass(frozen=True, slots=True)
class PressureSnapshot:
    """One resource at `captured_at` (run s). limit: in force; effective_max: its ceiling; sequence: grows with every change of any
    resource; waiters: in the admission itself, 0 where requests wait in a lane's queue; release_diagnostics: wrong releases by reason."""

    captured_at: float
    resource: ResourceKey
    effective_max: int
    limit: int
    in_flight: int
    blocked_until: float | None
    cooldown_remaining_s: float
    ceiling: int | None
    consecutive_rate_limits: int
    starved: bool
    last_outcome: str | None
    breaker: str
    sequence: int = 0
    waiters: int = 0
    release_diagnostics: Mapping[str, int] | None = None
    completion_rate_rps: float | None = None


class Resource:
    """limit_at: the limit in force at a run second, for a limit that ramps up; None for one whose `limit` says it all.
    waiting: requests that wait for it in the admission."""

    __slots__ = ("cap", "in_flight", "last_outcome", "limit", "limit_at", "name", "rate", "used", "waiting")

    def __init__(self, name: ResourceKey, cap: int, limit: Limit) -> None:
        self.name, self.cap, self.limit, self.in_flight, self.used, self.waiting = name, cap, limit, 0, False, 0
        self.last_outcome: str | None = None
        self.rate = CompletionRate()
        self.limit_at: Callable[[float], int] | None = getattr(limit, "limit_at", None) if getattr(limit, "ramps", False) else None

    def bound(self, now: float) -> int:
        """Requests that may be in flight at `now`."""
        return min(self.cap, self.limit.limit if self.limit_at is None else self.limit_at(now))

    def first_use(self, now: float) -> None:
        """The first lease is asked for: a ramp starts."""
        self.used = True
        first_use = getattr(self.limit, "first_use", None)
        if first_use is not None:
            first_use(now)

    def next_step(self, now: float) -> float | None:
        """When a ramp next admits one more, run s; None without a ramp, or if even its end would not help."""
        if self.limit_at is None or self.in_flight >= min(self.cap, self.limit.limit):
            return None
        step: float | None = self.limit.next_step(now)  # type: ignore[attr-defined]
        return step

    def _blocked_until(self) -> float | None:
        return self.limit.blocked_until if self.limit.blocked_until > float("-inf") else None

    def gauges(self, now: float) -> dict[str, Any]:
        """The numbers that a note carries, as plain data."""
        until = self._blocked_until()
        return {"effective_max": self.cap, "limit": self.bound(now), "in_flight": self.in_flight, "waiters": self.waiting,
                "blocked_until": until if until is None or isfinite(until) else repr(until)}

    def snapshot(self, now: float, breaker: str, sequence: int, diagnostics: Mapping[str, int]) -> PressureSnapshot:
        """A frozen picture. Changes nothing."""
        limit = self.limit
        return PressureSnapshot(
            now, self.name, self.cap, self.bound(now), self.in_flight, self._blocked_until(), max(0.0, limit.blocked_until - now),
            getattr(limit, "ceiling", None), getattr(limit, "consecutive_rate_limits", 0), getattr(limit, "starved", False),
            self.last_outcome, breaker, sequence, self.waiting, dict(diagnostics), self.rate.per_s(now),
        )
