"""Calibration: the scaled model, the fits of steps and requests, the replay, the error table, profiles and the pools that use them."""

from __future__ import annotations

import builtins
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from windtunnel.datafiles import data_path
from windtunnel.errors import ConfigError, ConfigFileError, ConfigInfeasibleError, ConfigUnknownKeyError, ConfigValueError, ExtraMissingError
from windtunnel.lab.build_pool import build_pool
from windtunnel.lab.calibrate.fit import affine, fit_requests, fit_steps, valid_range
from windtunnel.lab.calibrate.least_squares import solve
from windtunnel.lab.calibrate.observe import PointObs, RequestObs, StepObs
from windtunnel.lab.calibrate.profile import Profile, load_profile, of_points, shipped
from windtunnel.lab.calibrate.replay import replay, replay_point
from windtunnel.lab.calibrate.report import error_table
from windtunnel.lab.calibrate.runs import RUNS, RunsReport, validate_runs
from windtunnel.lab.calibrate.silicon import POINTS, ClosedLoop, read_points, saturated
from windtunnel.lab.fleet_spec import PoolSpec
from windtunnel.lab.scenario import Scenario
from windtunnel.sim.catalog import gpu, model
from windtunnel.sim.engine import EngineConfig
from windtunnel.sim.stepmodels.affine import Affine
from windtunnel.sim.stepmodels.calibrated import Calibrated, Coefficients
from windtunnel.sim.stepmodels.model import Batch
from windtunnel.sim.stepmodels.roofline import Roofline

ROOF = Roofline(model("Llama-3.1-8B"), gpu("h100_sxm"))
TRUE = Affine(7e-3, 3e-5, 4e-5, 5e-8, 2e-10)
MIXED = Batch(8, 8000, [(512, 100)], 520, 9, 9)


# -- the scaled model ------------------------------------------------------------------------------------------------------------------


def test_SC_3_factors_of_one_are_the_prior() -> None:
    assert Calibrated(ROOF).seconds(MIXED) == pytest.approx(ROOF.seconds(MIXED), rel=1e-12)


@pytest.mark.parametrize("theta", [
    Coefficients(gemm=2.0, attn_decode=0.5, step_s=1e-3, sequence_s=1e-5), Coefficients(prefill_gemm=0.7, prefill_step_s=1e-4)])
@pytest.mark.parametrize("b", [MIXED, Batch(8, 8000, [], 8, 8, 8), Batch(0, 0, [(512, 512)], 512, 1, 0)])
def test_SM_1_a_calibrated_run_is_the_steps_that_it_stands_for(theta: Coefficients, b: Batch) -> None:
    step_model = Calibrated(ROOF, theta)
    A, B, k = step_model.run(b, 50)
    for j in range(0, k, 7):
        later = replace(b, decode_kv=b.decode_kv + b.decode_seqs * j, prefill=[(c, s + c * j) for c, s in b.prefill])
        assert step_model.seconds(later) == pytest.approx(A + B * j, rel=1e-12)


def test_SC_3_each_factor_scales_its_group() -> None:
    parts = ROOF.parts(MIXED)
    for name in ("gemm", "attn_decode", "attn_prefill"):
        grown = Calibrated(ROOF, Coefficients(**{name: 3.0})).seconds(MIXED) - ROOF.seconds(MIXED)
        assert grown == pytest.approx(2 * parts[name], rel=1e-9)
    assert Calibrated(ROOF, Coefficients(step_s=1e-3, sequence_s=1e-4)).seconds(MIXED) - ROOF.seconds(MIXED) == pytest.approx(1.9e-3)


def test_SC_7_outside_its_range_it_says_what_how_far_and_how_long() -> None:
    step_model = Calibrated(ROOF, valid={"sequences": (1.0, 8.0)}, source="a fit")
    small, large = Batch(8, 8000, [], 8, 8, 8), Batch(16, 16_000, [], 16, 16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inside = step_model.run(small, 3)
    assert step_model.provenance.state == "calibrated" and "a fit" in str(step_model.provenance)
    with pytest.warns(UserWarning, match="sequences 16 is outside 1 to 8"):
        beyond = step_model.run(large, 1)
    step_model.run(large, 1)  # told once
    known = step_model.provenance
    assert known.state == "extrapolated" and "sequences 16 is outside 1 to 8" in known.note
    spent = 3 * inside[0] + 3 * inside[1]
    assert step_model.outside.share == pytest.approx(2 * beyond[0] / (spent + 2 * beyond[0]))


@pytest.mark.filterwarnings("ignore:extrapolated")
def test_SC_8_a_run_beyond_the_calibration_does_not_call_itself_calibrated() -> None:
    text = """
windtunnel: 1
name: beyond
duration_s: 5
fleet: {pools: {chat: {model: Llama-3.1-8B, gpu: rtx4090, profile: {kind: calibrated, name: rtx4090-llama-3.1-8b-vllm0.19}}}}
source: {kind: arrivals, rate_rps: 4, input_tokens: 500, output_tokens: 20}
"""
    within, beyond = Scenario.load(text).with_({"source.input_tokens": 1500}).run(), Scenario.load(text).with_({"source.input_tokens": 6000}).run()
    for shown in (repr(within), repr(within.summary())):
        assert "timing  calibrated: Llama-3.1-8B" in shown
    for shown in (repr(beyond), repr(beyond.summary())):
        assert "timing  extrapolated: Llama-3.1-8B" in shown
    assert "| calibrated" not in beyond.provenance
    assert re.search(r"extrapolated: .*context 6000 is outside 262 to 4024.*: \d+\.\d% of simulated time", beyond.provenance)
    table = {"kind": "table", "decode_s": [[1, 0.01], [4, 0.02]], "prefill_s_per_token": 1e-5}
    few, many = (Scenario.load(text).with_({"fleet.pools.chat.profile": table, "source.rate_rps": rate}).run() for rate in (0.5, 50))
    assert "extrapolated" not in few.provenance
    assert re.search(r"extrapolated: sequences \d+ is outside 1 to 4: \d+\.\d% of simulated time$", many.provenance)


def test_SC_7_an_error_instead_of_a_warning() -> None:
    with pytest.raises(ConfigValueError, match="kv_mean: 1000 is outside the calibrated range 1 to 500"):
        Calibrated(ROOF, valid={"kv_mean": (1.0, 500.0)}, on_extrapolation="error").run(Batch(8, 8000, [], 8, 8, 8), 1)


@pytest.mark.parametrize("make", [
    lambda: Calibrated(ROOF, on_extrapolation="maybe"), lambda: Calibrated(ROOF, valid={"colour": (1.0, 2.0)}), lambda: Coefficients(gemm=-1.0),
    lambda: Coefficients(step_s=float("nan")), lambda: Coefficients(prefill_gemm=float("inf"))])
def test_a_calibration_that_means_nothing_is_refused(make: Any) -> None:
    with pytest.raises(ConfigValueError):
        make()


# -- fits --------------------------------------------------------------------------------------------------------------------------------


def some_steps(n: int, seed: int = 1) -> list[StepObs]:
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        d, c, s = int(rng.integers(0, 100)), int(rng.integers(1, 2000)), int(rng.integers(0, 4000))
        b = Batch(d, d * int(rng.integers(10, 3000)), [(c, s)] if rng.random() < 0.5 or not d else [], d + c, d + 1, d + 1)
        out.append(StepObs(b, TRUE.seconds(b)))
    return out


def test_SC_4_steps_give_back_the_coefficients_that_made_them() -> None:
    fit = fit_steps(some_steps(300))
    assert [fit.theta[c] for c in ("c0", "c1", "c3")] == pytest.approx([7e-3, 3e-5, 5e-8], rel=0.03)
    assert all(lo <= fit.theta[n] * 1.001 and fit.theta[n] <= hi * 1.001 for n, (lo, hi) in fit.intervals.items())
    fresh = some_steps(50, seed=2)
    assert [affine(fit).seconds(s.batch) for s in fresh] == pytest.approx([s.seconds for s in fresh], rel=0.02)
    assert fit_steps(some_steps(300)) == fit


def test_SC_3_few_steps_leave_coefficients_at_their_prior_and_name_them() -> None:
    fit = fit_steps(some_steps(7))
    assert len(fit.not_identified) == 3 and all(fit.theta[n] == fit.theta0[n] for n in fit.not_identified)
    with pytest.raises(ConfigValueError, match="at least one"):
        fit_steps([])


def test_SC_7_the_range_is_that_of_what_was_seen() -> None:
    steps = [StepObs(Batch(2, 200, [], 2, 2, 2), 0.01), StepObs(Batch(4, 1200, [(64, 32)], 68, 5, 4), 0.01)]
    assert valid_range(steps) == {
        "tokens": (2, 68), "chunk": (64, 64), "sequences": (2, 5), "kv": (200, 1200), "kv_mean": (100, 300), "context": (96, 96)}


def some_requests(n: int = 60) -> list[RequestObs]:
    rng = np.random.default_rng(4)
    asked = [RequestObs(float(t), int(p), int(o), float(t), float(t)) for t, p, o in zip(
        np.cumsum(rng.exponential(0.1, n)), rng.integers(50, 900, n), rng.integers(1, 200, n))]
    return replay(asked, Calibrated(ROOF, Coefficients(gemm=1.4, step_s=3e-3)), EngineConfig()).requests


def scaled_model(theta: dict[str, float]) -> Calibrated:
    return Calibrated(ROOF, Coefficients(**theta))


def test_SC_4_requests_give_back_the_factors_that_made_them() -> None:
    requests = some_requests()
    fit = fit_requests(requests, scaled_model, {"gemm": 1.0, "step_s": 2e-3}, EngineConfig(), ridge=1e-6)
    assert fit.evaluations <= 50 and fit.valid["sequences"][0] == 1.0 and fit.not_identified == []
    found, true = scaled_model(fit.theta), scaled_model({"gemm": 1.4, "step_s": 3e-3})
    for b in (Batch(1, 500, [], 1, 1, 1), Batch(16, 8000, [], 16, 16, 16), Batch(8, 4000, [(500, 0)], 508, 9, 9)):  # few tokens: both are constants
        assert found.seconds(b) == pytest.approx(true.seconds(b), rel=0.05)
    one = fit_requests(requests, lambda t: scaled_model({**t, "step_s": 3e-3}), {"gemm": 1.0}, EngineConfig(), ridge=1e-6)
    assert one.theta["gemm"] == pytest.approx(1.4, rel=0.02)
    assert fit_requests(requests, scaled_model, {"gemm": 1.0, "step_s": 2e-3}, EngineConfig(), ridge=1e-6) == fit


def test_SC_3_too_few_requests_fit_nothing() -> None:
    fit = fit_requests(some_requests(2), scaled_model, {"gemm": 1.0}, EngineConfig())
    assert fit.theta == {"gemm": 1.0} and fit.not_identified == ["gemm"]
    with pytest.raises(ConfigValueError, match=r"theta0\.gemm"):
        fit_requests(some_requests(2), scaled_model, {"gemm": 0.0}, EngineConfig())


def test_without_scipy_a_fit_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ExtraMissingError, match="calibrate"):
        solve(np.ones((3, 1)), np.ones(3), np.ones(1))


# -- replay and errors -------------------------------------------------------------------------------------------------------------------


def test_SC_1_a_replay_of_what_the_simulator_made_is_that() -> None:
    requests = some_requests()
    again = replay(requests, Calibrated(ROOF, Coefficients(gemm=1.4, step_s=3e-3)), EngineConfig())
    assert [r.last_s for r in again.requests] == [r.last_s for r in requests]
    assert (error_table(requests, again.requests)["error"].abs() < 1e-12).all()
    with pytest.raises(ConfigInfeasibleError, match="refused: kv_capacity_exceeded"):
        replay(requests, TRUE, EngineConfig(num_blocks=1))


def test_SC_6_errors_are_signed_and_of_every_metric() -> None:
    measured = [RequestObs(0.0, 10, 11, 1.0, 2.0), RequestObs(1.0, 10, 1, 2.0, 2.0)]
    simulated = [RequestObs(0.0, 10, 11, 1.2, 1.2 + 0.9), RequestObs(1.0, 10, 1, 2.0, 2.0)]
    table = error_table(measured, simulated, extra={"preemptions": (None, 3.0)}).set_index(["metric", "statistic"])
    assert table.loc[("ttft", "mean"), "error"] == pytest.approx(0.1) and table.loc[("tpot", "mean"), "error"] == pytest.approx(-0.1)
    assert table.loc[("tpot", "mean"), "n"] == 1 and table.loc[("makespan", "all"), "simulated"] == pytest.approx(2.1)
    assert np.isnan(table.loc[("preemptions", "all"), "error"])
    with pytest.raises(ConfigValueError, match="expected the 2 measured"):
        error_table(measured, simulated[:1])
    with pytest.raises(ConfigValueError):
        error_table([], [])


@pytest.mark.parametrize("change", [{"first_s": -1.0}, {"last_s": 0.5}, {"input_tokens": 0}, {"output_tokens": 1.5}, {"arrival_s": float("nan")}])
def test_requests_that_mean_nothing_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigValueError):
        replace(RequestObs(0.0, 10, 11, 1.0, 2.0), **change)  # type: ignore[arg-type]


def test_SQ_52_the_engine_agrees_with_the_closed_form() -> None:
    """The coefficients of a closed loop, put into the engine, make about the same closed loop: outputs of 1000 tokens and more, where clients
    do not stay in step with each other."""
    points = read_points(data_path(POINTS))
    group = [p for p in points if p.group == "Llama-3.1-70B|h100_sxm|vllm|fp8|?|4.1.1" and p.concurrency <= 64]
    fitted = ClosedLoop().fit([p for p, full in zip(group, saturated(group)) if not full])
    profile = of_points("x", fitted, group, source="test")
    step_model = replace(profile.step_model(), valid={})
    config = EngineConfig(max_num_batched_tokens=8192, prefix_cache=False)
    off = [replay_point(p, step_model, config, rounds=4).tpot_s / float(fitted.predict([p])[1][0]) - 1 for p in group]
    assert len(off) > 5 and np.median(np.abs(off)) < 0.06


def test_a_closed_loop_of_one_client_is_one_request_after_the_other() -> None:
    point = PointObs("a", "Llama-3.1-8B", "h100_sxm", "vllm", "", "bf16", 100, 11, 1, 1.0, 1.0)
    got = replay_point(point, Affine(1e-3, 1e-5, 0.0, 0.0), EngineConfig(), rounds=3, shortest=1.0)
    assert (got.ttft_s, got.tpot_s) == pytest.approx((2e-3, 1e-3)) and got.origin == "simulated"


# -- the measured runs -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs() -> RunsReport:
    return validate_runs()


def mean_errors(runs: RunsReport, run: str, estimate: str) -> dict[str, float]:
    e = runs.errors[(runs.errors["run"] == run) & (runs.errors["estimate"] == estimate) & runs.errors["statistic"].isin(["mean", "all"])]
    return dict(zip(e["metric"], e["error"]))


def test_SQ_51_first_composition_without_a_fit() -> None:
    """No host terms, no prefix hits, attention as sum: four errors and the preemptions of the reference."""
    run = RUNS[0]
    for reserve, expected in ((True, [0.040, 0.025, 0.036, 0.027]), (False, [0.054, 0.037, 0.050, 0.042])):
        got = replay(run.requests, run.operators(), EngineConfig(num_blocks=2588, prefix_cache=False, reserve_full_input=reserve))
        table = error_table(run.requests, got.requests).set_index(["metric", "statistic"])["error"]
        errors = [table["ttft", "mean"], table["tpot", "mean"], table["e2e", "mean"], table["makespan", "all"]]
        assert errors == pytest.approx(expected, abs=0.002 if reserve else 0.015)
        assert not reserve or got.preemptions == 193


def test_SQ_51_tensor_parallelism_over_pcie_without_and_with_its_link() -> None:
    run = RUNS[1]
    for link, expected in (((0.0, 1e30), [-0.509, -0.350, -0.416, -0.326]), ((20e-6, 14e9), [-0.014, -0.036, -0.027, -0.026])):
        got = replay(run.requests, run.operators(link), run.config)
        table = error_table(run.requests, got.requests).set_index(["metric", "statistic"])["error"]
        assert [table[m, "all" if m == "makespan" else "mean"] for m in ("ttft", "tpot", "e2e", "makespan")] == pytest.approx(expected, abs=0.001)


@pytest.mark.parametrize("run", [r.name for r in RUNS])
def test_SQ_53_calibrated_runs_meet_the_bounds_cross_validated(runs: RunsReport, run: str) -> None:
    e = runs.errors[(runs.errors["run"] == run) & (runs.errors["estimate"] == "cross-validated")].set_index(["metric", "statistic"])["error"]
    for statistic in ("mean", "p50"):
        assert abs(e["tpot", statistic]) <= 0.05 and abs(e["ttft", statistic]) <= 0.10
    assert abs(e["output_tok_per_s", "all"]) <= 0.05


def test_SC_6_estimates_stand_side_by_side_and_are_labelled(runs: RunsReport) -> None:
    assert {"uncalibrated roofline", "uncalibrated operator tables", "operator tables, assumed link", "in-sample", "cross-validated"} == set(
        runs.errors["estimate"])
    assert abs(mean_errors(runs, RUNS[1].name, "in-sample")["tpot"]) < abs(mean_errors(runs, RUNS[1].name, "uncalibrated operator tables")["tpot"])
    assert "no predictions" in runs.text


# -- profiles ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped())
def test_SC_8_every_shipped_profile_loads_and_says_where_it_is_from(name: str) -> None:
    profile = load_profile(name)
    step_model = profile.step_model()
    assert step_model.seconds(Batch(4, 4000, [], 4, 4, 4)) > 0
    line = str(step_model.provenance)
    assert profile.model in line and profile.gpu in line and "calibrated" in line and profile.engine in line and "TPOT ±" in line


def test_SC_1_a_profile_survives_being_written(tmp_path: Path) -> None:
    before = load_profile(shipped()[0])
    after = load_profile(str(before.write(tmp_path / "größe.yaml")))
    assert after == before


def test_SC_1_the_shipped_runs_are_what_a_fit_gives(runs: RunsReport) -> None:
    for run in RUNS:
        profile = load_profile(f"{run.gpu}-{run.model.lower()}-vllm0.19")
        assert profile.theta == pytest.approx(runs.fits[run.name].theta, rel=1e-4)


@pytest.mark.parametrize(("text", "error", "says"), [
    ("[1]", ConfigFileError, "expected the keys"), ("a: [", ConfigFileError, "no profile"), ("nme: x\n", ConfigUnknownKeyError, "nme: unknown key"),
    ("name: x\n", ConfigValueError, "model: is missing"),
    ("{name: x, model: Qwen3-8B, gpu: l40s, tp: 1, engine: e, prior: {kind: magic}, theta: {}, theta0: {}, source: s}", ConfigValueError, "kind"),
    ("{name: x, model: Qwen3-8B, gpu: l40s, tp: 1, engine: e, prior: {}, theta: {gem: 1}, theta0: {}, source: s}", ConfigUnknownKeyError, "gem"),
])
def test_S_2_a_profile_with_nonsense_is_refused(tmp_path: Path, text: str, error: type[ConfigError], says: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(error, match=says):
        load_profile("p.yaml", tmp_path)


def test_an_unknown_profile_shows_the_closest() -> None:
    with pytest.raises(ConfigFileError, match=r"did you mean .*rtx4090-llama-3\.1-8b-vllm0\.19"):
        load_profile("rtx4090-llama3-8b")


def pool(**keys: Any) -> Any:
    return build_pool("p", PoolSpec.model_validate(keys), Path())


RTX = {"model": "Llama-3.1-8B", "gpu": "rtx4090", "profile": {"kind": "calibrated", "name": "rtx4090-llama-3.1-8b-vllm0.19"}}


def test_SC_1_a_pool_runs_on_a_profile_with_the_blocks_that_were_measured() -> None:
    made = pool(**RTX)
    assert isinstance(made.step_model, Calibrated) and made.engine.num_blocks == 2588
    assert "kv_capacity measured" in made.provenance and "| calibrated" in made.provenance
    assert pool(**RTX, engine={"num_blocks": 100}).engine.num_blocks == 100


def test_SC_1_a_profile_of_other_hardware_is_refused_unless_told() -> None:
    other = {**RTX, "gpu": "h100_sxm", "profile": {**RTX["profile"], "name": shipped()[0]}}  # type: ignore[dict-item]
    with pytest.raises(ConfigInfeasibleError, match=r"was measured with .*the pool is Llama-3\.1-8B on h100_sxm×1; take another profile, or say any"):
        pool(**other)
    told = {**RTX, "gpu": "a100_sxm", "profile": {"kind": "calibrated", "name": "h100_sxmx1-llama-3.1-8b-bf16-trtllm1.0.0rc3", "anyway": True}}
    made = pool(**told)
    assert "a100_sxm×1" in made.provenance and "kv_capacity_unmatched" in made.provenance
    assert made.engine.host.ingress_s > 0


def test_SM_41_computed_capacity_is_marked_as_unmatched() -> None:
    assert "kv_capacity computed (kv_capacity_unmatched)" in pool(model="Llama-3.1-8B", gpu="h100_sxm").provenance
    assert "kv_capacity given" in pool(model="Llama-3.1-8B", gpu="h100_sxm", engine={"num_blocks": 999}).provenance


def test_SM_30_a_pool_runs_on_operator_tables() -> None:
    made = pool(model="Llama-3.1-8B", gpu="h100_sxm", profile={"kind": "operators"})
    assert "operators aiconfigurator" in made.provenance
    tables = {"kind": "operators", "tables": "llmservingsim", "link_s": 2e-5, "link_bw": 1.4e10}
    two = pool(model="Qwen3-32B", gpu="rtx_pro_6000", tp=2, profile=tables)
    assert "RTXPRO6000_Qwen3-32B_tp2" in two.provenance
    with pytest.raises(ConfigError, match="no operator tables of l4"):
        pool(model="Llama-3.1-8B", gpu="l4", profile={"kind": "operators"})


def test_SM_10_a_pool_runs_on_two_regimes() -> None:
    profile = {"kind": "two_regime", "prefill": [0.018, 1e-4, 0.0], "small": [0.02, 6e-7, 4e-5], "large": [0.007, 6e-7, 1.6e-4], "threshold": 95}
    made = pool(model="OPT-13B", gpu="a100_sxm", profile=profile)
    assert made.step_model.seconds(Batch(0, 0, [(100, 0)], 100, 1, 1)) == pytest.approx(0.028)


def test_SM_40_experts_and_whole_prompts_are_refused_with_numbers() -> None:
    with pytest.raises(ConfigInfeasibleError, match="8 experts cannot be split over ep 3"):
        pool(model="Mixtral-8x7B", gpu="h100_sxm", tp=2, profile={"kind": "roofline", "ep": 3})
    with pytest.raises(ConfigInfeasibleError, match="a prompt of 8,192 tokens does not fit into steps of 2,048 without chunks"):
        pool(model="Llama-3.1-8B", gpu="h100_sxm", engine={"max_model_len": 8192, "chunked_prefill": False})


def test_profile_is_plain_data() -> None:
    assert isinstance(load_profile(shipped()[0]), Profile)
