"""The `planner:` block of a scenario or a file: read strictly, refused with the dotted path, turned into settings and plugins."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from windtunnel.errors import PlannerConfigError
from windtunnel.lab.forecast_models import forecaster
from windtunnel.lab.kinds import Spec, planner_refused, spec_of
from windtunnel.lab.planner_outside import Positive, RegistrySpec, outside_of
from windtunnel.lab.planner_plugins import REFERENCE_PREFIX, PluginsSpec, Seconds
from windtunnel.policy.param import BuildContext, PoolFacts
from windtunnel.policy.planning.builtins import BUILTINS, Builtins, build_plugins
from windtunnel.policy.planning.outside import Outside
from windtunnel.policy.planning.perf_model import PerfModel
from windtunnel.policy.planning.plugin import Attached
from windtunnel.policy.planning.predictor_settings import PredictorSettings
from windtunnel.policy.planning.roster import BUILTIN_PREFIX, RosterSettings
from windtunnel.policy.planning.settings import ROLES, PlannerSettings
from windtunnel.policy.planning.settings_blocks import (
    BudgetSettings,
    LimitSettings,
    LoadSettings,
    PoolSettings,
    ReconcileSettings,
    ScalerSettings,
    SchedulingSettings,
    SloSettings,
    StabiliseSettings,
    ThroughputSettings,
    refuse,
)


def _spec(cls: type[Any]) -> Any:
    return spec_of(cls)


LIMITS = ("max_num_batched_tokens", "max_num_seqs", "max_kv_tokens", "context_length")


class PoolEntry(Spec):
    """One role's pool. What is left out is the fleet's."""

    component: str | None = Field(default=None, description="Its name; left out: the role's.")
    gpus: int | None = Field(default=None, ge=0, description="Per replica; left out: the fleet's.")
    min_replicas: int | None = Field(default=None, ge=0, description="Left out: the fleet's minimum, at least 1.")
    max_replicas: int | None = Field(default=None, ge=0, description="Left out: the fleet's maximum.")
    watts_per_replica: Positive | None = Field(default=None, description="Of one replica (W); a power budget needs it.")
    boot_s: Seconds | None = Field(default=None, description="From asking to ready, until it was measured (s); left out: the fleet's.")
    capacity_rps: Positive | None = Field(default=None, description="Requests per second of one replica within the SLO; left out: from step times.")
    limits: _spec(LimitSettings) = _spec(LimitSettings)()  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _ordered(self) -> PoolEntry:
        try:
            self.settings(None)
        except PlannerConfigError as error:
            raise planner_refused(error, own=True) from None
        return self

    def settings(self, facts: PoolFacts | None) -> PoolSettings:
        """facts: of the fleet's pool; None: not known yet."""
        facts = facts or PoolFacts("", boot_s=60.0)
        given: Any = self.limits
        limits = {name: known if (known := getattr(given, name)) is not None else facts.limits.get(name) for name in LIMITS}
        least = max(1, facts.min_replicas) if self.min_replicas is None else self.min_replicas
        most = [n for n in (self.max_replicas, facts.max_replicas) if n is not None]
        return PoolSettings(
            self.component, facts.gpus if self.gpus is None else self.gpus, least, min(most, default=None), self.watts_per_replica,
            self.boot_s if self.boot_s is not None else 60.0 if facts.boot_s is None else facts.boot_s, self.capacity_rps, LimitSettings(**limits))


class PlannerSpec(Spec):
    """Sizes the pools of one service by a pipeline: predict, propose, reconcile, constrain."""

    mode: Literal["agg", "disagg", "prefill", "decode"] = Field(default="agg", description="The roles it sizes.")
    target: Literal["throughput", "latency", "load", "sla"] = Field(default="throughput", description="What the load loop looks at.")
    slo: _spec(SloSettings) | None = Field(default=None, description="Left out: ttft_s and itl_s or tpot_s of the scenario.")  # type: ignore[valid-type]
    pools: dict[str, PoolEntry] = Field(default={}, description="By role; a role that is left out is as in the fleet.")
    budget: _spec(BudgetSettings) = _spec(BudgetSettings)()  # type: ignore[valid-type]
    advisory: bool = Field(default=False, description="Plans are told and nothing moves.")
    throughput: _spec(ThroughputSettings) = _spec(ThroughputSettings)()  # type: ignore[valid-type]
    load: _spec(LoadSettings) = _spec(LoadSettings)()  # type: ignore[valid-type]
    predictor: _spec(PredictorSettings) = _spec(PredictorSettings)()  # type: ignore[valid-type]
    speculative_nextn: int = Field(default=0, ge=0)
    stabilise: _spec(StabiliseSettings) = _spec(StabiliseSettings)()  # type: ignore[valid-type]
    reconcile: _spec(ReconcileSettings) = _spec(ReconcileSettings)()  # type: ignore[valid-type]
    scheduling: _spec(SchedulingSettings) = _spec(SchedulingSettings)()  # type: ignore[valid-type]
    plugins: PluginsSpec = PluginsSpec()
    registry: RegistrySpec = RegistrySpec()
    scaler: _spec(ScalerSettings) = _spec(ScalerSettings)()  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _accepted(self) -> PlannerSpec:
        known = {role: PoolFacts(role, role, boot_s=60.0) for role in ROLES[self.mode]}
        try:
            made = self.settings(known)
            self.plugins.referenced(tuple(map(made.component, made.roles)))
        except PlannerConfigError as error:
            raise planner_refused(error, own=False) from None
        return self

    def settings(self, facts: Mapping[str, PoolFacts] | None = None, slo: Mapping[str, float] | None = None) -> PlannerSettings:
        """facts: the fleet's pool of each role; None: the block must name every pool. slo: bounds by column, for a block that has none.

        Raises PlannerConfigError, with the dotted path, for what does not fit together.
        """
        blocks = {name: getattr(self, name).config() for name in BLOCKS}
        entries = (*self.plugins.in_process, *self.plugins.external)
        known = facts or {}
        pools = {role: PoolEntry().settings(f) for role, f in known.items() if role not in self.pools}
        pools |= {role: entry.settings(known.get(role)) for role, entry in self.pools.items()}
        if self.plugins.reference:
            for name in ("throughput", "load"):
                if blocks[name].enabled is None:
                    blocks[name] = type(blocks[name])(**{**_fields(blocks[name]), "enabled": False})
        bounds = self.slo.config() if self.slo is not None else _slo(slo or {})
        made = PlannerSettings(mode=self.mode, target=self.target, slo=bounds, pools=pools, advisory=self.advisory,
                               speculative_nextn=self.speculative_nextn, defaults=self.plugins.defaults.config(),  # type: ignore[attr-defined]
                               disabled=frozenset(self.plugins.disabled), **blocks,
                               other_proposers=bool(self.plugins.reference) or any(e.stage == "propose" for e in entries))
        self._check_entries(made)
        self.registry.check()
        return made

    def _check_entries(self, made: PlannerSettings) -> None:
        for i, plugin_id in enumerate(self.plugins.disabled):
            if plugin_id not in BUILTINS:
                raise refuse(f"planner.plugins.disabled.{i}", f"expected one of {', '.join(BUILTINS)}, got {plugin_id!r}")
        seen: set[str] = set()
        for kind in ("in_process", "external"):
            for i, entry in enumerate(getattr(self.plugins, kind)):
                path = f"planner.plugins.{kind}.{i}"
                if entry.plugin_id in seen:
                    raise refuse(f"{path}.plugin_id", f"{entry.plugin_id!r} is used twice")
                if entry.plugin_id.startswith(BUILTIN_PREFIX):
                    raise refuse(f"{path}.plugin_id", f"{entry.plugin_id!r} is reserved: ids of built-in plugins begin with {BUILTIN_PREFIX}")
                if entry.plugin_id.startswith(REFERENCE_PREFIX):
                    raise refuse(f"{path}.plugin_id", f"{entry.plugin_id!r} is reserved for plugins.reference")
                seen.add(entry.plugin_id)
                if entry.timeout_s is not None and entry.timeout_s > made.scheduling.tick_max_duration_s:
                    raise refuse(f"{path}.timeout_s", f"expected at most scheduling.tick_max_duration_s {made.scheduling.tick_max_duration_s:g}")
                ratio = entry.observation_window_s / made.scale_interval_s
                if abs(ratio - round(ratio)) > 1e-6:
                    raise refuse(f"{path}.observation_window_s", f"expected a multiple of the scale interval {made.scale_interval_s:g}")

    def config(self) -> PlannerSpec:
        """Itself: what a registered kind is built from."""
        return self

    def build(self, ctx: BuildContext) -> Any:
        """The planner over the pools of `ctx`. Raises PlannerConfigError if a role has no pool, or several."""
        from windtunnel.lab.planner_build import build_pipeline_planner

        try:
            return build_pipeline_planner(self, ctx.pools, wants=ctx.wants, slo=ctx.slo)
        except PlannerConfigError as error:
            error.message = f"control.{error.message}" if error.message.startswith("planner.") else error.message
            raise

    def check_simulated(self) -> None:
        """Could every plugin answer in a simulated world? Raises PlannerConfigError for one that is only a promise there."""
        for i, entry in enumerate(self.plugins.external):
            if entry.stand_in is None:
                raise PlannerConfigError(f"control.planner.plugins.external.{i}: {entry.plugin_id} is in another process, which a simulated "
                                         "world does not call", hint="give it stand_in: {module: …, class: …}, which answers there")
        for kind in ("in_process", "external"):
            for i, entry in enumerate(getattr(self.plugins, kind)):
                part = entry if kind == "in_process" else entry.stand_in
                if part.is_async(entry.stage):
                    raise PlannerConfigError(f"control.planner.plugins.{kind}.{i}: {part.module}.{part.class_name}.{entry.stage} is async, which "
                                             "a simulated world does not await", hint="write a plain method, or fly it with drive")

    def parts(self, settings: PlannerSettings, perf_model: PerfModel | None = None,
              facts: Mapping[str, PoolFacts] | None = None) -> tuple[Builtins, tuple[Attached, ...]]:
        """(built-in plugins, plugins of the block: in-process ones, then those elsewhere).

        facts: whose known step times the built-in ones start from.
        """
        known = {role: [(s[0], s[1], s[2], s[3]) for s in f.steps] for role, f in (facts or {}).items() if f.steps}
        built = build_plugins(settings, perf_model=perf_model, forecaster=forecaster(settings.predictor), known=known)
        components = tuple(map(settings.component, settings.roles))
        path = "planner.plugins"
        own = tuple(e.load(settings.defaults, f"{path}.in_process.{i}") for i, e in enumerate(self.plugins.in_process))
        elsewhere = tuple(e.attached(settings.defaults, f"{path}.external.{i}") for i, e in enumerate(self.plugins.external))
        return built, (*self.plugins.referenced(components), *own, *elsewhere)

    def outside(self) -> Outside:
        """What a live driver opens: connections and the registry."""
        return outside_of(self.plugins.external, self.registry)

    def roster(self, settings: PlannerSettings) -> RosterSettings:
        """What registrations are measured by."""
        r, d = self.registry, settings.defaults
        return RosterSettings(settings.scale_interval_s, d.timeout_s, d.failure_threshold, d.cooldown_s, r.protocol_min, r.protocol_max,
                              r.heartbeat_timeout_s, r.missed_threshold)


BLOCKS = ("budget", "throughput", "load", "predictor", "stabilise", "reconcile", "scheduling", "scaler")


def _fields(block: Any) -> dict[str, Any]:
    return {f.name: getattr(block, f.name) for f in dataclasses.fields(block)}


def _slo(bounds: Mapping[str, float]) -> SloSettings:
    """The bounds that a planner can size for; without any: its defaults."""
    ttft_s, itl_s = bounds.get("ttft_s"), bounds.get("itl_s", bounds.get("tpot_s"))
    if ttft_s is None and itl_s is None:
        return SloSettings()
    return SloSettings(None if ttft_s is None else ttft_s * 1000, None if itl_s is None else itl_s * 1000)


_SPEC = TypeAdapter(PlannerSpec)


def read_planner(data: Mapping[str, Any]) -> PlannerSpec:
    """The `planner:` block as plain data, every pool named. Raises PlannerConfigError: unknown keys, wrong types, values out of range."""
    try:
        spec = _SPEC.validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        context: Mapping[str, Any] = first.get("ctx", {}) if first["type"] == "config" else {}
        loc = ".".join(str(part) for part in (*first["loc"], *filter(None, [context.get("field", "")])))
        what = context["text"] if context else "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
        raise refuse(f"planner.{loc}", what) if loc else PlannerConfigError(what) from None
    except TypeError as error:
        raise refuse("planner", f"expected plain data: {error}") from None
    spec.settings()
    return spec
