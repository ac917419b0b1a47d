"""The boundary over every plan: floors, budgets, power, what is starting."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windtunnel.errors import PlannerConfigError
from windtunnel.policy.planning.boundary import Fitted, Limits, PendingGuard, PoolNow, fit_plan

EIGHT = Limits(max_gpus=8)


def pools(p: int | None = 4, d: int | None = 4, **kw: object) -> dict[str, PoolNow]:
    return {"prefill": PoolNow(p, **kw), "decode": PoolNow(d, **kw)}  # type: ignore[arg-type]


def pair(fitted: Fitted) -> tuple[int | None, int | None]:
    return fitted.plan.get("prefill"), fitted.plan.get("decode")


@pytest.mark.parametrize(("p", "d", "want", "reason"), [
    (5, 5, (4, 4), "gpu_budget_guard_hold"), (3, 5, (3, 5), None), (4, 5, (4, 4), "gpu_budget_guard_hold"),
    (6, 4, (4, 4), "gpu_budget_guard_hold"), (None, None, (4, 4), "unchanged"),
])
def test_PL_610_end_to_end_plans_at_the_boundary(p: int | None, d: int | None, want: tuple[int, int], reason: str | None) -> None:
    fitted = fit_plan({"prefill": p, "decode": d}, pools(), EIGHT)
    assert pair(fitted) == want
    said = {r for why in fitted.reasons.values() for r in why}
    assert said - {"unchanged"} == ({reason} if reason not in (None, "unchanged") else set())


def test_PL_610_changed_pools_only() -> None:
    now = pools(3, 2)
    assert fit_plan({"prefill": 3, "decode": 4}, now, EIGHT).changed(now) == {"decode": 4}
    assert fit_plan({}, now, EIGHT).changed(now) == {}


def test_PL_610_floors_and_ceilings() -> None:
    now = {"agg": PoolNow(3, min_replicas=2, max_replicas=6)}
    low, high = fit_plan({"agg": 0}, now, Limits()), fit_plan({"agg": 50}, now, Limits())
    assert (low.plan["agg"], low.reasons["agg"]) == (2, ("replica_floor",))
    assert (high.plan["agg"], high.reasons["agg"]) == (6, ("merge_ceiling",))
    assert fit_plan({"agg": -7}, {"agg": PoolNow(3, min_replicas=0)}, Limits()).plan["agg"] == 0
    assert fit_plan({}, {"agg": PoolNow(0)}, Limits()).plan["agg"] == 1  # an outage does not leave a pool under its minimum
    rolling = {"agg": PoolNow(1, min_replicas=2, starting=1)}
    assert fit_plan({}, rolling, Limits()).plan["agg"] == 1  # it is on its way


def test_PL_610_infeasible_minima_hold_all_and_never_go_to_zero() -> None:
    fitted = fit_plan({"prefill": 5, "decode": 5}, pools(2, 2, gpus=4, min_replicas=2), EIGHT)
    assert pair(fitted) == (2, 2)
    assert fitted.reasons["prefill"] == ("budget_infeasible",)


def test_PL_610_unknown_counts() -> None:
    shared = fit_plan({"prefill": 9, "decode": 3}, pools(None, 2), EIGHT)
    assert pair(shared) == (None, 2)
    assert "count_unknown" in shared.reasons["decode"]
    free = fit_plan({"decode": 3}, pools(None, 2), Limits())
    assert pair(free) == (None, 3)
    assert free.reasons["prefill"] == ("count_unknown",)


def test_PL_610_over_budget_is_brought_back() -> None:
    fitted = fit_plan({"prefill": 7, "decode": 6}, pools(6, 6), EIGHT)
    assert pair(fitted) == (4, 4)
    assert all(why == ("gpu_budget_reconcile",) for why in fitted.reasons.values())


def test_PL_610_power_caps_ups() -> None:
    limits = Limits(power_w=4000.0)
    fitted = fit_plan({"prefill": 6, "decode": 4}, pools(watts=500.0), limits)
    assert pair(fitted) == (4, 4)
    assert fitted.reasons["prefill"] == ("power_budget_scale_up_suppressed",)
    clamped = fit_plan({"prefill": 6, "decode": 6}, pools(2, 2, watts=500.0), limits)
    assert pair(clamped) == (4, 4) and clamped.reasons["prefill"] == ("power_budget_clamped",)
    over = fit_plan({}, pools(6, 6, watts=500.0), limits)
    assert pair(over) == (4, 4) and over.reasons["decode"] == ("power_budget_clamped",)


def test_PL_610_power_beats_the_gpu_floor() -> None:
    fitted = fit_plan({}, pools(4, 4, watts=500.0), Limits(max_gpus=8, min_gpus=8, power_w=3000.0))
    assert sum(fitted.plan.values()) == 6 and "power_budget_clamped" in fitted.reasons["prefill"]


def test_PL_610_opposing_moves_under_power_go_down_first() -> None:
    fitted = fit_plan({"prefill": 3, "decode": 5}, pools(watts=500.0), Limits(power_w=4000.0))
    assert pair(fitted) == (3, 4)
    assert fitted.reasons["decode"] == ("power_rebalance_staged",)
    after = fit_plan({"prefill": 3, "decode": 5}, pools(3, 4, watts=500.0), Limits(power_w=4000.0))
    assert pair(after) == (3, 5)


def test_PL_610_no_ups_under_power_while_a_role_moves() -> None:
    now = {"prefill": PoolNow(3, watts=500.0, draining=1), "decode": PoolNow(4, watts=500.0)}
    fitted = fit_plan({"decode": 5}, now, Limits(power_w=4000.0))
    assert pair(fitted) == (3, 4) and fitted.reasons["decode"] == ("power_budget_scale_up_suppressed",)


def test_PL_610_power_without_watts_is_refused() -> None:
    with pytest.raises(PlannerConfigError, match=r"prefill\.watts_per_replica"):
        fit_plan({}, pools(), Limits(power_w=1.0))


def test_PL_704_pending_replicas_are_cancelled_on_the_second_look() -> None:
    guard = PendingGuard(5.0)
    now = {"agg": PoolNow(6, starting=2)}

    def at(t: float, wanted: int) -> tuple[int, tuple[str, ...]]:
        fitted = fit_plan({"agg": wanted}, now, Limits(), pending=guard, tick_at=t)
        return fitted.plan["agg"], fitted.reasons["agg"]

    assert at(5.0, 3) == (6, ("startup_cancel_wait",))
    assert at(5.0, 3) == (6, ("startup_cancel_wait",))  # the same tick again
    assert at(10.0, 4) == (4, ("startup_cancelled",))
    assert at(15.0, 6) == (6, ("unchanged",))  # forgets
    assert at(20.0, 3) == (6, ("startup_cancel_wait",))


def test_PL_704_a_held_leg_holds_what_it_was_to_pay_for() -> None:
    now = {"prefill": PoolNow(4, starting=1), "decode": PoolNow(4)}
    fitted = fit_plan({"prefill": 3, "decode": 5}, now, EIGHT, pending=PendingGuard(5.0), tick_at=5.0)
    assert pair(fitted) == (4, 4)


pool = st.builds(PoolNow, st.none() | st.integers(0, 12), st.integers(1, 4), st.integers(0, 2), st.none() | st.integers(2, 12), st.just(300.0),
                 st.integers(0, 2), st.integers(0, 1), st.booleans())


@settings(max_examples=300, deadline=None)
@given(a=pool, b=pool, pa=st.none() | st.integers(-3, 40), pb=st.none() | st.integers(0, 40), high=st.integers(-1, 30),
       power=st.none() | st.floats(100, 9000))
def test_PL_T7_never_over_budget_unless_held_as_infeasible(a: PoolNow, b: PoolNow, pa: int | None, pb: int | None, high: int,
                                                           power: float | None) -> None:
    now = {"prefill": a, "decode": b}
    limits = Limits(high, -1, power)
    fitted = fit_plan({"prefill": pa, "decode": pb}, now, limits, pending=PendingGuard(5.0), tick_at=5.0)
    said = {r for why in fitted.reasons.values() for r in why}
    assert set(fitted.plan) | {c for c, why in fitted.reasons.items() if "count_unknown" in why} == set(now)
    for component, n in fitted.plan.items():
        assert fitted.reasons[component] or n != now[component].baseline  # every hold has a reason
    if said & {"budget_infeasible", "count_unknown"}:
        return
    if high >= 0:
        assert sum(n * now[c].gpus for c, n in fitted.plan.items()) <= high
