"""Rules of calibration: kinds of observations and their weights, intervals, choice of a model, the sweep of an engine, the measured runs."""

from __future__ import annotations

import gzip
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from windtunnel.datafiles import data_path
from windtunnel.errors import ConfigValueError, TraceFormatError
from windtunnel.lab.calibrate.engine_profile import SWEEP, plan, sweep_cells
from windtunnel.lab.calibrate.fit import BLOCK, LEVEL, RESAMPLES, Fit, fit_observations, fit_requests, fit_steps
from windtunnel.lab.calibrate.intervals import choose, metric_intervals
from windtunnel.lab.calibrate.observe import Observations, PointObs, RequestObs, StepObs, read_run
from windtunnel.lab.calibrate.replay import replay, replay_point
from windtunnel.lab.calibrate.runs import RUNS
from windtunnel.sim.engine import EngineConfig
from windtunnel.sim.stepmodels.affine import Affine
from windtunnel.sim.stepmodels.model import Batch

TRUE = Affine(8e-3, 3e-5, 2e-5, 5e-8)
PRIOR = {"c0": 6e-3, "c1": 2.6e-5}
CONFIG = EngineConfig()


def make(theta: dict[str, float]) -> Affine:
    return Affine(theta["c0"], theta["c1"], 2e-5, 5e-8)


def requests(n: int = 60, seed: int = 4, noise: float = 0.0, model: Any = TRUE) -> list[RequestObs]:
    """What a simulated engine shows, each request's times off by some share."""
    rng = np.random.default_rng(seed)
    asked = [RequestObs(float(t), int(p), int(o), float(t), float(t)) for t, p, o in zip(
        np.cumsum(rng.exponential(0.1, n)), rng.integers(50, 900, n), rng.integers(2, 200, n))]
    out = []
    for r in replay(asked, model, CONFIG).requests:
        by = float(np.exp(noise * rng.standard_normal()))
        out.append(RequestObs(r.arrival_s, r.input_tokens, r.output_tokens, r.arrival_s + by * r.ttft_s, r.arrival_s + by * r.e2e_s))
    return out


def steps(n: int, model: Any = TRUE, seed: int = 1, noise: float = 0.0) -> list[StepObs]:
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        d, c = int(rng.integers(1, 100)), int(rng.integers(1, 2000))
        b = Batch(d, d * int(rng.integers(10, 3000)), [(c, 0)] if rng.random() < 0.5 else [], d + c, d + 1, d + 1)
        out.append(StepObs(b, model.seconds(b) * float(np.exp(noise * rng.standard_normal()))))
    return out


def point(concurrency: int, model: Any = TRUE) -> PointObs:
    asked = PointObs(f"p{concurrency}", "m", "g", "e", "1", "bf16", 400, 60, concurrency, 1.0, 1.0)
    return replay_point(asked, model, CONFIG)


# -- SC-2: observations ----------------------------------------------------------------------------------------------------------------


def test_SC_2_kinds_say_what_they_are_of() -> None:
    r = RequestObs(1.0, 100, 11, 1.5, 2.5, scheduled_s=1.2)
    assert (r.ttft_s, r.e2e_s, r.tpot_s) == (0.5, 1.5, 0.1) and RequestObs(0.0, 1, 1, 1.0, 1.0).tpot_s is None
    p = PointObs("a", "m", "g", "vllm", "0.19", "fp8", 1000, 101, 8, 0.5, 0.01, gpus=4, ep=2)
    assert p.throughput == pytest.approx(8 * 101 / 1.5) and p.group == "m|g|vllm|fp8|0.19|4.2.1"


@pytest.mark.parametrize("wrong", [
    lambda: StepObs(Batch(), 0.0), lambda: StepObs(Batch(), float("nan")), lambda: RequestObs(-1.0, 1, 1, 0.0, 0.0),
    lambda: RequestObs(1.0, 1, 1, 0.5, 2.0), lambda: RequestObs(0.0, 1, 1, 2.0, 1.0), lambda: RequestObs(0.0, 0, 1, 1.0, 1.0),
    lambda: RequestObs(0.0, 1, 0, 1.0, 1.0), lambda: PointObs("a", "m", "g", "e", "1", "d", 1, 1, 0, 1.0, 1.0),
    lambda: PointObs("a", "m", "g", "e", "1", "d", 1, 1, 1, 0.0, 1.0), lambda: Observations(weights={"guesses": 1.0}),
    lambda: Observations(weights={"steps": 0.0}), lambda: Observations(weights={"steps": float("inf")})])
def test_SC_2_what_cannot_have_been_seen_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigValueError):
        wrong()


def test_SC_2_each_kind_weighs_the_same_whatever_its_number() -> None:
    seen = Observations(steps(500), requests(60), [point(c) for c in (1, 8)])
    assert len(seen) == 562
    for kind in ("steps", "requests", "points"):
        assert seen.weight(kind) * len(getattr(seen, kind)) == 1.0
    heavy = Observations(steps(10), weights={"steps": 4.0})
    assert (heavy.weight("steps"), heavy.weight("points")) == (0.4, 0.0)


def test_SC_2_a_profile_mixes_kinds() -> None:
    seen = Observations(steps(40), requests(40), [point(c) for c in (1, 4, 16)])
    fit = fit_observations(seen, make, PRIOR, CONFIG)
    assert fit.theta == pytest.approx({"c0": 8e-3, "c1": 3e-5}, rel=0.02)
    assert fit.observations == 83 and not fit.not_identified
    for kind in (Observations(seen.steps), Observations(points=seen.points * 3)):
        alone = fit_observations(kind, make, PRIOR, CONFIG)
        assert alone.theta["c0"] == pytest.approx(8e-3, rel=0.05), kind
    assert fit_observations(seen, make, PRIOR, CONFIG) == fit, "bit for bit"


def test_SC_2_kinds_that_disagree_meet_by_weight_and_not_by_number() -> None:
    """Many steps say 6 ms, few requests 9 ms: in between, and where the weights say."""
    slow, fast = Affine(9e-3, 3e-5, 2e-5, 5e-8), Affine(6e-3, 3e-5, 2e-5, 5e-8)
    many, few = steps(400, fast), requests(20, model=slow)
    even = fit_observations(Observations(many, few), make, {"c0": 7e-3, "c1": 3e-5}, CONFIG).theta["c0"]
    leant = fit_observations(Observations(many, few, weights={"steps": 100.0}), make, {"c0": 7e-3, "c1": 3e-5}, CONFIG).theta["c0"]
    tilted = fit_observations(Observations(many, few, weights={"requests": 100.0}), make, {"c0": 7e-3, "c1": 3e-5}, CONFIG).theta["c0"]
    assert 6.3e-3 < even < 8.8e-3 and leant == pytest.approx(6e-3, rel=0.03) and tilted == pytest.approx(9e-3, rel=0.03)


def test_SC_2_requests_alone_are_the_same_fit_either_way_and_nothing_is_no_fit() -> None:
    seen = requests(30)
    assert fit_observations(Observations(requests=seen), make, PRIOR, CONFIG) == fit_requests(seen, make, PRIOR, CONFIG)
    for nothing in (lambda: fit_observations(Observations(), make, PRIOR, CONFIG), lambda: fit_requests([], make, PRIOR, CONFIG)):
        with pytest.raises(ConfigValueError, match="at least one"):
            nothing()


# -- SC-5: intervals, choice -------------------------------------------------------------------------------------------------------------


def test_SC_5_two_hundred_resamples_of_blocks_of_twenty_at_90_percent() -> None:
    assert (BLOCK, RESAMPLES, LEVEL) == (20, 200, 0.90)
    fit = fit_requests(requests(100, noise=0.1), make, PRIOR, CONFIG)
    assert fit.draws.shape == (RESAMPLES, 2) and list(fit.intervals) == ["c0", "c1"]
    for i, (lo, hi) in enumerate(fit.intervals.values()):
        assert np.mean((fit.draws[:, i] >= lo) & (fit.draws[:, i] <= hi)) == pytest.approx(LEVEL, abs=0.011)


def test_SC_5_noise_widens_intervals_and_data_narrow_them() -> None:
    def width(fit: Fit) -> float:
        lo, hi = fit.intervals["c0"]
        return (hi - lo) / fit.theta["c0"]

    quiet, loud = (fit_steps(steps(200, noise=s)) for s in (0.001, 0.1))
    many = fit_steps(steps(2000, noise=0.1))
    assert width(quiet) < 0.02 < width(loud) and width(many) < 0.6 * width(loud)


def test_SC_5_truth_lies_inside_about_as_often_as_it_says() -> None:
    inside = 0
    for seed in range(30):
        lo, hi = fit_steps(steps(120, noise=0.05, seed=seed), prior={"c0": 6e-3}).intervals["c0"]
        inside += lo <= TRUE.c0 <= hi
    assert inside >= 22, f"{inside} of 30; 27 are expected"


def test_SC_5_predicted_metrics_have_intervals_too() -> None:
    fit = fit_requests(requests(100, noise=0.1), make, PRIOR, CONFIG)
    load = requests(40, seed=9)

    def predict(theta: dict[str, float]) -> dict[str, float]:
        got = replay(load, make(theta), CONFIG).requests
        return {"ttft_s": float(np.mean([r.ttft_s for r in got])), "tpot_s": float(np.mean([r.tpot_s for r in got if r.tpot_s is not None]))}

    found = metric_intervals(fit, predict)
    assert set(found) == {"ttft_s", "tpot_s"} and found["tpot_s"].value == predict(fit.theta)["tpot_s"]
    truth = predict({"c0": TRUE.c0, "c1": TRUE.c1})
    for name, interval in found.items():
        assert interval.lo < interval.value < interval.hi and interval.n == RESAMPLES
        assert interval.lo * 0.97 <= truth[name] <= interval.hi * 1.03
    exact = [predict(dict(zip(fit.intervals, row)))["tpot_s"] for row in fit.draws[::10].tolist()]
    assert (found["tpot_s"].lo, found["tpot_s"].hi) == pytest.approx(np.quantile(exact, [0.05, 0.95]), rel=0.02), "as flying each draw would"


def test_SC_5_what_was_not_moved_has_no_spread() -> None:
    fit = fit_requests(requests(2), make, PRIOR, CONFIG)
    assert fit.not_identified == ["c0", "c1"]
    found = metric_intervals(fit, lambda theta: {"x": theta["c0"]})
    assert (found["x"].lo, found["x"].hi) == (6e-3, 6e-3)


def test_SC_5_a_model_is_chosen_by_what_it_has_not_seen() -> None:
    """The form that made the data against one without a term per token."""
    def flat(theta: dict[str, float]) -> Affine:
        return Affine(theta["c0"], 0.0, 2e-5, 5e-8)

    seen = requests(100, noise=0.02)
    chosen = choose({"flat": (flat, {"c0": 6e-3}), "whole": (make, PRIOR)}, seen, CONFIG)
    assert chosen.name == "whole" and chosen.errors["whole"] < 0.5 * chosen.errors["flat"]
    assert choose({"a": (make, PRIOR), "b": (make, PRIOR)}, seen, CONFIG).name == "a"
    with pytest.raises(ConfigValueError, match="not enough for 5 folds"):
        choose({"whole": (make, PRIOR)}, seen[:80], CONFIG)
    with pytest.raises(ConfigValueError, match="candidates"):
        choose({}, seen, CONFIG)


# -- SC-9: the sweep of an engine of ours ------------------------------------------------------------------------------------------------


def test_SC_9_the_sweep_is_every_combination_that_an_engine_can_serve() -> None:
    assert SWEEP == ((1, 2, 4, 8, 16), (64, 512, 2048), (64, 256))
    whole = sweep_cells(16, 4096)
    assert len(whole) == len(set(whole)) == 30 and {c.rounds for c in whole} == {1}
    assert {(c.concurrency, c.input_tokens, c.output_tokens) for c in sweep_cells(16, None)} == {
        (c.concurrency, c.input_tokens, c.output_tokens) for c in whole}
    assert max(c.concurrency for c in sweep_cells(4, 4096)) == 4 and len(sweep_cells(4, 4096)) == 18
    assert {c.input_tokens + c.output_tokens for c in sweep_cells(1, 768)} == {128, 320, 576, 768}
    assert sweep_cells(16, 100) == []


@pytest.mark.parametrize(("slots", "context"), [(1, 256), (4, 2048), (16, 4096), (64, None)])
def test_SC_9_what_is_fitted_is_never_held_back(slots: int, context: int | None) -> None:
    (short, held), (full, held_too) = plan(slots, context), plan(slots, context, full=True)
    assert held == held_too and set(sweep_cells(slots, context)) <= set(full) and set(short) <= set(full)
    assert not {(c.concurrency, c.input_tokens) for c in full} & {(c.concurrency, c.input_tokens) for c in held if c.input_tokens != 64}
    assert all(c.concurrency <= slots and (context is None or c.input_tokens + c.output_tokens <= context) for c in (*full, *held))


# -- SQ-50: the measured runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS, ids=lambda r: r.name)
def test_SQ_50_the_files_say_what_their_summaries_say(run: Any) -> None:
    meta = json.loads(data_path(f"validation/vllm_run_{run.name}_meta.json").read_text())["summary"]
    seen = run.requests
    assert len(seen) == meta["requests"] == 300
    assert sum(r.input_tokens for r in seen) == meta["input_tokens"] and sum(r.output_tokens for r in seen) == meta["output_tokens"]
    assert seen[0].arrival_s == 0.0 and [r.arrival_s for r in seen] == sorted(r.arrival_s for r in seen)
    assert max(r.last_s for r in seen) == pytest.approx(meta["makespan_s"], rel=0.01)
    ttft = np.array([r.ttft_s for r in seen])
    assert 1e3 * ttft.mean() == pytest.approx(meta["ttft_ms"]["mean"], rel=0.01)
    assert 1e3 * np.percentile(ttft, [50, 90]) == pytest.approx([meta["ttft_ms"]["p50"], meta["ttft_ms"]["p90"]], rel=0.01)
    assert meta["queue_wait_ms_mean"] > 0.9 * meta["ttft_ms"]["mean"], "deep in overload: TTFT is queueing"
    assert all(r.scheduled_s is not None and r.arrival_s <= r.scheduled_s <= r.first_s for r in seen)


def test_SQ_50_the_engines_are_configured_as_they_were() -> None:
    four, pro = RUNS
    assert (four.config.max_num_seqs, four.config.max_num_batched_tokens, four.config.num_blocks) == (256, 2048, 2588)
    assert four.config.prefix_cache and four.config.reserve_full_input and four.config.block_size == 16
    assert (pro.config.max_num_seqs, pro.config.max_num_batched_tokens, pro.config.num_blocks, pro.tp) == (128, 2048, None, 2)
    said = json.loads(data_path(f"validation/vllm_run_{four.name}_meta.json").read_text())["summary"]
    assert said["kv_cache"]["num_gpu_blocks"] == four.config.num_blocks and said["engine_kwargs"]["max_num_seqs"] == four.config.max_num_seqs


def test_SQ_50_prompts_come_with_their_blocks() -> None:
    four, pro = (run.requests for run in RUNS)
    assert all(r.blocks is not None and len(r.blocks) in (r.input_tokens // 16, -(-r.input_tokens // 16)) for r in four)
    assert all(r.blocks is None for r in pro)


@pytest.mark.parametrize("run", RUNS, ids=lambda r: r.name)
def test_SQ_50_the_time_series_is_of_the_same_run(run: Any) -> None:
    with gzip.open(data_path(f"validation/vllm_run_{run.name}_timeseries.csv.gz"), "rt") as file:
        series = pd.read_csv(file)
    assert list(series) == ["t", "prompt_throughput", "gen_throughput", "running", "waiting", "kv_cache_pct"]
    assert np.allclose(np.diff(series.t), 1.0, atol=0.2) and series.running.max() <= run.config.max_num_seqs
    tokens = sum(r.output_tokens for r in run.requests)
    assert series.gen_throughput.sum() == pytest.approx(tokens, rel=0.05) and series.waiting.max() > 50


def test_SQ_50_the_arrivals_are_replayed_as_they_were_queued() -> None:
    measured = RUNS[0].requests[:40]
    got = replay(measured, TRUE, RUNS[0].config).requests
    assert [r.arrival_s for r in got] == [r.arrival_s for r in measured]
    assert all(r.scheduled_s is not None and r.scheduled_s >= r.arrival_s for r in got)


def test_SQ_50_a_file_without_its_columns_is_refused(tmp_path: Any) -> None:
    (tmp_path / "run.csv").write_text("request_id,input_toks\n1,5\n")
    with pytest.raises(TraceFormatError, match="no column output_toks, queued_ts"):
        read_run(tmp_path / "run.csv")
