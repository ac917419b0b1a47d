"""What a planner holds: settings, plugins, pools and what it does to them, the running tick, and the record that it tells as notes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from windtunnel.effects import Effect, Note
from windtunnel.events import Request
from windtunnel.policy.planning.audit import Journal, Record
from windtunnel.policy.planning.boundary import Limits, PendingGuard, PoolNow
from windtunnel.policy.planning.calls import Answer, Gather
from windtunnel.policy.planning.contract import ObservationData, PredictionData
from windtunnel.policy.planning.diagnostics import TickDiagnostics
from windtunnel.policy.planning.observer import FleetObserver, Observer
from windtunnel.policy.planning.outside import Outside
from windtunnel.policy.planning.pipeline import Pipeline
from windtunnel.policy.planning.pool_states import Pool, PoolFrame
from windtunnel.policy.planning.rollout import Rollout
from windtunnel.policy.planning.roster import Roster, RosterSettings
from windtunnel.policy.planning.settings import PlannerSettings
from windtunnel.policy.planning.tick_outcome import Ticking


class PlannerState:
    """The state of one planner, without what changes it; what is done to the pools goes out through `_emit`."""

    def __init__(self, settings: PlannerSettings, frames: Mapping[str, PoolFrame] | None = None, *,
                 observer: Observer | None = None, mine: Callable[[Request], bool] | None = None, wants: frozenset[str] = frozenset(),
                 roster: RosterSettings | None = None) -> None:
        self.settings, self._mine = settings, mine
        self.scale_s = settings.scale_interval_s
        self.journal = Journal("planner" in wants)
        defaults = settings.defaults
        self.roster = Roster(roster or RosterSettings(self.scale_s, defaults.timeout_s, defaults.failure_threshold, defaults.cooldown_s))
        self.pipeline = Pipeline(self.roster, tick_max_s=settings.scheduling.tick_max_duration_s, tie_break=settings.scheduling.tie_break,
                                 journal=self.journal)
        self.observer: Observer = observer or FleetObserver(mine=mine, min_coverage=settings.scheduling.min_coverage,
                                                            fpm_max_age_s=settings.scheduling.fpm_max_age_s)
        self.pools: dict[str, Pool] = {}
        for role in settings.roles:
            pool, component = settings.pools[role], settings.component(role)
            frame = (frames or {}).get(role) or PoolFrame(component, component, role, pool.gpus, pool.boot_s)
            self.pools[component] = Pool(frame, settings.scaler.scale_up_timeout_s)
        self._by_name = {pool.frame.name: pool for pool in self.pools.values()}
        self._of_replica: dict[str, Pool] = {}
        self.rollout = Rollout(self.pools, max_gpus=settings.budget.max_gpus, drain_timeout_s=settings.scaler.drain_timeout_s,
                               journal=self.journal)
        self.pending = PendingGuard(settings.load.interval_s)
        self.plugins: dict[str, Any] = {}  # in-process ones, by id
        self.call_models: dict[str, Any] = {}
        self.outside: Outside | None = None  # for a live driver
        self.generation = 0
        self._waiting: Callable[[], int] = lambda: 0
        self._t0, self._last_k, self.ticks, self.missed = 0.0, 0, 0, 0
        self._running: tuple[Ticking, float, dict[str, int | None], int] | None = None
        self._open: tuple[Gather, dict[str, Answer]] | None = None
        self._unknown_since: float | None = None  # the outcome of a plan is not known
        self._last_arrival_s: float | None = None
        self._activated_s = float("-inf")
        self._last: TickDiagnostics | None = None
        self._observed: ObservationData | None = None  # of the newest tick
        self._predicted: tuple[float, PredictionData] | None = None  # when, what
        self._scored: dict[str, int] = {}
        self._retell = False  # the settings, with the next notes

    @property
    def waiting(self) -> Callable[[], int]:
        """Requests that wait in the control."""
        return self._waiting

    @waiting.setter
    def waiting(self, count: Callable[[], int]) -> None:
        self._waiting = count
        for plugin in self.plugins.values():
            if hasattr(plugin, "waiting"):
                plugin.waiting = count

    @property
    def in_flight(self) -> Callable[[str], int]:
        """Own requests on a replica."""
        return self.rollout.in_flight

    @in_flight.setter
    def in_flight(self, count: Callable[[str], int]) -> None:
        self.rollout.in_flight = count

    def _running_in(self, component: str) -> int:
        """Own requests on the replicas of a pool."""
        pool = self.pools[component]
        return sum(map(self.rollout.in_flight, (*pool.ready, *pool.draining)))

    def _emit(self, changed: Mapping[str, int], reason: str, now: float) -> Sequence[Effect]:
        decision_id = f"decision-{self.ticks}"
        self._meter(now)
        made = self.rollout.submit(changed, decision_id, reason, now)
        self.journal.count("plans_total", "emitted")
        self.journal.add("plan_emitted", plan_id=self.rollout.plans, decision_id=decision_id, targets=dict(changed), reason=reason)
        return made

    def _meter(self, now: float) -> None:
        for pool in self.pools.values():
            pool.meter(now)

    def _limits(self) -> Limits:
        budget = self.settings.budget
        return Limits(budget.max_gpus, budget.min_gpus, budget.power_w)

    def _pools_now(self) -> dict[str, PoolNow]:
        out = {}
        for role in self.settings.roles:
            component, fixed = self.settings.component(role), self.settings.pools[role]
            pool = self.pools[component]
            state = pool.state()
            out[component] = PoolNow(pool.baseline, fixed.gpus, fixed.min_replicas, fixed.max_replicas, fixed.watts_per_replica,
                                     state.starting, state.draining, state.scaling)
        return out

    def _told(self) -> list[Effect]:
        """The settings, for whoever reads the record."""
        self._retell = False
        data = {"planner": "pipeline", "fleet": {c: p.frame.name for c, p in self.pools.items()}, "settings": self.settings.as_plain()}
        return [Note("settings", "planner", 0, (), "", data)] if self.journal.on else []

    def _notes(self) -> list[Effect]:
        return [*(self._told() if self._retell else ()), *as_notes(self.journal.take())]


def as_notes(records: Sequence[Record]) -> list[Effect]:
    """Records of the planner as effects, for whoever keeps notes."""
    return [Note(r.kind, "planner", r.seq, (r.plugin_id, r.component), "", {**r.data, "tick": r.tick}) for r in records]
