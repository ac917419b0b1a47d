"""What the limits that learn from latency share: a real value within bounds, of which the floor is in force."""

from __future__ import annotations

from math import floor, inf

from windtunnel.policy.admission.limit import LimitChange, Sample

DROPPED = frozenset({"rate_limited", "provider_timeout"})
EPSILON = 1e-9  # binary floats must not move a rounded limit


class AdaptiveLimit:
    """value: the limit as a real number; limit: its floor, within [least, most] and the ceiling of the resource, and at least 1.

    A drop with a Retry-After pauses the resource for that long; without one the lower limit is the whole answer.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, initial: float, least: int, most: int, effective_max: int) -> None:
        self._initial, self._least, self._most = initial, least, most
        self._low = self._high = 1
        self._learned = False  # until the first sample a raised ceiling brings the initial limit back
        self.blocked_until, self.epoch = -inf, 0
        self.value = float(initial)
        self.set_max(effective_max, -inf)

    def set_max(self, effective_max: int, now: float) -> None:
        """A lowered ceiling lowers the limit at once; a raised one changes no limit that has learned."""
        self._high = max(1, min(self._most, effective_max))
        self._low = min(self._least, self._high)
        self._set(self.value if self._learned else self._initial)

    def _set(self, value: float) -> None:
        self.value = min(float(self._high), max(float(self._low), value))
        self.limit = max(1, floor(self.value + EPSILON))

    def move(self, value: float) -> LimitChange | None:
        """The limit becomes `value`, within its bounds; the change, if its floor changed."""
        before = self.limit
        self._learned = True
        self._set(value)
        if self.limit == before:
            return None
        if self.limit > before:
            return LimitChange(before, self.limit, "increase")
        self.epoch += 1
        return LimitChange(before, self.limit, "decrease")

    def pause(self, sample: Sample, now: float) -> None:
        """Heed the Retry-After of a refusal; a pause is never shortened."""
        wait_s = sample.retry_after_s
        if sample.kind == "rate_limited" and wait_s is not None and 0 < wait_s < inf:
            self.blocked_until = max(self.blocked_until, now + wait_s)


def rtt_of(sample: Sample) -> float | None:
    """The latency of a sample, s; None if there is none to learn from: local ends, unknown, not positive or not finite."""
    rtt_s = sample.rtt_s
    if rtt_s is None or not 0 < rtt_s < inf or sample.kind.startswith("local_"):
        return None
    return rtt_s
