"""The capacity plan of a pipeline run: what was set and by whom, how the request stage stood at the end, and the largest values seen."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from windtunnel.policy.capacity import AsyncCapacityPlan, CapacitySource, CapacityValue, missing, pick
from windtunnel.policy.tasks.config import TaskSchedulerConfig
from windtunnel.policy.tasks.task import SUBMISSION

if TYPE_CHECKING:
    from windtunnel.lab.run import Run
    from windtunnel.sources.pipeline import PipelineSource

UNKNOWN_CONTROL = "the run does not say how its control was made"


def capacity_plan(run: Run, source: PipelineSource, overridden: Collection[str] = ()) -> AsyncCapacityPlan:
    """The plan of a finished run. overridden: names of fields of `configured` and `row_group_admission` that a benchmark has set.

    Request resources are the control's lanes. At record level "full" their ceilings and pauses are known, too; else they are missing.
    """
    return AsyncCapacityPlan(_configured(run, source, overridden), _snapshot(run), _maxima(run, source))


# -- what was set -------------------------------------------------------------------------------------------------------------------


def _configured(run: Run, source: PipelineSource, overridden: Collection[str]) -> dict[str, Any]:
    config, gate, plain = source.scheduler.config, source.scheduler.row_groups, TaskSchedulerConfig()
    given = _given(run, source.name)

    def of(name: str, value: Any, field: str, *more: str) -> CapacityValue:
        if given is None:  # no scenario: what differs from the default was said
            said = getattr(config, field) != getattr(plain, field)
        else:
            said = not given.isdisjoint((field, *more))
        return pick(name, benchmark_override=value if name in overridden else None, run_config=value if said else None, default=value)

    mode = of("mode", "adaptive" if config.adaptive_row_groups else "fixed", "adaptive_row_groups")
    if config.adaptive_row_groups:
        rows = {"row_group_concurrency": missing("the target is adaptive"), "target_in_flight": CapacityValue(1, "dataset_builder"),
                "max_admitted_rows": CapacityValue(gate.max_rows, "dataset_builder")}
    else:
        open_ = of("row_group_concurrency", config.max_concurrent_row_groups, "max_concurrent_row_groups")
        rows = {"row_group_concurrency": open_, "target_in_flight": open_,
                "max_admitted_rows": missing("a fixed number of row groups is open, whatever their rows")}
    limits = dict(source.scheduler.admission.view().limits)
    return {
        "buffer_size": of("buffer_size", config.buffer_size, "buffer_size"), "row_group_admission": {"mode": mode, **rows},
        "submission_capacity": of("submission_capacity", limits[SUBMISSION], "max_in_flight_tasks"),
        "task_resource_limits": of("task_resource_limits", limits, "max_in_flight_tasks", "max_parallel_requests"), **_request_stage(run, overridden),
        "transport_pool_limits": missing("there is no transport in a simulation" if run.meta.world == "simulated"
                                         else "connections are not bounded", "adapter_config")}


def _given(run: Run, name: str) -> set[str] | None:
    """The fields of the pipeline that the scenario has written down; None without a scenario."""
    spec: Any = None if run.scenario is None else run.scenario.source
    for one in getattr(spec, "sources", (spec,)):
        if one is not None and one.kind == "pipeline" and one.name == name:
            return set(one.model_fields_set)
    return None


def _request_stage(run: Run, overridden: Collection[str]) -> dict[str, CapacityValue]:
    control = run.meta.control_spec
    if control is None:
        names = ("request_resources", "provider_model_static_caps", "request_domain_initial_limits", "request_admission_config")
        return {name: missing(UNKNOWN_CONTROL) for name in names}
    limit = control["admission"]["limit"]
    said: CapacitySource = "run_config" if run.scenario is not None and "admission" in run.scenario.control.model_fields_set else "default"

    def of(name: str, value: Any, source: CapacitySource) -> CapacityValue:
        return CapacityValue(value, "benchmark_override" if name in overridden else source)

    lanes = _lanes(control)
    caps = {lane: sum(p["slots"] * p["replicas"] for p in pools) if all(p["slots"] for p in pools) else None for lane, pools in lanes.items()}
    if limit["kind"] == "fixed":
        static = of("provider_model_static_caps", dict.fromkeys(lanes, limit["limit"]), said)
    elif limit["kind"] == "none" or None in caps.values():
        static = missing("nothing bounds them" if limit["kind"] == "none" else "the engines do not say how many slots they have")
    else:
        static = of("provider_model_static_caps", caps, "engine_internal_config")
    initial = limit["limit"] if limit["kind"] == "fixed" else limit.get("initial_limit")
    return {
        "request_resources": of("request_resources", list(lanes), "run_config"), "provider_model_static_caps": static,
        "request_domain_initial_limits": missing("limits start at their ceiling") if initial is None
        else of("request_domain_initial_limits", dict.fromkeys(lanes, initial), said),
        "request_admission_config": of("request_admission_config", dict(control["admission"]), said)}


def _lanes(control: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Pools by lane: one lane per model, with the name of its first pool."""
    by_model: dict[str, list[Mapping[str, Any]]] = {}
    for pool in control["pools"]:
        by_model.setdefault(pool["model"], []).append(pool)
    return {pools[0]["name"]: pools for pools in by_model.values()}


# -- how it stood, and what was seen -----------------------------------------------------------------------------------------------


def _snapshot(run: Run) -> dict[str, CapacityValue] | None:
    """The request stage at the last look."""
    last = {name: {key: rows["value"].iloc[-1] for key, rows in _sampled(run, name)} for name in ("limit", "in_flight")}
    if not last["limit"]:
        return None
    told: dict[str, Mapping[str, Any]] = {}
    if run.tables.level == "full":
        notes = run.notes
        for detail in map(json.loads, notes.loc[notes["stream"] == "request", "detail"]):
            if detail.get("pressure_snapshot") is not None:
                told[detail["request_resource_key"]] = detail["pressure_snapshot"]

    def stood(field: str) -> CapacityValue:
        if not told:
            return missing("needs a run with record: full", "runtime_snapshot")
        return CapacityValue({key: gauges[field] for key, gauges in told.items()}, "runtime_snapshot")

    return {"request_domain_current_limits": CapacityValue(_whole(last["limit"]), "runtime_snapshot"),
            "request_domain_effective_max": stood("effective_max"), "request_domain_blocked_until": stood("blocked_until"),
            "provider_model_aggregate_in_flight": CapacityValue(_by_model(run, last["in_flight"]), "runtime_snapshot")}


def _maxima(run: Run, source: PipelineSource) -> dict[str, CapacityValue]:
    seen = deepcopy(source.scheduler.maxima)
    for field, name in (("request_waiters_by_resource", "waiting"), ("request_in_flight_by_resource", "in_flight"),
                        ("request_domain_current_limits", "limit")):
        found = _whole({key: rows["value"].max() for key, rows in _sampled(run, name)})
        if found:
            seen.saw(field, found)
        if found and name == "in_flight":
            seen.saw("provider_model_aggregate_in_flight", _by_model(run, found))
    no_transport = "there is no transport in a simulation" if run.meta.world == "simulated" else "connections are not counted"
    return seen.section(lambda name: no_transport if name == "transport_pool_utilization" else "not observed")


def _sampled(run: Run, name: str) -> list[tuple[str, Any]]:
    """Rows of one gauge by lane, in order of the lanes' names."""
    series = run.series
    rows = series[series["name"] == name]
    return [(str(key), found) for key, found in rows.groupby("key", observed=True)]


def _whole(values: Mapping[str, Any]) -> dict[str, int]:
    return {key: int(value) for key, value in values.items()}


def _by_model(run: Run, values: Mapping[str, Any]) -> dict[str, int]:
    """Lanes by the model that they serve; a run that does not say its models keeps the lanes' names."""
    control = run.meta.control_spec
    models = {} if control is None else {lane: pools[0]["model"] or lane for lane, pools in _lanes(control).items()}
    return {models.get(key, key): int(value) for key, value in values.items()}
