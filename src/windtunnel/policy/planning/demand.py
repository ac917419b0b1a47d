"""Demand is arrivals, counted before any refusal: back-pressure must not hide it. Capacity is what busy replicas complete."""

from __future__ import annotations

from collections import deque

LEAST_DONE = 20  # completions by busy replicas before a capacity is believed
MEMORY_DONE = 400  # beyond them older ones fade


def grid_index(now: float, t0: float, step_s: float) -> int:
    """The largest k with t0 + k·step_s <= now, for the very floats that `t0 + k * step_s` gives."""
    k = int((now - t0) / step_s)
    if t0 + (k + 1) * step_s <= now:
        return k + 1
    return k - 1 if t0 + k * step_s > now else k


class DemandMeter:
    """Requests per second over a sliding window of whole slots of the grid t0 + k·slot_s; O(1) per arrival.

    A slot without arrivals is zero, not unknown: every arrival is seen.
    """

    def __init__(self, window_s: float, slot_s: float, t0: float) -> None:
        self.window_s, self.slot_s, self.t0 = window_s, slot_s, t0
        self.slots = max(1, round(window_s / slot_s))
        self.last_s: float | None = None  # time of the last arrival
        self._closed: deque[tuple[int, int]] = deque()  # (slot, arrivals), slots without any left out
        self._slot, self._count, self._sum = 0, 0, 0
        self._end = t0 + slot_s

    def arrived(self, now: float) -> None:
        if now >= self._end:
            self._roll(now)
        self._count += 1
        self.last_s = now

    def _roll(self, now: float) -> None:
        """Close the open slot at its own end, however late this is asked."""
        if self._count:
            self._closed.append((self._slot, self._count))
            self._sum += self._count
        self._slot, self._count = grid_index(now, self.t0, self.slot_s), 0
        self._end = self.t0 + (self._slot + 1) * self.slot_s
        while self._closed and self._closed[0][0] < self._slot - self.slots:
            self._sum -= self._closed.popleft()[1]

    def rate_rps(self, now: float) -> float | None:
        """Mean over the closed slots of the window, or over those since the start; None before the first slot has closed."""
        if now >= self._end:
            self._roll(now)
        closed = min(self._slot, self.slots)
        return self._sum / (closed * self.slot_s) if closed > 0 else None


class CapacityMeter:
    """Requests per second that one busy replica completes: completions over replica-seconds, in intervals in which work was waiting.

    What a replica does under the limit in force: a cut limit with a queue before it reads as little capacity.
    """

    def __init__(self) -> None:
        self._done = 0
        self._all_done, self._replica_s = 0.0, 0.0

    def finished(self) -> None:
        self._done += 1

    def close(self, seconds: float, ready: int, busy: bool) -> None:
        """End of an interval with `ready` replicas; one without waiting work says nothing about capacity."""
        done, self._done = self._done, 0
        if not busy or ready <= 0 or seconds <= 0:
            return
        self._all_done += done
        self._replica_s += seconds * ready
        if self._all_done > MEMORY_DONE:
            self._all_done, self._replica_s = self._all_done / 2, self._replica_s / 2

    @property
    def rps(self) -> float | None:
        """None until enough completions were seen."""
        return self._all_done / self._replica_s if self._all_done >= LEAST_DONE else None
