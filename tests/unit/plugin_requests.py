"""For tests: what a built-in planner plugin is shown, and what it said."""

from __future__ import annotations

from typing import Any

from windtunnel.policy.planning.contract import (
    Accept,
    ComponentTarget,
    ForwardPass,
    FpmData,
    ObservationData,
    Override,
    OverrideType,
    PipelineContext,
    PoolState,
    PredictionData,
    ScalingProposal,
    Stage,
    StageRequest,
    StageResponse,
    StepLoad,
    TrafficMetrics,
    WorkerState,
)
from windtunnel.policy.planning.perf_model import LinearPerf
from windtunnel.policy.planning.settings import PlannerSettings
from windtunnel.policy.planning.settings_blocks import LimitSettings, PoolSettings, SloSettings

MODEL = LinearPerf((0.010, 0.0001), (0.020, 0.0002, 1e-6), (0.020, 0.0001, 1e-6))
POOL = PoolSettings(limits=LimitSettings(8192, 64, 200_000, 10_000))
TRAFFIC = TrafficMetrics(180.0, 1800.0, isl=3000.0, osl=150.0, isl_count=1800, osl_count=1800)


def planner(mode: str = "agg", **kw: Any) -> PlannerSettings:
    pools = {"agg": ("agg",), "disagg": ("prefill", "decode"), "prefill": ("prefill",), "decode": ("decode",)}[mode]
    kw.setdefault("pools", dict.fromkeys(pools, POOL))
    kw.setdefault("slo", SloSettings(500.0, 150.0))
    return PlannerSettings(mode=mode, **kw)  # type: ignore[arg-type]


def state(n: int | None = 4, **kw: Any) -> PoolState:
    return PoolState(ready=n, expected=n, starting=0, draining=0, scaling=False, **kw)


def engine(name: str, *, queued: int = 0, kv: int = 0, kv_queued: int = 0, waiting: int = 0, rank: int = 0, counter: int = 1) -> ForwardPass:
    return ForwardPass(name, rank, counter, 1.0, 0.1, StepLoad(0, 0, 0, 1, kv), StepLoad(waiting, queued, 0, 0, kv_queued))


def request(stage: Stage, at: float = 180.0, *, traffic: TrafficMetrics | None = None, fpm: dict[str, list[ForwardPass]] | None = None,
            workers: dict[str, PoolState] | None = None, predictions: PredictionData | None = None,
            proposal: dict[str, int | None] | None = None) -> StageRequest:
    data = None if fpm is None else FpmData({c: {f"{r.replica_id}/{r.rank}": r for r in reports} for c, reports in fpm.items()})
    seen = ObservationData(traffic, data, None if workers is None else WorkerState(workers))
    proposed = None if proposal is None else ScalingProposal(tuple(ComponentTarget(c, n) for c, n in proposal.items()))
    return StageRequest(PipelineContext("t", "d", seen, predictions, proposed), stage, at, at)


def said(response: StageResponse) -> dict[str, tuple[str, int | None]]:
    if not isinstance(response.answer, Override):
        assert isinstance(response.answer, Accept)
        return {}
    sign = {OverrideType.SET: "=", OverrideType.AT_LEAST: ">=", OverrideType.AT_MOST: "<="}
    return {f"{t.component}{sign[t.type]}": t.replicas for t in response.answer.targets}  # type: ignore[misc]
