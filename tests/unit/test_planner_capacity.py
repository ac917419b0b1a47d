"""Capacity search against the worked table, step-time regression, estimates."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windtunnel.policy.planning.capacity import Capacity, EngineLimits, Shape, Slo, capacity, chunked, itl_estimate, ttft_estimate
from windtunnel.policy.planning.contract import ForwardPass, StepLoad
from windtunnel.policy.planning.perf_model import Average, LearnedPerf, LinearPerf, Regression, TablePerf, least_squares

MODEL = LinearPerf((0.010, 0.0001), (0.020, 0.0002, 1e-6), (0.020, 0.0001, 1e-6))
LIMITS = EngineLimits(8192, 64, 200_000)


def best(role: str, slo: Slo, hit: float | None = None, accept: float | None = None, isl: float = 3000) -> Capacity:
    found = capacity(role, Shape(isl, 150, hit, accept), LIMITS, slo, MODEL)
    assert found is not None
    return found


@pytest.mark.parametrize(("role", "hit", "accept", "isl", "ttft", "itl", "batch", "rps", "ttft_s", "itl_s", "eligible"), [
    ("prefill", None, None, 3000, 0.5, None, 1, 3.225806, 0.31, None, True),
    ("prefill", 0.5, None, 3000, 0.5, None, 3, 6.521739, 0.46, None, True),
    ("prefill", 0.5, None, 3000, 0.25, None, 1, 6.25, 0.16, None, True),
    ("prefill", None, None, 20_000, 0.5, None, 1, 0.492611, 2.03, None, False),
    ("decode", None, 1, 3000, None, 0.05, 9, 1.212734, None, 0.049475, True),
    ("decode", None, 1, 3000, None, 0.09, 21, 1.577021, None, 0.088775, True),
    ("decode", None, 2, 3000, None, 0.05, 24, 3.245436, None, 0.0493, True),
    ("decode", None, 1, 3000, None, 0.01, 64, 1.858304, None, 0.2296, False),
    ("agg", None, None, 3000, 0.5, 0.15, 25, 1.134752, 0.446875, 0.146875, True),
    ("agg", None, None, 3000, 0.5, 0.05, 5, 0.734619, 0.345375, 0.045375, True),
    ("agg", 0.5, None, 3000, 0.5, 0.15, 31, 1.412381, 0.296325, 0.146325, True),
])
def test_PL_604_table(role: str, hit: float | None, accept: float | None, isl: float, ttft: float | None, itl: float | None, batch: int,
                      rps: float, ttft_s: float | None, itl_s: float | None, eligible: bool) -> None:
    found = best(role, Slo(ttft, itl), hit, accept, isl)
    assert (found.batch, found.eligible) == (batch, eligible)
    assert found.rps == pytest.approx(rps, abs=1e-6)
    assert found.ttft_s == (None if ttft_s is None else pytest.approx(ttft_s))
    assert found.itl_s == (None if itl_s is None else pytest.approx(itl_s))


def test_PL_604_agg_e2e() -> None:
    found = best("agg", Slo(0.5, 0.15))
    assert found.e2e_s == pytest.approx(0.446875 + 0.146875 * 149)


def test_PL_604_what_is_unknown_gives_no_capacity() -> None:
    shape = Shape(3000, 150)
    assert capacity("decode", shape, LIMITS, Slo(), LinearPerf((0.01, 1e-4))) is None
    assert capacity("decode", shape, EngineLimits(8192, 64, None), Slo(), MODEL) is None
    assert capacity("decode", shape, EngineLimits(8192, 64, 3000), Slo(), MODEL) is None  # not one fits
    assert capacity("prefill", shape, EngineLimits(None, 64, 200_000), Slo(), MODEL) is None
    assert capacity("agg", shape, EngineLimits(1, 64, 200_000), Slo(), MODEL) is None
    assert capacity("agg", Shape(8192, 1), EngineLimits(8192, 64, 200_000), Slo(), MODEL) is None  # a step cannot feed even one


def test_PL_604_candidates_above_128_are_spread() -> None:
    tried: list[float] = []

    class Watched(LinearPerf):
        def decode_s(self, requests: float, kv_tokens: float) -> float:
            tried.append(requests)
            return 1.0

    capacity("decode", Shape(10, 10), EngineLimits(8192, 1000, 10**9), Slo(), Watched(decode=(1.0, 0.0, 0.0)))
    assert len(tried) == 128 and tried[0] == 1 and tried[-1] == 1000 and tried == sorted(set(tried))


def test_PL_604_first_of_equals() -> None:
    flat = LinearPerf(prefill=(0.0, 0.001))  # the same rate for every batch
    found = capacity("prefill", Shape(100, 1), EngineLimits(1000, 8, None), Slo(), flat)
    assert found is not None and found.batch == 1


@settings(max_examples=50, deadline=None)
@given(isl=st.integers(1, 20_000), osl=st.integers(1, 4000), hit=st.none() | st.floats(0, 1), itl=st.floats(1e-3, 1.0),
       role=st.sampled_from(["prefill", "decode", "agg"]))
def test_PL_604_a_looser_slo_is_never_worse(isl: int, osl: int, hit: float | None, itl: float, role: str) -> None:
    tight, loose = (capacity(role, Shape(isl, osl, hit), LIMITS, Slo(k, itl * k), MODEL) for k in (1, 2))
    assert (tight is None) == (loose is None)
    if tight is not None and loose is not None and tight.eligible:
        assert loose.eligible and loose.rps >= tight.rps


def test_PL_602_estimates() -> None:
    assert chunked(0, 8192, MODEL.prefill_s) == 0.0
    assert chunked(20_000, 8192, MODEL.prefill_s) == pytest.approx(2.03)
    assert chunked(16_384, 8192, MODEL.prefill_s) == pytest.approx(2 * (0.01 + 0.8192))
    assert ttft_estimate(1000, 2000, 0.5, 8192, MODEL.prefill_s) == pytest.approx(0.01 + 0.15)
    assert ttft_estimate(0, 1000, 1.0, 8192, MODEL.prefill_s) == pytest.approx(0.01 + 0.005)  # hits are cut at 0.95
    assert itl_estimate(0.06, 3.0, 1) == pytest.approx(0.03)
    assert itl_estimate(0.06, None, 4) == 0.06
    assert itl_estimate(0.06, 0.5, 4) == 0.06


def test_PL_601_least_squares() -> None:
    exact = [((float(x), float(y)), 0.02 + 2e-4 * x + 1e-6 * y) for x in (1, 5, 9) for y in (1000, 30_000, 150_000)]
    assert least_squares(exact) == pytest.approx((0.02, 2e-4, 1e-6))
    assert least_squares([((3.0,), 1.0)] * 10) is None
    one = least_squares([((4.0, v), 1.0 + v) for v in (1.0, 2.0, 3.0)])
    assert one == pytest.approx((1.0, 0.0, 1.0))  # the constant one has no slope
    tied = least_squares([((v, 100 * v), 1.0 + 2 * v) for v in (1.0, 2.0, 3.0)])
    assert tied is not None and tied[0] + 5 * tied[1] + 500 * tied[2] == pytest.approx(11.0)
    assert least_squares([]) is None


def step(counter: int, wall_s: float, *, prefill: int = 0, num: int = 0, kv: int = 0, replica: str = "r1") -> ForwardPass:
    return ForwardPass(replica, 0, counter, float(counter), wall_s, StepLoad(int(prefill > 0), prefill, 0, num, kv), StepLoad())


def test_PL_601_ready_after_five_samples_and_an_accepted_fit() -> None:
    model = LearnedPerf()
    for i in range(1, 5):
        model.observe("prefill", step(i, 0.01 + 1e-4 * 100 * i, prefill=100 * i))
    model.observe("prefill", step(4, 9.0, prefill=400))  # the same report again
    assert not model.ready("prefill")
    model.observe("prefill", step(5, 0.0, prefill=0))  # idle
    assert not model.ready("prefill")
    model.observe("prefill", step(6, 0.07, prefill=600))
    assert model.ready("prefill")
    assert model.prefill_s(3000) == pytest.approx(0.31)
    assert not model.ready("decode")


def test_PL_601_negative_slopes() -> None:
    falling = Regression(1)
    for x in range(6):
        falling.add((float(x),), 1.0 - 0.1 * x)
    assert falling.fit is None
    decode = LearnedPerf()
    for i, (n, kv) in enumerate([(1, 1000), (2, 9000), (5, 2000), (7, 8000), (3, 3000), (9, 500)]):
        decode.observe("decode", step(i, 1.0 - 0.01 * n + 1e-5 * kv, num=n, kv=kv))
    assert decode.models["decode"].fit == pytest.approx((decode.models["decode"].fit[0], 0.0, 1e-5))  # type: ignore[index]
    slight = Regression(2, clip=(True, False))
    for n, kv in [(1, 1000), (2, 9000), (5, 2000), (7, 8000), (3, 3000)]:
        slight.add((n, kv), 1.0 - 5e-7 * n + 1e-5 * kv)
    assert slight.fit is not None and slight.fit[1] == pytest.approx(-5e-7)


def test_PL_601_cells_keep_rare_operating_points() -> None:
    model = Regression(1, cells=16, most=64)
    for x in range(8):
        model.add((1000.0 * x,), 0.01 + 1e-4 * 1000 * x)
    for i in range(500):
        model.add((10.0 + i % 3,), 0.012)
    assert len(model) == 64
    assert model.fit is not None and model.fit[1] == pytest.approx(1e-4, rel=0.05)


def test_PL_601_predictions_are_positive() -> None:
    assert LinearPerf(prefill=(-1.0, 1e-6)).prefill_s(10) == 1e-6


def test_PL_601_averages_skip_leading_zeros() -> None:
    average = Average()
    assert average.mean is None
    for value in (0.0, 0.0, 4.0, 0.0):
        average.add(value)
    assert average.mean == 2.0


def test_PL_603_table_is_linear_between_points() -> None:
    table = TablePerf([(0, 0.01), (1000, 0.11), (2000, 0.31)])
    assert [table.prefill_s(x) for x in (500, 1000, 1500, 3000)] == pytest.approx([0.06, 0.11, 0.21, 0.51])
    assert table.ready("prefill") and not table.ready("decode")
    with pytest.raises(ValueError, match="ascending"):
        TablePerf([(1, 1), (1, 2)])


def test_PL_1004_fit_takes_at_most_a_millisecond() -> None:
    from timeit import repeat

    model = Regression(2, cells=16)
    for i in range(200):
        model.add((float(i % 17), float(i * 37 % 101)), 0.02 + 1e-4 * (i % 17) + 1e-6 * (i * 37 % 101))

    def again() -> None:
        model.add((3.0, 50.0), 0.02035)
        assert model.fit is not None

    assert min(repeat(again, number=20, repeat=5)) / 20 < 1e-3


def test_PL_601_rounding_of_a_flat_step_time_is_no_negative_slope() -> None:
    learned = Regression(2, clip=(True, False))
    for i in range(10):
        learned.add((float(i), 1000.0 * ((i * 7) % 10)), 0.02 - 1e-14 * i)
    assert learned.fit is not None and learned.fit[0] == pytest.approx(0.02) and 0.0 <= learned.fit[2] < 1e-15
    falling = Regression(1)
    for i in range(10):
        falling.add((float(i),), 0.02 - 1e-5 * i)
    assert falling.fit is None


def test_PL_603_known_steps_make_a_planner_ready_at_once() -> None:
    learned = LearnedPerf()
    learned.seed("agg", [(x, 0.0, kv, 0.02 + 1e-4 * x + 1e-6 * kv) for x in (0.0, 1000.0, 2000.0) for kv in (0.0, 1e4, 1e5)])
    learned.seed("prefill", [(x, 0.0, 0.0, 0.01 + 1e-4 * x) for x in (1.0, 100.0, 1000.0, 2000.0, 4000.0)])
    assert learned.ready("agg") and learned.ready("prefill") and not learned.ready("decode")
    assert learned.agg_s(500.0, 5e4) == pytest.approx(0.12) and learned.prefill_s(500.0) == pytest.approx(0.06)
