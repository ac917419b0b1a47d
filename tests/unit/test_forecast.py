"""Forecasters: worked numbers, idle start, gaps, quantiles, scores."""

from __future__ import annotations

from math import inf, isfinite, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windtunnel.policy.planning.forecast import (
    Constant,
    Forecaster,
    Kalman,
    Model,
    MovingMean,
    empirical_quantile,
    provisioning_horizon_s,
)
from windtunnel.policy.planning.holt_winters import HoltWinters

MODELS = {
    "constant": Constant, "moving_mean": MovingMean, "kalman": Kalman, "holt_winters": HoltWinters,
    "seasonal": lambda: HoltWinters(season_len=3),
}


def fed(model: Model, values: list[float | None], *, log: bool = False, window_s: float = 1.0) -> Forecaster:
    forecaster = Forecaster(model, window_s, log=log)
    for i, value in enumerate(values):
        forecaster.observe(value, (i + 1) * window_s)
    return forecaster


def mean(forecaster: Forecaster, horizon_s: float = 1.0) -> float:
    found = forecaster.predict(horizon_s)
    assert found is not None
    return found.mean


def test_PL_506_kalman_worked_numbers() -> None:
    model = Kalman()
    ramp = fed(model, [10.0, 12.0, 14.0, 16.0, 18.0, 20.0])
    assert (model.level, model.trend) == pytest.approx((19.99607, 1.99762), abs=1e-5)
    assert mean(ramp) == pytest.approx(21.99369, abs=1e-5)
    assert mean(ramp, 3.0) == pytest.approx(25.98893, abs=1e-5)
    step = Kalman()
    fed(step, [100.0] * 5 + [200.0])
    assert (step.level, step.trend) == pytest.approx((162.38442, 20.56882), abs=1e-5)


def test_PL_506_kalman_says_last_value_below_min_points() -> None:
    forecast = fed(Kalman(), [10.0, 20.0, 30.0, 40.0]).predict(5.0)
    assert forecast is not None
    assert (forecast.mean, forecast.sd, forecast.model_ready) == (40.0, None, False)


def test_PL_506_kalman_gap_equals_as_many_single_misses() -> None:
    one, many = Kalman(), Kalman()
    for model in (one, many):
        for value in (3.0, 5.0, 4.0, 9.0, 8.0, 11.0):
            model.observe(value)
    one.miss(7)
    for _ in range(7):
        many.miss(1)
    assert one.ahead(2.5) == pytest.approx(many.ahead(2.5))


def test_PL_506_holt_winters_worked_numbers() -> None:
    seasonal = fed(HoltWinters(season_len=2), [10.0, 20.0, 12.0, 22.0, 14.0, 24.0])
    assert mean(seasonal) == pytest.approx(15.39875, abs=1e-9)
    assert mean(seasonal, 2.0) == pytest.approx(26.32125, abs=1e-9)
    plain = HoltWinters(0.5, 0.2)
    fed(plain, [10.0, 12.0, 14.0, 16.0])
    assert (plain.level, plain.trend) == pytest.approx((14.54, 0.772), abs=1e-9)


def test_PL_506_season_keeps_its_phase_over_a_gap() -> None:
    values: list[float | None] = [1.0, 5.0, 9.0] * 6
    whole, gap = fed(HoltWinters(season_len=3), values), fed(HoltWinters(season_len=3), [*values[:9], None, None, *values[11:]])
    for h in (1.0, 2.0, 3.0):
        assert mean(gap, h) == pytest.approx(mean(whole, h), abs=1e-9)
    jumped = Forecaster(HoltWinters(season_len=3), 1.0)
    for i, value in enumerate(values[:9] + [None] * 9000):
        if value is not None:
            jumped.observe(value, float(i))
    jumped.observe(1.0, 9000.0)  # slot 0 again, far later
    assert mean(jumped) == pytest.approx(5.0)


def test_PL_506_moving_mean_and_constant() -> None:
    assert mean(fed(MovingMean(3), [1.0, 2.0, 3.0, None, 7.0])) == 4.0
    assert mean(fed(Constant(), [1.0, 2.0, None])) == 2.0


def test_PL_505_zeros_before_demand_are_ignored_and_later_ones_count() -> None:
    forecaster = fed(MovingMean(), [0.0, 0.0])
    assert forecaster.predict(1.0) is None
    forecaster.observe(6.0, 3.0)
    forecaster.observe(0.0, 4.0)
    assert mean(forecaster) == 3.0
    forecaster.reset_idle_skip()
    forecaster.observe(0.0, 5.0)
    assert mean(forecaster) == 3.0
    forecaster.observe(6.0, 6.0)
    assert mean(forecaster) == 4.0


def test_PL_307_a_window_is_taken_once() -> None:
    forecaster = fed(MovingMean(), [2.0, 4.0])
    forecaster.observe(100.0, 2.0)
    forecaster.observe(100.0, 1.0)
    assert mean(forecaster) == 3.0


def test_PL_505_asking_changes_nothing() -> None:
    asked, quiet = fed(Kalman(), [3.0, 4.0, 6.0, 5.0, 9.0]), fed(Kalman(), [3.0, 4.0, 6.0, 5.0, 9.0])
    first = [asked.predict(h, q) for h in (1.0, 2.5) for q in (None, 0.9)]
    assert first == [asked.predict(h, q) for h in (1.0, 2.5) for q in (None, 0.9)]
    asked.observe(7.0, 6.0)
    quiet.observe(7.0, 6.0)
    assert asked.predict(1.0) == quiet.predict(1.0)


def test_PL_507_horizon() -> None:
    assert provisioning_horizon_s("provisioning", 60.0, None) == 60.0
    assert provisioning_horizon_s("provisioning", 60.0, 200.0) == 200.0
    assert provisioning_horizon_s("provisioning", 60.0, 20.0) == 60.0
    assert provisioning_horizon_s("next", 60.0, 200.0) == 60.0
    assert provisioning_horizon_s(90.0, 60.0, 200.0) == 90.0


def test_PL_508_quantile_by_sd_then_by_errors() -> None:
    forecaster = fed(Kalman(), [10.0] * 5)
    early = forecaster.predict(1.0, 0.9)
    assert early is not None and early.sd is not None
    assert early.value == pytest.approx(early.mean + 1.2815515655 * early.sd)
    flat = fed(Constant(), [10.0])
    plain = flat.predict(1.0, 0.9)
    assert plain is not None and plain.value == 10.0  # neither errors nor sd
    for i in range(17):
        flat.observe(10.0 if i % 2 else 12.0, float(2 + i))
        flat.predict(1.0, 0.9)
    late = flat.predict(1.0, 1.0 - 1e-12)
    assert late is not None and late.value == pytest.approx(late.mean + 2.0)
    other = flat.predict(2.0, 0.9)  # errors of another horizon say nothing here
    assert other is not None and other.value == other.mean


def test_PL_508_quantile_is_never_negative() -> None:
    forecaster = fed(Kalman(), [1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    low = forecaster.predict(1.0, 0.001)
    assert low is not None and low.value == 0.0


def test_PL_508_empirical_quantile_is_linear() -> None:
    assert empirical_quantile([1.0, 2.0, 4.0], 0.75) == 3.0
    assert empirical_quantile([5.0], 0.99) == 5.0


def test_PL_509_scores_when_the_target_window_closes() -> None:
    forecaster = fed(Constant(), [10.0])
    assert forecaster.score is None
    forecaster.predict(2.0)
    forecaster.observe(14.0, 2.0)
    assert forecaster.score is None  # two steps ahead is not yet
    forecaster.predict(2.0)
    forecaster.observe(12.0, 3.0)
    score = forecaster.score
    assert score is not None
    assert (score.count, score.last_error, score.bias, score.wape) == (1, 2.0, 2.0, pytest.approx(2 / 12))
    forecaster.observe(None, 4.0)  # unread: the forecast for it is dropped
    assert forecaster.score == score


def test_PL_509_wape_is_unknown_without_demand() -> None:
    forecaster = fed(Constant(), [10.0])
    forecaster.predict(1.0)
    forecaster.observe(0.0, 2.0)
    score = forecaster.score
    assert score is not None and score.wape is None and score.bias == -10.0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("log", [False, True])
@settings(max_examples=20, deadline=None)
@given(value=st.floats(1e-3, 1e6), n=st.integers(1, 20), h=st.floats(0.1, 10))
def test_PL_T10_constant_series_constant_forecast(name: str, log: bool, value: float, n: int, h: float) -> None:
    assert mean(fed(MODELS[name](), [value] * n, log=log), h) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("log", [False, True])
@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.none() | st.floats(0, 1e9), max_size=30), h=st.floats(0.1, 50), q=st.none() | st.floats(0.01, 0.99))
def test_PL_T10_never_negative_never_raises(name: str, log: bool, values: list[float | None], h: float, q: float | None) -> None:
    found = fed(MODELS[name](), values, log=log).predict(h, q)
    if not any(values):
        assert found is None
    else:
        assert found is not None and found.mean >= 0 and found.value >= 0 and (log or (isfinite(found.mean) and isfinite(found.value)))


@pytest.mark.parametrize("name", ["constant", "moving_mean", "holt_winters", "seasonal"])
@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.floats(0.5, 1e4), min_size=1, max_size=20), k=st.floats(0.01, 100))
def test_PL_T10_scales_with_its_input(name: str, values: list[float], k: float) -> None:
    plain = mean(fed(MODELS[name](), list(values)))
    assert mean(fed(MODELS[name](), [k * v for v in values])) == pytest.approx(k * plain, rel=1e-6, abs=1e-6 * k * max(values))


@pytest.mark.parametrize("odd", [nan, inf])
def test_PL_003_non_finite_readings_count_as_missing(odd: float) -> None:
    assert mean(fed(Kalman(), [5.0] * 5 + [odd])) == pytest.approx(5.0)
