"""What planner plugins are asked and what they answer: frozen values, checked when they are made, alike in process and on the wire.

`None` is unknown or "no opinion", never zero. A non-finite number, a value out of range or of the wrong type raises PlanContractError,
which names the dotted path. Times are run seconds; `num_req` counts arrivals.
"""

from __future__ import annotations

from windtunnel.policy.planning.contract.answers import (
    PREDICTED,
    Accept,
    ComponentTarget,
    Override,
    OverrideType,
    PredictionData,
    PredictResponse,
    Reject,
    StageResponse,
    StageResponseWire,
)
from windtunnel.policy.planning.contract.observations import ForwardPass, FpmData, ObservationData, PoolState, StepLoad, TrafficMetrics, WorkerState
from windtunnel.policy.planning.contract.questions import HoldPolicy, PipelineContext, ScalingProposal, Stage, StageRequest, StageResult

__all__ = [
    "PREDICTED",
    "Accept",
    "ComponentTarget",
    "ForwardPass",
    "FpmData",
    "HoldPolicy",
    "ObservationData",
    "Override",
    "OverrideType",
    "PipelineContext",
    "PoolState",
    "PredictResponse",
    "PredictionData",
    "Reject",
    "ScalingProposal",
    "Stage",
    "StageRequest",
    "StageResponse",
    "StageResponseWire",
    "StageResult",
    "StepLoad",
    "TrafficMetrics",
    "WorkerState",
]
