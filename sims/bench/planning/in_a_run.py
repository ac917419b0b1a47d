"""Planning as a share of a simulated run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from planning.rows import Row, no_gc
from windtunnel.events import Arrived, StepReported, Woke

BAR_SHARE = 0.01

BLOCK = {"pools": {"agg": {"max_replicas": 120, "limits": {"max_num_batched_tokens": 2048, "max_num_seqs": 128, "max_kv_tokens": 400_000,
                                                           "context_length": 8192}}},
         "budget": {"max_gpus": 120}, "throughput": {"enabled": True, "interval_s": 60}, "load": {"enabled": True, "interval_s": 5}}


def planned_run(duration_s: float) -> Mapping[str, float]:
    """CPU seconds inside the planner, of its ticks and of all else that it hears, and of the whole run: 100 replicas, a tick every 5 s."""
    from windtunnel.lab.build import pool_facts
    from windtunnel.lab.planner_build import build_pipeline_planner
    from windtunnel.lab.planner_config import read_planner
    from windtunnel.lab.scenario import Scenario
    from windtunnel.lab.world_simulated import Simulated
    from windtunnel.policy.control import Control

    scenario = Scenario.load("overload").with_({"duration_s": duration_s, "warmup_s": 0.0, "source.rate_rps": 300, "fleet.pools.chat.replicas": 100})
    facts = pool_facts(scenario.build_fleet())
    built, planner = scenario.build_control(pools=facts), build_pipeline_planner(read_planner(BLOCK), facts)
    spent, clock, handle = {"ticks": 0.0, "events": 0.0}, time.thread_time, planner.handle

    def timed(event: Any, now: float) -> Any:
        if type(event) is not Woke and type(event) is not StepReported and type(event) is not Arrived:
            return handle(event, now)
        start = clock()
        made = handle(event, now)
        spent["ticks" if type(event) is Woke else "events"] += clock() - start
        return made

    planner.handle = timed  # type: ignore[method-assign]
    control = Control(lanes=built.lanes, fleet=built.fleet, planner=planner, settings=built.settings)
    world, source = Simulated(scenario.build_fleet(), seed=3, until=duration_s), scenario.build_source(seed=3)
    with no_gc():
        start = clock()
        world.run(control, source)
        whole = clock() - start
    return {**spent, "run": whole, "simulated": duration_s, "count": planner.ticks}


def in_a_run(*, quick: bool) -> list[Row]:
    spent = planned_run(60.0 if quick else 300.0)
    return [Row("planning, of the time simulated", "share", (spent["ticks"] + spent["events"]) / spent["simulated"], bar=BAR_SHARE),
            Row("ticks, of the run's CPU (100 replicas, 5 s)", "share", spent["ticks"] / spent["run"]),
            Row("arrivals and reports, of the run's CPU", "share", spent["events"] / spent["run"]),
            Row("tick in a run", "us", spent["ticks"] / max(spent["count"], 1) * 1e6)]
