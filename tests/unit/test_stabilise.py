"""Stabilisation bounds: worked rows, each rule by itself, history."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windtunnel.policy.planning.contract import (
    ComponentTarget,
    ObservationData,
    Override,
    OverrideType,
    PipelineContext,
    PoolState,
    ScalingProposal,
    Stage,
    StageRequest,
    WorkerState,
)
from windtunnel.policy.planning.settings import PlannerSettings
from windtunnel.policy.planning.settings_blocks import PoolSettings, StabiliseSettings
from windtunnel.policy.planning.sizing import Sizing
from windtunnel.policy.planning.stabilise import PoolHistory, Stabilise

Bounds = tuple[int | None, int | None]


class Pool:
    """A pool of `c` replicas that is asked about every 5 s."""

    def __init__(self, **kw: Any) -> None:
        self.history = PoolHistory(StabiliseSettings(**kw))
        self.at = 0.0
        self.why: tuple[str | None, str | None] = (None, None)

    def tick(self, c: int, r: int, ready: int | None = None, ticks: int = 1) -> Bounds:
        for _ in range(ticks):
            self.at += 5.0
            low, high = self.history.bounds(self.at, c, r, c if ready is None else ready)
        self.why = (str(low[1]) if low else None, str(high[1]) if high else None)
        return (low[0] if low else None, high[0] if high else None)


def test_PL_611_window_row() -> None:
    pool = Pool()
    pool.tick(10, 9, ticks=60)
    assert pool.tick(10, 4) == (9, 20)
    assert pool.why == ("stabilisation_window", "step_limit")


def test_PL_611_nobody_shrinks_on_one_look() -> None:
    pool = Pool()
    assert pool.tick(10, 1) == (10, 20) and pool.why[0] == "stabilisation_window"
    assert pool.tick(10, 1, ticks=59) == (10, 20)  # 295 s later
    assert pool.tick(10, 1) == (5, 20) and pool.why[0] == "step_limit"
    assert Pool(down_window_s=0).tick(10, 1) == (5, 20)


def test_PL_611_tolerance_row() -> None:
    pool = Pool()
    pool.tick(10, 9, ticks=70)
    assert pool.tick(10, 9) == (10, 20) and pool.why[0] == "tolerance"


def test_PL_611_panic_row() -> None:
    pool = Pool()
    pool.tick(2, 2, ticks=60)
    assert pool.tick(2, 30) == (2, None) and pool.why == ("panic", None)


def test_PL_611_small_step_row() -> None:
    pool = Pool()
    pool.tick(2, 2, ticks=60)
    assert pool.tick(2, 3) == (2, 6)


def test_PL_611_down_after_up_row() -> None:
    pool = Pool()
    pool.tick(8, 8, ticks=60)
    assert pool.tick(10, 10, ticks=5) == (10, 20)  # it became 10 twenty seconds ago
    assert pool.why[0] == "cooldown"
    off = Pool(down_window_s=0.0)
    off.tick(8, 8, ticks=60)
    assert off.tick(10, 2, ticks=24) == (10, 20)  # 115 s after the step up
    assert off.tick(10, 2) == (5, 20)


def test_PL_611_step_limit_looks_at_the_extremes_of_the_period() -> None:
    pool = Pool(down_after_up_s=0.0, down_cooldown_s=0.0, down_window_s=0.0, down_tolerance=0.0, panic_factor=1e9)
    pool.tick(4, 4, ticks=10)
    assert pool.tick(8, 30) == (4, 8)  # 4 was true less than 15 s ago: no more than 8, but 8 is not taken away either
    pool.tick(8, 30)
    assert pool.tick(8, 30) == (4, 16)


def test_PL_611_cooldowns_and_up_window() -> None:
    pool = Pool(up_cooldown_s=30.0, up_window_s=20.0, panic_factor=1e9, down_window_s=0.0)
    pool.tick(4, 4, ticks=10)
    assert pool.tick(5, 8) == (5, 5)
    pool.tick(5, 8, ticks=5)
    assert pool.tick(5, 8) == (5, 8)
    assert pool.tick(5, 30) == (5, 8)  # the least wish of the last 20 s
    assert pool.tick(5, 6) == (5, 6) and pool.why[1] == "stabilisation_window"
    down = Pool(down_window_s=0.0, down_tolerance=0.0)
    down.tick(8, 8, ticks=60)
    assert down.tick(6, 6) == (6, 12)
    assert down.tick(6, 1, ticks=12) == (2, 12)


def test_PL_611_panic_lasts_until_a_whole_window_was_calm() -> None:
    pool = Pool(panic_window_s=60.0)
    pool.tick(2, 2, ticks=10)
    assert pool.tick(2, 30)[1] is None
    assert pool.tick(20, 20, ticks=11) == (20, None)
    assert pool.tick(20, 20)[1] == 40
    assert not pool.history.panic


def test_PL_611_zero_times_leave_rules_out() -> None:
    pool = Pool(down_cooldown_s=0, down_after_up_s=0, down_window_s=0, down_tolerance=0, down_replicas=1000, down_factor=1000.0)
    pool.tick(8, 8)
    assert pool.tick(4, 1)[0] is None  # a floor of 0 is none


def test_PL_611_a_tick_that_decided_nothing_leaves_no_wish() -> None:
    pool = Pool(down_tolerance=0.0)
    pool.tick(10, 4, ticks=70)
    assert pool.tick(10, 9) == (9, 20)
    pool.history.forget(pool.at)
    assert pool.tick(10, 4) == (5, 20)


def test_PL_307_the_same_tick_twice_is_one() -> None:
    once, twice = Pool(), Pool()
    for c, r in ((4, 4), (5, 9), (5, 3), (6, 6)):
        first = once.tick(c, r)
        twice.tick(c, r)
        twice.at -= 5.0
        assert twice.tick(c, r) == first
    assert once.tick(6, 2) == twice.tick(6, 2)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 80)), min_size=1, max_size=40))
def test_PL_611_bounds_never_push_what_wants_to_stay(steps: list[tuple[int, int]]) -> None:
    pool = Pool()
    for c, r in steps:
        low, high = pool.tick(c, r)
        assert low is None or low <= c
        assert high is None or high >= c


def plugin() -> Stabilise:
    config = PlannerSettings(pools={"agg": PoolSettings()})
    return Stabilise(config, Sizing(config))


def ask(at: float, c: int | None, r: int | None) -> StageRequest:
    workers = None if c is None else WorkerState({"agg": PoolState(c, c)})
    proposal = ScalingProposal((ComponentTarget("agg", r),))
    return StageRequest(PipelineContext("t", "d", ObservationData(None, None, workers), None, proposal), Stage.CONSTRAIN, at, at)


def test_PL_611_plugin_answers_one_floor_and_one_ceiling() -> None:
    made = plugin()
    for i in range(60):
        made.constrain(ask(5.0 * i, 10, 9))
    answer = made.constrain(ask(300.0, 10, 4)).answer
    assert isinstance(answer, Override)
    assert [(t.replicas, t.type) for t in answer.targets] == [(9, OverrideType.AT_LEAST), (20, OverrideType.AT_MOST)]
    assert made.reasons == {"agg": "stabilisation_window"}
    made.constrain(ask(305.0, 10, None))
    assert made.reasons == {}


@pytest.mark.parametrize("r", [None, 5])
def test_PL_611_unknown_count_is_accepted(r: int | None) -> None:
    assert plugin().constrain(ask(5.0, None, r)).kind == "accept"


def test_PL_611_skipped_ticks_are_forgotten() -> None:
    made = plugin()
    made.constrain(ask(0.0, 10, 4))
    made.constrain(ask(305.0, 10, 15))
    made.ended(305.0, applied=False)
    made.constrain(ask(310.0, 10, 4))
    assert made.pools["agg"].bounds(310.0, 10, 4, 10)[0] == (5, "step_limit")
    made.ended(10.0, applied=True)
    assert len(made.pools["agg"]._past) == 1
