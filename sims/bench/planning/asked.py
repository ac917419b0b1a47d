"""Plugins whose answers cost nothing, and what they are shown."""

from __future__ import annotations

from windtunnel.policy.planning.contract import (
    Accept,
    ComponentTarget,
    ForwardPass,
    FpmData,
    ObservationData,
    Override,
    OverrideType,
    PoolState,
    PredictionData,
    PredictResponse,
    Stage,
    StageRequest,
    StageResponse,
    StepLoad,
    TrafficMetrics,
    WorkerState,
)
from windtunnel.policy.planning.plugin import Registration

SCALE_S = 5.0
COUNTS = {Stage.PREDICT: 2, Stage.PROPOSE: 5, Stage.RECONCILE: 2, Stage.CONSTRAIN: 3}
BASELINE = {"prefill": 3, "decode": 5}


class Constant:
    """A plugin whose bodies cost nothing: the same answers every time."""

    def __init__(self, n: int) -> None:
        both = ("prefill", "decode")
        kinds = {Stage.PROPOSE: OverrideType.SET, Stage.RECONCILE: OverrideType.AT_LEAST, Stage.CONSTRAIN: OverrideType.AT_MOST}
        self._predict = PredictResponse(PredictionData(100.0 + n, 3000.0, 150.0, None, None, 60.0, 60.0, "constant"))
        targets = {stage: tuple(ComponentTarget(c, 4 + n, kind) for c in both) for stage, kind in kinds.items()}
        self._said = {stage: StageResponse(Override(wanted, "constant")) for stage, wanted in targets.items()}

    def predict(self, request: StageRequest) -> PredictResponse:
        return self._predict

    def propose(self, request: StageRequest) -> StageResponse:
        return self._said[Stage.PROPOSE]

    def reconcile(self, request: StageRequest) -> StageResponse:
        return self._said[Stage.RECONCILE]

    def constrain(self, request: StageRequest) -> StageResponse:
        return self._said[Stage.CONSTRAIN]


class Echo:
    """Accepts, whatever it is asked."""

    def predict(self, request: StageRequest) -> PredictResponse:
        return PredictResponse()

    def propose(self, request: StageRequest) -> StageResponse:
        return StageResponse(Accept())

    reconcile = constrain = propose


def twelve() -> list[tuple[Registration, Constant]]:
    return [(Registration(f"{stage}-{i}", stage, 10 + i), Constant(i)) for stage, n in COUNTS.items() for i in range(n)]


def observed(engines: int = 0) -> ObservationData:
    """Two pools; `engines` reports of forward passes, half of them of either."""
    step = StepLoad(3, 4096, 123_456, 48, 987_654, 1234.5, 6789.0)
    names = [f"service-decode-{i:04d}-abcdef" for i in range(engines)]
    passes = {name: ForwardPass(name, 0, 123_456 + i, 86_400.5 + i, 0.031, step, step) for i, name in enumerate(names)}
    halves = {c: {f"{n}/0": p for n, p in passes.items() if p.counter % 2 == odd} for c, odd in (("prefill", 1), ("decode", 0))}
    pools = {c: PoolState(n, n, 0, 0, False, 60.0) for c, n in BASELINE.items()}
    traffic = TrafficMetrics(60.0, 600.0, 3000.0, 150.0, 0.3, None, 0.4, 0.02, 600.0, 590.0, 1e6, 0.0, 590.0, 88_000.0)
    return ObservationData(traffic, FpmData(halves) if engines else None, WorkerState(pools))
