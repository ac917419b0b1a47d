"""A circuit breaker with time as an argument: stops asking a plugin that keeps failing, then tries it again."""

from __future__ import annotations

from enum import StrEnum


class Circuit(StrEnum):
    """CLOSED: asked. OPEN: not asked. HALF_OPEN: asked once, to see."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """CLOSED -(threshold failures in a row)-> OPEN -(cooldown_s)-> HALF_OPEN -success-> CLOSED, -failure-> OPEN again.

    Every method takes run seconds and returns the state that was entered by it, or None; `failures` counts those in a row.
    """

    __slots__ = ("_half", "_opened_at", "cooldown_s", "failures", "threshold")

    def __init__(self, threshold: int = 5, cooldown_s: float = 30.0) -> None:
        self.threshold, self.cooldown_s = threshold, cooldown_s
        self.failures = 0
        self._opened_at: float | None = None
        self._half = False

    def poll(self, now: float) -> Circuit | None:
        """HALF_OPEN if the cool-down has just ended."""
        if self._opened_at is None or self._half or now - self._opened_at < self.cooldown_s:
            return None
        self._half = True
        return Circuit.HALF_OPEN

    def state(self, now: float) -> Circuit:
        """Where it stands; reading it may end the cool-down."""
        self.poll(now)
        return self.last

    @property
    def last(self) -> Circuit:
        """Where it stood when last asked."""
        if self._opened_at is None:
            return Circuit.CLOSED
        return Circuit.HALF_OPEN if self._half else Circuit.OPEN

    def callable(self, now: float) -> bool:
        """May the plugin be asked?"""
        return self._opened_at is None or self.state(now) is Circuit.HALF_OPEN

    def callable_at(self, at: float) -> bool:
        """Would it be, at a later time? Changes nothing."""
        return self._opened_at is None or self._half or at - self._opened_at >= self.cooldown_s

    def succeeded(self, now: float) -> Circuit | None:
        self.failures = 0
        if self._opened_at is None:
            return None
        self._opened_at, self._half = None, False
        return Circuit.CLOSED

    def failed(self, now: float) -> Circuit | None:
        self.failures += 1
        if self._opened_at is None:
            if self.failures < self.threshold:
                return None
        elif self.state(now) is Circuit.OPEN:
            return None  # an answer that came while nobody asked any more
        self._opened_at, self._half = now, False
        return Circuit.OPEN
