"""Fit and check of a measured engine, on measurements made by the simulator itself: what went in has to come out."""

from __future__ import annotations

from pathlib import Path

import pytest

from windtunnel.errors import ConfigError, ConfigValueError
from windtunnel.lab.calibrate.engine_profile import EngineProfile, errors, fit, medians, merged, plan, simulate
from windtunnel.lab.calibrate.observe import RequestObs
from windtunnel.lab.calibrate.probe import Cell, Measured
from windtunnel.lab.calibrate.running import calibrate
from windtunnel.sim.stepmodels.model import Batch
from windtunnel.sim.stepmodels.table import Table

TRUE = EngineProfile("x", ((1, 0.010), (2, 0.018), (3, 0.017), (4, 0.030)), ((8, 0.008), (128, 0.128), (512, 0.640)), 1e-6, 0.005, 4, 2048, "t")


def as_if_measured(cell: Cell, factor: float = 1.0) -> Measured:
    said = simulate(TRUE, Measured(cell))
    ttft, tpot = factor * said["ttft_s"], factor * said["tpot_s"]
    requests = [RequestObs(0.0, cell.input_tokens, cell.output_tokens, ttft, ttft + tpot * (cell.output_tokens - 1)) for _ in range(4)]
    steps = []
    if cell.rounds == 1:
        kv = cell.concurrency * (cell.input_tokens + cell.output_tokens / 2)
        steps = [dict(TRUE.decode_s)[cell.concurrency] + TRUE.kv_s_per_token * kv] * cell.concurrency
    return Measured(cell, requests, steps, took_s=sum(r.output_tokens for r in requests) / (factor * said["tokens_per_s"]))


def test_what_went_in_comes_out() -> None:
    fitted, held = plan(4, 2048)
    assert not {(c.concurrency, c.input_tokens) for c in fitted} & {(c.concurrency, c.input_tokens) for c in held}, "held back means held back"
    made = fit([as_if_measured(c) for c in fitted], engine="x", slots=4, ctx_tokens=2048, source="t")
    assert made.decode_s == tuple((b, pytest.approx(s, rel=1e-6)) for b, s in TRUE.decode_s), "a batch of 3 may be faster than one of 2"
    assert made.kv_s_per_token == pytest.approx(1e-6) and made.ingress_s == pytest.approx(0.005, abs=1e-3)
    table = errors(made, [as_if_measured(c) for c in held])
    assert set(table["metric"]) == {"ttft_s", "tpot_s", "tokens_per_s"} and len(table) == 3 * len(held)
    assert max(medians(table).values()) < 3.0


def test_errors_are_signed() -> None:
    cell = Cell(2, 100, 32, rounds=3)
    table = errors(TRUE, [as_if_measured(cell, 2.0)]).set_index("metric")
    assert table.loc["ttft_s", "error_percent"] == pytest.approx(-50.0) and table.loc["tokens_per_s", "error_percent"] == pytest.approx(-50.0)


def test_one_outlier_does_not_move_the_medians() -> None:
    fitted, _ = plan(4, 2048)
    clean, noisy = [as_if_measured(c) for c in fitted], [as_if_measured(c) for c in fitted * 3]
    for m in noisy[: len(fitted)]:
        m.step_s = [10 * s for s in m.step_s]
    made = [fit(m, engine="x", slots=4, ctx_tokens=2048, source="t").decode_s for m in (clean, noisy)]
    assert made[0] == tuple((b, pytest.approx(s, rel=0.05)) for b, s in made[1])


def test_repeats_of_a_cell_are_one() -> None:
    cell = Cell(1, 64, 32, rounds=2)
    both = merged([as_if_measured(cell), as_if_measured(cell, 3.0), as_if_measured(cell), Measured(cell)])
    assert len(both) == 1 and len(both[0].requests) == 12
    assert both[0].tokens_per_s == pytest.approx(as_if_measured(cell).tokens_per_s)


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no decode step"):
        fit([Measured(Cell(1, 32, 8, rounds=1))], engine="x", slots=1, ctx_tokens=None, source="t")
    with pytest.raises(ConfigValueError, match="budget_s"):
        calibrate("llamacpp", "http://127.0.0.1:9", budget_s=0.0)
    with pytest.raises(ConfigValueError, match="url"):
        calibrate("llamacpp", "")


def test_a_prompt_that_cannot_be_simulated_says_so() -> None:
    with pytest.raises(ConfigError, match="refuses"):
        simulate(TRUE, Measured(Cell(1, 4000, 8)))


def test_SM_11_prompts_by_knots_and_chunks_by_difference() -> None:
    table = Table(((1, 0.01),), 0.0, 0.0, ((10, 0.1), (100, 0.4)))
    assert [table.of_prompt(n) for n in (5, 10, 55, 100, 190)] == pytest.approx([0.05, 0.1, 0.25, 0.4, 0.7])
    whole, parts = Batch(), []
    whole.decode_seqs = whole.decode_kv = 0
    whole.tokens, whole.sequences, whole.sampled, whole.prefill = 100, 1, 1, [(100, 0)]
    for chunk, before in ((30, 0), (70, 30)):
        part = Batch()
        part.decode_seqs = part.decode_kv = 0
        part.tokens, part.sequences, part.sampled, part.prefill = chunk, 1, 0, [(chunk, before)]
        assert table.run(part, 5)[2] == 1
        parts.append(table.seconds(part) - 0.01)
    assert sum(parts) == pytest.approx(table.seconds(whole) - 0.01)


@pytest.mark.parametrize("bad", [((10, 0.1), (5, 0.2)), ((10, 0.2), (20, 0.1)), ((0, 0.1),), ((10, float("nan")),)])
def test_SM_11_bad_knots_are_refused(bad: tuple[tuple[int, float], ...]) -> None:
    with pytest.raises(ConfigValueError, match="prefill_s"):
        Table(((1, 0.01),), 0.0, 0.0, bad)


def test_a_profile_is_written_where_asked(tmp_path: Path) -> None:
    from windtunnel.lab.calibrate.running import Calibration

    table = errors(TRUE, [as_if_measured(Cell(1, 64, 32))])
    path = Calibration(TRUE, table, medians(table), 1.0, 1).write(tmp_path / "a" / "b.yaml")
    assert "policy: slots" in path.read_text() and "n_ctx: 8192" in path.read_text()


def test_SC_1_a_scenario_names_the_profile_that_was_written(tmp_path: Path) -> None:
    from windtunnel.errors import ConfigFileError
    from windtunnel.lab.calibrate.running import Calibration
    from windtunnel.lab.scenario import Scenario

    table = errors(TRUE, [as_if_measured(Cell(1, 64, 32))])
    Calibration(TRUE, table, medians(table), 1.0, 1).write(tmp_path / "mine.yaml")
    text = """
windtunnel: 1
name: mine
fleet: {pools: {chat: {model: Llama-3.1-8B, gpu: h100_sxm, profile: {kind: measured, path: mine.yaml}}}}
source: {kind: arrivals, rate_rps: 0.1, count: 3, input_tokens: 64, output_tokens: 32}
"""
    (tmp_path / "s.yaml").write_text(text)
    run = Scenario.load(tmp_path / "s.yaml").run()
    said = simulate(TRUE, Measured(Cell(1, 64, 32)))
    assert run.requests.ttft_s.median() == pytest.approx(said["ttft_s"], rel=1e-3)
    assert run.requests.tpot_s.median() == pytest.approx(said["tpot_s"], rel=1e-3)
    (tmp_path / "mine.yaml").write_text("profile: {}")
    with pytest.raises(ConfigFileError, match=r"mine\.yaml"):
        Scenario.load(tmp_path / "s.yaml").run()
    (tmp_path / "mine.yaml").unlink()
    with pytest.raises(ConfigFileError, match="no file"):
        Scenario.load(tmp_path / "s.yaml").run()
