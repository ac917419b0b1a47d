"""Ticks with twelve plugins in this process, beside an empty generator loop of the same shape, and what a planner keeps of them."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from planning.asked import BASELINE, SCALE_S, observed, twelve
from planning.rows import Row, no_gc, percentiles
from windtunnel.events import Woke
from windtunnel.policy.planning.contract import PipelineContext
from windtunnel.policy.planning.pipeline import Pipeline, run_inline
from windtunnel.policy.planning.plugin import Attached, Registration
from windtunnel.policy.planning.roster import Roster, RosterSettings
from windtunnel.policy.planning.settings import PlannerSettings
from windtunnel.policy.planning.settings_blocks import LoadSettings, PoolSettings
from windtunnel.policy.planning.shell import PipelinePlanner

BAR_US, BAR_P99_US = 100.0, 400.0
BAR_GROWTH = 0.01  # memory blocks a tick
RATIO_PIPELINE, RATIO_PLANNER = 45.0, 90.0  # to the reference of the same run, what the bars above come to


def reference_loop(ticks: int) -> list[float]:
    """Seconds of each turn of a generator that is asked what the pipeline asks, and does nothing with it."""
    plugins = [plugin for _, plugin in twelve()]
    request: Any = None
    groups = ([plugins[0].predict], [plugins[1].predict], [p.propose for p in plugins[2:7]], [p.reconcile for p in plugins[7:9]],
              [p.constrain for p in plugins[9:]])

    def empty() -> Generator[Any, Any, Any]:
        answers = None
        for group in groups:
            answers = yield group
        return answers

    took, clock = [], time.perf_counter
    for _ in range(ticks):
        start = clock()
        running = empty()
        try:
            asked = next(running)
            while True:
                asked = running.send(tuple([method(request) for method in asked]))
        except StopIteration:
            took.append(clock() - start)
    return took


def pipeline_ticks(ticks: int) -> list[float]:
    """Seconds of each tick of twelve plugins, inline."""
    roster = Roster(RosterSettings(SCALE_S))
    for registration, plugin in twelve():
        roster.register(registration, 0.0, plugin=plugin)
    pipeline, seen = Pipeline(roster), observed()
    took, clock = [], time.perf_counter
    for k in range(1, ticks + 1):
        context = PipelineContext(f"tick-{k}", f"decision-{k}", seen)
        start = clock()
        outcome = run_inline(pipeline.tick(context, BASELINE, tick_at=k * SCALE_S, now=k * SCALE_S))
        took.append(clock() - start)
        assert outcome.action == "apply"
    return took


def planner_of(plugins: Sequence[tuple[Registration, Any]]) -> PipelinePlanner:
    """A planner without built-in plugins that size anything."""
    settings = PlannerSettings(mode="disagg", pools={"prefill": PoolSettings(), "decode": PoolSettings()}, load=LoadSettings(enabled=False),
                               other_proposers=True)
    return PipelinePlanner(settings, [Attached(registration, plugin) for registration, plugin in plugins])


def planner_ticks(ticks: int) -> list[float]:
    """Seconds of each tick of the whole planner: observation, pipeline, boundary, diagnostics."""
    planner = planner_of(twelve())
    planner.start(0.0)
    took, clock = [], time.perf_counter
    for k in range(1, ticks + 1):
        event, now = Woke("planner"), k * SCALE_S
        start = clock()
        planner.handle(event, now)
        took.append(clock() - start)
    assert planner.ticks == ticks
    return took


def beside(measure: Callable[[int], list[float]], ticks: int, rounds: int) -> tuple[float, float, float]:
    """Median and p99 of all rounds in seconds, and the smallest ratio of medians to a reference loop that ran right before and after it."""
    took: list[float] = []
    ratios = []
    with no_gc():
        for _ in range(rounds):
            before = percentiles(reference_loop(ticks // rounds))[0]
            mine = measure(ticks // rounds)
            after = percentiles(reference_loop(ticks // rounds))[0]
            took += mine
            ratios.append(percentiles(mine)[0] / max(before, after))
    return (*percentiles(took), min(ratios))


def in_process(*, quick: bool) -> list[Row]:
    ticks = 4_000 if quick else 20_000
    median, p99, ratio = beside(pipeline_ticks, ticks, 4)
    whole, whole_p99, whole_ratio = beside(planner_ticks, ticks, 4)
    reference, reference_p99 = percentiles(reference_loop(ticks))
    return [Row("empty generator loop, 12 calls", "us", reference * 1e6, reference_p99 * 1e6),
            Row("pipeline tick, 12 plugins in process", "us", median * 1e6, p99 * 1e6, BAR_US, BAR_P99_US, ratio),
            Row("planner tick, observation to plan", "us", whole * 1e6, whole_p99 * 1e6, ratio=whole_ratio)]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(ticks: int) -> tuple[float, float]:
    """(memory blocks, resident bytes) that a planner keeps more, a tick, after a tenth of the ticks for warming up."""
    planner = planner_of(twelve())
    planner.start(0.0)
    warm, before, resident = ticks // 10, 0, 0
    for k in range(1, ticks + warm + 1):
        planner.handle(Woke("planner"), k * SCALE_S)
        if k == warm:
            gc.collect()
            before, resident = sys.getallocatedblocks(), resident_bytes()
    gc.collect()
    return (sys.getallocatedblocks() - before) / ticks, (resident_bytes() - resident) / ticks


def memory(*, quick: bool) -> list[Row]:
    ticks = 100_000 if quick else 1_000_000
    blocks, resident = growth(ticks)
    return [Row(f"memory blocks kept, {ticks:,} ticks", "a tick", blocks, bar=BAR_GROWTH), Row("resident growth", "B a tick", resident)]
