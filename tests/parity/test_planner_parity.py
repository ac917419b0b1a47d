"""The pipeline planner in both worlds: a log of either, fed into a fresh control, gives the same effects and records."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from windtunnel import ArrivalSource, Caps, FakeEngine, Live, LiveFleet, Run, Scenario, default_control, replay
from windtunnel.effects import Ask, Note
from windtunnel.errors import PlannerConfigError, PolicyError
from windtunnel.lab import codec
from windtunnel.lab.build import pool_facts
from windtunnel.lab.planner_build import build_pipeline_planner
from windtunnel.lab.planner_config import read_planner
from windtunnel.lab.recorder import Recorder
from windtunnel.lab.world_simulated import Simulated
from windtunnel.live.fake_script import FakeScript
from windtunnel.policy.control import Control
from windtunnel.policy.planning.contract import ComponentTarget, Override, OverrideType, Stage, StageResponse
from windtunnel.policy.planning.plugin import Attached, CallModel, Registration
from windtunnel.policy.planning.settings import PlannerSettings
from windtunnel.policy.planning.settings_blocks import LoadSettings, PoolSettings, SchedulingSettings
from windtunnel.policy.planning.shell import PipelinePlanner
from windtunnel.sources.dist import Const


class Floor:
    """At least `n`, growing with the tick."""

    def propose(self, request: Any) -> StageResponse:
        return StageResponse(Override((ComponentTarget("agg", 2 + int(request.tick_at) // 10, OverrideType.AT_LEAST),), "grows"))


class AsyncFloor(Floor):
    async def constrain(self, request: Any) -> StageResponse:  # type: ignore[override]
        await asyncio.sleep(0.01)
        return StageResponse(Override((ComponentTarget("agg", 2, OverrideType.AT_MOST),)))


BLOCK = {"pools": {"agg": {"limits": {"max_num_batched_tokens": 2048, "max_num_seqs": 128, "max_kv_tokens": 400000, "context_length": 8192}}},
         "budget": {"max_gpus": 6}, "throughput": {"enabled": True, "interval_s": 10}, "load": {"enabled": True, "interval_s": 5}}


def flown(planner_of: Any, duration_s: float = 60.0) -> tuple[Run, Any]:
    scenario = Scenario.load("overload").with_({"duration_s": duration_s, "warmup_s": 0.0, "source.rate_rps": 30})
    facts = pool_facts(scenario.build_fleet())
    wants = Recorder("full").wants

    def control() -> Control:
        built = scenario.build_control(pools=facts, wants=wants)
        return Control(lanes=built.lanes, fleet=built.fleet, planner=planner_of(facts, wants), settings=built.settings, wants=wants)

    world = Simulated(scenario.build_fleet(), seed=3, record="full", check=True, until=duration_s)
    return world.run(control(), scenario.build_source(seed=3)), control


def builtins(facts: Any, wants: frozenset[str]) -> PipelinePlanner:
    return build_pipeline_planner(read_planner(BLOCK), facts, wants=wants)


def asked(facts: Any, wants: frozenset[str]) -> PipelinePlanner:
    """Built-ins, and a plugin whose calls take time and sometimes fail."""
    planner = builtins(facts, wants)
    model = CallModel(2.0, 0.4)
    planner._attach(Attached(Registration("slow", Stage.PROPOSE, offload=True), Floor(), model))
    return planner


@pytest.mark.parametrize("planner_of", [builtins, asked])
def test_PL_T12_a_simulated_log_replays_with_the_planner(planner_of: Any) -> None:
    run, control = flown(planner_of)
    agreed = replay(run, lambda header: control())
    assert agreed.events > 1000 and agreed.effects > 1000
    planner = agreed.control.planner
    assert planner.ticks >= 11 and planner.view()["components"]["agg"]["plan_reasons"]
    kinds = {line["kind"] for line in lines(run) if line.get("f") == "Note" and line["stream"] == "planner"}
    assert {"plan", "tick_finished", "plugin_answered", "pulled"} <= kinds
    events = {line["e"] for line in lines(run) if "e" in line}
    assert "StepReported" in events and ("Answered" in events) == (planner_of is asked)
    if planner_of is asked:
        answers = [a for line in lines(run) if line.get("e") == "Answered" for a in line["items"]]
        assert {"connection"} == {a["error"]["kind"] for a in answers if "error" in a} and any("stage" in a for a in answers)
        assert {a["finished_at"] - a["started_at"] for a in answers} == {2.0}


def test_PL_T12_the_built_in_loops_see_traffic_and_engines() -> None:
    run, _ = flown(builtins)
    plans = [line for line in lines(run) if line.get("f") == "Note" and line["kind"] == "plan"]
    rows = [plan["data"]["components"]["agg"] for plan in plans]
    assert {r["load_reason"] for r in rows} - {"no_fpm_data", "unset"} and {r["throughput_reason"] for r in rows} - {"no_traffic_data", "unset"}
    assert all(r["plan_reasons"] for r in rows)


def lines(run: Run) -> list[dict[str, Any]]:
    log = run.tables.log
    return [codec.json.loads(line) for line in (log if isinstance(log, bytes) else log.read_bytes()).splitlines()]


def test_PL_301_the_simulator_refuses_async_plugins() -> None:
    def planner(facts: Any, wants: frozenset[str]) -> PipelinePlanner:
        made = builtins(facts, wants)
        made._attach(Attached(Registration("late", Stage.CONSTRAIN), AsyncFloor()))
        return made

    with pytest.raises((PlannerConfigError, PolicyError), match="late is async or in another process"):
        flown(planner, 20.0)


def live_planner(wants: frozenset[str]) -> PipelinePlanner:
    settings = PlannerSettings(pools={"agg": PoolSettings(component="chat")}, load=LoadSettings(enabled=False), other_proposers=True,
                               scheduling=SchedulingSettings(scale_interval_s=0.1))
    plugins = [Attached(Registration("grow", Stage.PROPOSE, offload=True), _Named(Floor())),
               Attached(Registration("cap", Stage.CONSTRAIN), _NamedAsync(AsyncFloor())),
               Attached(Registration("gone", Stage.PROPOSE, 5, "unix:/x"), None)]
    return PipelinePlanner(settings, plugins, wants=wants)


class _Named:
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def propose(self, request: Any) -> StageResponse:
        return StageResponse(Override((ComponentTarget("chat", 3),)))


class _NamedAsync(_Named):
    async def constrain(self, request: Any) -> StageResponse:
        await asyncio.sleep(0.01)
        return StageResponse(Override((ComponentTarget("chat", 2, OverrideType.AT_MOST),)))


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


def test_PL_T12_a_live_log_replays_with_the_planner(tmp_path: Path) -> None:
    def control(wants: frozenset[str]) -> Control:
        built = default_control(["chat"], wants=wants)
        return Control(lanes=built.lanes, fleet=built.fleet, planner=live_planner(wants), settings=built.settings, wants=wants)

    with FakeEngine(FakeScript(ttft_s=0.005, itl_s=0.001, slots=4)) as engine:
        fleet = LiveFleet.of({"name": "parity", "pools": {"chat": {"engine": "openai", "model": "fake", "urls": [engine.url], "slots": 4}}})
        world = Live(fleet, "armed", phrase="ARM parity", caps=Caps(max_in_flight=64))
        source = ArrivalSource(60.0, input_tokens=Const(16), output_tokens=Const(8), count=60, rng=5, model="fake")
        run = world.run(control(frozenset(Live.wants)), source, name="parity")
    answers = [a for line in lines(run) if line.get("e") == "Answered" for a in line["items"]]
    assert {a["plugin_id"] for a in answers} == {"grow", "cap", "gone"}
    assert {a["error"]["kind"] for a in answers if "error" in a} == {"connection"}
    assert all(a["error"]["kind"] == "connection" for a in answers if a["plugin_id"] == "gone")
    agreed = replay(run, lambda header: control(frozenset(Live.wants)))
    assert agreed.effects > 60 and agreed.control.planner.ticks >= 5
    assert Ask.__name__ in {line.get("f") for line in lines(run)} and Note.__name__ in {line.get("f") for line in lines(run)}


def test_PL_702_the_built_in_loops_fly_live_without_engine_reports() -> None:
    block = {"pools": {"agg": {"component": "chat", "capacity_rps": 4.0}}, "throughput": {"enabled": True, "interval_s": 0.4},
             "load": {"enabled": True, "interval_s": 0.2}}
    with FakeEngine(FakeScript(ttft_s=0.005, itl_s=0.001, slots=4)) as engine:
        fleet = LiveFleet.of({"name": "built-in", "pools": {"chat": {"engine": "openai", "model": "fake", "urls": [engine.url], "slots": 4}}})

        def control(wants: frozenset[str]) -> Control:
            built = default_control(["chat"], wants=wants)
            planner = build_pipeline_planner(read_planner(block), fleet.pool_facts(), wants=wants)
            return Control(lanes=built.lanes, fleet=built.fleet, planner=planner, settings=built.settings, wants=wants)

        source = ArrivalSource(20.0, input_tokens=Const(16), output_tokens=Const(4), count=30, rng=1, model="fake")
        run = Live(fleet).run(control(frozenset(Live.wants)), source)
    plans = [line for line in lines(run) if line.get("f") == "Note" and line["kind"] == "plan"]
    rows = [plan["data"]["components"]["chat"] for plan in plans]
    assert len(rows) >= 4 and all(r["plan_reasons"] for r in rows)
    assert any(r["load_reason"] == "no_fpm_data" for r in rows), "no reports are unknown, not zero"
    assert max(r["proposed"] or 0 for r in rows) >= 2, "the arrivals are seen"
    replay(run, lambda header: control(frozenset(Live.wants)))


def test_PL_702_the_block_of_a_scenario_flies_live_and_its_log_replays() -> None:
    """The same `control.planner`, over a live fleet; its header alone is enough to build an equal planner."""
    scenario = Scenario.load("planner-step").with_({
        "source": {"kind": "arrivals", "rate_rps": 60.0, "count": 60, "input_tokens": 16, "output_tokens": 8, "model": "fake"},
        "duration_s": None, "warmup_s": 0.0, "control.planner": {
            "kind": "pipeline", "pools": {"agg": {"capacity_rps": 40.0, "boot_s": 1.0}}, "load": {"enabled": False},
            "throughput": {"enabled": True, "interval_s": 0.2}, "stabilise": {"enabled": False}}})
    with FakeEngine(FakeScript(ttft_s=0.005, itl_s=0.001, slots=4)) as engine:
        fleet = LiveFleet.of({"name": "block", "pools": {"chat": {"engine": "openai", "model": "fake", "urls": [engine.url], "slots": 4}}})
        facts = fleet.pool_facts()
        world = Live(fleet, "armed", phrase="ARM block", caps=Caps(max_in_flight=64))
        control = scenario.build_control(pools=facts, wants=Live.wants)
        run = world.run(control, scenario.build_source(live=True, model="fake"), name="block", **scenario.meta(facts))
    ticks = run.planner.ticks
    assert len(ticks) >= 4 and all(t["components"]["agg"]["plan_reasons"] for t in ticks)
    assert max(t["components"]["agg"]["proposed"] or 0 for t in ticks) >= 2  # 60 requests/s, 40 a replica
    agreed = replay(run)
    assert agreed.effects > 60 and agreed.control.planner.ticks == len(ticks)
