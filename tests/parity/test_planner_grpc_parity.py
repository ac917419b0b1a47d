"""A whole run decided twice: by plugins of this process, and by the same plugins over gRPC. Equal to the last bit."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from windtunnel import Run, Scenario
from windtunnel.effects import Ask, ScaleTo
from windtunnel.events import Answered, Event
from windtunnel.lab import codec
from windtunnel.lab.build import pool_facts
from windtunnel.lab.recorder import Recorder
from windtunnel.lab.world_simulated import Simulated
from windtunnel.live.asking import Asking
from windtunnel.live.plugins.grpc_client import GrpcPlugin
from windtunnel.live.plugins.plugin_server import start
from windtunnel.live.scaling.exec import free_port
from windtunnel.policy.control import Control
from windtunnel.policy.planning.contract import (
    Accept,
    ComponentTarget,
    HoldPolicy,
    Override,
    OverrideType,
    PredictionData,
    PredictResponse,
    Reject,
    Stage,
    StageRequest,
    StageResponse,
)
from windtunnel.policy.planning.plugin import Attached, Registration
from windtunnel.policy.planning.pool_states import PoolFrame
from windtunnel.policy.planning.settings import PlannerSettings
from windtunnel.policy.planning.settings_blocks import LoadSettings, PoolSettings
from windtunnel.policy.planning.shell import PipelinePlanner


class Opinion:
    """All four stages, from awkward floats of what it sees."""

    def predict(self, request: StageRequest) -> PredictResponse:
        traffic = request.ctx.observations.traffic  # type: ignore[union-attr]
        if traffic is None or traffic.isl is None:
            return PredictResponse(reason="nothing to go by")
        return PredictResponse(PredictionData(traffic.num_req * (0.1 + 0.2), traffic.isl / 3.0, traffic.osl, None, None, traffic.duration_s, 5e-324),
                               "thirds")

    def propose(self, request: StageRequest) -> StageResponse:
        if int(request.tick_at) % 35 == 0:
            return StageResponse(Reject("every seventh"))
        if int(request.tick_at) % 25 == 0:
            raise ValueError("every fifth")
        ahead = request.ctx.predictions
        if ahead is None or ahead.predicted_num_req is None:
            return StageResponse()
        return StageResponse(Override((ComponentTarget("agg", 1 + int(ahead.predicted_num_req / 7.0)),), f"{ahead.predicted_num_req!r}"))

    def reconcile(self, request: StageRequest) -> StageResponse:
        said = [r.answer.targets[0].replicas for r in request.stage_results if r.answer is not None]
        return StageResponse(Override((ComponentTarget("agg", max((n for n in said if n), default=1), OverrideType.AT_MOST),)))

    def constrain(self, request: StageRequest) -> StageResponse:
        if int(request.tick_at) % 20:
            return StageResponse(Accept())
        ceiling, floor = ComponentTarget("agg", -3, OverrideType.AT_MOST), ComponentTarget("agg", 2, OverrideType.AT_LEAST)
        return StageResponse(Override((ceiling, floor)), final=True)


OPTIONS: Mapping[Stage, dict[str, Any]] = {
    Stage.PREDICT: {"needs": ("observations.traffic",)}, Stage.PROPOSE: {"hold_policy": HoldPolicy.HOLD_LAST},
    Stage.RECONCILE: {"execution_interval_s": 10.0, "hold_policy": HoldPolicy.HOLD_LAST},
    Stage.CONSTRAIN: {"requires": ("observations.workers.agg.ready",)},
}


def planner(endpoint: str, facts: Any, wants: frozenset[str]) -> PipelinePlanner:
    """With an endpoint: nobody here answers."""
    settings = PlannerSettings(pools={"agg": PoolSettings(min_replicas=1)}, load=LoadSettings(enabled=False), other_proposers=True,
                               disabled=frozenset({"builtin_stabilise"}))
    target = None if endpoint else Opinion()
    plugins = [Attached(Registration(f"opinion.{stage}", stage, endpoint=endpoint, **OPTIONS[stage]), target) for stage in Stage]
    [pool] = facts
    return PipelinePlanner(settings, plugins, {"agg": PoolFrame("agg", pool.name, "agg", 1, 30.0, pool.replicas)}, wants=wants)


@pytest.fixture(scope="module")
def flown() -> tuple[Run, Any]:
    scenario = Scenario.load("overload").with_({"duration_s": 120.0, "warmup_s": 0.0, "source.rate_rps": 12})
    facts, wants = pool_facts(scenario.build_fleet()), Recorder("full").wants
    built = scenario.build_control(pools=facts, wants=wants)
    control = Control(lanes=built.lanes, fleet=built.fleet, planner=planner("", facts, wants), settings=built.settings, wants=wants)
    world = Simulated(scenario.build_fleet(), seed=3, record="full", check=True, until=120.0)
    return world.run(control, scenario.build_source(seed=3)), facts


def events_of(run: Run) -> list[tuple[float, Event]]:
    log = run.tables.log
    lines = [codec.json.loads(line) for line in (log if isinstance(log, bytes) else log.read_bytes()).splitlines()]  # type: ignore[union-attr]
    return [(line["t"], codec.event_of(line)) for line in lines if "e" in line]


class Told:
    """What one planner made of the run."""

    def __init__(self, planner: PipelinePlanner) -> None:
        self.planner, self.begun = planner, False
        self.plans: list[Any] = []
        self.ticks: list[Any] = []
        self.asks = 0

    def take(self, event: Event, now: float) -> list[Ask]:
        if type(event) not in self.planner.events:
            return []
        if not self.begun:
            self.begun = True
            self.planner.start(now)
        before = self.planner.last
        made = self.planner.handle(event, now)
        self.plans += [(now, repr(effect)) for effect in made if isinstance(effect, ScaleTo)]
        last = self.planner.last
        if last is not before and last is not None:
            self.ticks.append(repr((last, last.plain())))
        return [effect for effect in made if isinstance(effect, Ask)]


async def far(events: list[tuple[float, Event]], told: Told, endpoint: str, listen: str, how: dict[str, Any]) -> None:
    server, client = await start(Opinion(), listen, **how), GrpcPlugin(endpoint, **how)
    entries = told.planner.roster.entries
    asking = Asking(lambda: 0.0, {(e.plugin_id, e.order): client for e in entries.values()})
    try:
        for now, event in events:
            asks = told.take(event, now)
            while asks:
                told.asks += 1
                [ask] = asks
                asks = told.take(await asking.ask(ask), now)
    finally:
        await client.aclose()
        await server.stop(0.1)


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_PL_T9_a_whole_run_over_grpc_decides_bit_for_bit_the_same(flown: tuple[Run, Any], transport: str, tmp_path: Path) -> None:
    run, facts = flown
    events = [(now, event) for now, event in events_of(run) if not isinstance(event, Answered)]
    port = free_port()
    listen, endpoint = (f"unix:{tmp_path}/o.sock",) * 2 if transport == "unix" else (f"127.0.0.1:{port}", f"grpc://127.0.0.1:{port}")
    near, over = Told(planner("", facts, frozenset())), Told(planner(endpoint, facts, frozenset()))
    for now, event in events:
        assert not near.take(event, now)
    asyncio.run(far(events, over, endpoint, listen, {"allow_insecure": transport == "tcp"}))
    assert len(near.ticks) == len(over.ticks) >= 23 and over.asks > 60
    for here, there in zip(near.ticks, over.ticks, strict=True):
        assert here == there
    assert near.plans == over.plans and len(near.plans) >= 5
    text = "".join(near.ticks)
    assert "every seventh" in text and "('opinion.propose', 'raised')" in text and "5e-324" in text and "held_over=['opinion" in text
