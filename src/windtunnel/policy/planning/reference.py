"""Other autoscalers as PROPOSE plugins, to compare with: the Kubernetes HPA, Knative's KPA, KEDA; and the fleet that scales at once.

Rules as documented for Kubernetes autoscaling/v2, Knative Serving 1.x and KEDA 2.x, without their rounding of time to seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from math import ceil, floor
from typing import Literal

from windtunnel.policy.planning.contract import ComponentTarget, ForwardPass, Override, PoolState, StageRequest, StageResponse
from windtunnel.policy.planning.feed_forward import ceil_safe
from windtunnel.policy.planning.sizing import ACCEPTED, baseline_of

TOLERANCE = 0.1 + 1e-9
Metric = Literal["in_flight", "queue", "kv", "rps"]


def hpa_replicas(n: int, target: float, values: Sequence[float | None], unready: int = 0) -> int:
    """The HPA's wish for n replicas: `values` per ready replica, None: no metric; `unready` replicas have none either.

    Missing metrics count against the move: as `target` when it would shrink, as 0 when it would grow; unready as 0 when it would grow.
    """
    known = [v for v in values if v is not None]
    if not known or target <= 0:
        return n
    ratio = sum(known) / len(known) / target
    missing = len(values) - len(known)
    if not missing and (not unready or ratio < 1):
        return n if abs(ratio - 1) <= TOLERANCE else ceil_safe(ratio * len(known))
    filled = known + ([target] * missing if ratio < 1 else [0.0] * (missing + unready))
    again = sum(filled) / len(filled) / target
    if abs(again - 1) <= TOLERANCE or (again < 1) != (ratio < 1):
        return n
    wish = ceil_safe(again * len(filled))
    return n if (wish < n) == (again > 1) and wish != n else wish


class ReferenceHpa:
    """One pool by the HPA's rules: mean metric per replica over target, up by at most max(n + 4, 2n) in 15 s, down to the largest wish
    of the last 300 s. metric: requests in flight or queued, KV share (target as a share), or requests per second, each per replica.

    pending_blind: replicas that are still starting are taken for serving ones, as when the metric is an average that somebody else made.
    waiting, running: requests that wait in the control, and that it has on the pool's replicas; set by the planner. What waits there counts
    to the queue.
    """

    def __init__(self, component: str, metric: Metric, target: float, *, kv_tokens: int | None = None, most: int | None = None,
                 least: int = 1, period_s: float = 15.0, down_window_s: float = 300.0, pending_blind: bool = False) -> None:
        self.pending_blind = pending_blind
        self.waiting: Callable[[], int | None] | None = None
        self.running: Callable[[str], int] | None = None
        self.component, self.metric, self.target, self.kv_tokens = component, metric, target, kv_tokens
        self.most, self.least, self.period_s, self.down_window_s = most, least, period_s, down_window_s
        self._wishes: deque[tuple[float, int]] = deque()
        self._counts: deque[tuple[float, int]] = deque()
        self.reasons: dict[str, str] = {}

    def propose(self, request: StageRequest) -> StageResponse:
        state = _state_of(self.component, request)
        n, ready = baseline_of(state), state.ready if state else None
        if n is None or ready is None:
            return ACCEPTED
        values = self._values(request, ready)
        wish = n if values is None else self._wish(n, ready, values)
        known = [v for v in values or () if v is not None]
        seen_text = f"{sum(known) / len(known):.4g} per replica" if known else "not known"
        return self._answered(f"{self.metric} {seen_text}, target {self.target:.4g}", wish, self.limited(n, wish, request.tick_at))

    def _answered(self, why: str, wish: int, n: int) -> StageResponse:
        return _set(self, f"{why}: wants {wish}" + (f", {n} within its limits" if n != wish else ""), n)

    def _wish(self, n: int, ready: int, values: Sequence[float | None]) -> int:
        known = [v for v in values if v is not None]
        if self.pending_blind and known:
            ratio = sum(known) / len(known) / self.target
            return n if abs(ratio - 1) <= TOLERANCE else ceil_safe(n * ratio)
        return hpa_replicas(n, self.target, values, max(0, n - ready))

    def limited(self, n: int, wish: int, at: float) -> int:
        """The wish within the rates of change. What is there at the first look counts as a wish: nobody shrinks on one look."""
        if not self._wishes:
            self._wishes.append((at, n))
        self._wishes.append((at, wish))
        self._counts.append((at, n))
        _drop(self._wishes, at - self.down_window_s)
        _drop(self._counts, at - self.period_s)
        stable = max(wish, min(n, max(w for _, w in self._wishes)))
        start = min(count for _, count in self._counts)
        bounded = min(stable, max(n, start + 4, 2 * start))
        bounded = bounded if self.most is None else min(bounded, self.most)
        return max(bounded, self.least)

    def _values(self, request: StageRequest, ready: int) -> list[float | None] | None:
        """Per ready replica; None: nothing was collected."""
        seen = request.ctx.observations
        if self.metric == "rps":
            traffic = seen.traffic if seen else None
            if traffic is None or traffic.duration_s <= 0 or ready <= 0:
                return None
            return [traffic.num_req / traffic.duration_s / ready] * ready
        reports = seen.fpm.engines.get(self.component) if seen and seen.fpm else None
        outside = self._outside(reports is None)
        if reports is None:
            return None if outside is None or ready <= 0 else [outside / ready] * ready
        by_replica: dict[str, float] = {}
        for report in reports.values():
            by_replica[report.replica_id] = by_replica.get(report.replica_id, 0.0) + self._value(report)
        share = (outside or 0.0) / max(1, len(by_replica))
        found: list[float | None] = [value + share for value in by_replica.values()]
        return found + [None] * max(0, ready - len(found))

    def _outside(self, silent: bool) -> float | None:
        """Requests that the control knows of: what waits there; of silent engines also what runs. None: it was not asked to tell."""
        if self.metric not in ("queue", "in_flight"):
            return None
        waiting = None if self.waiting is None else self.waiting()
        if waiting is None:
            return None
        running = self.running(self.component) if self.running is not None and silent and self.metric == "in_flight" else 0
        return float(waiting + running)

    def _value(self, report: ForwardPass) -> float:
        queued = report.queued.num_prefill + report.queued.num_decode
        if self.metric == "queue":
            return queued
        if self.metric == "kv":
            return (report.scheduled.decode_kv_tokens + report.queued.decode_kv_tokens) / (self.kv_tokens or 1)
        return queued + report.scheduled.num_prefill + report.scheduled.num_decode


class KedaLike(ReferenceHpa):
    """One pool by the length of the queue over a target length per replica, as KEDA's queue scalers do: KEDA computes nothing by itself,
    it hands the total to an HPA as an AverageValue metric (ceil(queue / target), the HPA's tolerance and rates of change), and adds the
    way to zero: with least = 0, none after `cooldown_s` of an empty queue, and one again when something waits. Pending replicas are not
    seen: the queue they are meant for still counts in full, which is what makes it overshoot on slow boots.

    waiting: length of the queue, by default what the pool's engines report; None: not known.
    """

    def __init__(self, component: str, target: float, *, cooldown_s: float = 300.0, most: int | None = None, least: int = 0,
                 waiting: Callable[[], int | None] | None = None) -> None:
        super().__init__(component, "queue", target, most=most, least=least)
        self.cooldown_s, self.waiting = cooldown_s, waiting
        self._active_s: float | None = None

    def propose(self, request: StageRequest) -> StageResponse:
        state = _state_of(self.component, request)
        n = baseline_of(state)
        queue = self._queue(request, state.ready or 0 if state else 0)
        if n is None or queue is None:
            return ACCEPTED
        at = request.tick_at
        if queue > 0 or self._active_s is None:
            self._active_s = at
        why = f"queue {queue:.4g} in all, target {self.target:.4g} per replica"
        if n == 0:
            return self._answered(why, 1 if queue > 0 else 0, 1 if queue > 0 else 0)
        if self.least == 0 and queue <= 0 and at - self._active_s >= self.cooldown_s - 1e-9:
            return self._answered(f"queue empty for {at - self._active_s:.4g} s", 0, 0)
        ratio = queue / (self.target * n)
        wish = n if abs(ratio - 1) <= TOLERANCE else max(1, ceil_safe(queue / self.target))
        return self._answered(why, wish, max(1, self.limited(n, wish, at)))

    def _queue(self, request: StageRequest, ready: int) -> float | None:
        engines = request.ctx.observations.fpm if request.ctx.observations else None
        if self.waiting is not None and (engines is None or self.component not in engines.engines):
            return self.waiting()
        values = self._values(request, ready)
        return None if values is None else float(sum(v for v in values if v is not None))


class ReferenceKpa:
    """One pool by concurrency, as Knative's KPA: averages of its own samples, one a tick, over a stable and a panic window. Panic begins
    when the short average asks for twice what is ready, never scales down, and ends 60 s after it was last true.

    waiting, running: of the control, set by the planner.
    """

    def __init__(self, component: str, target: float = 70.0, *, stable_s: float = 60.0, panic_s: float = 6.0, panic_factor: float = 2.0,
                 max_up: float = 1000.0, max_down: float = 2.0) -> None:
        self.component, self.target, self.stable_s, self.panic_s = component, target, stable_s, panic_s
        self.panic_factor, self.max_up, self.max_down = panic_factor, max_up, max_down
        self._samples: deque[tuple[float, float]] = deque()
        self._panic_at: float | None = None
        self._highest = 0
        self.reasons: dict[str, str] = {}
        self.waiting: Callable[[], int | None] | None = None
        self.running: Callable[[str], int] | None = None

    def propose(self, request: StageRequest) -> StageResponse:
        seen, at = request.ctx.observations, request.tick_at
        state = _state_of(self.component, request)
        reports: Mapping[str, ForwardPass] | None = seen.fpm.engines.get(self.component) if seen and seen.fpm else None
        if state is None or state.ready is None:
            return ACCEPTED
        waiting = None if self.waiting is None else self.waiting()
        if reports is not None:
            loads = (r.scheduled.num_prefill + r.scheduled.num_decode + r.queued.num_prefill + r.queued.num_decode for r in reports.values())
            self._samples.append((at, float(sum(loads) + (waiting or 0))))
        elif waiting is not None and self.running is not None:
            self._samples.append((at, float(waiting + self.running(self.component))))
        _drop(self._samples, at - self.stable_s)
        short = [v for t, v in self._samples if t > at - self.panic_s + 1e-9]
        if not short:
            return ACCEPTED
        stable, quick = sum(v for _, v in self._samples) / len(self._samples), sum(short) / len(short)
        n = self.desired(state.ready, stable, quick, at)
        shown = f"{quick:.4g} in all, in panic" if self._panic_at is not None else f"{stable:.4g} in all"
        return _set(self, f"concurrency {shown}, target {self.target:.4g} per replica: wants {n}", n)

    def desired(self, ready: int, stable: float, panic: float, at: float) -> int:
        """Replicas for the two averages of total concurrency."""
        base = max(1, ready)
        low, high = floor(base / self.max_down), ceil(self.max_up * base)
        slow, quick = (min(max(ceil_safe(v / self.target), low), high) for v in (stable, panic))
        if ceil_safe(panic / self.target) / base >= self.panic_factor:
            self._panic_at = at
        elif self._panic_at is not None and at - self._panic_at >= self.stable_s - 1e-9:
            self._panic_at, self._highest = None, 0
        if self._panic_at is None:
            return slow
        self._highest = max(self._highest, slow, quick)
        return self._highest


def perfect_fleet(rates_rps: Sequence[float], capacity_rps: float) -> list[int]:
    """Replicas that a fleet without boot times would need for each rate: the floor that regret is counted from."""
    return [ceil_safe(rate / capacity_rps) for rate in rates_rps]


def _state_of(component: str, request: StageRequest) -> PoolState | None:
    seen = request.ctx.observations
    return seen.workers.pools.get(component) if seen and seen.workers else None


def _set(plugin: ReferenceHpa | ReferenceKpa, why: str, n: int) -> StageResponse:
    """The count, with metric, value and target as its reason; the order that follows from it carries it too."""
    plugin.reasons[plugin.component] = why
    return StageResponse(Override((ComponentTarget(plugin.component, n),), why))


def _drop(samples: deque[tuple[float, int]] | deque[tuple[float, float]], until: float) -> None:
    while len(samples) > 1 and samples[0][0] <= until + 1e-9:
        samples.popleft()
