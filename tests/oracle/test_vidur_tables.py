"""The same batching, step times and request files as a public simulator (Vidur 0.0.26) give its numbers."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from windtunnel.datafiles import data_path
from windtunnel.sim.agenda import ARRIVAL, Agenda
from windtunnel.sim.batching.sarathi import sarathi_config
from windtunnel.sim.engine import Attempt, SimEngine
from windtunnel.sim.stepmodels.model import Batch
from windtunnel.sim.stepmodels.vidur import VidurRoofline

# steps, mean batch, makespan s, TTFT ms (mean p50 p95 p99), TPOT ms (same), E2E s (same)
EXPECTED = {
    "chat_1k_r16": (7908, 24.10129, 64.596154, (33.827696, 24.148610, 95.276562, 118.173613), (8.417628, 8.266762, 9.960311, 10.977216),
                    (1.616444, 1.274414, 4.023980, 6.448434)),
    "chat_10k_r16": (76914, 24.91831, 630.775498, (32.508158, 24.544773, 88.040663, 121.703248),
                     (8.322336, 8.271641, 9.602257, 10.366639), (1.610699, 1.268181, 3.980849, 6.299838)),
}


def fly(name: str) -> tuple[SimEngine, list[tuple[float, Attempt]]]:
    with data_path(f"workloads/{name}.csv").open() as file:
        rows = [(float(r["arrival_s"]), int(r["input_tokens"]), int(r["output_tokens"])) for r in csv.DictReader(file)]
    agenda, sent = Agenda(), []
    engine = SimEngine("r", sarathi_config(num_blocks=30208), VidurRoofline(), agenda, on_finish=lambda a: None, on_cancelled=lambda a: None)
    for i, (at_s, prompt, output) in enumerate(rows):
        a = Attempt(str(i), 1, prompt, output)
        sent.append((at_s, a))
        agenda.at(at_s, ARRIVAL, lambda _, a=a: engine.submit(a))
    agenda.run()
    return engine, sent


def figures(x: list[float]) -> list[float]:
    return [float(np.mean(x)), *(float(np.percentile(x, p)) for p in (50, 95, 99))]


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_SQ_20_sarathi_512(name: str) -> None:
    engine, sent = fly(name)
    steps, batch, makespan_s, ttft_ms, tpot_ms, e2e_s = EXPECTED[name]
    assert engine.steps == steps
    assert engine.sequence_steps / engine.steps == pytest.approx(batch, abs=5e-6)
    assert max(a.finished_s for _, a in sent) == pytest.approx(makespan_s, rel=1e-6)
    assert figures([(a.first_token_s - at) * 1e3 for at, a in sent]) == pytest.approx(ttft_ms, rel=1e-6)
    tpot = [(a.finished_s - a.first_token_s) / (a.output - 1) * 1e3 for _, a in sent if a.output > 1]
    assert figures(tpot) == pytest.approx(tpot_ms, rel=1e-6)
    assert figures([a.finished_s - at for at, a in sent]) == pytest.approx(e2e_s, rel=1e-6)


@pytest.mark.parametrize(("batch", "seconds"), [
    (Batch(0, 0, [(512, 0)], 512, 1, 1), 0.013869351), (Batch(1, 1023, [], 1, 1, 1), 0.005923571),
    (Batch(8, 8 * 1023, [], 8, 8, 8), 0.006320605), (Batch(32, 32 * 1023, [], 32, 32, 32), 0.007717871),
    (Batch(64, 64 * 1023, [], 64, 64, 64), 0.009580894)])
def test_SM_22_check_values(batch: Batch, seconds: float) -> None:
    assert VidurRoofline().seconds(batch) == pytest.approx(seconds, abs=5e-10)
