"""`control.planner: {kind: pipeline}` in a scenario: read, refused with place and path, built from the fleet, changed, replayed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from windtunnel import Scenario, replay
from windtunnel.errors import ConfigError, ConfigImportError, PlannerConfigError
from windtunnel.lab.build import pool_facts
from windtunnel.lab.schema import schema_text
from windtunnel.policy.planning.contract import ComponentTarget, Override, OverrideType, StageResponse
from windtunnel.policy.planning.shell import PipelinePlanner

TEXT = """windtunnel: 1
name: x
duration_s: 60
fleet: {pools: {chat: {model: Llama-3.1-8B, gpu: h100_sxm, tp: 2, replicas: 2, max: 9}}}
source: {kind: arrivals, rate_rps: 4, input_tokens: 256, output_tokens: 64}
slo: {ttft_s: 2.0, tpot_s: 0.04}
control:
  planner:
    kind: pipeline
    REST
"""
STATION = {"fleet.pools.chat.service": {"servers": 1}, "source.service_s": {"kind": "const", "value": 1.0},
           "control.planner.pools": {"agg": {"capacity_rps": 1.0}}, "control.planner.throughput": {"enabled": True, "interval_s": 5},
           "control.planner.load": {"enabled": False}}


def loaded(rest: str = "advisory: false") -> Scenario:
    return Scenario.load(TEXT.replace("REST", rest))


def planner_of(scenario: Scenario) -> PipelinePlanner:
    planner = scenario.build_control().planner
    assert isinstance(planner, PipelinePlanner)
    return planner


class AtLeast:
    """A plugin from outside the package."""

    def __init__(self, n: int) -> None:
        self.n = n

    def constrain(self, request: Any) -> StageResponse:
        return StageResponse(Override((ComponentTarget("agg", self.n, OverrideType.AT_LEAST),), "at least"))


@pytest.mark.parametrize(("rest", "where", "why"), [
    ("mod: 1", ":10: control.planner.mod", "did you mean"),
    ("load: {interval_s: -1}", ":10: control.planner.load.interval_s", "> 0"),
    ("pools: {agg: {gpu: 2}}", ":10: control.planner.pools.agg.gpu", "did you mean"),
    ("pools: {agg: {max_replicas: 0}}", ":10: control.planner.pools.agg.max_replicas", "at least min_replicas"),
    ("pools: {agg: {limits: {max_num_seqs: 0}}}", ":10: control.planner.pools.agg.limits.max_num_seqs", "> 0"),
    ("pools: {other: {}}", ":10: control.planner.pools.other", "unknown role"),
    ("budget: {max_gpus: 4, min_gpus: 5}", ":10: control.planner.budget.min_gpus", "max_gpus"),
    ("throughput: {enabled: true, interval_s: 5}", "control.planner.load.interval_s", "less than"),
    ("load: {enabled: false}", "control.planner: planner_does_nothing", "no other plugin"),
    ("predictor: {quantile: 1.5}", ":10: control.planner.predictor.quantile", "strictly between"),
    ("plugins: {reference: [{kind: hpa}]}", "control.planner.plugins.reference.0.target", "missing"),
    ("plugins: {reference: [{kind: kpa, component: x}]}", "control.planner.plugins.reference.0.component", "expected one of agg"),
    ("plugins: {reference: [{kind: hpa, metric: kv, target: 0.7}]}", "control.planner.plugins.reference", "kv_tokens"),
    ("target: load", "control.planner.load.decode_up", "missing"),
])
def test_PL_903_a_bad_block_is_refused_with_line_and_path(rest: str, where: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(rest)
    assert where in str(caught.value) and why in str(caught.value)


def test_PL_903_what_the_block_leaves_out_is_the_fleets() -> None:
    planner = planner_of(loaded())
    pool = planner.settings.pools["agg"]
    assert (pool.gpus, pool.max_replicas, pool.min_replicas) == (2, 9, 1)
    assert pool.boot_s == pytest.approx(pool_facts(loaded().build_fleet())[0].boot_s)
    assert pool.limits.max_num_batched_tokens == 2048 and pool.limits.max_kv_tokens > 100_000
    assert (planner.settings.slo.ttft_ms, planner.settings.slo.itl_ms) == (2000.0, 40.0)
    assert planner.pools["agg"].frame.name == "chat" and planner.pools["agg"].expected == 2
    said = planner_of(loaded("pools: {agg: {gpus: 1, boot_s: 7, min_replicas: 2, max_replicas: 4}}"))
    assert said.settings.pools["agg"].gpus == 1 and said.settings.pools["agg"].boot_s == 7.0
    assert (said.settings.pools["agg"].min_replicas, said.settings.pools["agg"].max_replicas) == (2, 4)
    none = planner_of(loaded("slo: {ttft_ms: null, itl_ms: 20}"))
    assert none.settings.slo.ttft_ms is None and none.settings.slo.itl_ms == 20


def test_PL_603_the_step_model_of_the_pool_is_known_from_the_start() -> None:
    planner = planner_of(loaded("throughput: {enabled: true, interval_s: 30}"))
    sizing = planner.plugins["builtin_throughput_propose"].sizing
    assert sizing.model.ready("agg")
    fleet = loaded().build_fleet()
    known = pool_facts(fleet, steps=True)[0].steps
    assert len(known) == 24 and all(seconds > 0 for *_, seconds in known)
    assert pool_facts(fleet)[0].steps == ()


def test_PL_903_digest_dump_and_overrides() -> None:
    scenario = loaded("stabilise: {down_window_s: 30}")
    again = Scenario.load(scenario.dump())
    assert again == scenario and Scenario.load(scenario.dump(resolved=True)).digest == scenario.digest
    changed = scenario.with_({"control.planner.stabilise.down_window_s": 60, "control.planner.slo.ttft_ms": None})
    settings = planner_of(changed).settings
    assert settings.stabilise.down_window_s == 60 and settings.stabilise.down_cooldown_s == 60 and settings.slo.ttft_ms is None
    other = scenario.with_({"control.planner": {"kind": "rate", "capacity_rps": 1.0}})
    assert planner_of_kind(other) == "RateBased"
    assert planner_of_kind(scenario.with_({"control.planner.kind": "rate"})) == "RateBased"


def planner_of_kind(scenario: Scenario) -> str:
    return type(scenario.build_control().planner).__name__


def test_PL_903_the_schema_knows_the_block() -> None:
    text = schema_text(Scenario)
    assert '"pipeline"' in text and '"down_window_s"' in text and "Left out: the fleet's maximum." in text


def test_PL_612_other_autoscalers_fly_in_the_same_block() -> None:
    scenario = loaded("plugins: {reference: [{kind: hpa, metric: queue, target: 5, most: 9}]}")
    planner = planner_of(scenario)
    ids = [e.registration.plugin_id for e in planner.roster.snapshot().entries]
    assert ids == ["builtin_budget_constrain", "builtin_stabilise", "reference_hpa"]
    for kind in ("kpa", "keda"):
        assert f"reference_{kind}" in planner_of(loaded(f"plugins: {{reference: [{{kind: {kind}, target: 4}}]}}")).plugins
    assert "reference_threshold" in planner_of(loaded("plugins: {reference: [{kind: threshold, metric: queue, up: 4, down: 1}]}")).plugins


@pytest.mark.parametrize(("entry", "told"), [("up: 0.8, down: 0.5", "threshold with metric kv needs kv_tokens"),
                                             ("up: 0.5, down: 0.5, kv_tokens: 9", "down 0.5 is not below up 0.5"),
                                             ("metric: queue, up: 5, down: 1, least: 3, most: 2", "most 2 is below least 3")])
def test_thresholds_that_cannot_be_are_refused(entry: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        planner_of(loaded(f"plugins: {{reference: [{{kind: threshold, {entry}}}]}}"))


def test_PL_904_plugins_of_other_modules_need_consent() -> None:
    entry = f"{{module: {__name__}, class: AtLeast, plugin_id: floor, stage: constrain, kwargs: {{n: 3}}}}"
    rest = f"plugins: {{in_process: [{entry}]}}"
    from windtunnel.lab import registry

    registry._trusted.discard(__name__)
    with pytest.raises(ConfigImportError, match="would import code"):
        loaded(rest)
    trusted = Scenario.load(TEXT.replace("REST", rest), allow_imports=True)
    run = trusted.with_({**STATION, "duration_s": 20.0, "source.rate_rps": 1.0}).run(record="full")
    plans = run.decisions[run.decisions.effect == "ScaleTo"]
    assert plans.value.tolist() == [3] and plans.reason.iloc[0] == "merge_floor"
    assert replay(run).effects > 20
    registry._trusted.discard(__name__)
    with pytest.raises(ConfigImportError, match="would import code"):  # a log is a file too
        replay(run)


def test_PL_904_a_plugin_that_cannot_be_made_is_named() -> None:
    scenario = loaded("plugins: {in_process: [{module: windtunnel.nowhere, class: X, plugin_id: a, stage: propose}]}")
    with pytest.raises(PlannerConfigError, match=r"^<text>:10: control\.planner\.plugins\.in_process\.0: cannot make"):
        scenario.build_control()


def test_PL_002_two_pools_of_one_role_need_a_name() -> None:
    pool = {"model": "Llama-3.1-8B", "gpu": "h100_sxm"}
    scenario = loaded().with_({"fleet.pools.spare": pool})
    with pytest.raises(PlannerConfigError, match=r"control\.planner\.pools\.agg: expected one pool of role agg, the fleet has chat"):
        scenario.build_control()
    assert planner_of(scenario.with_({"control.planner.pools": {"agg": {"component": "spare"}}})).pools["spare"].frame.name == "spare"


def test_PL_T12_a_scenarios_log_replays_with_its_planner() -> None:
    run = loaded().with_({"control.planner.throughput": {"enabled": True, "interval_s": 10}, "source.rate_rps": 40}).run(record="full", check=True)
    agreed = replay(run)
    assert agreed.effects > 1000 and agreed.control.planner.ticks == 12
    notes = run.notes[run.notes.stream == "planner"]
    assert {"plan", "tick_finished", "pulled"} <= set(notes.kind)
    assert notes[notes.kind == "plan"].reason.notna().all()


class AsyncFloor(AtLeast):
    async def constrain(self, request: Any) -> StageResponse:  # type: ignore[override]
        return super().constrain(request)


def test_an_async_plugin_is_refused_before_a_simulation_begins() -> None:
    entry = {"plugin_id": "slow", "stage": "constrain", "module": __name__, "class": "AsyncFloor", "kwargs": {"n": 3}}
    scenario = Scenario.load(TEXT.replace("REST", f"plugins: {{in_process: [{json.dumps(entry)}]}}"), allow_imports=True)
    with pytest.raises(PlannerConfigError) as e:
        scenario.start()
    assert str(e.value).startswith("<text>:10: control.planner.plugins.in_process.0: ")
    assert "AsyncFloor.constrain is async" in str(e.value) and "write a plain method" in str(e.value)
