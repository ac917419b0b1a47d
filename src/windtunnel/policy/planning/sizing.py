"""What the built-in plugins share: who sizes what, counts, and what a replica can do for the traffic at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from windtunnel.policy.planning.capacity import Capacity, EngineLimits, Shape, capacity
from windtunnel.policy.planning.contract import (
    Accept,
    ComponentTarget,
    FpmData,
    Override,
    PipelineContext,
    PoolState,
    PredictionData,
    StageResponse,
    TrafficMetrics,
)
from windtunnel.policy.planning.feed_forward import drain_time_s
from windtunnel.policy.planning.perf_model import KnownStep, LearnedPerf, PerfModel
from windtunnel.policy.planning.settings import PlannerSettings

ACCEPTED = StageResponse(Accept())


def baseline_of(state: PoolState | None) -> int | None:
    """What was accepted, else what is ready, else unknown."""
    if state is None:
        return None
    return state.ready if state.expected is None else state.expected


def answer(targets: list[ComponentTarget], why: Mapping[str, str]) -> StageResponse:
    """An override with the reasons as text; no targets: nothing to change."""
    return StageResponse(Override(tuple(targets), ", ".join(f"{c}: {r}" for c, r in why.items()))) if targets else ACCEPTED


class Sizing:
    """The settings' pools, and the step-time model: the given one, or one learned from engine reports.

    known: by role, step times that learning starts from. limits: by role, from the settings.
    """

    def __init__(self, settings: PlannerSettings, model: PerfModel | None = None, known: Mapping[str, Sequence[KnownStep]] | None = None) -> None:
        self.settings = settings
        load = settings.load
        self._learned = LearnedPerf(cells=load.cells, least=load.min_observations, most=load.max_samples) if model is None else None
        if self._learned is not None:
            for role, steps in (known or {}).items():
                self._learned.seed(role, steps)
        self.model: PerfModel = model if model is not None else self._learned  # type: ignore[assignment]
        self.averages = self._learned or LearnedPerf()  # of tokens and lengths; an oracle model does not have them
        self.limits: dict[str, EngineLimits] = {role: settings.pools[role].limits.limits for role in settings.roles}

    def learn(self, fpm: FpmData | None) -> None:
        """Take engine reports; repeated ones do not count twice."""
        if fpm is None:
            return
        for role in self.settings.roles:
            for report in fpm.engines.get(self.settings.component(role), {}).values():
                self.averages.observe(role, report)

    def states(self, ctx: PipelineContext) -> dict[str, PoolState | None]:
        """By role."""
        workers = ctx.observations.workers if ctx.observations else None
        return {role: workers.pools.get(self.settings.component(role)) if workers else None for role in self.settings.roles}

    def shape(self, predicted: PredictionData | None, traffic: TrafficMetrics | None) -> Shape | None:
        """The request to size for: predicted, else seen; None if its lengths are unknown."""
        def pick(name: str) -> float | None:
            ahead = getattr(predicted, f"predicted_{name}") if predicted else None
            return ahead if ahead is not None else getattr(traffic, name) if traffic else None

        isl, osl = pick("isl"), pick("osl")
        return None if isl is None or osl is None else Shape(isl, osl, pick("kv_hit_rate"), pick("accept_length"))

    def capacity(self, role: str, shape: Shape | None) -> Capacity | None:
        """Of one replica within the SLO; None while the model, the limits or the lengths are unknown."""
        told = self.settings.pools[role].capacity_rps
        if told is not None:
            return Capacity(told, 1, None, None, None, True)
        if shape is None:
            return None
        return capacity(role, shape, self.limits[role], self.settings.slo.bounds, self.model)

    def boot_s(self, role: str, state: PoolState | None) -> float:
        """Measured, else from the settings."""
        return state.boot_s if state is not None and state.boot_s is not None else self.settings.pools[role].boot_s

    def drain_s(self, role: str, state: PoolState | None) -> float:
        """In which a backlog is to be worked off."""
        set_s = self.settings.throughput.drain_s
        return set_s if set_s is not None else drain_time_s(self.boot_s(role, state))
