"""PROPOSE: one replica more or fewer, from what engines report: queued prompt tokens, KV in use, or latency estimates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from windtunnel.policy.planning.capacity import EngineLimits
from windtunnel.policy.planning.contract import ComponentTarget, ForwardPass, PoolState, StageRequest, StageResponse, TrafficMetrics
from windtunnel.policy.planning.load_sla import SlaSignal
from windtunnel.policy.planning.reasons import LoadReason as Why
from windtunnel.policy.planning.settings import PlannerSettings
from windtunnel.policy.planning.settings_blocks import LoadSettings
from windtunnel.policy.planning.sizing import Sizing, answer


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Of an engine's load: one over `up` asks for a replica, all under `down` offer one. Is a value right on a bound over, or under?"""

    up: float
    down: float
    up_at: bool = True
    down_at: bool = False

    def over(self, value: float) -> bool:
        return value >= self.up if self.up_at else value > self.up

    def under(self, value: float) -> bool:
        return value <= self.down if self.down_at else value < self.down


FIXED: Mapping[tuple[str, str], Thresholds] = {
    ("throughput", "prefill"): Thresholds(1.0, 0.1), ("throughput", "decode"): Thresholds(1.0, 0.6, up_at=False),
    ("latency", "prefill"): Thresholds(0.1, 0.0, down_at=True), ("latency", "decode"): Thresholds(0.4, 0.1, up_at=False),
}


def thresholds(target: str, role: str, load: LoadSettings) -> Thresholds | None:
    """None: the settings leave them out. agg uses those of decode."""
    if target != "load":
        return FIXED[target, "prefill" if role == "prefill" else "decode"]
    up, down = (load.prefill_up_tokens, load.prefill_down_tokens) if role == "prefill" else (load.decode_up, load.decode_down)
    return None if up is None or down is None else Thresholds(up, down, down_at=True)


def engine_load(report: ForwardPass, role: str, target: str, limits: EngineLimits) -> float | None:
    """Prefill: queued tokens, in contexts (target load: in tokens). Decode, agg: share of the KV cache in use or waited for. None: no limit known."""
    if role == "prefill":
        if target == "load":
            return float(report.queued.prefill_tokens)
        return report.queued.prefill_tokens / limits.context_length if limits.context_length else None
    kv = report.scheduled.decode_kv_tokens + report.queued.decode_kv_tokens
    if role == "agg":
        kv += report.queued.prefill_tokens
    return kv / limits.max_kv_tokens if limits.max_kv_tokens else None


def step(loads: Iterable[float], n: int, bounds: Thresholds) -> tuple[int, Why]:
    """n + 1, n or n - 1. A step down is refused if the busiest engine, with its share of the rest, would ask for the replica back."""
    values = list(loads)
    if any(map(bounds.over, values)):
        return n + 1, Why.SCALE_UP
    if n <= 1 or not all(map(bounds.under, values)):
        return n, Why.NO_CHANGE
    if max(values) * n / (n - 1) >= bounds.up:
        return n, Why.SCALE_DOWN_REFUSED_CONSOLIDATION
    return n - 1, Why.SCALE_DOWN


class LoadPropose:
    """reasons: component -> why, of the last answer."""

    def __init__(self, settings: PlannerSettings, sizing: Sizing) -> None:
        self.settings, self.sizing = settings, sizing
        self.reasons: dict[str, str] = {}

    def propose(self, request: StageRequest) -> StageResponse:
        settings, observed = self.settings, request.ctx.observations
        fpm, traffic = (observed.fpm, observed.traffic) if observed else (None, None)
        self.sizing.learn(fpm)
        engines = {role: (fpm.engines.get(settings.component(role), {}) if fpm else {}) for role in settings.roles}
        if not settings.load_on:
            return self._all(Why.DISABLED)
        if not any(engines.values()):
            return self._all(Why.NO_FPM_DATA)
        states = self.sizing.states(request.ctx)
        if any(map(_in_progress, states.values())):
            return self._all(Why.SCALING_IN_PROGRESS)
        targets = []
        for role in settings.roles:
            n, why = self._role(role, engines[role], states[role], traffic)
            self.reasons[settings.component(role)] = str(why)
            if n is not None:
                targets.append(ComponentTarget(settings.component(role), n))
        return answer(targets, self.reasons)

    def _all(self, why: Why) -> StageResponse:
        self.reasons = {self.settings.component(role): str(why) for role in self.settings.roles}
        return answer([], self.reasons)

    def _role(self, role: str, engines: Mapping[str, ForwardPass], state: PoolState | None, traffic: TrafficMetrics | None) -> tuple[int | None, Why]:
        """(wanted replicas, why); None: no step."""
        if not engines:
            return None, Why.NO_FPM_DATA
        n = state.ready if state else None
        if n is None or not _matches(engines, n):
            return None, Why.WORKER_COUNT_MISMATCH
        wanted, why = self._wanted(role, engines.values(), n, traffic)
        if why is not Why.SCALE_DOWN:
            return (wanted, why) if wanted != n else (None, why)
        if self.settings.throughput_on and traffic is None:
            return None, Why.INSUFFICIENT_DATA  # the floor of the throughput loop may be missing
        least = self.settings.pools[role].min_replicas
        return (max(wanted, least), why) if n > least else (None, Why.NO_CHANGE)

    def _wanted(self, role: str, engines: Iterable[ForwardPass], n: int, traffic: TrafficMetrics | None) -> tuple[int, Why]:
        settings = self.settings
        if settings.target == "sla":
            signal = SlaSignal(self.sizing, role, traffic)
            if not signal.ready():
                return n, Why.INSUFFICIENT_DATA
            return {"up": (n + 1, Why.SCALE_UP), "down": (n - 1, Why.SCALE_DOWN), "stay": (n, Why.NO_CHANGE)}[signal.step(engines, n)]
        bounds = thresholds(settings.target, role, settings.load)
        loads = [engine_load(r, role, settings.target, self.sizing.limits[role]) for r in engines]
        known = [v for v in loads if v is not None]
        if bounds is None or len(known) < len(loads):
            return n, Why.INSUFFICIENT_DATA
        return step(known, n, bounds)


def _in_progress(state: PoolState | None) -> bool:
    return state is not None and bool(state.scaling or (state.expected is not None and state.expected != state.ready))


def _matches(engines: Mapping[str, ForwardPass], ready: int) -> bool:
    """Every ready replica has reported, with as many ranks as the others."""
    ranks: dict[str, int] = {}
    for report in engines.values():
        ranks[report.replica_id] = ranks.get(report.replica_id, 0) + 1
    return len(ranks) == ready and len(set(ranks.values())) == 1
