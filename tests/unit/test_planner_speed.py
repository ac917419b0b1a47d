"""What a planner's tick costs, beside loops that do nothing, measured in turn with it: a slow or busy machine slows both."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "sims" / "bench"))

from planning import in_a_run, in_process, over_grpc
from planning.rows import percentiles

SHARED = 3.0  # a machine that others use, too


def test_PL_1002_a_tick_beside_an_empty_generator_loop() -> None:
    _, _, ratio = in_process.beside(in_process.pipeline_ticks, 3_000, 5)
    assert 1.0 < ratio <= SHARED * in_process.RATIO_PIPELINE
    _, _, ratio = in_process.beside(in_process.planner_ticks, 1_500, 5)
    assert 1.0 < ratio <= SHARED * in_process.RATIO_PLANNER


def test_PL_1002_ticks_cost_the_same_after_many() -> None:
    early = percentiles(in_process.planner_ticks(500))[0]
    took = in_process.planner_ticks(6_000)
    late = min(percentiles(took[i : i + 500])[0] for i in range(4_000, 6_000, 500))
    assert late <= SHARED * early


def test_PL_1002_nothing_is_kept_tick_by_tick() -> None:
    blocks, _ = in_process.growth(6_000)
    assert blocks <= SHARED * in_process.BAR_GROWTH


def test_PL_1003_a_grpc_tick_beside_bare_calls_of_the_same_size(tmp_path: Path) -> None:
    listen, bare = f"unix:{tmp_path}/echo.sock", f"unix:{tmp_path}/bare.sock"
    ratios = []
    with over_grpc.echo_at(listen), over_grpc.echo_at(bare, over_grpc.SERVE_BARE):
        for _ in range(4):
            reference = percentiles(asyncio.run(over_grpc.bare_ticks(bare, 25, 64)))[0]
            ratios.append(percentiles(asyncio.run(over_grpc.grpc_ticks(listen, 25, 64)))[0] / reference)
    assert 0.5 < min(ratios) <= SHARED * over_grpc.RATIO_GRPC


def test_PL_1003_the_context_of_200_engines_is_small() -> None:
    assert 200 * 50 < over_grpc.context_bytes(200) < 256 * 1024
    assert over_grpc.context_bytes(400) < 2.1 * over_grpc.context_bytes(200)


def test_PL_1004_planning_takes_little_of_the_time_simulated() -> None:
    spent = in_a_run.planned_run(15.0)
    assert spent["count"] >= 2 and 0 < spent["ticks"] < 0.5 * spent["run"], "the simulation, not the planner, is what a run costs"
