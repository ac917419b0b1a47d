"""The `planner:` block of a scenario or a file: read strictly, refused with the dotted path, turned into settings and plugins."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from windtunnel.errors import PlannerConfigError
from windtunnel.lab.forecast_models import forecaster
from windtunnel.lab.planner_outside import RegistrySpec, TlsSpec, outside_of
from windtunnel.policy.planning.builtins import Builtins, build_plugins
from windtunnel.policy.planning.contract import HoldPolicy, Stage
from windtunnel.policy.planning.outside import Outside
from windtunnel.policy.planning.perf_model import PerfModel
from windtunnel.policy.planning.plugin import Attached, CallModel, Registration
from windtunnel.policy.planning.roster import BUILTIN_PREFIX, RosterSettings
from windtunnel.policy.planning.settings import PlannerSettings
from windtunnel.policy.planning.settings_blocks import (
    BudgetSettings,
    LoadSettings,
    PluginDefaults,
    PoolSettings,
    PredictorSettings,
    ReconcileSettings,
    ScalerSettings,
    SchedulingSettings,
    SloSettings,
    StabiliseSettings,
    ThroughputSettings,
    refuse,
)

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _hold_policy(name: Any) -> Any:
    return name.upper() if isinstance(name, str) else name


class PluginEntry(_Block):
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


class CallSpec(_Block):
    """How calls go in a simulated world: seconds until the answer, share of calls that fail, and how."""

    delay_s: Seconds = 0.0
    failure_rate: float = Field(default=0.0, ge=0, le=1)
    error: Literal["timeout", "connection", "unknown_method", "serialization", "raised"] = "connection"

    def model(self) -> CallModel:
        return CallModel(self.delay_s, self.failure_rate, self.error)


class StandIn(_Block):
    """The class that answers in a simulated world, and how calls of it go there."""

    module: str
    class_name: str = Field(alias="class")
    kwargs: dict[str, Any] = {}
    call: CallSpec = CallSpec()


class InProcess(PluginEntry):
    """A class that can be imported; `kwargs` go to it. call: how an offloaded one's calls go in a simulated world."""

    module: str
    class_name: str = Field(alias="class")
    offload: bool = False
    kwargs: dict[str, Any] = {}
    call: CallSpec | None = None

    def load(self, defaults: PluginDefaults) -> Attached:
        """Raises PlannerConfigError if it cannot be imported or made, or lacks the method of its stage."""
        made = made_of(self, f"planner.plugins.in_process.{self.plugin_id}", self.stage)
        return Attached(self.registration(defaults, offload=self.offload), made, None if self.call is None else self.call.model())


def made_of(what: Any, path: str, stage: str) -> Any:
    """The plugin that an entry's module, class_name and kwargs say. Raises PlannerConfigError."""
    try:
        made = getattr(import_module(what.module), what.class_name)(**what.kwargs)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise refuse(path, f"cannot make {what.module}.{what.class_name}: {error}") from error
    if not callable(getattr(made, stage, None)):
        raise refuse(path, f"{what.module}.{what.class_name} has no method {stage}")
    return made


class External(PluginEntry):
    """A plugin in another process. token: env:NAME or file:PATH; tls: settings of the connection; stand_in: its class, for simulation."""

    endpoint: str
    token: str | None = Field(default=None, pattern=r"^(env|file):.+$")
    tls: TlsSpec | None = None
    stand_in: StandIn | None = None

    def attached(self, defaults: PluginDefaults) -> Attached:
        """Called at its endpoint in a live run; in a simulated one its stand-in answers."""
        made = None if self.stand_in is None else made_of(self.stand_in, f"planner.plugins.external.{self.plugin_id}.stand_in", self.stage)
        return Attached(self.registration(defaults, self.endpoint), made, None if self.stand_in is None else self.stand_in.call.model())


class PluginsSpec(_Block):
    """Plugins beside the built-in ones. disabled: ids of built-in ones to leave out."""

    in_process: tuple[InProcess, ...] = ()
    external: tuple[External, ...] = ()
    defaults: PluginDefaults = PluginDefaults()
    disabled: tuple[str, ...] = ()


class PlannerSpec(_Block):
    """The whole block as it is written."""

    mode: Literal["agg", "disagg", "prefill", "decode"] = "agg"
    target: Literal["throughput", "latency", "load", "sla"] = "throughput"
    slo: SloSettings = SloSettings()
    pools: dict[str, PoolSettings]
    budget: BudgetSettings = BudgetSettings()
    advisory: bool = False
    throughput: ThroughputSettings = ThroughputSettings()
    load: LoadSettings = LoadSettings()
    predictor: PredictorSettings = PredictorSettings()
    speculative_nextn: int = 0
    stabilise: StabiliseSettings = StabiliseSettings()
    reconcile: ReconcileSettings = ReconcileSettings()
    scheduling: SchedulingSettings = SchedulingSettings()
    plugins: PluginsSpec = PluginsSpec()
    registry: RegistrySpec = RegistrySpec()
    scaler: ScalerSettings = ScalerSettings()

    def settings(self) -> PlannerSettings:
        """Raises PlannerConfigError, with the dotted path, for what does not fit together."""
        same = {name: getattr(self, name) for name in PlannerSpec.model_fields if name not in ("plugins", "registry")}
        entries = (*self.plugins.in_process, *self.plugins.external)
        made = PlannerSettings(**same, defaults=self.plugins.defaults, disabled=frozenset(self.plugins.disabled),
                               other_proposers=any(e.stage == "propose" for e in entries))
        self._check_entries(made)
        self.registry.check()
        return made

    def _check_entries(self, made: PlannerSettings) -> None:
        seen: set[str] = set()
        for kind in ("in_process", "external"):
            for i, entry in enumerate(getattr(self.plugins, kind)):
                path = f"planner.plugins.{kind}.{i}"
                if entry.plugin_id in seen:
                    raise refuse(f"{path}.plugin_id", f"{entry.plugin_id!r} is used twice")
                if entry.plugin_id.startswith(BUILTIN_PREFIX):
                    raise refuse(f"{path}.plugin_id", f"{entry.plugin_id!r} is reserved: ids of built-in plugins begin with {BUILTIN_PREFIX}")
                seen.add(entry.plugin_id)
                if entry.timeout_s is not None and entry.timeout_s > made.scheduling.tick_max_duration_s:
                    raise refuse(f"{path}.timeout_s", f"expected at most scheduling.tick_max_duration_s {made.scheduling.tick_max_duration_s:g}")
                ratio = entry.observation_window_s / made.scale_interval_s
                if abs(ratio - round(ratio)) > 1e-6:
                    raise refuse(f"{path}.observation_window_s", f"expected a multiple of the scale interval {made.scale_interval_s:g}")

    def build(self, perf_model: PerfModel | None = None) -> tuple[Builtins, tuple[Attached, ...]]:
        """(built-in plugins, plugins of the block: in-process ones, then those elsewhere)."""
        made = self.settings()
        built = build_plugins(made, perf_model=perf_model, forecaster=forecaster(made.predictor))
        own = tuple(entry.load(made.defaults) for entry in self.plugins.in_process)
        return built, (*own, *(entry.attached(made.defaults) for entry in self.plugins.external))

    def outside(self) -> Outside:
        """What a live driver opens: connections and the registry."""
        return outside_of(self.plugins.external, self.registry)

    def roster(self) -> RosterSettings:
        """What registrations are measured by."""
        made, r = self.settings(), self.registry
        d = made.defaults
        return RosterSettings(made.scale_interval_s, d.timeout_s, d.failure_threshold, d.cooldown_s, r.protocol_min, r.protocol_max,
                              r.heartbeat_timeout_s, r.missed_threshold)


_SPEC = TypeAdapter(PlannerSpec)
_POOL = TypeAdapter(PoolSettings)


def read_planner(data: Mapping[str, Any]) -> PlannerSpec:
    """The `planner:` block as plain data. Raises PlannerConfigError: unknown keys, wrong types, values out of range."""
    pools = data.get("pools")
    if isinstance(pools, Mapping):
        for role, pool in pools.items():  # alone first: a pool does not know its role, so its path would lack it
            _strict(_POOL, pool, f"planner.pools.{role}", "planner.pools.")
    spec: PlannerSpec = _strict(_SPEC, data, "planner", "")
    spec.settings()
    return spec


def _strict(adapter: TypeAdapter[Any], data: Any, path: str, blank: str) -> Any:
    try:
        return adapter.validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        loc = ".".join(str(part) for part in first["loc"])
        what = "unknown key" if first["type"] in ("extra_forbidden", "unexpected_keyword_argument") else first["msg"]
        raise refuse(f"{path}.{loc}" if loc else path, what) from None
    except PlannerConfigError as error:
        if blank and error.message.startswith(blank):
            raise PlannerConfigError(f"{path}.{error.message.removeprefix(blank)}") from None
        raise
    except TypeError as error:
        raise refuse(path, f"expected plain data: {error}") from None
