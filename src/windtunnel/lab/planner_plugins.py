"""Plugins of a planner as a scenario writes them: classes to import, other processes, other autoscalers to compare with."""

from __future__ import annotations

from importlib import import_module
from inspect import iscoroutinefunction
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer

from windtunnel.lab.kinds import Spec, spec_of
from windtunnel.lab.planner_outside import Positive, TlsSpec
from windtunnel.policy.planning.contract import HoldPolicy, Stage
from windtunnel.policy.planning.plugin import Attached, CallModel, Registration
from windtunnel.policy.planning.reference import KedaLike, ReferenceHpa, ReferenceKpa
from windtunnel.policy.planning.reference_threshold import ReferenceThreshold
from windtunnel.policy.planning.settings_blocks import PluginDefaults, refuse

REFERENCE_PREFIX = "reference_"
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
DefaultsSpec = spec_of(PluginDefaults)
NEEDS = ("observations.traffic", "observations.fpm", "observations.workers")


def _room(least: int, most: int | None) -> None:
    if most is not None and most < least:
        raise refuse("planner.plugins.reference", f"most {most} is below least {least}")


def _hold_policy(name: Any) -> Any:
    return name.upper() if isinstance(name, str) else name


class PluginEntry(Spec):
    """What both kinds of plugins say. hold_policy: by name, any case; None takes the planner's default."""

    plugin_id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")
    stage: Literal["predict", "propose", "reconcile", "constrain"]
    priority: int = Field(default=100, ge=0, lt=2**31)
    execution_interval_s: Seconds = 0.0
    hold_policy: Annotated[Literal["ACCEPT_WHEN_IDLE", "HOLD_LAST"], BeforeValidator(_hold_policy)] = "ACCEPT_WHEN_IDLE"
    hold_max_age_s: Positive | None = None
    needs: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    observation_window_s: Seconds = 0.0
    timeout_s: Positive | None = None
    failure_threshold: int | None = Field(default=None, ge=1)
    cooldown_s: Positive | None = None

    def registration(self, defaults: PluginDefaults, endpoint: str = "", offload: bool = False) -> Registration:
        return Registration(
            self.plugin_id, Stage(self.stage), self.priority, endpoint, execution_interval_s=self.execution_interval_s,
            hold_policy=HoldPolicy[self.hold_policy], hold_max_age_s=self.hold_max_age_s, needs=self.needs, requires=self.requires,
            observation_window_s=self.observation_window_s, timeout_s=defaults.timeout_s if self.timeout_s is None else self.timeout_s,
            failure_threshold=defaults.failure_threshold if self.failure_threshold is None else self.failure_threshold,
            cooldown_s=defaults.cooldown_s if self.cooldown_s is None else self.cooldown_s, offload=offload)


class CallSpec(Spec):
    """How calls go in a simulated world: seconds until the answer, share of calls that fail, and how."""

    delay_s: Seconds = 0.0
    failure_rate: float = Field(default=0.0, ge=0, le=1)
    error: Literal["timeout", "connection", "unknown_method", "serialization", "raised"] = "connection"

    def model(self) -> CallModel:
        return CallModel(self.delay_s, self.failure_rate, self.error)


class Importable(Spec):
    """A class that can be imported; `kwargs` go to it."""

    module: str
    class_name: str = Field(alias="class")
    kwargs: dict[str, Any] = {}

    @model_serializer(mode="wrap")
    def _as_read(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Under the names that reading knows, however it is asked for."""
        return {"class" if key == "class_name" else key: value for key, value in handler(self).items()}

    def made(self, path: str, stage: str) -> Any:
        """Raises PlannerConfigError if it cannot be imported or made, or lacks the method of its stage."""
        try:
            made = getattr(import_module(self.module), self.class_name)(**self.kwargs)
        except (Exception, SystemExit) as error:  # whatever somebody's module does when it is imported or its class made
            raise refuse(path, f"cannot make {self.module}.{self.class_name}: {type(error).__name__}: {error}") from error
        if not callable(getattr(made, stage, None)):
            raise refuse(path, f"{self.module}.{self.class_name} has no method {stage}")
        return made

    def is_async(self, stage: str) -> bool:
        """Is the method of the stage an `async def`?"""
        return iscoroutinefunction(getattr(getattr(import_module(self.module), self.class_name), stage, None))


class StandIn(Importable):
    """The class that answers in a simulated world, and how calls of it go there."""

    call: CallSpec = CallSpec()


class InProcess(PluginEntry, Importable):
    """A class that can be imported; `kwargs` go to it. call: how an offloaded one's calls go in a simulated world."""

    offload: bool = False
    call: CallSpec | None = None

    def load(self, defaults: PluginDefaults, path: str) -> Attached:
        """path: where it is written. Raises PlannerConfigError if it cannot be imported or made, or lacks the method of its stage."""
        made = self.made(path, self.stage)
        return Attached(self.registration(defaults, offload=self.offload), made, None if self.call is None else self.call.model())


class External(PluginEntry):
    """A plugin in another process. token: env:NAME or file:PATH; tls: settings of the connection; stand_in: its class, for simulation."""

    endpoint: str
    token: str | None = Field(default=None, pattern=r"^(env|file):.+$")
    tls: TlsSpec | None = None
    stand_in: StandIn | None = None

    def attached(self, defaults: PluginDefaults, path: str) -> Attached:
        """Called at its endpoint in a live run; in a simulated one its stand-in answers. path: where it is written."""
        made = None if self.stand_in is None else self.stand_in.made(f"{path}.stand_in", self.stage)
        return Attached(self.registration(defaults, self.endpoint), made, None if self.stand_in is None else self.stand_in.call.model())


class HpaEntry(Spec):
    """The Kubernetes HPA: a mean metric per replica over its target."""

    kind: Literal["hpa"]
    metric: Literal["in_flight", "queue", "kv", "rps"] = "queue"
    target: Positive
    component: str | None = Field(default=None, description="The pool it sizes; left out: the only one.")
    kv_tokens: int | None = Field(default=None, ge=1, description="Of one replica, for the metric kv.")
    least: int = Field(default=1, ge=0)
    most: int | None = Field(default=None, ge=0)
    period_s: Seconds = 15.0
    down_window_s: Seconds = 300.0
    pending_blind: bool = Field(default=False, description="Take starting replicas for serving ones, as many a custom metric does.")

    def make(self, component: str) -> Any:
        _room(self.least, self.most)
        if self.metric == "kv" and self.kv_tokens is None:
            raise refuse("planner.plugins.reference", "hpa with metric kv needs kv_tokens")
        return ReferenceHpa(component, self.metric, self.target, kv_tokens=self.kv_tokens, most=self.most, least=self.least,
                            period_s=self.period_s, down_window_s=self.down_window_s, pending_blind=self.pending_blind)


class KpaEntry(Spec):
    """Knative's KPA: concurrency over a stable and a panic window, sampled at each tick."""

    kind: Literal["kpa"]
    target: Positive = 70.0
    component: str | None = Field(default=None, description="The pool it sizes; left out: the only one.")
    stable_s: Positive = 60.0
    panic_s: Positive = 6.0
    panic_factor: Positive = 2.0

    def make(self, component: str) -> Any:
        return ReferenceKpa(component, self.target, stable_s=self.stable_s, panic_s=self.panic_s, panic_factor=self.panic_factor)


class KedaEntry(Spec):
    """KEDA's queue scaler: the queue over a target length per replica, and the way to zero."""

    kind: Literal["keda"]
    target: Positive
    component: str | None = Field(default=None, description="The pool it sizes; left out: the only one.")
    cooldown_s: Seconds = 300.0
    least: int = Field(default=0, ge=0)
    most: int | None = Field(default=None, ge=0)

    def make(self, component: str) -> Any:
        _room(self.least, self.most)
        return KedaLike(component, self.target, cooldown_s=self.cooldown_s, most=self.most, least=self.least)


class ThresholdEntry(Spec):
    """Two alarms: one replica more at or over `up`, one fewer at or under `down`, whatever the rest would carry."""

    kind: Literal["threshold"]
    metric: Literal["in_flight", "queue", "kv", "rps"] = "kv"
    up: Positive
    down: Seconds
    component: str | None = Field(default=None, description="The pool it sizes; left out: the only one.")
    kv_tokens: int | None = Field(default=None, ge=1, description="Of one replica, for the metric kv.")
    least: int = Field(default=1, ge=0)
    most: int | None = Field(default=None, ge=0)

    def make(self, component: str) -> Any:
        _room(self.least, self.most)
        if self.down >= self.up:
            raise refuse("planner.plugins.reference", f"threshold: down {self.down:g} is not below up {self.up:g}")
        if self.metric == "kv" and self.kv_tokens is None:
            raise refuse("planner.plugins.reference", "threshold with metric kv needs kv_tokens")
        return ReferenceThreshold(component, self.metric, self.up, self.down, kv_tokens=self.kv_tokens, most=self.most, least=self.least)


Reference = Annotated[HpaEntry | KpaEntry | KedaEntry | ThresholdEntry, Field(discriminator="kind")]


class PluginsSpec(Spec):
    """Plugins beside the built-in ones. disabled: ids of built-in ones to leave out."""

    reference: tuple[Reference, ...] = Field(default=(), description="Other autoscalers to compare with; the loops that are not switched "
                                                                     "on are then off.")
    in_process: tuple[InProcess, ...] = ()
    external: tuple[External, ...] = ()
    defaults: DefaultsSpec = DefaultsSpec()  # type: ignore[valid-type]
    disabled: tuple[str, ...] = ()

    def referenced(self, components: tuple[str, ...]) -> tuple[Attached, ...]:
        """The autoscalers to compare with. Raises PlannerConfigError for a component that this planner does not size."""
        made = []
        for i, entry in enumerate(self.reference):
            component = entry.component if entry.component is not None or len(components) > 1 else components[0]
            if component not in components:
                known = ", ".join(components)
                raise refuse(f"planner.plugins.reference.{i}.component", f"expected one of {known}, got {entry.component!r}")
            plugin_id = f"{REFERENCE_PREFIX}{entry.kind}" + (f"_{component}" if len(components) > 1 else "")
            made.append(Attached(Registration(plugin_id, Stage.PROPOSE, needs=NEEDS), entry.make(component)))
        return tuple(made)
