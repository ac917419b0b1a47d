"""Queues whose answers are known: request by request, in the steady state, and for a batch that shares a server. All through the real control."""

from __future__ import annotations

import numpy as np
import pytest

from windtunnel.lab.stats import Interval
from windtunnel.lab.validation.batching import LOADS, chain, run_load
from windtunnel.lab.validation.check import Check, statistical
from windtunnel.lab.validation.pathwise import kiefer_wolfowitz, lindley, processor_sharing
from windtunnel.lab.validation.queueing import CASES, PATHS, run_case, run_path
from windtunnel.lab.validation.station import fly
from windtunnel.sim.service import ServiceConfig
from windtunnel.sources.arrivals import ArrivalSource
from windtunnel.sources.dist import Exponential

FAST = {"M/M/1 ρ .5": 200_000, "loss M/D/10/10 a 8": 200_000, "M/D/1-PS ρ .7": 120_000}


def misses(checks: list[Check]) -> list[Check]:
    assert checks
    return [c for c in checks if not c.passed]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
def test_SQ_2_every_request_as_the_recursion_says(path) -> None:
    assert not misses(run_path(path, 20_000 if path.law == "Exp" else 8_000))


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
def test_SQ_2_two_hundred_thousand_requests(path) -> None:
    assert not misses(run_path(path, 200_000))


@pytest.mark.parametrize("case", [c for c in CASES if c.fast], ids=lambda c: c.name)
def test_SQ_3_steady_state_and_SQ_4_littles_law(case) -> None:
    assert not misses(run_case(case, FAST.get(case.name, 60_000)))


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in CASES if not c.fast], ids=lambda c: c.name)
def test_SQ_3_the_whole_table(case) -> None:
    assert not misses(run_case(case))


@pytest.mark.parametrize(("batch", "rate", "present", "sojourn_s", "itl_s"), [
    (64, 2, 8.782609, 4.391304, 0.0219565), (64, 5, 25.25, 5.05, 0.02525), (64, 8, 47.691517, 5.961440, 0.0296942),
    (64, 9, 60.580434, 6.731159, 0.0314587), (256, 12, 93.230769, 7.769231, 0.0388462)])
def test_SQ_10_the_chain(batch: int, rate: float, present: float, sojourn_s: float, itl_s: float) -> None:
    L, itl = chain(batch, rate)
    assert (L, L / rate, itl) == pytest.approx((present, sojourn_s, itl_s), rel=2e-6)


@pytest.mark.parametrize("load", [x for x in LOADS if x.fast], ids=lambda x: x.name)
def test_SQ_10_continuous_batching_is_a_shared_server(load) -> None:
    assert not misses(run_load(load))


@pytest.mark.slow
@pytest.mark.parametrize("load", [x for x in LOADS if not x.fast], ids=lambda x: x.name)
def test_SQ_10_all_loads(load) -> None:
    assert not misses(run_load(load))


def test_SQ_1_a_queue_in_the_control_and_in_the_engine_are_the_same_queue() -> None:
    def flown(limit: int | None):
        source = ArrivalSource(2.7, input_tokens=1, output_tokens=1, service_s=Exponential(1.0), count=5000, rng=4)
        return fly(source, ServiceConfig(3), limit=limit, check=True).in_order_of_arrival()

    inside, outside = flown(None), flown(3)
    assert inside.done.all() and outside.done.all()
    assert np.array_equal(inside.wait_s, outside.wait_s) and np.array_equal(inside.ended_s, outside.ended_s)


def test_SQ_4_utilisation_is_work_offered_per_server() -> None:
    source = ArrivalSource(3.2, input_tokens=1, output_tokens=1, service_s=Exponential(1.0), count=100_000, rng=8)
    f = fly(source, ServiceConfig(4))
    span = f.ended_s.max() - f.arrived_s.min()
    busy = float((f.ended_s - f.arrived_s - f.wait_s).sum()) / (4 * span)  # server-seconds spent
    rate = len(f.ids) / span
    assert busy == pytest.approx(rate * float(f.service_s.mean()) / 4, rel=1e-9)
    assert busy == pytest.approx(0.8, rel=0.02)


def test_the_recursions_agree_where_they_must() -> None:
    rng = np.random.default_rng(0)
    at, work = np.cumsum(rng.exponential(1.0, 500)), rng.exponential(0.9, 500)
    assert kiefer_wolfowitz(at, work, 1) == pytest.approx(lindley(at, work), abs=1e-9)
    assert processor_sharing(np.array([0.0, 1.0]), np.array([2.0, 0.5])) == pytest.approx([2.5, 2.0])
    assert lindley(np.array([]), np.array([])).size == 0


@pytest.mark.parametrize(("value", "half", "reliable", "passed"), [
    (1.009, 0.001, True, True), (1.011, 0.001, True, False), (1.04, 0.021, True, True), (1.0, 0.03, True, False), (1.0, 0.01, False, False),
    (float("nan"), float("inf"), False, False)])
def test_SQ_3_what_passes(value: float, half: float, reliable: bool, passed: bool) -> None:
    found = Interval(value, value - half, value + half, 20, reliable)
    assert statistical("s", "w", "m", 1.0, found, 20, loose=False).passed is passed
