"""Why a plan is what it is, where nobody's word is in a table: other autoscalers tell metric and target, an SLO out of reach is a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from windtunnel import Run, Scenario, replay
from windtunnel.lab.planner_explain import timeline, timeline_text
from windtunnel.lab.planner_tick import tick_text
from windtunnel.policy.planning.reasons import PlanReason

TEXT = """windtunnel: 1
name: ref
duration_s: 60
record: full
fleet:
  pools:
    chat: {model: Llama-3.1-8B, gpu: h100_sxm, max: 6, engine: {max_num_seqs: 8}, startup: {node_s: 20, image_s: 0, weights_s: 5, compile_s: 0}}
source: {kind: arrivals, rate_rps: 12, input_tokens: 600, output_tokens: 160}
control: {admission: {limit: {kind: none}}, planner: {kind: pipeline, plugins: {reference: [REF]}}}
"""


def flown(entry: str) -> Run:
    return Scenario.load(TEXT.replace("REF", entry)).run()


def orders(run: Run) -> list[dict[str, Any]]:
    log = run.tables.log
    assert isinstance(log, bytes)
    return [line for line in map(json.loads, log.splitlines()) if line.get("f") == "ScaleTo"]


@pytest.mark.parametrize(("entry", "first", "limited"), [
    ("{kind: hpa, metric: queue, target: 5}", "queue 18 per replica, target 5: wants 4", "per replica, target 5: wants"),
    ("{kind: hpa, metric: rps, target: 4}", "rps 12.8 per replica, target 4: wants 4", ""),
    ("{kind: keda, target: 5}", "queue 18 in all, target 5 per replica: wants 4", "in all, target 5 per replica: wants"),
    ("{kind: kpa, target: 5}", "concurrency 26 in all, in panic, target 5 per replica: wants 6", ""),
])
def test_PL_612_an_order_of_another_autoscaler_says_metric_value_and_target(entry: str, first: str, limited: str) -> None:
    run = flown(entry)
    made = orders(run)
    assert made[0]["reason"].removeprefix("merge_ceiling; ") == first, [m["reason"] for m in made]
    cut = [m["reason"] for m in made if m["reason"].startswith("merge_ceiling; ")]
    assert bool(cut) is bool(limited) and all(limited in text for text in cut)
    text = timeline_text(run.planner, timeline(run.planner))
    assert f"asked for it ({first})" in text and "builtin_budget_constrain asked" not in text
    assert first in tick_text(run.planner, 1)
    assert replay(run).effects > 20


def test_PL_317_an_slo_out_of_reach_is_a_reason_of_every_plan() -> None:
    assert list(PlanReason)[-1] is PlanReason.SLO_INFEASIBLE, "reasons are append-only"
    run = Scenario.load("planner-infeasible").with_({"duration_s": 60.0, "warmup_s": 0.0, "record": "decisions"}).run()
    rows = [tick["components"]["agg"] for tick in run.planner.ticks]
    assert rows and all(row["plan_reasons"][-1] == "slo_infeasible" and len(row["plan_reasons"]) >= 2 for row in rows)
    text = timeline_text(run.planner, timeline(run.planner))
    assert "no number of replicas can meet the SLO" in text
    assert all(row["baseline"] == row["planned"] for row in rows), "nothing is bought for it"


@pytest.mark.parametrize("change", [{"control.planner.slo": {"ttft_ms": 1000, "itl_ms": 50}},
                                    {"control.planner.throughput.enabled": False, "control.planner.load.enabled": True}])
def test_PL_317_an_slo_within_reach_or_not_looked_at_is_not(change: dict[str, Any]) -> None:
    base = {"duration_s": 60.0, "warmup_s": 0.0, "record": "decisions"}
    run = Scenario.load("planner-infeasible").with_(base | change).run()
    assert run.planner.ticks
    assert not any("slo_infeasible" in row["plan_reasons"] for tick in run.planner.ticks for row in tick["components"].values())


def test_the_story_of_a_tick_has_the_message_of_a_failure() -> None:
    entry = {"plugin_id": "broken", "stage": "constrain", "module": __name__, "class": "Broken"}
    text = TEXT.replace("plugins: {reference: [REF]}", f"plugins: {{in_process: [{json.dumps(entry)}]}}")
    run = Scenario.load(text, allow_imports=True).run()
    assert "broken: raised an error: ValueError: not on a Sunday" in tick_text(run.planner, 1)


class Broken:
    def constrain(self, request: Any) -> Any:
        raise ValueError("not on a Sunday")
