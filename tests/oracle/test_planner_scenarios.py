"""What the planner does in whole scenarios: what each of `sims/planner-*.yaml` expects of itself, and the numbers behind it."""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise
from typing import Any

import pytest

from windtunnel.lab.expect import check_expectations, expectation_table
from windtunnel.lab.locate import bundled
from windtunnel.lab.run import Run
from windtunnel.lab.scenario import Scenario, variants

NAMES = sorted(name for name in bundled() if name.startswith("planner-"))
LONG = {("planner-fluid", "slower"), ("planner-step", "hpa"), ("planner-spot", "with_notice")}
FLIGHTS = [pytest.param(name, variant, marks=[pytest.mark.slow] if (name, variant) in LONG else [], id=f"{name}@{variant}")
           for name in NAMES for variant, _ in variants(Scenario.load(name))]


def fly(name: str, variant: str = "base") -> Run:
    return _flown(name, variant)


@cache
def _flown(name: str, variant: str) -> Run:
    return Scenario.load(f"planner-{name}").variant(variant).run(record="decisions")


def values(name: str, variant: str = "base") -> dict[str, Any]:
    return dict(fly(name, variant).summary().values)


def plans(name: str, variant: str = "base") -> list[tuple[float, int]]:
    """(run s, replicas) of every order."""
    rows = fly(name, variant).decisions
    return [(t, sum(json.loads(d)["targets"].values())) for t, e, d in zip(rows.t_s, rows.effect, rows.detail, strict=True) if e == "ScaleTo"]


def ticks(name: str, variant: str = "base") -> list[dict[str, Any]]:
    """One row per tick of the only pool, with its time."""
    return [{"t": t["now"], "capacity": t["capacity"], **next(iter(t["components"].values()))} for t in fly(name, variant).planner.ticks]


@pytest.mark.parametrize(("name", "variant"), FLIGHTS)
def test_PL_1001_scenario_shows_what_it_expects(name: str, variant: str) -> None:
    scenario = Scenario.load(name).variant(variant)
    checked = check_expectations(fly(name.removeprefix("planner-"), variant), scenario.expect)
    assert checked and all(c.holds for c in checked), f"{name}@{variant}\n{expectation_table(checked)}"


def test_PL_1001_each_scenario_and_variant_expects_something() -> None:
    assert len(NAMES) >= 11
    for name in NAMES:
        for variant, scenario in variants(Scenario.load(name)):
            assert scenario.question and scenario.expect, f"{name}@{variant}"


def test_PL_802_every_hold_has_a_reason_in_every_scenario() -> None:
    for name in ("step", "steady", "bursts", "outage", "stuck", "kv"):
        for row in ticks(name):
            assert row["plan_reasons"], (name, row["t"])
            assert row["t"] < 30 or "unset" not in (row["load_reason"], row["throughput_reason"]), (name, row["t"])


def test_PL_1001_pending_replicas_are_not_ordered_again() -> None:
    """4 to 10 requests/s, 1 a replica, 5 there, boot 120 s, a look every 15 s."""
    needed = 13  # 10 / 0.8
    before_ready = [n for t, n in plans("step") if t < 300 + 120]
    assert before_ready == sorted(before_ready) and max(n for _, n in plans("step")) <= 16 <= 1.3 * needed
    first = plans("step")[0]
    assert first == (315.0, 13)  # all that is needed, at the first look; the rest is for the backlog
    growth = [b - a for a, b in zip([5, *before_ready], before_ready, strict=False)]
    assert sum(growth) == before_ready[-1] - 5 <= 11
    assert max(n for _, n in plans("step", "hpa_blind")) == 200
    assert values("step", "hpa_blind")["gpu_hours"] > 5 * values("step")["gpu_hours"]
    assert values("step", "trend")["replicas.max"] > values("step")["replicas.max"]


def test_PL_T11_feed_forward_is_bounded_by_the_rate_and_the_backlog() -> None:
    waiting = values("step")["waiting.max"]
    drain_s = 240.0  # twice the boot time
    assert max(n for _, n in plans("step")) <= -(-(10 + waiting / drain_s) // 0.8)


def test_PL_1001_fluid_backlog_drain_and_waits() -> None:
    """8 to 16 requests/s, 10 to 20 replicas of 1/s, boot 120 s: 720 wait, worked off in 180 s."""
    run = fly("fluid")
    assert plans("fluid") == [(301.0, 20)]
    queued = run.requests[run.requests.control_queue_s > 0.5]
    drained_s = float((queued.arrived_s + queued.control_queue_s).max())
    ready_s = 301.0 + 120.0
    assert values("fluid")["waiting.max"] == pytest.approx(720, rel=0.05)
    assert drained_s - ready_s == pytest.approx(180, rel=0.05)
    assert run.metric("control_queue_s.max[t=420..421]") == pytest.approx(36, rel=0.05)
    assert run.metric("control_queue_s.max") == pytest.approx(45, rel=0.05)  # who came before the boot ended waits longer than the spec's 36 s


def test_PL_1001_constant_load_is_left_alone() -> None:
    made = plans("steady")
    assert [n for _, n in made] == [2] and made[0][0] <= 150.0  # one decision, as soon as the window of the start is over
    after = [row for row in ticks("steady") if row["t"] > made[0][0]]
    assert len(after) >= 10 and all(row["planned"] == row["baseline"] == 2 for row in after)


def test_PL_1001_bursts_against_other_autoscalers_and_the_perfect_fleet() -> None:
    ours, hpa, kpa, rate = (values("bursts", v) for v in ("base", "hpa", "kpa", "rate"))
    perfect = ours["perfect_gpu_hours"]
    for one in (ours, hpa, kpa, rate):
        assert one["perfect_gpu_hours"] == pytest.approx(perfect) and one["regret_gpu_hours"] == pytest.approx(one["gpu_hours"] - perfect)
        assert one["regret_gpu_hours"] > 0
    assert ours["good_fraction"] > kpa["good_fraction"] > rate["good_fraction"]
    assert ours["gpu_hours"] < 0.85 * hpa["gpu_hours"] and ours["good_fraction"] > hpa["good_fraction"] - 0.02
    assert ours["gpu_hours"] < kpa["gpu_hours"] and ours["scale_reversals"] < kpa["scale_reversals"]


def test_PL_1001_outage_holds_and_keeps_the_floor() -> None:
    dark = [row for row in ticks("outage") if 260 <= row["t"] <= 840]
    assert {row["load_reason"] for row in dark} == {"no_fpm_data"}
    assert all(row["planned"] == row["baseline"] == 4 for row in dark)
    assert {row["throughput_reason"] for row in dark} <= {"set_lower_bound", "held_over"}
    assert min(t for t, n in plans("outage") if n < 4) > 840
    assert min(t for t, n in plans("outage", "no_outage") if n < 4) < 450  # with eyes open it lets go
    assert values("outage")["good_fraction"] == 1.0


def test_PL_604_an_slo_out_of_reach_buys_nothing() -> None:
    seen = [row["capacity"]["agg"] for row in ticks("infeasible") if row["capacity"]]
    assert seen and all(c["eligible"] is False and c["rps"] > 1.0 for c in seen)
    assert plans("infeasible") == [] and values("infeasible")["success_fraction"] == 1.0


def test_PL_1001_lost_spot_replicas_are_replaced_once() -> None:
    lost = [e for e in fly("spot").planner.entries if e.kind == "replica_lost"]
    assert len(lost) == 3 and {e.t for e in lost} == {300.0}
    first = plans("spot")[0]
    assert first == (300.0, 10)  # three for three
    assert all(b - a == 1 for a, b in zip([10, 11, 12, 13], [n for _, n in plans("spot")][1:5], strict=False))  # then only for the backlog
    assert values("spot")["failed"] <= 3


def test_PL_705_a_stuck_scale_up_is_flagged_and_down_still_works() -> None:
    stuck = [e for e in fly("stuck").planner.entries if e.kind == "scale_up_stuck"]
    assert (stuck[0].t, stuck[0].data["ready"]) == (430.0, 8)  # 300 s after the last replica that came
    held = [row for row in ticks("stuck") if 430 <= row["t"] < 730]
    assert all(row["planned"] == 8 and "scale_up_stuck" in row["plan_reasons"] for row in held)
    assert plans("stuck")[-1][1] == 3 and values("stuck")["replicas.min"] == 3
    assert values("stuck")["good_fraction"] < 0.5 and values("stuck")["success_fraction"] > 0.5  # the ready part served on


def test_PL_607_kv_at_seventy_percent_never_flaps() -> None:
    assert plans("kv") == []
    assert sum(row["load_reason"] == "scale_down_refused_consolidation" for row in ticks("kv")) > 40
    assert [n for _, n in plans("kv", "throughput")] == [1]


def test_PL_607_alarms_without_a_look_ahead_flap_for_ever() -> None:
    """2 replicas at 0.45 of their KV, down at 0.5; 1 at 0.9, up at 0.8."""
    assert plans("flap") == []
    assert {row["load_reason"] for row in ticks("flap")} == {"scale_down_refused_consolidation"}
    orders = plans("flap", "alarms")
    assert [n for _, n in orders] == [1, 2] * 20 and {b - a for (a, _), (b, _) in pairwise(orders)} == {15.0}
    delayed = [n for _, n in plans("flap", "alarms_with_window")]
    assert delayed == [1, 2] * (len(delayed) // 2) and 4 <= len(delayed) <= 10, "a window makes it rarer, no more"


def test_PL_507_a_forecast_as_far_as_a_boot_beats_the_next_window_at_equal_hours() -> None:
    far, near = values("sinusoid"), values("sinusoid", "next")
    assert far["gpu_hours"] == pytest.approx(near["gpu_hours"], rel=0.03)
    assert far["goodput_rps"] > 1.08 * near["goodput_rps"]


def test_PL_708_no_long_stream_is_cut_by_a_scale_down() -> None:
    run = fly("long-streams")
    assert values("long-streams")["failed"] == 0 and len([n for _, n in plans("long-streams")]) >= 4
    assert not (run.requests.outcome == "provider_failure").any()
    cut = fly("long-streams", "impatient").requests
    assert int((cut.outcome == "provider_failure").sum()) >= 50


def test_PL_707_gpus_move_between_pools_at_full_budget() -> None:
    rows = fly("rebalance").decisions
    orders = [json.loads(d)["targets"] for e, d in zip(rows.effect, rows.detail, strict=True) if e == "ScaleTo"]
    assert orders[0] == {"prompts": 1} and orders[1:3] == [{"answers": 2}, {"answers": 5}]  # what one pool gives up, the other takes
    drains = rows[rows.effect == "Drain"].replica.tolist()
    assert len(drains) >= 4 and all(replica.startswith("prompts") for replica in drains[:4])
    replicas = fly("rebalance").replicas
    edges = sorted([(t, 1) for t in replicas.requested_s] + [(t, -1) for t in replicas.gone_s.dropna()], key=lambda e: e)
    held = most = 0
    for _, change in edges:  # at equal times what goes counts first
        held += change
        most = max(most, held)
    assert most <= 6
    guarded = [t for t in fly("rebalance").planner.ticks if "gpu_budget_guard_hold" in t["components"]["decode"]["plan_reasons"]]
    assert len(guarded) <= 1 and values("rebalance")["good_fraction"] > 2 * values("rebalance", "fixed")["good_fraction"]


def test_PL_601_a_step_time_that_depends_on_nothing_stays_known() -> None:
    rows = [row for t in fly("rebalance").planner.ticks for row in t["components"].values()]
    assert {"model_not_ready", "partner_not_ready"}.isdisjoint({row["throughput_reason"] for row in rows})
