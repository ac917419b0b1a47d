"""Clamps, directed moves and guards: every worked row, then what must hold for any numbers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windtunnel.policy.planning.budget import Band, Pair, clamp_pair, clamp_single, fit_directional, guard_pair, guard_single


@pytest.mark.parametrize(("p", "d", "pg", "dg", "low", "high", "pmin", "dmin", "want"), [
    (6, 6, 1, 1, -1, 8, 1, 1, (4, 4)), (9, 1, 1, 1, -1, 8, 1, 1, (7, 1)), (3, 3, 2, 1, -1, 8, 1, 1, (2, 4)),
    (5, 5, 4, 2, -1, 16, 1, 1, (2, 4)), (2, 2, 4, 4, -1, 8, 2, 1, (0, 0)), (1, 1, 2, 2, 8, -1, 1, 1, (2, 2)),
    (1, 1, 1, 1, 6, 8, 1, 1, (3, 3)), (4, 1, 2, 1, 12, 14, 1, 1, (6, 1)), (1, 2, 2, 2, 5, 5, 1, 1, (1, 1)),
    (2, 3, 2, 2, 12, 16, 1, 1, (2, 3)), (0, 0, 1, 1, 6, -1, 0, 0, (3, 3)), (3, 3, 0, 1, -1, 2, 1, 1, (3, 3)),
])
def test_PL_609_clamp_pair_rows(p: int, d: int, pg: int, dg: int, low: int, high: int, pmin: int, dmin: int, want: Pair) -> None:
    assert clamp_pair((p, d), (pg, dg), low, high, (pmin, dmin)) == want


@pytest.mark.parametrize(("n", "g", "low", "high", "least", "want"), [
    (9, 1, -1, 8, 1, 8), (9, 3, -1, 8, 1, 2), (9, 3, -1, 8, 3, 0), (1, 2, 7, -1, 1, 4), (1, 2, 5, 8, 1, 3), (2, 2, 5, 8, 1, 2), (0, 4, 5, 7, 0, 1),
    (5, 0, -1, 1, 1, 5), (5, 1, -1, -1, 1, 5), (0, 1, -1, 0, 0, 0),
])
def test_PL_609_clamp_single(n: int, g: int, low: int, high: int, least: int, want: int) -> None:
    assert clamp_single(n, g, low, high, least) == want


HOLD, RECONCILE = "gpu_budget_guard_hold", "gpu_budget_reconcile"


@pytest.mark.parametrize(("current", "proposed", "units", "low", "high", "want", "reason"), [
    ((4, 4), (5, 5), (1, 1), -1, 8, (4, 4), HOLD), ((4, 4), (5, 3), (1, 1), -1, 8, (5, 3), ""),
    ((2, 4), (3, 3), (2, 1), -1, 8, (2, 4), HOLD), ((2, 4), (4, 2), (2, 1), -1, 8, (3, 2), ""),
    ((2, 2), (6, 6), (1, 1), -1, 8, (4, 4), ""), ((1, 1), (3, 3), (2, 1), -1, 8, (2, 3), ""),
    ((6, 6), (7, 6), (1, 1), -1, 8, (4, 4), RECONCILE), ((3, 3), (2, 3), (1, 1), 6, 8, (3, 3), HOLD),
    ((4, 4), (4, 4), (1, 1), -1, 8, (4, 4), ""), ((2, 2), (9, 9), (0, 1), -1, 8, (9, 9), ""),
])
def test_PL_609_guard_rows(current: Pair, proposed: Pair, units: Pair, low: int, high: int, want: Pair, reason: str) -> None:
    assert guard_pair(current, proposed, units, low, high, (1, 1)) == (want, reason)


@pytest.mark.parametrize(("current", "proposed", "want", "reason"), [
    (4, 6, 6, ""), (4, 9, 8, ""), (8, 9, 8, HOLD), (4, 3, 4, HOLD), (5, 3, 3, ""), (9, 10, 8, RECONCILE), (2, 2, 4, RECONCILE), (5, 5, 5, ""),
])
def test_PL_609_guard_of_one_pool(current: int, proposed: int, want: int, reason: str) -> None:
    assert guard_single(current, proposed, 1, 4, 8, 1) == (want, reason)


def test_PL_609_opposing_moves_are_made_both_or_not_at_all() -> None:
    band = Band.of(-1, 8, 2, 1)
    assert fit_directional((2, 4), (3, 3), (2, 1), band, (1, 1)) == (2, 4)
    assert fit_directional((2, 4), (4, 2), (2, 1), band, (1, 1)) == (3, 2)
    assert fit_directional((1, 1), (3, 3), (2, 1), band, (1, 1)) == (2, 3)


units = st.integers(1, 8)
bound = st.integers(-1, 120)
count = st.integers(0, 30)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Pair, Pair, Pair, int, int, Pair]:
    low, high = draw(bound), draw(bound)
    if low >= 0 and high >= 0 and low > high:
        low, high = high, low
    least = (draw(st.integers(0, 3)), draw(st.integers(0, 3)))
    current = (draw(count) + least[0], draw(count) + least[1])
    proposed = (draw(count) + least[0], draw(count) + least[1])
    return current, proposed, (draw(units), draw(units)), low, high, least


@settings(max_examples=400, deadline=None)
@given(cases())
def test_PL_T7_total_within_the_ceiling_whenever_the_minima_are(case: tuple[Pair, Pair, Pair, int, int, Pair]) -> None:
    current, proposed, u, low, high, least = case
    fitted, _ = guard_pair(current, proposed, u, low, high, least)
    feasible = high < 0 or least[0] * u[0] + least[1] * u[1] <= high
    if feasible and high >= 0:
        assert fitted[0] * u[0] + fitted[1] * u[1] <= high
        assert fitted[0] >= least[0] and fitted[1] >= least[1]
    clamped = clamp_pair(proposed, u, low, high, least)
    if high >= 0 and proposed[0] * u[0] + proposed[1] * u[1] > high:
        assert clamped[0] * u[0] + clamped[1] * u[1] <= high
        assert (clamped == (0, 0) and not feasible) or (feasible and clamped[0] >= least[0] and clamped[1] >= least[1])


@settings(max_examples=400, deadline=None)
@given(cases())
def test_PL_T7_guards_stay_between_and_move_opposing_legs_together(case: tuple[Pair, Pair, Pair, int, int, Pair]) -> None:
    current, proposed, u, low, high, least = case
    fitted, reason = guard_pair(current, proposed, u, low, high, least)
    if reason == RECONCILE:
        return
    assert all(min(c, q) <= n <= max(c, q) for c, n, q in zip(current, fitted, proposed, strict=True))
    if (proposed[0] - current[0]) * (proposed[1] - current[1]) < 0:
        assert (fitted[0] == current[0]) == (fitted[1] == current[1])
    if reason == HOLD:
        assert fitted == current != proposed


@settings(max_examples=400, deadline=None)
@given(cases())
def test_PL_T7_fitting_a_fitted_plan_changes_nothing(case: tuple[Pair, Pair, Pair, int, int, Pair]) -> None:
    current, proposed, u, low, high, least = case
    fitted, _ = guard_pair(current, proposed, u, low, high, least)
    again, second = guard_pair(fitted, fitted, u, low, high, least)
    if Band.of(low, high, *u).holds(fitted[0] * u[0] + fitted[1] * u[1]):
        assert (again, second) == (fitted, "")
    assert clamp_pair(clamp_pair(proposed, u, -1, high, least), u, -1, high, least) == clamp_pair(proposed, u, -1, high, least)


@settings(max_examples=200, deadline=None)
@given(cases())
def test_PL_T7_fit_directional_against_every_pair(case: tuple[Pair, Pair, Pair, int, int, Pair]) -> None:
    """The closed form over decode counts finds what a search over all pairs finds."""
    current, proposed, u, low, high, least = case
    band = Band.of(low, high, *u)
    req = (abs(proposed[0] - current[0]), abs(proposed[1] - current[1]))
    opposing = (proposed[0] - current[0]) * (proposed[1] - current[1]) < 0
    found = []
    for p in range(min(current[0], proposed[0]), max(current[0], proposed[0]) + 1):
        for d in range(min(current[1], proposed[1]), max(current[1], proposed[1]) + 1):
            half = opposing and (p == current[0]) != (d == current[1])
            if p < least[0] or d < least[1] or half or not band.holds(p * u[0] + d * u[1]):
                continue
            move = (abs(p - current[0]), abs(d - current[1]))
            found.append((abs(p - proposed[0]) + abs(d - proposed[1]), abs(move[0] * req[1] - move[1] * req[0]), -sum(move), p, d))
    want = min(found)[3:] if found else current
    assert fit_directional(current, proposed, u, band, least) == want
