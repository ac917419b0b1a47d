"""Faults as data: what happens, to whom, and that nothing is lost on the way."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from windtunnel.errors import ConfigError, ConfigValueError
from windtunnel.lab.run import Run
from windtunnel.lab.scenario import Scenario
from windtunnel.sim.fault_config import Fault

TEXT = """
windtunnel: 1
name: faulty
duration_s: 120
seed: 3
fleet:
  pools:
    chat:
      {model: Llama-3.1-8B, gpu: h100_sxm, replicas: 3, engine: {max_num_seqs: 16}, startup: {node_s: 10, image_s: 0, weights_s: 5, compile_s: 0}}
source: {kind: arrivals, rate_rps: 6, input_tokens: 300, output_tokens: {kind: lognormal, mean: 150, cv: 0.5}}
control: {queue: {kind: fifo}, admission: {limit: {kind: none}}, routing: {kind: least_outstanding}}
record: decisions
"""


def fly(*faults: dict[str, Any], **changes: Any) -> Run:
    return Scenario.load(TEXT).with_({"faults": list(faults), **changes}).run(check=True)


def whole(run: Run) -> None:
    """One terminal state each, nothing lost, nothing doubled."""
    rows = run.requests
    assert rows.request_id.is_unique and rows.outcome.notna().all() and rows.ended_s.notna().all()
    good = rows[rows.outcome == "success"]
    assert (good.ended_s >= good.first_token_s).all() and (good.first_token_s >= good.dispatched_s).all()


def test_SJ_1_a_crash_loses_what_ran_and_the_pool_boots_another() -> None:
    run = fly({"kind": "crash", "at_s": 40, "pool": "chat", "replicas": [1]})
    whole(run)
    rows, lives = run.requests, run.replicas.set_index("replica")
    assert lives.loc["chat-1", "gone_reason"] == "crash" and lives.loc["chat-1", "gone_s"] == 40.0
    assert lives.loc["chat-3", "ready_s"] == 55.0, "10 s for the node, 5 s for the weights"
    lost = rows[rows.outcome == "provider_failure"]
    assert len(lost) > 0 and (lost.ended_s == 40.0).all() and (lost.replica == "chat-1").all()
    assert (rows[rows.outcome != "success"].outcome == "provider_failure").all()


def test_SJ_1_a_crash_without_restart_and_redispatch() -> None:
    run = fly({"kind": "crash", "at_s": 40, "count": 1, "restart": False}, **{"control.settings.attempts": 2})
    assert len(run.replicas) == 3 and (run.requests.outcome == "success").mean() > 0.99


def test_every_replica_crashes_at_once_and_nothing_hangs() -> None:
    run = fly({"kind": "crash", "at_s": 40})
    whole(run)
    lost = run.requests[run.requests.outcome != "success"]
    assert set(lost.outcome) <= {"provider_failure", "rate_limited"} and (lost.arrived_s <= 56).all()
    assert (run.requests[run.requests.arrived_s > 60].outcome == "success").all(), "the new ones serve"


def test_SL_5_spot_with_notice_cuts_nobody_without_it_some() -> None:
    told = fly({"kind": "spot", "at_s": 40, "count": 1, "notice_s": 30, "unavailable_s": 20})
    assert (told.requests.outcome == "success").all()
    assert told.replicas.gone_reason.dropna().tolist() == ["spot"] and told.replicas.draining_s.dropna().tolist() == [40.0]
    assert told.replicas.requested_s.max() == 90.0
    sudden = fly({"kind": "spot", "at_s": 40, "count": 1, "notice_s": 0, "unavailable_s": 20})
    assert (sudden.requests.outcome == "provider_failure").any()


def test_SJ_1_slow_and_overlapping_slow_multiply() -> None:
    tpot = {}
    for name, faults in {
        "fine": (), "twice": ({"kind": "slow", "at_s": 0, "factor": 2},),
        "both": ({"kind": "slow", "at_s": 0, "factor": 2}, {"kind": "slow", "at_s": 0, "factor": 1.5}),
    }.items():
        run = fly(*faults, **{"source.rate_rps": 0.2})
        tpot[name] = run.requests.tpot_s.median()
    assert tpot["twice"] == pytest.approx(2 * tpot["fine"], rel=1e-6) and tpot["both"] == pytest.approx(3 * tpot["fine"], rel=1e-6)


def test_SJ_1_the_end_of_one_of_two_slow_downs_leaves_the_other() -> None:
    run = fly({"kind": "slow", "at_s": 0, "factor": 2}, {"kind": "slow", "at_s": 0, "factor": 3, "for_s": 60}, **{"source.rate_rps": 0.3})
    rows = run.requests
    before, after = rows[rows.ended_s < 60].tpot_s.median(), rows[rows.arrived_s > 60].tpot_s.median()
    assert before == pytest.approx(3 * after, rel=0.02)


def test_SJ_1_a_pause_stands_still_and_goes_on() -> None:
    run = fly({"kind": "pause", "at_s": 30, "for_s": 20})
    whole(run)
    rows = run.requests
    assert (rows.outcome == "success").all()
    ends = rows.ended_s[(rows.ended_s > 30.2) & (rows.ended_s < 50)]
    assert ends.empty and rows.e2e_s.max() > 18


def test_SJ_1_failing_replies_by_chance_end_typed() -> None:
    run = fly({"kind": "errors", "at_s": 20, "for_s": 40, "p": 0.5, "status": 500})
    rows = run.requests
    during = rows[(rows.arrived_s > 20) & (rows.arrived_s < 60)]
    share = (during.outcome == "provider_failure").mean()
    assert 0.3 < share < 0.7 and set(during.reason[during.outcome != "success"]) == {"http_500"}
    assert (rows[(rows.arrived_s < 20) | (rows.arrived_s > 60)].outcome == "success").all()


def test_SJ_1_slow_and_failing_boots() -> None:
    slow = fly({"kind": "boot_slow", "at_s": 0, "factor": 3}, {"kind": "crash", "at_s": 20, "count": 1})
    assert slow.replicas.ready_s.max() == pytest.approx(20 + 3 * 15)
    failing = fly({"kind": "boot_fail", "at_s": 0, "for_s": 40}, {"kind": "crash", "at_s": 20, "count": 1})
    lives = failing.replicas
    assert (lives.gone_reason == "boot_failed").sum() == 1
    assert lives.ready_s.max() == pytest.approx(20 + 15 + 30 + 15), "failed at 35, asked again 30 s later"


def test_SL_2_boots_that_keep_failing_are_asked_for_ever_more_rarely() -> None:
    run = fly({"kind": "boot_fail", "at_s": 0}, {"kind": "crash", "at_s": 5, "count": 1}, duration_s=400)
    failed = run.replicas[run.replicas.gone_reason == "boot_failed"].sort_values("requested_s").requested_s.tolist()
    assert [round(b - a) for a, b in pairwise(failed)] == [45, 75, 135]


def test_SJ_1_faults_that_come_back_and_a_target_that_is_not_there() -> None:
    run = fly({"kind": "slow", "every_s": 30, "at_s": 15, "for_s": 5, "factor": 4}, {"kind": "crash", "at_s": 50, "replicas": [99]}, record="full")
    kinds = run.notes[run.notes.stream == "fleet"].kind.value_counts()
    assert kinds["fault_started"] == 4 and kinds["fault_ended"] == 4 and kinds["fault_missed"] == 1
    assert (run.requests.outcome == "success").all()


def test_SJ_1_random_faults_are_the_same_for_the_same_seed_and_process() -> None:
    code = ("import hashlib, sys; from windtunnel.lab.scenario import Scenario; r = Scenario.load(sys.argv[1]).run();"
            "print(hashlib.sha256((r.requests.to_csv() + r.replicas.to_csv()).encode()).hexdigest())")
    text = TEXT + ("faults: [{kind: crash, rate_per_h: 120, count: 1}, {kind: slow, rate_per_h: 200, for_s: 5, fraction: 0.5}, "
                   "{kind: errors, at_s: 5, p: 0.1}]\n")
    outs = {subprocess.run([sys.executable, "-c", code, text], capture_output=True, text=True, check=True,
                           env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path), "WINDTUNNEL_QUIET": "1"}).stdout for seed in ("0", "99")}
    assert len(outs) == 1 and len(outs.pop()) == 65


def test_faults_do_not_change_the_arrivals() -> None:
    plain, faulty = (set(zip(r.requests.request_id, r.requests.arrived_s)) for r in (fly(), fly({"kind": "crash", "at_s": 40})))
    assert plain == faulty


def test_a_run_without_faults_is_the_run_it_was() -> None:
    a, b = Scenario.load(TEXT).run().requests, fly().requests
    assert a.to_csv() == b.to_csv()


@pytest.mark.parametrize(("fault", "says"), [
    ({"kind": "meteor", "at_s": 1}, "kind"), ({"kind": "crash"}, "at_s"), ({"kind": "crash", "at_s": -1}, "at_s"),
    ({"kind": "slow", "at_s": 1, "factor": 0}, "factor"), ({"kind": "errors", "at_s": 1, "p": 1.5}, "p"),
    ({"kind": "crash", "at_s": 1, "count": 0}, "count"),
    ({"kind": "crash", "at_s": 1, "fraction": 2}, "fraction"), ({"kind": "crash", "at_s": 1, "pool": "nowhere"}, 'no pool "nowhere"'),
    ({"kind": "crash", "every_s": 0}, "every_s"), ({"kind": "slow", "at_s": 1, "faktor": 2}, "unknown key"),
    ({"kind": "errors", "at_s": 1, "status": 200}, "status"), ({"kind": "slow", "at_s": float("nan")}, "at_s"),
])
def test_S_2_wrong_faults_are_named(fault: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Scenario.load(TEXT).with_({"faults": [fault]}).build_faults()


def test_times_are_ascending() -> None:
    rng = np.random.default_rng(1)
    fault = Fault("slow", rate_per_h=3600.0, at_s=10.0)
    first = [t for t, _ in zip(fault.times(rng), range(200))]
    assert first == sorted(first) and first[0] > 10.0 and 150 < first[-1] - 10 < 250
    with pytest.raises(ConfigValueError):
        Fault("slow")


def test_SL_5_what_the_market_does_not_have_a_planner_cannot_order_either() -> None:
    """The planner asks for another one at its next tick; it waits, and costs nothing, until one can be had."""
    planner = {"kind": "rate", "capacity_rps": 0.5, "interval_s": 5, "window_s": 10, "min_replicas": 2, "max_replicas": 2}
    run = fly({"kind": "spot", "at_s": 40, "count": 1, "notice_s": 0, "unavailable_s": 50}, **{"control.planner": planner})
    lives = run.replicas.set_index("replica")
    late = lives[lives.requested_s >= 40.0]
    assert len(late) == 1 and late.requested_s.iloc[0] == 40.0 and late.ready_s.iloc[0] >= 90.0


@pytest.mark.parametrize(("fault", "says"), [
    ({"kind": "crash", "at_s": 1, "for_s": 10}, r"faults\.0\.for_s: means nothing.*kind crash; it reads pool, replicas, fraction, count, restart$"),
    ({"kind": "spot", "at_s": 1, "for_s": 10}, r"for_s: means nothing.*unavailable_s"),
    ({"kind": "slow", "at_s": 1, "p": 0.5}, r"p: means nothing for a fault of kind slow; it reads pool, replicas, fraction, count, for_s, factor"),
    ({"kind": "boot_fail", "at_s": 1, "replicas": [1]}, "replicas: means nothing"),
    ({"kind": "load", "at_s": 1, "pool": "chat"}, "pool: means nothing"),
    ({"kind": "pause", "at_s": 1, "factor": 3}, "factor: means nothing"), ({"kind": "metrics_delay", "at_s": 1, "p": 0.5}, "p: means nothing"),
    ({"kind": "slow", "every_s": 9, "rate_per_h": 3}, "rate_per_h: stands beside every_s"),
    ({"kind": "slow", "at_s": 1, "fraction": 0.5, "count": 1}, "count: stands beside fraction"),
    ({"kind": "slow", "at_s": 1, "replicas": [0], "count": 1}, "count: stands beside replicas"),
    ({"kind": "link", "at_s": 1}, "share of the bandwidth that is left, below 1, or down: true, got 2")])
def test_S_2_what_a_fault_would_not_read_is_refused(fault: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Scenario.load(TEXT).with_({"faults": [fault]})


def test_SJ_1_a_small_fraction_of_a_few_replicas_is_one_of_them() -> None:
    run = fly({"kind": "crash", "at_s": 40, "fraction": 0.1})
    assert (run.replicas.gone_reason == "crash").sum() == 1
    assert fly({"kind": "crash", "at_s": 40, "fraction": 0.0}).replicas.gone_reason.isna().all()


def test_SL_2_the_record_has_the_boot_stages_as_they_were() -> None:
    boots = [{"kind": "boot_slow", "at_s": 0, "factor": 2, "for_s": 45}, {"kind": "boot_slow", "at_s": 0, "factor": 1.5, "for_s": 45}]
    late = fly({"kind": "crash", "at_s": 20, "count": 1}, *boots).replicas.iloc[-1]
    assert (late.node_s, late.image_s, late.weights_s, late.compile_s) == (30.0, 0.0, 5.0, 0.0), "weights begin after the slow time"
    assert late.ready_s - late.requested_s == late.node_s + late.image_s + late.weights_s + late.compile_s
