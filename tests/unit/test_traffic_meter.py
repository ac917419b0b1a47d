"""Traffic windows, their merge, engine reports."""

from __future__ import annotations

from math import nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windtunnel.events import Arrived, Cancelled, Finished, Request
from windtunnel.policy.planning.contract import ForwardPass, StepLoad, TrafficMetrics
from windtunnel.policy.planning.demand import TrafficMeter, counter_delta, merge_windows
from windtunnel.policy.planning.fpm_store import FpmStore

A = TrafficMetrics(5.0, 10.0, isl=100.0, osl=50.0, isl_count=10, osl_count=4)
B = TrafficMetrics(5.0, 30.0, isl=200.0, isl_count=30)


def arrive(meter: TrafficMeter, name: str, t: float, tokens: int | None = 100, pool: str | None = None) -> None:
    meter.handle(Arrived(Request(name, "t", "m", 0, t, input_tokens=tokens, pool=pool)), t)


def test_PL_504_worked_merge() -> None:
    both = merge_windows([A, B], 10.0)
    assert both is not None
    assert (both.duration_s, both.num_req, both.isl, both.osl, both.coverage) == (10.0, 40.0, 175.0, 50.0, 1.0)
    third = merge_windows([A, B, None], 15.0)
    assert third is not None and third.coverage == pytest.approx(0.667, abs=1e-3)
    assert (third.num_req, third.isl, third.osl) == (40.0, 175.0, 50.0)
    assert merge_windows([A], 15.0) is None
    assert merge_windows([], 5.0) is None
    assert merge_windows([A, None], 10.0) is not None  # exactly half is enough


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 50)), min_size=1, max_size=8))
def test_PL_504_merge_in_any_grouping_is_the_same(windows: list[tuple[float, int]]) -> None:
    parts = [TrafficMetrics(5.0, float(n), isl=v if n else None, isl_count=n) for v, n in windows]
    whole = merge_windows(parts, 5.0 * len(parts))
    half = len(parts) // 2
    groups = [merge_windows(g, 5.0 * len(g)) for g in (parts[:half], parts[half:]) if g]
    again = merge_windows(groups, 5.0 * len(parts))
    assert whole is not None and again is not None
    assert again.isl == (None if whole.isl is None else pytest.approx(whole.isl))
    assert (again.num_req, again.isl_count, again.duration_s) == (whole.num_req, whole.isl_count, whole.duration_s)


def test_PL_501_demand_is_arrivals_not_completions() -> None:
    meter = TrafficMeter(5.0, 10.0)
    for i in range(4):
        arrive(meter, f"r{i}", 1.0 + i)
    meter.handle(Finished("r0", 1, "e", 11, input_tokens=100, cached_tokens=25, first_token_s=2.0), 4.0)
    meter.handle(Cancelled("r1"), 4.0)
    meter.handle(Finished("r1", 1, "e", 11), 4.5)  # cancelled: its answer counts no more
    meter.handle(Finished("stranger", 1, "e", 99), 4.6)
    seen = meter.window(5.0, 5.0)
    assert seen is not None
    assert (seen.num_req, seen.isl, seen.isl_count, seen.osl, seen.osl_count) == (4.0, 100.0, 4.0, 11.0, 1.0)
    assert (seen.kv_hit_rate, seen.kv_hit_tokens, seen.ttft_s, seen.itl_s, seen.itl_count) == (0.25, 100.0, 1.0, 0.2, 10.0)


def test_PL_502_unread_is_unknown_and_quiet_is_zero() -> None:
    meter = TrafficMeter(5.0, 30.0)
    arrive(meter, "a", 1.0)
    assert meter.window(5.0, 10.0, 0.6) is None  # before the start nothing was seen
    quiet = meter.window(10.0, 5.0)
    assert quiet is not None and (quiet.num_req, quiet.isl, quiet.osl) == (0.0, None, None)
    meter.unread(10.0, 15.0)
    assert meter.window(15.0, 5.0) is None
    part = meter.window(15.0, 15.0)
    assert part is not None and part.num_req == 1.0 and part.coverage == pytest.approx(2 / 3)


def test_PL_502_windows_are_kept_as_long_as_declared() -> None:
    meter = TrafficMeter(5.0, 20.0)
    for i in range(1000):
        arrive(meter, f"r{i}", i * 1.0)
    seen = meter.window(1000.0, 20.0)
    assert seen is not None and seen.num_req == 20.0
    assert len(meter._slots) <= 7


def test_PL_501_other_pools_and_lengths_unknown() -> None:
    meter = TrafficMeter(5.0, 5.0, mine=lambda r: r.pool == "x")
    arrive(meter, "a", 1.0, None, "x")
    arrive(meter, "b", 1.0, 10, "y")
    seen = meter.window(5.0, 5.0)
    assert seen is not None and (seen.num_req, seen.isl) == (1.0, None)


def test_PL_003_odd_numbers_are_counted_and_left_out() -> None:
    meter = TrafficMeter(5.0, 5.0)
    arrive(meter, "a", 1.0)
    meter.handle(Finished("a", 1, "e", 10, first_token_s=nan, engine={"accept_length": nan}), 2.0)
    seen = meter.window(5.0, 5.0)
    assert seen is not None and seen.osl == 10.0 and seen.itl_s is None
    assert meter.invalid.get("itl_s", 0) >= 0


def test_PL_501_scraped_windows_and_counters() -> None:
    meter = TrafficMeter(5.0, 10.0)
    meter.observe(A, 5.0)
    meter.observe(B, 10.0)
    seen = meter.window(10.0, 10.0)
    assert seen is not None and (seen.num_req, seen.isl, seen.osl) == (40.0, 175.0, 50.0)
    assert [counter_delta(None, 5.0), counter_delta(5.0, 8.0), counter_delta(8.0, 3.0)] == [None, 3.0, 3.0]


def report(replica: str, at: float, counter: int, rank: int = 0) -> ForwardPass:
    return ForwardPass(replica, rank, counter, at, 0.1, StepLoad(), StepLoad())


def test_PL_503_newest_report_of_live_replicas() -> None:
    store = FpmStore(15.0)
    live = {"agg": {"a", "b"}}
    assert store.data(live, 0.0) is None
    store.report("agg", report("a", 1.0, 1))
    store.report("agg", report("a", 3.0, 3))
    store.report("agg", report("a", 2.0, 2))  # late
    store.report("agg", report("a", 3.0, 3, rank=1))
    store.report("agg", report("gone", 3.0, 3))
    store.report("other", report("x", 3.0, 3))
    data = store.data(live, 4.0)
    assert data is not None and set(data.engines) == {"agg"}
    assert {k: r.counter for k, r in data.engines["agg"].items()} == {"a/0": 3, "a/1": 3}
    assert store.data(live, 18.1) is None  # too old
