"""The planner's metrics: every name, its labels and buckets, where the numbers come from, and that unknown is absent."""

from __future__ import annotations

import math
from typing import Any

import pytest
from planner_flight import BLOCK, flight, short, swing
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from test_planner_shell import Says, World, base, says

from windtunnel.events import Arrived, Commanded, Finished, Request, Woke
from windtunnel.lab.planner_metrics import PlannerCollector, planner_exposition
from windtunnel.policy.planning.audit import Journal
from windtunnel.policy.planning.contract import ComponentTarget, HoldPolicy, Override, OverrideType, Reject, Stage, StageResponse
from windtunnel.policy.planning.metrics import COUNTERS, GAUGES, HISTOGRAMS, bounds_of, planner_metrics
from windtunnel.policy.planning.plugin import Attached, CallModel, Registration
from windtunnel.policy.planning.settings_blocks import BudgetSettings, PoolSettings, ScalerSettings

# as specified
SPECIFIED = """
plugin_evaluations_total{plugin_id,stage,result} plugin_held_over_total{plugin_id} ticks_total{action} ticks_missed_total tick_timeout_total
requires_unsatisfied_total{plugin_id,missing_field} clamped_total{stage,component,bound,plugin_id} bounds_conflict_total{component}
set_dropped_total{plugin_id} rejected_total{plugin_id} registrations_total{outcome} evictions_total plans_total{status}
scale_up_stuck_total{component} observation_invalid_total{field} gpu_seconds_total{component} plugin_latency_seconds{plugin_id,stage}
tick_duration_seconds plugin_circuit_state{plugin_id} plugin_cache_age_seconds{plugin_id} plugin_override_active{plugin_id,type}
tick_lag_seconds replicas{component,state} target_replicas{component} observed_requests_per_second observed_isl_tokens observed_osl_tokens
observed_ttft_seconds observed_itl_seconds predicted_requests_per_second predicted_isl_tokens predicted_osl_tokens
forecast_error_wape{field} forecast_bias{field} slo_ttft_seconds slo_itl_seconds estimated_ttft_seconds{component}
estimated_itl_seconds{component} engine_capacity_rps{component} queued_prefill_tokens queued_decode_kv_tokens power_limit_watts
power_projected_watts decision{component,reason}
"""


def values(planner: Any) -> dict[tuple[str, ...], float]:
    """(name, label values in order of the labels' names) → value, read back from the text."""
    out = {}
    for family in text_string_to_metric_families(planner_exposition(planner)):
        for sample in family.samples:
            out[sample.name.removeprefix("windtunnel_planner_"), *(v for _, v in sorted(sample.labels.items()))] = sample.value
    return out


def test_PL_801_every_name_has_its_labels() -> None:
    found = {**COUNTERS, **HISTOGRAMS, **GAUGES}
    assert {f"{name}{{{','.join(labels)}}}" if labels else name for name, (labels, _) in found.items()} == set(SPECIFIED.split())
    assert all(text.endswith(".") for _, text in found.values())


def test_PL_801_buckets() -> None:
    assert bounds_of("plugin_latency_seconds") == (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5)
    assert bounds_of("tick_duration_seconds") == (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30)


def test_PL_801_a_flight_tells_what_it_did() -> None:
    run, planner = swing()
    got, last = values(planner), run.planner.ticks[-1]
    assert got["ticks_total", "apply"] == 60
    assert sum(e.kind == "plan_emitted" for e in run.planner.entries) == got["plans_total", "emitted"]
    assert got["gpu_seconds_total", "agg"] == pytest.approx(run.metric("gpu_hours") * 3600, rel=2e-3)
    assert got["target_replicas", "agg"] == last["components"]["agg"]["planned"]
    assert got["decision", "agg", last["components"]["agg"]["plan_reasons"][0]] == 1
    assert got["observed_requests_per_second",] == pytest.approx(last["observed"]["rps"]) and got["slo_ttft_seconds",] == 1.0
    assert got["forecast_error_wape", "num_req"] == last["forecast"]["errors"]["num_req"]["wape"]
    assert got["engine_capacity_rps", "agg"] == last["capacity"]["agg"]["rps"]
    assert 0 < got["estimated_itl_seconds", "agg"] < 0.1 and 0 < got["estimated_ttft_seconds", "agg"] < 1
    assert got["replicas", "agg", "ready"] == last["components"]["agg"]["ready"] and got["replicas", "agg", "draining"] == 0
    clamped = sum(e.kind == "clamped" for e in run.planner.entries)
    assert sum(v for k, v in got.items() if k[0] == "clamped_total") == clamped
    assert sum(v for k, v in got.items() if k[0] == "plugin_held_over_total") == sum(e.kind == "held_over" for e in run.planner.entries)
    assert ("power_limit_watts",) not in got and not any(k[0].startswith("plugin_latency") for k in got)


def test_PL_801_counters_do_not_depend_on_what_is_recorded() -> None:
    assert values(short("requests")[1]) == values(short("decisions")[1]) == values(short("full")[1])


def test_PL_801_unknown_is_absent_and_zero_is_there() -> None:
    world = World(Says(), ready=0)
    names = {k[0] for k in values(world.planner)}
    assert not {n for n in names if n.startswith(("observed", "predicted", "forecast", "queued", "replicas", "target", "tick", "estimated"))}
    world.run(5.0)
    got = values(world.planner)
    assert not any(k[0] in ("replicas", "target_replicas") for k in got) and got["decision", "agg", "count_unknown"] == 1
    idle = World(Says(), ready=2, needs=("observations.traffic",))
    idle.run(10.0)
    got = values(idle.planner)
    assert got["observed_requests_per_second",] == 0.0 and ("observed_isl_tokens",) not in got and got["replicas", "agg", "starting"] == 0.0


def test_PL_801_reading_changes_nothing() -> None:
    read, unread = World(Says(says("agg=5 agg<4"))), World(Says(says("agg=5 agg<4")))
    for k in range(1, 9):
        read.run(5.0 * k)
        unread.run(5.0 * k)
        assert planner_metrics(read.planner) == planner_metrics(read.planner)
    assert read.plans == unread.plans and read.notes == unread.notes and read.planner.view() == unread.planner.view()


def test_PL_801_override_types_rejections_and_dropped_counts() -> None:
    world = World(Says(says("agg=5 agg>4 agg<6")), stage=Stage.CONSTRAIN)
    world.run(5.0)
    got = values(world.planner)
    assert {k[2] for k in got if k[0] == "plugin_override_active"} == {"set", "at_least", "at_most"}
    assert got["set_dropped_total", "a"] == 1 and got["clamped_total", "floor", "agg", "a", "constrain"] == 1
    assert {k[2]: v for k, v in got.items() if k[0] == "plugin_evaluations_total"} == {"set": 1, "at_least": 1, "at_most": 1}
    rejecting = World(Says(StageResponse(Reject("no"))))
    rejecting.run(10.0)
    got = values(rejecting.planner)
    assert got["rejected_total", "a"] == 2 and got["ticks_total", "skip_short_circuit"] == 2 and got["decision", "agg", "rejected"] == 1


def test_PL_801_conflicts_missing_fields_and_missed_ticks() -> None:
    world = World(Says(says("agg>6 agg<4")), settings=base(budget=BudgetSettings(max_gpus=8)))
    world.run(5.0)
    assert values(world.planner)["bounds_conflict_total", "agg"] == 1
    gated = World(Says(), requires=("predictions.predicted_num_req",))
    gated.run(12.0)
    gated.now = 31.0
    gated.tell(Woke("planner"))
    got = values(gated.planner)
    assert got["requires_unsatisfied_total", "predictions.predicted_num_req", "a"] == 3
    assert got["ticks_missed_total",] == 3 and got["tick_lag_seconds",] == pytest.approx(1.0)


def test_PL_801_circuits_and_failures() -> None:
    world = World(Says(RuntimeError("x")), failure_threshold=2, cooldown_s=12.0)
    world.run(5.0)
    assert values(world.planner)["plugin_circuit_state", "a"] == 0
    world.run(10.0)
    assert values(world.planner)["plugin_circuit_state", "a"] == 1
    world.run(25.0)
    got = values(world.planner)
    assert got["plugin_circuit_state", "a"] == 1 and got["plugin_evaluations_total", "a", "error", "propose"] == 3


def test_PL_801_cache_age_and_held_over() -> None:
    world = World(Says(says("agg>3")), execution_interval_s=10.0, hold_policy=HoldPolicy.HOLD_LAST)
    world.run(15.0)
    got = values(world.planner)
    assert got["plugin_cache_age_seconds", "a"] == 5.0 and got["plugin_held_over_total", "a"] == 1
    assert got["plugin_override_active", "a", "at_least"] == 1 and got["plugin_evaluations_total", "a", "held_over", "propose"] == 1


def test_PL_801_stuck_evictions_and_registrations() -> None:
    world = World(Says(says("agg=6")), boot_s=None, settings=base(scaler=ScalerSettings(scale_up_timeout_s=60.0)))
    world.tell(Commanded("planner.register", {"registration": {"plugin_id": "ext", "stage": "constrain", "endpoint": "unix:/x"}}))
    world.tell(Commanded("planner.register", {"registration": {"plugin_id": "ext", "stage": "constrain", "endpoint": "unix:/x"}}))
    world.run(200.0)
    got = values(world.planner)
    assert got["registrations_total", "accepted"] == 2 and got["registrations_total", "refused"] == 1 and got["evictions_total",] == 1
    assert got["scale_up_stuck_total", "agg"] >= 1 and got["tick_timeout_total",] >= 1 and got["ticks_total", "skip_tick_timeout"] >= 1
    assert got["tick_duration_seconds_bucket", "30.0"] == got["tick_duration_seconds_count",] > 0


def test_PL_801_readings_that_are_no_numbers_are_counted() -> None:
    world = World(Says())
    world.tell(Arrived(Request("q", "t", "m", 0, 0.0, input_tokens=5)))
    world.tell(Finished("q", 1, "r1", 5, first_token_s=math.nan))
    assert values(world.planner)["observation_invalid_total", "ttft_s"] == 1


def test_PL_801_power() -> None:
    pools = {"agg": PoolSettings(watts_per_replica=700.0)}
    world = World(Says(says("agg=5")), settings=base(pools=pools, budget=BudgetSettings(max_gpus=8, power_w=2800.0)))
    world.run(5.0)
    got = values(world.planner)
    assert got["power_limit_watts",] == 2800.0 and got["power_projected_watts",] == 700.0 * world.row["planned"] <= 2800.0


def test_PL_801_latency_is_each_calls_own_time_failures_included() -> None:
    class Floor:
        def propose(self, request: Any) -> StageResponse:
            return StageResponse(Override((ComponentTarget("agg", 2, OverrideType.AT_LEAST),)))

    def attach(planner: Any) -> None:
        planner._attach(Attached(Registration("slow", Stage.PROPOSE, offload=True), Floor(), CallModel(0.3, 0.5)))

    _, planner = flight({**BLOCK, "load": {"enabled": False}}, duration_s=200.0, more=attach)
    got = values(planner)
    called = got["plugin_latency_seconds_count", "slow", "propose"]
    failed = sum(v for k, v in got.items() if k[0] == "plugin_evaluations_total" and k[1] == "slow" and k[2] in ("error", "timeout"))
    assert called > failed > 0
    assert got["plugin_latency_seconds_sum", "slow", "propose"] == pytest.approx(0.3 * called)
    assert got["plugin_latency_seconds_bucket", "0.1", "slow", "propose"] == 0
    assert got["plugin_latency_seconds_bucket", "0.5", "slow", "propose"] == called == got["plugin_latency_seconds_bucket", "+Inf", "slow", "propose"]
    assert got["tick_duration_seconds_bucket", "0.5"] == got["tick_duration_seconds_count",]


def test_a_value_on_a_bound_is_under_it_and_a_huge_one_over_all() -> None:
    journal = Journal()
    for value in (0.01, 0.010001, 1e9, 0.0):
        journal.observe("tick_duration_seconds", value)
    assert journal.histograms["tick_duration_seconds",].counts == [2, 1, 0, 0, 0, 0, 0, 0, 0, 1]


def test_the_collector_serves_beside_others() -> None:
    registry = CollectorRegistry()
    _, planner = swing()
    registry.register(PlannerCollector(planner))
    assert generate_latest(registry).decode() == planner_exposition(planner)
    text = planner_exposition(planner)
    assert "# TYPE windtunnel_planner_ticks_total counter" in text and "# HELP windtunnel_planner_gpu_seconds_total GPU-seconds held" in text
