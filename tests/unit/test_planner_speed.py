"""What a planner's tick costs, beside loops that do nothing, measured in turn with it: a slow or busy machine slows both."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "sims" / "bench"))

import planner as bench

SHARED = 3.0  # a machine that others use, too


def test_PL_1002_a_tick_beside_an_empty_generator_loop() -> None:
    _, _, ratio = bench.beside(bench.pipeline_ticks, 3_000, 5)
    assert 1.0 < ratio <= SHARED * bench.RATIO_PIPELINE
    _, _, ratio = bench.beside(bench.planner_ticks, 1_500, 5)
    assert 1.0 < ratio <= SHARED * bench.RATIO_PLANNER


def test_PL_1002_ticks_cost_the_same_after_many() -> None:
    early = bench.percentiles(bench.planner_ticks(500))[0]
    took = bench.planner_ticks(6_000)
    late = min(bench.percentiles(took[i : i + 500])[0] for i in range(4_000, 6_000, 500))
    assert late <= SHARED * early


def test_PL_1002_nothing_is_kept_tick_by_tick() -> None:
    blocks, _ = bench.growth(6_000)
    assert blocks <= SHARED * bench.BAR_GROWTH


def test_PL_1003_a_grpc_tick_beside_bare_calls_of_the_same_size(tmp_path: Path) -> None:
    listen, bare = f"unix:{tmp_path}/echo.sock", f"unix:{tmp_path}/bare.sock"
    ratios = []
    with bench.echo_at(listen), bench.echo_at(bare, bench.SERVE_BARE):
        for _ in range(4):
            reference = bench.percentiles(asyncio.run(bench.bare_ticks(bare, 25, 64)))[0]
            ratios.append(bench.percentiles(asyncio.run(bench.grpc_ticks(listen, 25, 64)))[0] / reference)
    assert 0.5 < min(ratios) <= SHARED * bench.RATIO_GRPC


def test_PL_1003_the_context_of_200_engines_is_small() -> None:
    assert 200 * 50 < bench.context_bytes(200) < 256 * 1024
    assert bench.context_bytes(400) < 2.1 * bench.context_bytes(200)


def test_PL_1004_planning_takes_little_of_the_time_simulated() -> None:
    spent = bench.planned_run(15.0)
    assert spent["count"] >= 2 and 0 < spent["ticks"] < 0.5 * spent["run"], "the simulation, not the planner, is what a run costs"
