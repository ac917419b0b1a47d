"""What planner plugins are asked: the stages, and what each of them may look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from math import isfinite
from typing import Any, ClassVar

from windtunnel.policy.planning.checks import STRICT, bad, each, flag, one, real, text, whole
from windtunnel.policy.planning.contract.answers import ComponentTarget, Override, PredictionData
from windtunnel.policy.planning.contract.observations import ObservationData


class HoldPolicy(IntEnum):
    """What a plugin counts for between its calls: nothing, or its last override."""

    ACCEPT_WHEN_IDLE = 1
    HOLD_LAST = 2


class Stage(StrEnum):
    """The four stages, in their order."""

    PREDICT = "predict"
    PROPOSE = "propose"
    RECONCILE = "reconcile"
    CONSTRAIN = "constrain"


@dataclass(frozen=True, slots=True)
class ScalingProposal:
    """Result of a stage. source: "merged", or the id of the plugin whose final answer was used."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    targets: tuple[ComponentTarget, ...]
    reason: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        each("proposal.targets", self.targets, ComponentTarget)
        text("proposal.reason", self.reason)
        text("proposal.source", self.source)


MAYBE_OBSERVED, MAYBE_PREDICTED, MAYBE_PROPOSED = ((kind, type(None)) for kind in (ObservationData, PredictionData, ScalingProposal))


@dataclass(frozen=True, slots=True)
class PipelineContext:
    """What a plugin may look at; blocks that it does not need, or that are unknown, are None."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    tick_id: str
    decision_id: str
    observations: ObservationData | None = None
    predictions: PredictionData | None = None
    proposal: ScalingProposal | None = None
    constrained: ScalingProposal | None = None

    def __post_init__(self) -> None:
        if type(self.tick_id) is str and type(self.decision_id) is str and type(self.observations) in MAYBE_OBSERVED and (
                type(self.predictions) in MAYBE_PREDICTED and type(self.proposal) in MAYBE_PROPOSED and type(self.constrained) in MAYBE_PROPOSED):
            return
        text("context.tick_id", self.tick_id)
        text("context.decision_id", self.decision_id)
        one("context.observations", self.observations, ObservationData)
        one("context.predictions", self.predictions, PredictionData)
        one("context.proposal", self.proposal, ScalingProposal)
        one("context.constrained", self.constrained, ScalingProposal)


@dataclass(frozen=True, slots=True)
class StageResult:
    """A PROPOSE answer, as RECONCILE plugins see it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    plugin_id: str
    kind: str
    answer: Override | None
    priority: int
    held_over: bool

    def __post_init__(self) -> None:
        if type(self.answer) is Override and type(self.plugin_id) is str and self.kind == "override" and type(self.priority) is int and (
                self.priority >= 0 and type(self.held_over) is bool):
            return
        text("stage_result.plugin_id", self.plugin_id)
        if self.kind not in ("accept", "override", "reject", "empty"):
            raise bad("stage_result.kind", "accept, override, reject or empty", self.kind)
        one("stage_result.answer", self.answer, Override)
        whole("stage_result.priority", self.priority)
        flag("stage_result.held_over", self.held_over)


@dataclass(frozen=True, slots=True)
class StageRequest:
    """One question. tick_at: grid time of the tick; now: when it really runs; stage_results: every PROPOSE answer, for RECONCILE."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    ctx: PipelineContext
    stage: Stage
    tick_at: float
    now: float
    stage_results: tuple[StageResult, ...] = field(default=())

    def __post_init__(self) -> None:
        if type(self.tick_at) is float and type(self.now) is float and isfinite(self.tick_at) and isfinite(self.now) and (
                type(self.ctx) is PipelineContext and type(self.stage) is Stage and self.stage_results == ()):
            return
        one("stage_request.ctx", self.ctx, PipelineContext, optional=False)
        if type(self.stage) is not Stage:
            raise bad("stage_request.stage", "a stage", self.stage)
        real("stage_request.tick_at", self.tick_at, float("-inf"))
        real("stage_request.now", self.now, float("-inf"))
        if self.stage_results:
            each("stage_request.stage_results", self.stage_results, StageResult)
