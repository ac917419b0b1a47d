"""How many replicas: a rate planner. Arrivals and what waits, over what a replica can do; never cancels in haste what is still booting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from windtunnel.effects import NOTHING, Effect, Note, ScaleTo, WakeAt
from windtunnel.errors import PlannerConfigError
from windtunnel.events import Arrived, Event, Finished, ReplicaBooting, ReplicaGone, ReplicaReady, Request, ScaleAnswered, Woke
from windtunnel.policy.param import BuildContext, Param, PoolFacts, check_number
from windtunnel.policy.planning.demand import CapacityMeter, DemandMeter, grid_index
from windtunnel.policy.planning.feed_forward import drain_time_s, replicas_needed
from windtunnel.policy.planning.pool_states import BOOT_ALPHA
from windtunnel.policy.planning.steadiness import Steadiness

KEY = "planner"
STUCK_AFTER_S, STUCK_HOLD_S, REFUSED_HOLD_S = 600.0, 300.0, 300.0


@dataclass(frozen=True, slots=True)
class RatePlanner:
    """Config. pool None: the only pool. capacity_rps: requests/s of one replica within the SLO; None: measured while work waits.
    down_stable_s: how long a smaller number must have been enough before replicas go; zero_idle_s: without any arrival, before the
    last one goes (only with min_replicas 0)."""

    pool: str | None = None
    interval_s: Annotated[float, Param(1, 120, 1, "s", "tick", "time between two plans")] = 10.0
    window_s: Annotated[float, Param(5, 600, 5, "s", "window", "arrivals are averaged over it")] = 60.0
    target_utilisation: Annotated[float, Param(0.3, 1.0, 0.05, label="target load", help="share of a replica's capacity to plan for")] = 0.8
    capacity_rps: Annotated[float | None, Param(0.1, 100, 0.1, "1/s", "replica capacity", "requests per second of one replica", "log")] = None
    min_replicas: Annotated[int, Param(0, 64, 1, "replicas", "at least", "floor")] = 1
    max_replicas: Annotated[int | None, Param(1, 64, 1, "replicas", "at most", "ceiling")] = None
    max_step: Annotated[int, Param(1, 32, 1, "replicas", "step", "most replicas per plan")] = 8
    down_stable_s: Annotated[float, Param(0, 900, 10, "s", "hold", "before replicas are taken away")] = 60.0
    zero_idle_s: Annotated[float, Param(0, 3600, 30, "s", "idle", "without arrivals, before the last replica goes")] = 300.0
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
        check_number("zero_idle_s", self.zero_idle_s, lo=0.0)
        check_number("ttft_slo_s", self.ttft_slo_s, above=0.0)

    def build(self, ctx: BuildContext) -> RateBased:
        """Raises PlannerConfigError unless `pool` names one pool, or there is just one."""
        named = [p for p in ctx.pools if self.pool in (None, p.name)]
        if len(named) != 1:
            known = ", ".join(p.name for p in ctx.pools)
            raise PlannerConfigError(f"control.planner.pool: expected one of {known}, got {self.pool!r}")
        return RateBased(self, named[0], alone=len({p.model for p in ctx.pools}) == 1, wants=ctx.wants)


class RateBased:
    """`handle(event, now) -> effects`: counts arrivals, follows replicas by events, plans on a fixed grid of times.

    alone: all arrivals are for this pool; else those that name it or its model. wants: note streams that are recorded.
    """

    needs: frozenset[str] = frozenset()
    events: frozenset[type] = frozenset({Arrived, Finished, ReplicaBooting, ReplicaReady, ReplicaGone, ScaleAnswered, Woke})

    def __init__(self, config: RatePlanner, pool: PoolFacts, *, alone: bool = True, wants: frozenset[str] = frozenset()) -> None:
        self.config, self.pool, self._alone, self._notes = config, pool, alone, "planner" in wants
        self.waiting: Callable[[], int] = lambda: 0
        self.in_flight: Callable[[str], int] = lambda replica: 0
        self._ceiling = _least(config.max_replicas, pool.max_replicas)
        self._demand = DemandMeter(config.window_s, config.interval_s, 0.0)
        self._capacity = CapacityMeter()
        self._busy, self._busy_since = False, 0.0  # was work waiting after the last look?
        self._ready: set[str] = set()
        self._starting: set[str] = set()
        self._seen = pool.replicas == 0  # unknown is not zero: no replica was ever heard of
        self._expected: int | None = None
        self._boot_s = pool.boot_s
        self._last_target: int | None = None
        self._t0 = self._progress_s = 0.0
        self._ordered_s = self._stuck_until = self._refused_until = float("-inf")
        self._plans = self._ticks = self._missed = self._last_tick = 0
        self._steadiness = Steadiness(config.down_stable_s, config.max_step)
        self._last: dict[str, Any] = {"reason": "not_started"}
        self._on: dict[type, Callable[[Any, float], Sequence[Effect]]] = {
            Arrived: self._arrived, Finished: self._finished, ReplicaBooting: self._booting, ReplicaReady: self._became_ready,
            ReplicaGone: self._gone, ScaleAnswered: self._answered, Woke: self._woke,
        }

    def start(self, now: float) -> list[Effect]:
        """The grid of ticks begins here."""
        self._t0 = self._progress_s = self._busy_since = now
        self._demand = DemandMeter(self.config.window_s, self.config.interval_s, now)
        made: list[Effect] = [WakeAt(now + self.config.interval_s, KEY)]
        if self._notes:
            told = {"planner": "rate", "settings": {**asdict(self.config), "pool": self.pool.name, "max_replicas": self._ceiling}}
            made.insert(0, Note("settings", "planner", 0, (), "", told))
        return made

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        return self._on[type(event)](event, now)

    def view(self) -> Mapping[str, Any]:
        """The last plan: rate, capacity, wanted, reason."""
        return dict(self._last)

    # -- what happened ------------------------------------------------------------------------------------------------------------

    def _arrived(self, event: Arrived, now: float) -> Sequence[Effect]:
        if not (self._alone or self._mine(event.request)):
            return NOTHING
        self._demand.arrived(now)
        if not self._ready and self._baseline() == 0 and now >= self._ordered_s + self.config.interval_s:
            return self._order(1, now, "activated_from_zero")
        return NOTHING

    def _mine(self, request: Request) -> bool:
        return request.pool == self.pool.name or (request.pool is None and request.model == self.pool.model)

    def _finished(self, event: Finished, now: float) -> Sequence[Effect]:
        if self.config.capacity_rps is None and event.replica in self._ready:
            self._capacity.finished()
            self._look(now)
        return NOTHING

    def _look(self, now: float) -> None:
        """An interval of measuring ends: it was busy if work waited at its beginning, for only an end of work lets waiting work go."""
        self._capacity.close(now - self._busy_since, len(self._ready), self._busy)
        self._busy, self._busy_since = self.waiting() > 0, now

    def _booting(self, event: ReplicaBooting, now: float) -> Sequence[Effect]:
        if event.pool == self.pool.name:
            self._seen = True
            self._ready.discard(event.replica)
            self._starting.add(event.replica)
        return NOTHING

    def _became_ready(self, event: ReplicaReady, now: float) -> Sequence[Effect]:
        if event.pool != self.pool.name:
            return NOTHING
        self._look(now)
        self._seen, self._progress_s, self._stuck_until = True, now, float("-inf")
        self._starting.discard(event.replica)
        self._ready.add(event.replica)
        if event.boot_s is not None:
            self._boot_s = event.boot_s if self._boot_s is None else self._boot_s + BOOT_ALPHA * (event.boot_s - self._boot_s)
        return NOTHING

    def _gone(self, event: ReplicaGone, now: float) -> Sequence[Effect]:
        """Gone, or about to go. One that we had not planned away is missing from now on, so that the next plan orders another."""
        if event.replica in self._ready or event.replica in self._starting:
            self._look(now)
            self._starting.discard(event.replica)
            self._ready.discard(event.replica)
            alive = len(self._ready) + len(self._starting)
            if self._expected is not None and alive < self._expected:
                self._expected = max(alive, self._expected - 1)
        return NOTHING

    def _answered(self, event: ScaleAnswered, now: float) -> Sequence[Effect]:
        if event.status not in ("accepted", "unchanged") and event.plan_id == self._plans:
            self._expected = None  # what was asked for will not come: plan from what is there
            self._refused_until = now + REFUSED_HOLD_S
        return NOTHING

    def _woke(self, event: Woke, now: float) -> Sequence[Effect]:
        """A tick at the newest grid time; ticks that were missed are counted, not caught up."""
        if event.key != KEY:
            return NOTHING
        interval_s = self.config.interval_s
        k = grid_index(now, self._t0, interval_s)
        wake = WakeAt(self._t0 + (k + 1) * interval_s, KEY)
        if k <= self._last_tick:
            return [wake]
        self._missed += k - self._last_tick - 1
        self._last_tick = k
        self._ticks += 1
        return [*self._tick(now, self._t0 + k * interval_s), wake]

    # -- the plan -----------------------------------------------------------------------------------------------------------------

    def _baseline(self) -> int | None:
        """What was accepted, else what is there and booting; None if no replica was ever heard of."""
        if self._expected is not None:
            return self._expected
        return len(self._ready) + len(self._starting) if self._seen else None

    def _tick(self, now: float, tick_at: float) -> list[Effect]:
        config, waiting = self.config, self.waiting()
        if config.capacity_rps is None:
            self._look(now)
        self._unstick(now)
        baseline, rate_rps = self._baseline(), self._demand.rate_rps(tick_at)
        capacity_rps = config.capacity_rps if config.capacity_rps is not None else self._capacity.rps
        self._last = {
            "at_s": now, "pool": self.pool.name, "tick": self._ticks,
            "tick_at_s": tick_at, "missed": self._missed, "rate_rps": rate_rps, "capacity_rps": capacity_rps,
            "waiting": waiting, "baseline": baseline, "ready": len(self._ready), "starting": len(self._starting), "wanted": None,
            "planned": baseline,
        }
        if baseline is None:
            return self._hold("count_unknown")
        if rate_rps is None or capacity_rps is None:
            self._steadiness.forget()
            target, reason = baseline, "no_traffic_data" if rate_rps is None else "model_not_ready"
        else:
            self._last["wanted"] = n = self._size(rate_rps, waiting, capacity_rps)
            idle_s = now - max(self._t0, self._demand.last_s or self._t0)
            target, reason = self._steadiness.bound(n, baseline, tick_at, idle=idle_s >= config.zero_idle_s,
                                                    settled=not self._starting and baseline <= len(self._ready))
        bounded = max(config.min_replicas, target if self._ceiling is None else min(target, self._ceiling))
        if bounded != target:
            reason = "min_replicas" if bounded > target else "max_replicas"
        if bounded == baseline:
            return self._hold(reason)
        if bounded > baseline and now < self._stuck_until:
            return self._hold("scale_up_stuck")
        if now < self._refused_until and bounded == self._last_target:
            return self._hold("refused")
        return self._order(bounded, now, reason)

    def _size(self, rate_rps: float, waiting: int, capacity_rps: float) -> int:
        config = self.config
        fits, drain_s = rate_rps * config.ttft_slo_s / 2, drain_time_s(self._boot_s or 0.0)
        return replicas_needed(rate_rps, waiting, fits, drain_s, config.target_utilisation, capacity_rps, config.min_replicas)

    def _unstick(self, now: float) -> None:
        """Replicas that were ordered long ago and do not come are no longer counted on; what is there keeps being planned."""
        missing = self._expected is not None and len(self._ready) < self._expected
        if missing and now - self._progress_s >= max(STUCK_AFTER_S, 3 * (self._boot_s or 0.0)):
            self._expected, self._stuck_until, self._progress_s = len(self._ready), now + STUCK_HOLD_S, now

    def _hold(self, reason: str) -> list[Effect]:
        self._last["reason"] = reason
        return self._noted(reason)

    def _order(self, n: int, now: float, reason: str) -> list[Effect]:
        if self._expected is None or (n > self._expected and len(self._ready) >= self._expected):
            self._progress_s = now  # not at every further order: what does not come must show at last
        self._plans += 1
        self._expected = self._last_target = n
        self._ordered_s = now
        self._last |= {"reason": reason, "planned": n}
        return [ScaleTo(self._plans, ((self.pool.name, n),), f"plan-{self._plans}", reason), *self._noted(reason)]

    def _noted(self, reason: str) -> list[Effect]:
        return [Note("plan", "planner", self._ticks, (), reason, dict(self._last))] if self._notes else []


def _least(*bounds: int | None) -> int | None:
    known = [b for b in bounds if b is not None]
    return min(known) if known else None
