"""The capacity plan: three sections, origins, precedence, a lossless round trip."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from windtunnel.errors import ConfigValueError
from windtunnel.lab.capacity_plan import capacity_plan
from windtunnel.lab.scenario import Scenario
from windtunnel.policy.capacity import (
    CONFIGURED,
    OBSERVED,
    ROW_GROUP_ADMISSION,
    RUNTIME,
    SOURCES,
    AsyncCapacityPlan,
    CapacityValue,
    Maxima,
    missing,
    pick,
    static_cap,
)

PIPELINE = """
windtunnel: 1
name: tiny-pipeline
fleet: {pools: {large: {model: Llama-3.1-70B, gpu: h100_sxm, tp: 4, engine: {max_num_seqs: 6}}, small: {model: Llama-3.1-8B, gpu: h100_sxm}}}
source:
  kind: pipeline
  rows: 9
  buffer_size: 3
  max_in_flight_tasks: 2
  columns:
    question: {model: Llama-3.1-70B, input_tokens: 20, output_tokens: 5}
    labels: {needs: [question], model: Llama-3.1-8B, requests: 3, parallel: true, input_tokens: 15, output_tokens: 2}
control: {queue: {kind: fair}, admission: {limit: {kind: aimd}}}
"""


def plan_of(record: str = "requests", scenario: bool = True, overridden: tuple[str, ...] = (), **changes: Any) -> AsyncCapacityPlan:
    """Of a run of the pipeline; without its scenario the run is only what a world and a control leave behind."""
    s = Scenario.load(PIPELINE).with_(changes)
    world, control, source = s.build(record=record)
    facts: dict[str, Any] = {"scenario": s, **s.meta(s._facts(world.fleet))} if scenario else {}
    run = world.run(control, source, **facts)
    return capacity_plan(run, source, overridden)  # type: ignore[arg-type]


def leaves_of(plan: AsyncCapacityPlan) -> dict[str, CapacityValue]:
    rows = plan.configured["row_group_admission"]
    flat = {**plan.configured, **{f"rows.{name}": leaf for name, leaf in rows.items()}, **{f"seen.{n}": v for n, v in plan.observed_maxima.items()},
            **{f"now.{n}": v for n, v in (plan.runtime_snapshot or {}).items()}}
    del flat["row_group_admission"]
    return flat


def test_CP_1_missing_values_are_there_with_a_reason() -> None:
    plan = AsyncCapacityPlan({"buffer_size": CapacityValue(500, "run_config")})
    assert tuple(plan.configured) == CONFIGURED and tuple(plan.observed_maxima) == OBSERVED and plan.runtime_snapshot is None
    assert plan.configured["buffer_size"].value == 500
    assert plan.configured["submission_capacity"] == missing("not given")
    assert plan.configured["row_group_admission"]["mode"].missing_reason == "not given"
    partly = AsyncCapacityPlan(runtime_snapshot={"request_domain_current_limits": CapacityValue({"m": 3}, "runtime_snapshot")})
    assert partly.runtime_snapshot is not None and tuple(partly.runtime_snapshot) == RUNTIME
    assert partly.runtime_snapshot["request_domain_blocked_until"].value is None


@pytest.mark.parametrize("bad", [
    lambda: CapacityValue(None, "default"), lambda: CapacityValue(3, "default", None, "why"), lambda: CapacityValue(3, "guess"),  # type: ignore[arg-type]
    lambda: CapacityValue(3, "default", "guess"), lambda: AsyncCapacityPlan({"row_groups_in_flight": CapacityValue(3, "default")}),  # type: ignore[arg-type]
    lambda: AsyncCapacityPlan({"buffer_size": 3}), lambda: AsyncCapacityPlan(observed_maxima={"buffer_size": CapacityValue(3, "default")}),
])
def test_CP_1_sections_do_not_mix_and_leaves_are_checked(bad: Any) -> None:
    with pytest.raises(ConfigValueError):
        bad()


def test_CP_3_precedence() -> None:
    assert pick("buffer_size", benchmark_override=9, run_config=5) == CapacityValue(9, "benchmark_override")
    assert pick("buffer_size", run_config=5) == CapacityValue(5, "run_config")
    assert pick("buffer_size") == CapacityValue(1000, "default", "run_config")
    assert pick("transport_pool_limits") == missing("not given")
    assert pick("buffer_size", run_config=0).value == 0, "what was said is not overruled"


def test_CP_3_a_static_cap_is_lowered_never_raised() -> None:
    assert static_cap(8, 4) == CapacityValue(4, "adapter_config") and static_cap(8, 16) == CapacityValue(8, "model_metadata")
    assert static_cap(8, None).value == 8 and static_cap(None, 4).fallback_from == "model_metadata" and static_cap(None, None).value is None


def test_maxima() -> None:
    maxima = Maxima()
    for value in (2, 5, 3):
        maxima.saw("row_groups_in_flight", value)
    maxima.saw("queued_tasks_by_group", {"a": 3})
    maxima.saw("queued_tasks_by_group", {"a": 1, "b": 0})
    section = maxima.section()
    assert section["row_groups_in_flight"].value == 5 and section["queued_tasks_by_group"].value == {"a": 3, "b": 0}
    assert section["transport_pool_utilization"].value is None


names = st.sampled_from(["a", "größe", "🌊", ""])
values = st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.dictionaries(names, st.integers())


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from([n for n in CONFIGURED if n != "row_group_admission"]), st.tuples(values, st.sampled_from(SOURCES))),
       st.booleans())
def test_CP_3_round_trip(given_values: dict[str, Any], snapshot: bool) -> None:
    leaves = {n: CapacityValue(v, s, None, "no" if v is None else None) for n, (v, s) in given_values.items()}
    mode = {"row_group_admission": {"mode": CapacityValue("fixed", "default")}}
    plan = AsyncCapacityPlan(leaves | mode, {} if snapshot else None, {"row_groups_in_flight": CapacityValue(3, "runtime_snapshot")})
    assert AsyncCapacityPlan.from_json(json.loads(json.dumps(plan.to_json(), allow_nan=False))) == plan


# -- of a run -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", ["requests", "full"])
def test_CP_2_a_run_fills_every_field_or_says_why_not(record: str) -> None:
    plan = plan_of(record)
    assert tuple(plan.configured) == CONFIGURED and tuple(plan.configured["row_group_admission"]) == ROW_GROUP_ADMISSION
    assert plan.runtime_snapshot is not None and tuple(plan.runtime_snapshot) == RUNTIME and tuple(plan.observed_maxima) == OBSERVED
    leaves = leaves_of(plan)
    absent = {name for name, leaf in leaves.items() if leaf.value is None}
    unknown = {"now.request_domain_effective_max", "now.request_domain_blocked_until"} if record == "requests" else set()
    assert absent == unknown | {"rows.max_admitted_rows", "request_domain_initial_limits", "transport_pool_limits", "seen.transport_pool_utilization"}
    assert all(len(leaves[name].missing_reason or "") > 10 for name in absent)
    assert AsyncCapacityPlan.from_json(json.loads(json.dumps(plan.to_json(), allow_nan=False))) == plan


def test_CP_2_the_numbers_are_those_of_the_run() -> None:
    plan = plan_of("full")
    value = {name: leaf.value for name, leaf in leaves_of(plan).items()}
    assert (value["buffer_size"], value["submission_capacity"], value["rows.target_in_flight"]) == (3, 2, 3)
    assert value["task_resource_limits"] == {"submission": 2, "llm_wait": 2, "request:fleet/Llama-3.1-70B": 4, "request:fleet/Llama-3.1-8B": 4}
    assert value["request_resources"] == ["large", "small"] and value["provider_model_static_caps"] == {"large": 6, "small": 256}
    assert value["request_admission_config"]["limit"]["kind"] == "aimd"
    assert value["seen.row_groups_in_flight"] == 3 and value["seen.task_leases_by_resource"]["submission"] == 2
    assert value["seen.queued_tasks_by_group"]["model/fleet/Llama-3.1-70B/chat/question"] == 7, "nine rows, two at work"
    assert value["seen.request_in_flight_by_resource"]["large"] <= 2 and value["seen.request_domain_current_limits"] == {"large": 6, "small": 256}
    assert value["now.request_domain_effective_max"] == {"large": 6, "small": 256}
    assert value["now.request_domain_blocked_until"] == {"large": None, "small": None}
    assert value["now.provider_model_aggregate_in_flight"] == {"Llama-3.1-70B": 0, "Llama-3.1-8B": 0}


def test_CP_1_what_was_seen_stands_nowhere_else() -> None:
    """The configured part of two runs that see different things is the same."""
    assert plan_of().configured == plan_of(**{"source.rows": 3}).configured
    assert plan_of().observed_maxima != plan_of(**{"source.rows": 3}).observed_maxima


def test_CP_3_who_set_what() -> None:
    def origins(plan: AsyncCapacityPlan) -> dict[str, tuple[Any, str, str | None]]:
        return {name: (leaf.value, leaf.source, leaf.fallback_from) for name, leaf in leaves_of(plan).items()}

    plain = origins(plan_of())
    assert plain["buffer_size"] == (3, "run_config", None) and plain["submission_capacity"] == (2, "run_config", None)
    assert plain["rows.row_group_concurrency"] == (3, "default", "run_config"), "documented, not said"
    assert plain["rows.mode"] == ("fixed", "default", "run_config")
    assert plain["provider_model_static_caps"][1:] == ("engine_internal_config", None)
    said = origins(plan_of(**{"source.max_concurrent_row_groups": 3, "source.adaptive_row_groups": False}))
    assert said["rows.row_group_concurrency"] == (3, "run_config", None) and said["rows.mode"] == ("fixed", "run_config", None)
    bench = origins(plan_of(overridden=("buffer_size", "row_group_concurrency", "request_admission_config"), **{"source.buffer_size": 5}))
    assert bench["buffer_size"] == (5, "benchmark_override", None) and bench["request_admission_config"][1] == "benchmark_override"
    assert bench["rows.row_group_concurrency"] == (3, "benchmark_override", None)
    grown = origins(plan_of(**{"source.adaptive_row_groups": True}))
    assert grown["rows.mode"] == ("adaptive", "run_config", None) and grown["rows.max_admitted_rows"] == (9, "dataset_builder", None)
    assert grown["rows.target_in_flight"][0] == 1 and grown["rows.row_group_concurrency"][0] is None
    fixed = origins(plan_of(**{"control.admission.limit": {"kind": "fixed", "limit": 7}}))
    assert fixed["provider_model_static_caps"] == fixed["request_domain_initial_limits"] == ({"large": 7, "small": 7}, "run_config", None)
    free = origins(plan_of(**{"control.admission.limit": {"kind": "none"}}))
    assert free["provider_model_static_caps"][0] is None
    bare = origins(plan_of(scenario=False))
    assert bare["buffer_size"] == (3, "run_config", None) and bare["rows.mode"] == ("fixed", "default", "run_config")
    assert bare["request_resources"][0] is None and bare["seen.request_in_flight_by_resource"][0] is not None
