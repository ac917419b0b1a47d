"""Demand on the grid, capacity while work waits."""

from __future__ import annotations

import pytest

from windtunnel.policy.planning.demand import LEAST_DONE, CapacityMeter, DemandMeter, grid_index


def test_PL_304_grid_index_agrees_with_the_grid_for_every_float() -> None:
    for t0, step in ((0.0, 0.1), (0.3, 0.1), (1e6, 0.7), (12.34, 10.0)):
        for k in range(500):
            assert grid_index(t0 + k * step, t0, step) == k


def test_PL_501_rate_is_arrivals_over_closed_slots() -> None:
    meter = DemandMeter(20.0, 10.0, 100.0)
    assert meter.rate_rps(105.0) is None  # unknown is not zero
    for t in (101.0, 102.0, 109.999):
        meter.arrived(t)
    assert meter.rate_rps(109.9999) is None
    meter.arrived(110.0)  # the boundary belongs to the next slot
    assert meter.rate_rps(110.0) == pytest.approx(0.3)
    assert meter.rate_rps(120.0) == pytest.approx(0.2)
    assert meter.rate_rps(130.0) == pytest.approx(0.05)
    assert meter.rate_rps(140.0) == 0.0  # known to be zero
    assert meter.last_s == 110.0


def test_PL_304_late_reads_keep_the_slots() -> None:
    asked, not_asked = DemandMeter(30.0, 10.0, 0.0), DemandMeter(30.0, 10.0, 0.0)
    for i in range(100):
        t = i * 0.37
        asked.arrived(t)
        not_asked.arrived(t)
        asked.rate_rps(t)
    assert asked.rate_rps(57.0) == not_asked.rate_rps(57.0) == sum(20.0 <= i * 0.37 < 50.0 for i in range(100)) / 30.0


def test_capacity_is_unknown_until_busy_replicas_have_completed_enough() -> None:
    meter = CapacityMeter()
    for _ in range(100):
        meter.finished()
    meter.close(10.0, 2, busy=False)  # nothing waited: says nothing
    assert meter.rps is None
    for _ in range(LEAST_DONE - 1):
        meter.finished()
    meter.close(5.0, 2, busy=True)
    assert meter.rps is None
    meter.finished()
    meter.close(0.0, 2, busy=True)
    meter.close(5.0, 0, busy=True)
    assert meter.rps is None
    meter.finished()
    meter.close(5.0, 2, busy=True)
    assert meter.rps == pytest.approx(LEAST_DONE / 20.0)


def test_capacity_counts_busy_time_without_completions_and_forgets() -> None:
    meter = CapacityMeter()

    def busy(seconds: float, done: int) -> None:
        for _ in range(done):
            meter.finished()
        meter.close(seconds, 1, busy=True)

    busy(10.0, 40)
    busy(10.0, 0)
    assert meter.rps == pytest.approx(2.0)
    for _ in range(100):
        busy(10.0, 80)
    assert meter.rps == pytest.approx(8.0, rel=0.02)
