"""The capacity plan: three sections, origins, precedence, a lossless round trip."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from windtunnel.errors import ConfigValueError
from windtunnel.policy.capacity import CONFIGURED, OBSERVED, RUNTIME, SOURCES, AsyncCapacityPlan, CapacityValue, Maxima, missing, pick, static_cap


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
