"""What other simulators say of the same requests is shown, not held against ours."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from windtunnel.datafiles import data_path
from windtunnel.lab.timing_grid import write_timing_grid
from windtunnel.lab.validation.others import COLUMNS, OTHERS, PROFILES, other_simulators, spread
from windtunnel.sim.agenda import ARRIVAL, Agenda
from windtunnel.sim.engine import Attempt, EngineConfig, SimEngine
from windtunnel.sim.stepmodels.two_regime import TwoRegime

sys.path.append(str(Path(__file__).parents[2] / "sims" / "bench"))

from measuring import side_by_side

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "10-calibrate.ipynb"


def test_SQ_21_timing_decides_and_the_table_says_so() -> None:
    table = other_simulators(120.0)
    assert tuple(table.columns) == COLUMNS and len(table) == len(PROFILES) + len(OTHERS)
    ours = table[table.simulator == "windtunnel"].set_index("step times")
    same = ours.loc["the roofline behind Vidur's tables"]
    assert same["mean TPOT (ms)"] == pytest.approx(8.7, rel=0.1) and same["median E2E (s)"] == pytest.approx(1.3, rel=0.12)
    assert 3.5 <= spread(table) < 8.0, "the others alone span a factor of 3.8"
    assert table["mean TTFT (ms)"].isna().sum() == table["median E2E (s)"].isna().sum() == 2, "what a tool does not say stays unknown"


def test_SQ_21_it_stands_in_the_notebook_and_asserts_nothing() -> None:
    cells = ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"]]
    shown = [source for source in cells if "other_simulators" in source]
    assert len(shown) == 1 and "assert" not in shown[0]


def our_replay(requests: Path, step: TwoRegime) -> dict[str, float]:
    """The engine that `dynamo_replay.py` asks of the other: token budget, 256 sequences, 8192 tokens a step, 7000 blocks of 64."""
    agenda, done = Agenda(), []  # type: ignore[var-annotated]
    engine = SimEngine("r", EngineConfig(max_num_batched_tokens=8192, block_size=64, num_blocks=7000, prefix_cache=False), step, agenda,
                       on_finish=done.append, on_cancelled=done.append)
    with requests.open() as file:
        for n, row in enumerate(csv.DictReader(file)):
            a = Attempt(str(n), 1, int(row["input_tokens"]), int(row["output_tokens"]))
            agenda.at(float(row["arrival_s"]), ARRIVAL, lambda _, a=a: engine.submit(a))  # type: ignore[misc]
    agenda.run()
    tpot_s = [(a.finished_s - a.first_token_s) / (a.output - 1) for a in done if a.output > 1]
    return {"requests": len(done), "input_tokens": sum(a.prompt for a in done), "output_tokens": sum(a.generated for a in done),
            "makespan_s": max(a.finished_s for a in done), "mean_tpot_s": sum(tpot_s) / len(tpot_s)}


@pytest.mark.slow
def test_SQ_22_one_grid_gives_both_simulators_the_same_times(tmp_path: Path) -> None:
    """External: the other is a package of its own in an environment of its own. Steps cost the same there: a mixed one is the sum of both sides."""
    peer = next(p for p in side_by_side.PEERS if p.requirement.startswith("ai-dynamo"))
    home = side_by_side.ENVIRONMENTS / peer.requirement.replace("==", "-")
    if not (home / "installed").exists():
        pytest.skip(f"{peer.requirement} is not installed in {home}; `make bench-peers` installs it")
    requests, decode = data_path("workloads/chat_1k_r16.csv"), (0.006, 2.4e-8, 2e-5)
    step = TwoRegime((0.004, 2.6e-5, 0.0), decode, decode, 1)
    grid = write_timing_grid(tmp_path / "grid.npz", step)
    theirs, ours = side_by_side.fly(peer, home / "bin" / "python", requests, grid)["simulated"], our_replay(requests, step)
    assert side_by_side.difference(ours, theirs) == ""
    assert ours["makespan_s"] == pytest.approx(theirs["makespan_s"], rel=0.03)
    assert ours["mean_tpot_s"] == pytest.approx(theirs["mean_tpot_s"], rel=0.03)
    own = side_by_side.fly(peer, home / "bin" / "python", requests)["simulated"]
    assert abs(own["mean_tpot_s"] / theirs["mean_tpot_s"] - 1.0) > 0.05, "with its own times it says something else: the grid was read"
