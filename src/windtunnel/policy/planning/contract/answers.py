"""What planner plugins answer: what they expect of the traffic, and how many replicas they want."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar

from windtunnel.errors import PlanContractError
from windtunnel.policy.planning.checks import INT32_MAX, INT32_MIN, STRICT, bad, component_name, each, flag, one, real, text, whole


class OverrideType(IntEnum):
    """0 is UNSPECIFIED on the wire and refused."""

    SET = 1
    AT_LEAST = 2
    AT_MOST = 3


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
