"""Demand is arrivals, counted before any refusal: back-pressure must not hide it. Capacity is what busy replicas complete."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import floor, isfinite
from typing import Any

from windtunnel.events import Arrived, Cancelled, Event, Failed, Finished
from windtunnel.policy.planning.contract import TrafficMetrics

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


MEANS = (("isl", "isl_count"), ("osl", "osl_count"), ("kv_hit_rate", "kv_hit_tokens"), ("accept_length", "accept_forwards"),
         ("ttft_s", "ttft_count"), ("itl_s", "itl_count"))
OPEN_MEMORY_S = 3600.0  # a request that never ends is forgotten then


def merge_windows(windows: Iterable[TrafficMetrics | None], requested_s: float, min_coverage: float = 0.5) -> TrafficMetrics | None:
    """Known windows as one: sums, and means weighted by their denominators. None (unread) windows lower `coverage`; below the least: None."""
    known = [w for w in windows if w is not None]
    duration_s = sum(w.duration_s for w in known)
    coverage = min(1.0, duration_s / requested_s) if requested_s > 0 else 0.0
    if not known or coverage < min_coverage - 1e-9:
        return None
    means: dict[str, float | None] = {}
    weights: dict[str, float] = {}
    for name, weight in MEANS:
        pairs = [(getattr(w, name), getattr(w, weight)) for w in known]
        total = sum(n for value, n in pairs if value is not None)
        means[name] = sum(value * n for value, n in pairs if value is not None) / total if total > 0 else None
        weights[weight] = total
    return TrafficMetrics(duration_s, sum(w.num_req for w in known), **means, **weights, coverage=coverage)  # type: ignore[arg-type]


@dataclass(slots=True)
class _Slot:
    """Of one window: count of arrivals, and (sum, weight) by mean."""

    arrivals: float
    sums: dict[str, list[float]]
    known: bool = True


class TrafficMeter:
    """Traffic windows of one scale interval, on the grid t0 + k·window_s; those of the last `keep_s` and one more are kept.

    alone: every request counts, else those for which `mine(request)` holds. A window that `unread` covers is unknown, not zero.
    """

    events: frozenset[type] = frozenset({Arrived, Finished, Failed, Cancelled})

    def __init__(self, window_s: float, keep_s: float, t0: float = 0.0, mine: Callable[[Any], bool] | None = None) -> None:
        self.window_s, self.t0, self._mine = window_s, t0, mine
        self.keep = max(1, round(keep_s / window_s)) + 1
        self.invalid: dict[str, int] = {}  # field -> readings that were no finite number
        self._slots: dict[int, _Slot] = {}
        self._unread: set[int] = set()
        self._open: dict[str, float] = {}  # request -> arrival

    def handle(self, event: Event, now: float) -> None:
        """Arrivals count before any refusal; lengths and latencies when an answer is complete."""
        if type(event) is Arrived:
            request = event.request
            if self._mine is None or self._mine(request):
                slot = self._slot(now)
                slot.arrivals += 1
                self._open[request.id] = request.arrived_s
                self._add(slot, "isl", request.input_tokens, 1)
        elif type(event) is Finished:
            arrived_s = self._open.pop(event.request_id, None)
            if arrived_s is not None:
                self._finished(event, arrived_s, now)
        elif type(event) is Cancelled and event.request_id is not None:
            self._open.pop(event.request_id, None)

    def _finished(self, event: Finished, arrived_s: float, now: float) -> None:
        slot, tokens, first_s = self._slot(now), event.output_tokens, event.first_token_s
        self._add(slot, "osl", tokens, 1)
        if event.cached_tokens is not None and event.input_tokens:
            self._add(slot, "kv_hit_rate", min(1.0, event.cached_tokens / event.input_tokens), event.input_tokens)
        if first_s is not None:
            self._add(slot, "ttft_s", max(first_s - arrived_s, 0.0), 1)
            if tokens is not None and tokens > 1:
                self._add(slot, "itl_s", max(now - first_s, 0.0) / (tokens - 1), tokens - 1)
        engine = event.engine or {}
        length, forwards = engine.get("accept_length"), engine.get("accept_forwards", 1)
        if length is not None:
            self._add(slot, "accept_length", max(length, 1.0), forwards)

    def observe(self, metrics: TrafficMetrics, window_end: float) -> None:
        """A window that was read elsewhere, say scraped from a front door; replaces what was counted for it."""
        k = self._index(window_end - self.window_s / 2)
        sums = {name: [getattr(metrics, name) * getattr(metrics, weight), getattr(metrics, weight)]
                for name, weight in MEANS if getattr(metrics, name) is not None}
        self._slots[k] = _Slot(metrics.num_req, sums)
        self._unread.discard(k)

    def unread(self, start: float, end: float) -> None:
        """Between these run seconds the source could not be read: the windows they touch are unknown."""
        first, last = self._index(start), self._index(max(start, end - 1e-9))
        self._unread.update(range(max(first, last - self.keep), last + 1))

    def window(self, tick_at: float, length_s: float, min_coverage: float = 0.5) -> TrafficMetrics | None:
        """The last `length_s` before grid time `tick_at`; windows before the start are unknown."""
        last, n = self._index(tick_at), max(1, round(length_s / self.window_s))
        self._forget(last, tick_at)
        return merge_windows([self.base(k) for k in range(last - n, last)], n * self.window_s, min_coverage)

    def remember(self, keep_s: float, now: float) -> None:
        """From now on keep windows for at least `keep_s`; those that were forgotten before are unknown, not zero."""
        keep, newest = max(1, round(keep_s / self.window_s)) + 1, self._index(now)
        if keep > self.keep:
            self._unread.update(range(max(0, newest - keep), newest - self.keep))
            self.keep = keep

    def history(self, length_s: float, now: float) -> list[TrafficMetrics]:
        """Known windows of `length_s` that are over and not yet forgotten, oldest first."""
        n, newest = max(1, round(length_s / self.window_s)), self._index(now)
        starts = range(newest - n * min(self.keep // n, newest // n), newest, n) if newest > 0 else range(0)
        merged = (merge_windows([self.base(k) for k in range(start, start + n)], n * self.window_s) for start in starts)
        return [window for window in merged if window is not None]

    def base(self, k: int) -> TrafficMetrics | None:
        """Window k of the grid; None if it was not read."""
        if k < 0 or k in self._unread:
            return None
        slot = self._slots.get(k)
        if slot is None:
            return TrafficMetrics(self.window_s, 0.0)
        means = {name: total / weight for name, (total, weight) in slot.sums.items() if weight > 0}
        weights = {weight: slot.sums[name][1] for name, weight in MEANS if name in means}
        return TrafficMetrics(self.window_s, slot.arrivals, **means, **weights)

    def _index(self, at: float) -> int:
        return grid_index(at, self.t0, self.window_s) if at >= self.t0 else floor((at - self.t0) / self.window_s)

    def _slot(self, now: float) -> _Slot:
        k = self._index(now)
        slot = self._slots.get(k)
        if slot is None:
            slot = self._slots[k] = _Slot(0.0, {})
            self._forget(k, now)
        return slot

    def _add(self, slot: _Slot, name: str, value: float | None, weight: float) -> None:
        if value is None:
            return
        if not (isfinite(value) and value >= 0 and isfinite(weight) and weight >= 0):
            self.invalid[name] = self.invalid.get(name, 0) + 1
            return
        sums = slot.sums.setdefault(name, [0.0, 0.0])
        sums[0] += value * weight
        sums[1] += weight

    def _forget(self, newest: int, now: float) -> None:
        for k in [k for k in self._slots if k < newest - self.keep]:
            del self._slots[k]
        self._unread = {k for k in self._unread if k >= newest - self.keep}
        while self._open and next(iter(self._open.values())) < now - OPEN_MEMORY_S:
            del self._open[next(iter(self._open))]


def counter_delta(before: float | None, value: float) -> float | None:
    """Growth of a scraped counter; one that went down was reset and counts from zero. None: the first reading tells no growth."""
    if before is None:
        return None
    return value - before if value >= before else value
