"""What planner plugins are asked and what they answer: frozen values, checked when they are made, alike in process and on the wire.

`None` is unknown or "no opinion", never zero. A non-finite number, a value out of range or of the wrong type raises PlanContractError,
which names the dotted path. Times are run seconds; `num_req` counts arrivals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from math import isfinite
from typing import Any, ClassVar

from windtunnel.errors import PlanContractError
from windtunnel.policy.planning.checks import INT32_MAX, INT32_MIN, bad, component_name, each, flag, one, real, table, text, whole

STRICT: dict[str, Any] = {"extra": "forbid", "allow_inf_nan": False}  # read by pydantic's TypeAdapter at the edge


class OverrideType(IntEnum):
    """0 is UNSPECIFIED on the wire and refused."""

    SET = 1
    AT_LEAST = 2
    AT_MOST = 3


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
class TrafficMetrics:
    """Traffic of a window. num_req: requests that ARRIVED in it; means carry their denominators; coverage: known share of the window."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    duration_s: float
    num_req: float
    isl: float | None = None
    osl: float | None = None
    kv_hit_rate: float | None = None
    accept_length: float | None = None
    ttft_s: float | None = None
    itl_s: float | None = None
    isl_count: float = 0
    osl_count: float = 0
    kv_hit_tokens: float = 0
    accept_forwards: float = 0
    ttft_count: float = 0
    itl_count: float = 0
    coverage: float = 1.0

    def __post_init__(self) -> None:
        for name in ("duration_s", "num_req", "isl_count", "osl_count", "kv_hit_tokens", "accept_forwards", "ttft_count", "itl_count"):
            real(f"traffic.{name}", getattr(self, name))
        for name, lo, hi in (("isl", 0, None), ("osl", 0, None), ("kv_hit_rate", 0, 1), ("accept_length", 1, None), ("ttft_s", 0, None),
                             ("itl_s", 0, None)):
            value = getattr(self, name)
            if value is not None:
                real(f"traffic.{name}", value, lo, hi)
        real("traffic.coverage", self.coverage, 0, 1)


INTS, INF = {int}, float("inf")


@dataclass(frozen=True, slots=True)
class StepLoad:
    """What an engine step holds, or what waits for one: requests and tokens."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    num_prefill: int = 0
    prefill_tokens: int = 0
    prefill_kv_tokens: int = 0
    num_decode: int = 0
    decode_kv_tokens: int = 0
    var_prefill_length: float = 0.0
    var_decode_kv_tokens: float = 0.0

    def __post_init__(self) -> None:
        counts = (self.num_prefill, self.prefill_tokens, self.prefill_kv_tokens, self.num_decode, self.decode_kv_tokens)
        if {type(count) for count in counts} == INTS and min(counts) >= 0 and type(self.var_prefill_length) is float and (
                type(self.var_decode_kv_tokens) is float and 0.0 <= self.var_prefill_length < INF and 0.0 <= self.var_decode_kv_tokens < INF):
            return
        for name in ("num_prefill", "prefill_tokens", "prefill_kv_tokens", "num_decode", "decode_kv_tokens"):
            whole(f"step_load.{name}", getattr(self, name))
        real("step_load.var_prefill_length", self.var_prefill_length)
        real("step_load.var_decode_kv_tokens", self.var_decode_kv_tokens)


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """One engine step of one rank: at_s run seconds, wall_s its length (0: idle report)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    replica_id: str
    rank: int
    counter: int
    at_s: float
    wall_s: float
    scheduled: StepLoad
    queued: StepLoad

    def __post_init__(self) -> None:
        text("forward_pass.replica_id", self.replica_id)
        if not self.replica_id:
            raise bad("forward_pass.replica_id", "a name", self.replica_id)
        whole("forward_pass.rank", self.rank)
        whole("forward_pass.counter", self.counter)
        real("forward_pass.at_s", self.at_s, float("-inf"))
        real("forward_pass.wall_s", self.wall_s)
        one("forward_pass.scheduled", self.scheduled, StepLoad, optional=False)
        one("forward_pass.queued", self.queued, StepLoad, optional=False)


@dataclass(frozen=True, slots=True)
class FpmData:
    """component -> "<replica_id>/<rank>" -> newest report."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    engines: Mapping[str, Mapping[str, ForwardPass]]

    def __post_init__(self) -> None:
        for component, reports in table("fpm.engines", self.engines).items():
            component_name("fpm.engines key", component)
            for key, report in table(f"fpm.engines.{component}", reports).items():
                if type(report) is not ForwardPass:
                    raise bad(f"fpm.engines.{component}.{key}", "ForwardPass", report)


@dataclass(frozen=True, slots=True)
class PoolState:
    """Replicas of a pool. expected: the accepted target; scaling: a change is under way; boot_s: from asking to ready."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    ready: int | None = None
    expected: int | None = None
    starting: int | None = None
    draining: int | None = None
    scaling: bool | None = None
    boot_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("ready", "expected", "starting", "draining"):
            value = getattr(self, name)
            if value is not None:
                whole(f"pool_state.{name}", value, 0, INT32_MAX)
        if self.scaling is not None:
            flag("pool_state.scaling", self.scaling)
        if self.boot_s is not None:
            real("pool_state.boot_s", self.boot_s)


@dataclass(frozen=True, slots=True)
class WorkerState:
    """Pools by component."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    pools: Mapping[str, PoolState]

    def __post_init__(self) -> None:
        for component, pool in table("workers.pools", self.pools).items():
            component_name("workers.pools key", component)
            one(f"workers.pools.{component}", pool, PoolState, optional=False)


@dataclass(frozen=True, slots=True)
class ObservationData:
    """What was seen; a block that was not collected this tick is None."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    traffic: TrafficMetrics | None = None
    fpm: FpmData | None = None
    workers: WorkerState | None = None

    def __post_init__(self) -> None:
        one("observations.traffic", self.traffic, TrafficMetrics)
        one("observations.fpm", self.fpm, FpmData)
        one("observations.workers", self.workers, WorkerState)


PREDICTED = ("predicted_num_req", "predicted_isl", "predicted_osl", "predicted_kv_hit_rate", "predicted_accept_length")


@dataclass(frozen=True, slots=True)
class PredictionData:
    """What traffic is expected: `predicted_num_req` arrivals in a window of `window_s` that lies `horizon_s` ahead."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    predicted_num_req: float | None = None
    predicted_isl: float | None = None
    predicted_osl: float | None = None
    predicted_kv_hit_rate: float | None = None
    predicted_accept_length: float | None = None
    window_s: float | None = None
    horizon_s: float | None = None
    source: str = ""

    def __post_init__(self) -> None:
        for name, value, lo, hi in (
            ("predicted_num_req", self.predicted_num_req, 0, None), ("predicted_isl", self.predicted_isl, 0, None),
            ("predicted_osl", self.predicted_osl, 0, None), ("predicted_kv_hit_rate", self.predicted_kv_hit_rate, 0, 1),
            ("predicted_accept_length", self.predicted_accept_length, 1, None), ("window_s", self.window_s, 0, None),
            ("horizon_s", self.horizon_s, 0, None),
        ):
            if value is not None:
                real(f"predictions.{name}", value, lo, hi)
        text("predictions.source", self.source)


@dataclass(frozen=True, slots=True)
class ComponentTarget:
    """An opinion on one component's replicas; None has none. A negative count passes here and counts as 0 in the merge."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    component: str
    replicas: int | None = None
    type: OverrideType = OverrideType.SET

    def __post_init__(self) -> None:
        component_name("target.component", self.component)
        if self.replicas is not None:
            whole(f"target.{self.component}.replicas", self.replicas, INT32_MIN, INT32_MAX)
        if type(self.type) is not OverrideType:
            raise bad(f"target.{self.component}.type", "SET, AT_LEAST or AT_MOST", self.type)


@dataclass(frozen=True, slots=True)
class Accept:
    """Nothing to change."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT


@dataclass(frozen=True, slots=True)
class Override:
    """Targets and bounds."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    targets: tuple[ComponentTarget, ...]
    reason: str = ""

    def __post_init__(self) -> None:
        each("override.targets", self.targets, ComponentTarget)
        text("override.reason", self.reason)


@dataclass(frozen=True, slots=True)
class Reject:
    """Ends the tick: nothing is changed."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    reason: str

    def __post_init__(self) -> None:
        text("reject.reason", self.reason)


@dataclass(frozen=True, slots=True)
class StageResponse:
    """Answer of a PROPOSE, RECONCILE or CONSTRAIN plugin; `answer=None` is empty. In JSON: {"override": {...}, "final": false}."""

    answer: Accept | Override | Reject | None = None
    final: bool = False

    def __post_init__(self) -> None:
        answer = self.answer
        if answer is not None and type(answer) not in KINDS:
            raise bad("stage_response.answer", "Accept, Override or Reject", answer)
        flag("stage_response.final", self.final)

    @property
    def kind(self) -> str:
        """accept, override, reject or empty."""
        return "empty" if self.answer is None else KINDS[type(self.answer)]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Callable[[Any], Any]) -> dict[str, Any]:
        """Read and written as its wire form; a core schema is a plain dict, so nothing is imported."""
        return {
            "type": "function-after", "schema": handler(StageResponseWire),
            "function": {"type": "no-info", "function": StageResponseWire.unwrap},
            "serialization": {"type": "function-plain", "function": StageResponseWire.wrap},
        }


KINDS: dict[type, str] = {Accept: "accept", Override: "override", Reject: "reject"}


@dataclass(frozen=True, slots=True)
class StageResponseWire:
    """JSON form of a StageResponse: at most one of accept, override, reject."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    accept: Accept | None = None
    override: Override | None = None
    reject: Reject | None = None
    final: bool = False

    def unwrap(self) -> StageResponse:
        given = [a for a in (self.accept, self.override, self.reject) if a is not None]
        if len(given) > 1:
            raise PlanContractError("stage_response: more than one payload")
        return StageResponse(given[0] if given else None, self.final)

    @staticmethod
    def wrap(response: StageResponse) -> dict[str, Any]:
        return {"final": response.final} if response.answer is None else {response.kind: response.answer, "final": response.final}


@dataclass(frozen=True, slots=True)
class PredictResponse:
    """Answer of a PREDICT plugin; fields left None are taken from later plugins."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    predictions: PredictionData | None = None
    reason: str = ""
    final: bool = False

    def __post_init__(self) -> None:
        one("predict_response.predictions", self.predictions, PredictionData)
        text("predict_response.reason", self.reason)
        flag("predict_response.final", self.final)


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
