"""PROPOSE: replicas for the predicted rate plus the backlog beyond what the SLO allows to wait, over what a replica can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from windtunnel.policy.planning.contract import (
    ComponentTarget,
    FpmData,
    OverrideType,
    PipelineContext,
    PoolState,
    StageRequest,
    StageResponse,
)
from windtunnel.policy.planning.feed_forward import replicas_needed
from windtunnel.policy.planning.reasons import ThroughputReason as Why
from windtunnel.policy.planning.settings import PlannerSettings
from windtunnel.policy.planning.sizing import Sizing, answer, baseline_of


@dataclass(frozen=True, slots=True)
class _Bound:
    replicas: int
    at: float


class ThroughputPropose:
    """SET if it plans alone, AT_LEAST if the load loop steps above it. A bound outlives missing data for a while: an outage of the
    metrics must not take the floor away.

    waiting: requests in the control's queue, set by the planner; None: not known. reasons: component -> why, of the last answer.
    """

    def __init__(self, settings: PlannerSettings, sizing: Sizing, predict_reason: Callable[[], str] = lambda: "") -> None:
        self.settings, self.sizing, self._predict_reason = settings, sizing, predict_reason
        self.waiting: Callable[[], int | None] = lambda: None
        self.reasons: dict[str, str] = {}
        self.capacity_rps: dict[str, float] = {}  # role -> of one replica
        self.eligible: dict[str, bool] = {}  # role -> can it meet the SLO at all?
        self.queue: dict[str, tuple[float | None, float]] = {}  # role -> (waiting, what fits the SLO)
        self.rates: dict[str, float] = {}  # role -> requests/s it plans for
        self.needed: dict[str, int] = {}  # role -> replicas for that, before the step is capped
        self._bounds: dict[str, _Bound] = {}
        self._queues_seen = False

    @property
    def bounding(self) -> bool:
        return self.settings.load_on

    def propose(self, request: StageRequest) -> StageResponse:
        if not self.settings.throughput_on:
            return self._all(Why.DISABLED)
        ctx = request.ctx
        observed = ctx.observations
        self.sizing.learn(observed.fpm if observed else None)
        rate_rps = self._rate_rps(ctx)
        if rate_rps is None:
            failed = self._predict_reason() == Why.PREDICT_FAILED
            return self._without_data(dict.fromkeys(self.settings.roles, Why.PREDICT_FAILED if failed else Why.NO_TRAFFIC_DATA), request.tick_at)
        states = self.sizing.states(ctx)
        missing = self._measure(ctx, rate_rps)
        if missing:
            return self._without_data(missing, request.tick_at)
        fpm = observed.fpm if observed else None
        targets = []
        for role in self.settings.roles:
            target = self._target(role, rate_rps, states[role], fpm, request.tick_at)
            if target is not None:
                targets.append(target)
        return answer(targets, self.reasons)

    def _rate_rps(self, ctx: PipelineContext) -> float | None:
        """Predicted arrivals per second, at least the observed ones if the settings say so."""
        ahead = ctx.predictions
        if ahead is None or ahead.predicted_num_req is None or not ahead.window_s:
            return None
        rate_rps = ahead.predicted_num_req / ahead.window_s
        traffic = ctx.observations.traffic if ctx.observations else None
        if self.settings.throughput.floor_at_observed and traffic is not None and traffic.duration_s > 0:
            rate_rps = max(rate_rps, traffic.num_req / traffic.duration_s)
        return rate_rps

    def _measure(self, ctx: PipelineContext, rate_rps: float) -> dict[str, Why]:
        """Capacity of every role; who is not ready, and whom that holds."""
        shape = self.sizing.shape(ctx.predictions, ctx.observations.traffic if ctx.observations else None)
        self.capacity_rps, self.eligible = {}, {}
        for role in self.settings.roles:
            found = self.sizing.capacity(role, shape)
            if found is not None and found.rps > 0:
                self.capacity_rps[role], self.eligible[role] = found.rps, found.eligible
        if len(self.capacity_rps) == len(self.settings.roles) or (rate_rps == 0 and shape is None):
            return {}
        return {role: Why.PARTNER_NOT_READY if role in self.capacity_rps else Why.MODEL_NOT_READY for role in self.settings.roles}

    def _target(self, role: str, rate_rps: float, state: PoolState | None, fpm: FpmData | None, tick_at: float) -> ComponentTarget | None:
        settings, pool, component = self.settings, self.settings.pools[role], self.settings.component(role)
        waiting = self._waiting(role, fpm)
        ttft_s = settings.slo.bounds.ttft_s or 0.0
        fits = rate_rps * ttft_s / 2
        self.queue[role] = (waiting, fits)
        self.rates[role] = rate_rps
        needed = pool.min_replicas
        if role in self.capacity_rps:
            needed = replicas_needed(rate_rps, waiting or 0.0, fits, self.sizing.drain_s(role, state),
                                     settings.throughput.target_utilisation, self.capacity_rps[role], pool.min_replicas)
        baseline = baseline_of(state)
        if baseline is not None and (waiting is None or (waiting > 0 and role not in self.capacity_rps)):
            needed = max(needed, baseline)  # nobody knows what waits, or for how long: not the time to take replicas away
        if baseline is None and not self.bounding:
            self.reasons[component] = Why.UNSET  # no count to move from; the boundary says count_unknown
            return None
        n = needed
        if baseline is not None:
            step = settings.throughput.max_step
            n = max(pool.min_replicas, min(max(needed, baseline - step), baseline + step))
        self.needed[role] = needed
        self.reasons[component] = self._why(n, needed, baseline)
        if self.bounding:
            self._bounds[role] = _Bound(n, tick_at)
            return ComponentTarget(component, n, OverrideType.AT_LEAST)
        return ComponentTarget(component, n)

    def _why(self, n: int, needed: int, baseline: int | None) -> str:
        if n != needed:
            return Why.STEP_CAPPED
        if self.bounding:
            return Why.SET_LOWER_BOUND
        return Why.NO_CHANGE if n == baseline else Why.SCALE

    def _waiting(self, role: str, fpm: FpmData | None) -> float | None:
        """Requests that wait for this role, in the control and in the engines; None if that was known and is not any more."""
        control = self.waiting() if role != "decode" else 0
        engines = fpm.engines.get(self.settings.component(role)) if fpm is not None else None
        if engines is None:
            return None if self._queues_seen or control is None else float(control)
        self._queues_seen = True
        queued = sum(r.queued.num_decode if role == "decode" else r.queued.num_prefill for r in engines.values())
        return float(queued + (control or 0))

    def _all(self, why: Why) -> StageResponse:
        return self._without_data(dict.fromkeys(self.settings.roles, why), float("inf"))

    def _without_data(self, why: dict[str, Why], tick_at: float) -> StageResponse:
        """The last bounds, while they are young enough; else no opinion."""
        settings = self.settings
        self.reasons = {settings.component(role): str(reason) for role, reason in why.items()}
        if not self.bounding:
            return answer([], self.reasons)
        oldest = tick_at - settings.hold_max_age_s(settings.throughput.interval_s)
        kept = [ComponentTarget(settings.component(role), bound.replicas, OverrideType.AT_LEAST)
                for role, bound in self._bounds.items() if bound.at >= oldest - 1e-9]
        return answer(kept, self.reasons)
