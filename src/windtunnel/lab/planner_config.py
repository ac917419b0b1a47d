"""The `planner:` block of a scenario or a file: read strictly, refused with the dotted path, turned into settings and plugins."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from windtunnel.errors import PlannerConfigError
from windtunnel.lab.forecast_models import forecaster
from windtunnel.policy.planning.builtins import Builtins, build_plugins
from windtunnel.policy.planning.contract import HoldPolicy, Stage
from windtunnel.policy.planning.perf_model import PerfModel
from windtunnel.policy.planning.plugin import Attached, Registration
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

BUILTIN_PREFIX = "builtin_"
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


class InProcess(PluginEntry):
    """A class that can be imported; `kwargs` go to it."""

    module: str
    class_name: str = Field(alias="class")
    offload: bool = False
    kwargs: dict[str, Any] = {}

    def load(self, defaults: PluginDefaults) -> Attached:
        """Raises PlannerConfigError if it cannot be imported or made, or lacks the method of its stage."""
        path = f"planner.plugins.in_process.{self.plugin_id}"
        try:
            made = getattr(import_module(self.module), self.class_name)(**self.kwargs)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise refuse(path, f"cannot make {self.module}.{self.class_name}: {error}") from error
        if not callable(getattr(made, self.stage, None)):
            raise refuse(path, f"{self.module}.{self.class_name} has no method {self.stage}")
        return Attached(self.registration(defaults, offload=self.offload), made)


class External(PluginEntry):
    """A plugin in another process. token: env:NAME or file:PATH; tls: settings of the connection."""

    endpoint: str
    token: str | None = Field(default=None, pattern=r"^(env|file):.+$")
    tls: dict[str, Any] | None = None


class AuthSpec(_Block):
    """Who may register."""

    sources: tuple[dict[str, Any], ...] = ()
    admin_subjects: tuple[str, ...] = ()


class RegistrySpec(_Block):
    """The door for plugins that register themselves."""

    enabled: bool = False
    listen: str | None = None
    allow_insecure: bool = False
    allow_insecure_grpc: bool = False
    tls: dict[str, Any] | None = None
    auth: AuthSpec = AuthSpec()
    heartbeat_timeout_s: Positive = 15.0
    missed_threshold: int = Field(default=2, ge=1)
    protocol_min: str = Field(default="1.0", pattern=r"^\d+\.\d+$")
    protocol_max: str = Field(default="1.0", pattern=r"^\d+\.\d+$")
    keepalive_s: Positive = 30.0
    max_message_bytes: int = Field(default=10_485_760, ge=1024)


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
        if self.registry.enabled and self.registry.listen is None:
            raise refuse("planner.registry.listen", "missing, an enabled registry needs it")
        if self.registry.enabled and not self.registry.auth.sources:
            raise refuse("planner.registry.auth.sources", "missing, an enabled registry needs at least one")
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
        """(built-in plugins, in-process plugins of the block)."""
        made = self.settings()
        built = build_plugins(made, perf_model=perf_model, forecaster=forecaster(made.predictor))
        return built, tuple(entry.load(made.defaults) for entry in self.plugins.in_process)


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
