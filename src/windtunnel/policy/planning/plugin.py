"""A planner plugin in this process, and how any plugin registers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from windtunnel.policy.planning.contract import HoldPolicy, PredictResponse, Stage, StageRequest, StageResponse, TrafficMetrics


class PlannerPlugin(Protocol):
    """A plugin implements the method of its stage; it is pure and takes its time from `request.now`.

    Methods: `predict(request) -> PredictResponse`; `propose`, `reconcile`, `constrain` `(request) -> StageResponse`; optionally
    `bootstrap(history, window_s, hints)`, called once after registration, and `reset(reason)`. An `async def` method is asked through
    the driver.
    """


class Predicts(PlannerPlugin, Protocol):
    """A plugin of the PREDICT stage."""

    def predict(self, request: StageRequest) -> PredictResponse: ...


class Proposes(PlannerPlugin, Protocol):
    """A plugin of the PROPOSE stage."""

    def propose(self, request: StageRequest) -> StageResponse: ...


class Reconciles(PlannerPlugin, Protocol):
    """A plugin of the RECONCILE stage."""

    def reconcile(self, request: StageRequest) -> StageResponse: ...


class Constrains(PlannerPlugin, Protocol):
    """A plugin of the CONSTRAIN stage."""

    def constrain(self, request: StageRequest) -> StageResponse: ...


class Bootstraps(Protocol):
    """A plugin that wants the past: traffic windows of `window_s`, oldest first."""

    def bootstrap(self, history: Sequence[TrafficMetrics], window_s: float, hints: Mapping[str, str]) -> None: ...


@dataclass(frozen=True, slots=True)
class Registration:
    """How a plugin is known. Smaller priority = more authoritative; None takes the planner's default.

    execution_interval_s: 0 = every tick. needs: context blocks handed over, () = all. requires: paths that must hold a value.
    observation_window_s: 0 = its interval. offload: never answered inline.
    """

    plugin_id: str
    stage: Stage
    priority: int = 100
    endpoint: str = ""
    version: str = "0"
    protocol_version: str = "1.0"
    execution_interval_s: float = 0.0
    hold_policy: HoldPolicy = HoldPolicy.ACCEPT_WHEN_IDLE
    hold_max_age_s: float | None = None
    needs: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    observation_window_s: float = 0.0
    timeout_s: float | None = None
    failure_threshold: int | None = None
    cooldown_s: float | None = None
    offload: bool = False


@dataclass(frozen=True, slots=True)
class CallModel:
    """How a simulated world models the call of a plugin elsewhere: delay_s until its answer, share of calls that fail, and how."""

    delay_s: float = 0.0
    failure_rate: float = 0.0
    error: str = "connection"


@dataclass(frozen=True, slots=True)
class Attached:
    """A registration and what answers it: a PlannerPlugin in process, or a client of the driver. call: how to simulate the call."""

    registration: Registration
    plugin: Any
    call: CallModel | None = None
