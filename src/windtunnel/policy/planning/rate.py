"""How many replicas: a rate planner. Arrivals and what waits, over what a replica can do; never cancels what is still booting.

n = ceil((λ + max(0, Q - Q*) / T_drain) / (ρ·μ)): the queue is an added rate, not a ratio, so pending replicas cannot make it run away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, floor
from typing import Annotated, Any

from windtunnel.effects import Effect, Note, ScaleTo, WakeAt
from windtunnel.errors import PlannerConfigError
from windtunnel.events import Arrived, Event, Finished, ReplicaBooting, ReplicaGone, ReplicaReady, ScaleAnswered, Woke
from windtunnel.policy.param import BuildContext, Param, PoolFacts, check_number
from windtunnel.policy.planning.demand import CapacityMeter, DemandMeter

KEY = "planner"
LEAST_DRAIN_S = 60.0
BOOT_ALPHA = 0.3


@dataclass(frozen=True, slots=True)
class RatePlanner:
    """Config. pool None: the only pool. capacity_rps: requests/s of one replica within the SLO; None: measured while work waits.
    down_stable_s: how long a smaller number must have been enough before replicas go."""

    pool: str | None = None
    interval_s: Annotated[float, Param(1, 120, 1, "s", "tick", "time between two plans")] = 10.0
    window_s: Annotated[float, Param(5, 600, 5, "s", "window", "arrivals are averaged over it")] = 60.0
    target_utilisation: Annotated[float, Param(0.3, 1.0, 0.05, label="target load", help="share of a replica's capacity to plan for")] = 0.8
    capacity_rps: Annotated[float | None, Param(0.1, 100, 0.1, "1/s", "replica capacity", "requests per second of one replica", "log")] = None
    min_replicas: Annotated[int, Param(0, 64, 1, "replicas", "at least", "floor")] = 1
    max_replicas: Annotated[int | None, Param(1, 64, 1, "replicas", "at most", "ceiling")] = None
    max_step: Annotated[int, Param(1, 32, 1, "replicas", "step", "most replicas per plan")] = 8
    down_stable_s: Annotated[float, Param(0, 900, 10, "s", "hold", "before replicas are taken away")] = 60.0
    ttft_slo_s: Annotated[float, Param(0.1, 60, 0.1, "s", "TTFT target", "queue that fits it is no backlog", "log")] = 1.0

    def __post_init__(self) -> None:
        check_number("interval_s", self.interval_s, above=0.0)
        check_number("window_s", self.window_s, lo=self.interval_s)
        check_number("target_utilisation", self.target_utilisation, above=0.0, hi=1.0)
        if self.capacity_rps is not None:
            check_number("capacity_rps", self.capacity_rps, above=0.0)
        check_number("min_replicas", self.min_replicas, lo=0, whole=True)
        if self.max_replicas is not None:
            check_number("max_replicas", self.max_replicas, lo=max(1, self.min_replicas), whole=True)
        check_number("max_step", self.max_step, lo=1, whole=True)
        check_number("down_stable_s", self.down_stable_s, lo=0.0)
        check_number("ttft_slo_s", self.ttft_slo_s, above=0.0)

    def build(self, ctx: BuildContext) -> RateBased:
        named = [p for p in ctx.pools if self.pool in (None, p.name)]
        if len(named) != 1:
            known = ", ".join(p.name for p in ctx.pools)
            raise PlannerConfigError(f"control.planner.pool: expected one of {known}, got {self.pool!r}")
        return RateBased(self, named[0])


class RateBased:
    """`handle(event, now) -> effects`: counts arrivals, follows replicas by events, plans on a fixed grid of times."""

    events: frozenset[type] = frozenset({Arrived, Finished, ReplicaBooting, ReplicaReady, ReplicaGone, ScaleAnswered, Woke})

    def __init__(self, config: RatePlanner, pool: PoolFacts) -> None:
        self.config, self.pool = config, pool
        self.waiting: Callable[[], int] = lambda: 0
        self._t0 = 0.0
        self._demand = DemandMeter(config.window_s, config.interval_s, 0.0)
        self._capacity = CapacityMeter()
        self._ready: set[str] = set()
        self._starting: set[str] = set()
        self._expected: int | None = None
        self._boot_s = pool.boot_s
        self._plans = 0
        self._was_waiting = False
        self._low: list[tuple[float, int]] = []  # (time, wanted) while fewer would do
        self._last: dict[str, Any] = {"reason": "not_started"}
        self._on: dict[type, Callable[[Any, float], list[Effect]]] = {
            Arrived: self._arrived, Finished: self._finished, ReplicaBooting: self._booting, ReplicaReady: self._became_ready,
            ReplicaGone: self._gone, ScaleAnswered: self._answered, Woke: self._woke,
        }

    def start(self, now: float) -> list[Effect]:
        """The grid of ticks begins here."""
        self._t0 = now
        self._demand = DemandMeter(self.config.window_s, self.config.interval_s, now)
        return [WakeAt(now + self.config.interval_s, KEY)]

    def handle(self, event: Event, now: float) -> list[Effect]:
        return self._on[type(event)](event, now)

    def view(self) -> Mapping[str, Any]:
        """The last plan: rate, capacity, wanted, reason."""
        return dict(self._last)

    def _arrived(self, event: Arrived, now: float) -> list[Effect]:
        self._demand.arrived(now)
        if self._expected == 0 and not self._ready and not self._starting:
            return self._order(1, now, "activated_from_zero")
        return []

    def _finished(self, event: Finished, now: float) -> list[Effect]:
        self._capacity.finished()
        return []

    def _booting(self, event: ReplicaBooting, now: float) -> list[Effect]:
        if event.pool == self.pool.name:
            self._starting.add(event.replica)
        return []

    def _became_ready(self, event: ReplicaReady, now: float) -> list[Effect]:
        if event.pool == self.pool.name:
            self._starting.discard(event.replica)
            self._ready.add(event.replica)
            if event.boot_s is not None:
                self._boot_s = event.boot_s if self._boot_s is None else self._boot_s + BOOT_ALPHA * (event.boot_s - self._boot_s)
        return []

    def _gone(self, event: ReplicaGone, now: float) -> list[Effect]:
        self._starting.discard(event.replica)
        self._ready.discard(event.replica)
        return []

    def _answered(self, event: ScaleAnswered, now: float) -> list[Effect]:
        if event.status in ("refused", "failed") and event.plan_id == self._plans:
            self._expected = None  # what was asked for will not come: plan from what is ready
        return []

    def _woke(self, event: Woke, now: float) -> list[Effect]:
        """A tick at the newest grid time; ticks that were missed are not caught up."""
        if event.key != KEY:
            return []
        interval_s = self.config.interval_s
        done = floor((now - self._t0) / interval_s + 1e-9)
        return [*self._tick(now), WakeAt(self._t0 + (done + 1) * interval_s, KEY)]

    def _tick(self, now: float) -> list[Effect]:
        config, waiting = self.config, self.waiting()
        self._capacity.close(config.interval_s, len(self._ready), waiting > 0 and self._was_waiting)
        self._was_waiting = waiting > 0
        rate_rps = self._demand.rate_rps(now)
        capacity_rps = config.capacity_rps if config.capacity_rps is not None else self._capacity.rps
        baseline = self._expected if self._expected is not None else len(self._ready)
        self._last = {"at_s": now, "rate_rps": rate_rps, "capacity_rps": capacity_rps, "waiting": waiting, "baseline": baseline,
                      "ready": len(self._ready), "starting": len(self._starting), "wanted": None, "reason": "no_change"}
        if rate_rps is None:
            return self._hold("no_traffic_data")
        if capacity_rps is None:
            return self._hold("model_not_ready")
        wanted = self._bounded(self.size(rate_rps, waiting, capacity_rps), baseline)
        self._last["wanted"] = wanted
        if wanted >= baseline:
            self._low.clear()
        if wanted > baseline:
            return self._order(wanted, now, "scale_up")
        if wanted < baseline:
            return self._lower(wanted, now)
        return []

    def size(self, rate_rps: float, waiting: int, capacity_rps: float) -> int:
        """Replicas for the arrival rate plus the backlog's, each planned to `target_utilisation` of its capacity; at least the floor."""
        config = self.config
        drain_s = max(LEAST_DRAIN_S, 2 * (self._boot_s or 0.0))
        backlog = max(0.0, waiting - rate_rps * config.ttft_slo_s / 2)
        n = ceil((rate_rps + backlog / drain_s) / (config.target_utilisation * capacity_rps) - 1e-9)
        return max(n, config.min_replicas)

    def _bounded(self, n: int, baseline: int) -> int:
        config = self.config
        n = min(max(n, baseline - config.max_step), baseline + config.max_step)
        ceiling = config.max_replicas if config.max_replicas is not None else self.pool.max_replicas
        n = n if ceiling is None else min(n, ceiling)
        return max(n, config.min_replicas)

    def _lower(self, wanted: int, now: float) -> list[Effect]:
        """Fewer only when nothing is booting and the largest number wanted over the hold time is still fewer."""
        if self._starting:
            return self._hold("scaling_in_progress")
        self._low.append((now, wanted))
        since = now - self.config.down_stable_s
        while len(self._low) > 1 and self._low[1][0] <= since:
            self._low.pop(0)
        if self._low[0][0] > since:
            return self._hold("scale_down_held")
        target = max(n for _, n in self._low)
        self._low.clear()
        return self._order(target, now, "scale_down")

    def _hold(self, reason: str) -> list[Effect]:
        self._last["reason"] = reason
        return []

    def _order(self, n: int, now: float, reason: str) -> list[Effect]:
        self._plans += 1
        self._expected = n
        self._last["reason"] = reason
        return [ScaleTo(self._plans, ((self.pool.name, n),), f"plan-{self._plans}", reason),
                Note("plan", "planner", self._plans, (), reason, dict(self._last))]
