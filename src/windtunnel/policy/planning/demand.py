"""Demand is arrivals, counted before any refusal: back-pressure must not hide it. Capacity is what busy replicas complete."""

from __future__ import annotations

from collections import deque


class DemandMeter:
    """Requests per second over a sliding window of whole slots; O(1) per arrival."""

    def __init__(self, window_s: float, slot_s: float, t0: float) -> None:
        self.window_s, self.slot_s, self.t0 = window_s, slot_s, t0
        self._slots: deque[tuple[int, int]] = deque()
        self._slot, self._count, self._sum = 0, 0, 0

    def arrived(self, now: float) -> None:
        slot = int((now - self.t0) / self.slot_s)
        if slot != self._slot:
            self._close(slot)
        self._count += 1

    def _close(self, slot: int) -> None:
        if self._count:
            self._slots.append((self._slot, self._count))
            self._sum += self._count
        self._slot, self._count = slot, 0
        oldest = slot - round(self.window_s / self.slot_s)
        while self._slots and self._slots[0][0] < oldest:
            self._sum -= self._slots.popleft()[1]

    def rate_rps(self, now: float) -> float | None:
        """Mean over the closed slots of the window; None before the first slot has closed."""
        slot = int((now - self.t0) / self.slot_s + 1e-9)
        if slot != self._slot:
            self._close(slot)
        if slot == 0:
            return None
        return self._sum / (min(slot, round(self.window_s / self.slot_s)) * self.slot_s)


class CapacityMeter:
    """Requests per second that one busy replica completes: completions over replica-seconds, in intervals in which work was waiting."""

    def __init__(self, alpha: float = 0.3) -> None:
        self.alpha = alpha
        self.rps: float | None = None
        self._done = 0

    def finished(self) -> None:
        self._done += 1

    def close(self, seconds: float, ready: int, busy: bool) -> None:
        """End of an interval; one without waiting work says nothing about capacity."""
        done, self._done = self._done, 0
        if not busy or not ready or not done or seconds <= 0:
            return
        measured = done / (seconds * ready)
        self.rps = measured if self.rps is None else self.rps + self.alpha * (measured - self.rps)
