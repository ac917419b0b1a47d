"""Published measurements of whole engines: what is fitted, what is predicted, and how well."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from windtunnel.datafiles import data_path
from windtunnel.errors import ConfigFileError, ConfigValueError, TraceFormatError
from windtunnel.lab.calibrate.closed_loop import ClosedLoop, work
from windtunnel.lab.calibrate.hierarchy import TPOT_LEVELS, Hierarchy, Level
from windtunnel.lab.calibrate.least_squares import free_columns, solve
from windtunnel.lab.calibrate.observe import PointObs, ranks, read_points
from windtunnel.lab.calibrate.silicon import POINTS, TARGETS, SiliconReport, measurements, predict_unseen, saturated, validate_silicon

POINT = PointObs("a", "Llama-3.1-70B", "h100_sxm", "vllm", "0.12", "fp8", 1024, 1024, 16, 0.2, 0.02, 4)


@pytest.fixture(scope="module")
def report() -> SiliconReport:
    return validate_silicon()


def median_error(report: SiliconReport, estimate: str, metric: str, where: str = "all") -> float:
    e = report.errors
    return float(e[(e["slice"] == where) & (e["estimate"] == estimate) & (e["metric"] == metric)]["median_abs_error"].iloc[0])


@pytest.mark.parametrize("metric", sorted(TARGETS))
def test_SQ_53_cross_validated_errors_meet_the_targets(report: SiliconReport, metric: str) -> None:
    assert median_error(report, "cross-validated", metric) <= TARGETS[metric]


def test_SQ_53_in_sample_saturated_and_uncalibrated_are_apart(report: SiliconReport) -> None:
    assert median_error(report, "in-sample", "tpot") < median_error(report, "cross-validated", "tpot")
    assert median_error(report, "uncalibrated roofline", "tpot") > 0.1
    assert median_error(report, "cross-validated", "ttft", "saturated") > 0.2  # a queue is not what was fitted, and it is not hidden
    assert int(report.points["saturated"].sum()) + int(report.errors[report.errors["slice"] == "all"]["n"].iloc[0]) == len(report.points)


def test_SQ_53_a_system_that_was_never_seen_is_better_than_the_roofline(report: SiliconReport) -> None:
    assert median_error(report, "unseen system", "tpot") < median_error(report, "uncalibrated roofline", "tpot")
    assert median_error(report, "unseen system", "ttft") < 0.5 * median_error(report, "uncalibrated roofline", "ttft")


def test_SQ_52_each_measurement_counts_once(report: SiliconReport) -> None:
    """Published twice, under two names or rounded: a copy in another fold would be the answer."""
    points = read_points(data_path(POINTS))
    assert len(points) == 2624 and len(report.points) == len(set(measurements(points))) < 2200
    rounded = replace(POINT, id="b", tpot_s=0.02001)
    assert measurements([POINT, rounded, replace(POINT, tpot_s=0.021), replace(POINT, gpu="h200_sxm")]) == [1, 1, 2, 3]


def test_SQ_52_saturated_by_kv_and_by_jump() -> None:
    steps = [replace(POINT, concurrency=c, ttft_s=t) for c, t in ((4, 0.1), (8, 0.2), (16, 2.5), (32, 2.6))]
    assert saturated(steps) == [False, False, True, True]
    assert saturated([replace(POINT, gpus=2, isl=8192, concurrency=512)]) == [True]
    assert saturated([]) == []


@pytest.mark.parametrize(("published", "meant"), [
    ((8, 1, 8, 1), (8, 1, 1)), ((64, 1, 8, 8), (8, 8, 1)), ((16, 1, 4, 4), (4, 4, 1)), ((1, 64, 8, 8), (8, 8, 8)), ((1, 8, 1, 8), (8, 8, 8)),
    ((4, 4, 1, 16), (4, 4, 4)), ((2, 2, 1, 4), (2, 2, 2)), ((4, 1, 1, 4), (4, 4, 1)), ((1, 1, 1, 1), (1, 1, 1)), ((36, 1, 36, 1), (36, 1, 1))])
def test_SQ_52_published_sizes_are_products_sometimes(published: tuple[int, int, int, int], meant: tuple[int, int, int]) -> None:
    assert ranks(*published) == meant


def test_SC_4_the_same_data_gives_the_same_fit_bit_for_bit() -> None:
    points = [replace(POINT, id=str(c), concurrency=c, tpot_s=0.01 + c * 1e-4, ttft_s=0.1 + c * 1e-3) for c in (4, 8, 16, 32, 64, 128)]
    one, two = ClosedLoop().fit(points), ClosedLoop().fit(points)
    for key, theta in one.tpot.found.items():
        assert np.array_equal(theta, two.tpot.found[key])


def test_SC_4_recovers_what_made_the_data() -> None:
    rng = np.random.default_rng(1)
    X, theta = rng.uniform(0.5, 2, (40, 3)), np.array([2.0, 0.5, 1.5])
    assert solve(X, X @ theta, np.ones(3)) == pytest.approx(theta, rel=1e-2)  # the ridge pulls by as much
    y = X @ theta
    y[3] *= 4  # one point that no curve fits
    assert solve(X, y, np.ones(3)) == pytest.approx(theta, rel=0.05)


def test_SC_4_coefficients_are_never_negative() -> None:
    X = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0], [1.0, 4.0], [1.0, 5.0], [1.0, 6.0]])
    assert (solve(X, 10 - X[:, 1], np.ones(2)) >= 0).all()


def test_SC_3_one_parameter_needs_three_observations() -> None:
    X, prior = np.array([[3.0, 1.0]] * 5), np.ones(2)
    assert free_columns(X, np.full(5, 4.0), prior).tolist() == [True, False]
    assert free_columns(X[:2], np.full(2, 4.0), prior).tolist() == [False, False]
    assert np.array_equal(solve(X[:2], np.full(2, 8.0), prior), prior)
    assert free_columns(np.vstack([X, X]), np.full(10, 4.0), prior).all()


def test_a_level_without_data_passes_on_what_the_level_above_found() -> None:
    levels = (Level("all", lambda p: "all", 1e-6), Level("gpu", lambda p: p.gpu, 1e-6))
    points = [replace(POINT, gpu="h100_sxm")] * 3 + [replace(POINT, gpu="h200_sxm")] * 3
    fitted = Hierarchy(np.array([1.0]), levels).fit(points, np.ones((6, 1)), np.array([2.0, 2, 2, 4, 4, 4]))
    assert fitted.coefficients(points[0])[0] == pytest.approx([2.0], rel=1e-4) and fitted.coefficients(points[0])[1] == "gpu"
    other, where = fitted.coefficients(replace(POINT, gpu="b200_sxm"))
    assert where == "all" and 2 <= other[0] <= 4
    assert Hierarchy(np.array([1.0]), TPOT_LEVELS).coefficients(POINT) == (pytest.approx([1.0]), "")


def test_an_unfitted_closed_loop_predicts_from_the_prior() -> None:
    (ttft,), (tpot,) = ClosedLoop().predict([POINT])
    assert tpot > work(POINT).step_ms / 1e3 and ttft > work(POINT).prompt_ms / 2e3
    assert ClosedLoop().predict([])[0].size == 0 and ClosedLoop().fit([]).tpot.found == {}


def test_a_point_used_in_the_fit_is_never_a_prediction(tmp_path: Path) -> None:
    frame = pd.read_csv(data_path(POINTS))
    some = frame[(frame["mode"] == "agg") & (frame["concurrency"] == 16)].head(40).copy()
    new = some.copy()
    new["silicon_tpot_ms"] *= 1.02
    pd.concat([some, new]).to_csv(tmp_path / "other.csv")
    table, errors = predict_unseen(tmp_path / "other.csv")
    assert 0 < len(table) <= 40
    assert (errors[errors["slice"] == "all"]["n"] <= len(table)).all()


@pytest.mark.parametrize("change", [{"isl": 0}, {"concurrency": 1.5}, {"ttft_s": 0.0}, {"tpot_s": float("nan")}, {"gpus": -1}])
def test_points_that_mean_nothing_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigValueError, match=next(iter(change))):
        replace(POINT, **change)  # type: ignore[arg-type]


def test_a_file_of_points_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,isl\nx,1\n")
    with pytest.raises(TraceFormatError, match="no column backend"):
        read_points(tmp_path / "a.csv")
    with pytest.raises(ConfigFileError):
        read_points(tmp_path / "none.csv")
