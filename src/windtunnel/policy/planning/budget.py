"""GPU and power budgets over one pool or a prefill and decode pair: clamps, the smallest directed moves, guards. Pure arithmetic.

A bound below 0 is off. total = Σ replicas · units, units = GPUs (or watts) per replica. With both bounds on, the floor alone is relaxed by
one replica of the larger size, since not every total can be hit. Inside [floor - tolerance, ceiling] nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, floor
from typing import Literal

Pair = tuple[int, int]
GuardReason = Literal["", "gpu_budget_guard_hold", "gpu_budget_reconcile"]
HOLD: GuardReason = "gpu_budget_guard_hold"
RECONCILE: GuardReason = "gpu_budget_reconcile"
EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class Band:
    """Allowed totals. floor, ceiling: < 0 = off; tolerance: by which the floor is relaxed."""

    floor: float
    ceiling: float
    tolerance: float = 0.0

    @classmethod
    def of(cls, low: float, high: float, *units: float) -> Band:
        return cls(low, high, max(units) if low >= 0 and high >= 0 else 0.0)

    def over(self, total: float) -> bool:
        return self.ceiling >= 0 and total > self.ceiling + EPSILON

    def under(self, total: float) -> bool:
        return self.floor >= 0 and total < self.floor - self.tolerance - EPSILON

    def holds(self, total: float) -> bool:
        return not self.over(total) and not self.under(total)

    def at_ceiling(self, total: float) -> bool:
        return self.ceiling >= 0 and total >= self.ceiling - EPSILON

    def at_floor(self, total: float) -> bool:
        return self.floor >= 0 and total <= self.floor + EPSILON


def clamp_single(n: int, units: float, low: float, high: float, least: int = 0) -> int:
    """One pool into its budget; 0 if not even `least` replicas fit."""
    if units <= 0:
        return n
    band, total = Band.of(low, high, units), n * units
    if band.over(total):
        return 0 if least * units > high + EPSILON else max(least, _down(high / units))
    if not band.under(total):
        return n
    most = _down(high / units) if high >= 0 else _up(low / units)
    return max(least, n, min(_up(low / units), most))


def clamp_pair(pair: Pair, units: tuple[float, float], low: float, high: float, least: Pair = (0, 0)) -> Pair:
    """A (prefill, decode) pair into a shared budget: shrunk or grown in proportion, the rest to decode; (0, 0) if minima do not fit."""
    (p, d), (pg, dg), (pmin, dmin) = pair, units, least
    if pg <= 0 or dg <= 0:
        return pair
    band, total = Band.of(low, high, pg, dg), p * pg + d * dg
    if band.over(total):
        if pmin * pg + dmin * dg > high + EPSILON:
            return 0, 0
        p2 = max(pmin, min(_down((high - dmin * dg) / pg), _down(p * high / total)))
        return p2, max(dmin, _down((high - p2 * pg) / dg))
    if not band.under(total):
        return pair
    p2 = max(pmin, _up(p * low / total) if total > 0 else _up(low / 2 / pg))
    wanted = max(dmin, _up(max(0.0, low - p2 * pg) / dg))
    d2 = max(wanted, d)
    if not band.over(p2 * pg + d2 * dg):
        return p2, d2
    return fit_directional(pair, (p2, d), units, band, least) if wanted < d else pair


def fit_directional(current: Pair, proposed: Pair, units: tuple[float, float], band: Band, least: Pair = (0, 0)) -> Pair:
    """Nearest to the proposal among pairs between current and proposed, at or above the minima, with a total in the band.

    Moves in opposite directions are made both or not at all. Ties: the requested proportion, the larger move, the smaller counts.
    Nothing fits: current. O(prefill move).
    """
    if units[0] <= 0 or units[1] <= 0:
        return proposed
    asked = (abs(proposed[0] - current[0]), abs(proposed[1] - current[1]))

    def cost(pair: Pair) -> tuple[int, int, int, int, int]:
        moved = (abs(pair[0] - current[0]), abs(pair[1] - current[1]))
        distance = abs(pair[0] - proposed[0]) + abs(pair[1] - proposed[1])
        return distance, abs(moved[0] * asked[1] - moved[1] * asked[0]), -(moved[0] + moved[1]), pair[0], pair[1]

    return min(_directed(current, proposed, units, band, least), key=cost, default=current)


def _directed(current: Pair, proposed: Pair, units: tuple[float, float], band: Band, least: Pair) -> Iterator[Pair]:
    """For every allowed prefill count the decode count nearest to the proposal."""
    (pg, dg), opposing = units, _opposing(current, proposed)
    low_d, high_d = sorted((current[1], proposed[1]))
    low_p, high_p = sorted((current[0], proposed[0]))
    for p in range(max(low_p, least[0]), high_p + 1):
        first = max(low_d, least[1])
        last = high_d
        if band.ceiling >= 0:
            last = min(last, _down((band.ceiling - p * pg) / dg))
        if band.floor >= 0:
            first = max(first, _up((band.floor - band.tolerance - p * pg) / dg))
        if opposing and p == current[0]:
            first, last = max(first, current[1]), min(last, current[1])
        elif opposing:  # both or neither
            first, last = (max(first, current[1] + 1), last) if proposed[1] > current[1] else (first, min(last, current[1] - 1))
        if first <= last:
            yield p, min(max(proposed[1], first), last)


def guard_single(current: int, proposed: int, units: float, low: float, high: float, least: int = 0) -> tuple[int, GuardReason]:
    """A move of one pool under its budget."""
    if units <= 0:
        return proposed, ""
    band, total = Band.of(low, high, units), current * units
    if not band.holds(total):
        return clamp_single(current, units, low, high, least), RECONCILE
    if proposed == current:
        return current, ""
    if (proposed < current and band.at_floor(total)) or (proposed > current and band.at_ceiling(total)):
        return current, HOLD
    n = clamp_single(proposed, units, low, high, least)
    n = min(max(n, min(current, proposed)), max(current, proposed))
    return (n, "") if n != current and band.holds(n * units) else (current, HOLD)


def guard_pair(current: Pair, proposed: Pair, units: tuple[float, float], low: float, high: float,
               least: Pair = (0, 0)) -> tuple[Pair, GuardReason]:
    """A move of the pair under its shared budget. Each count stays between current and proposed, unless current itself is out of budget:
    then it is brought back into it and the proposal waits ("gpu_budget_reconcile")."""
    if units[0] <= 0 or units[1] <= 0:
        return proposed, ""
    band, total = Band.of(low, high, *units), _total(current, units)
    if not band.holds(total):
        return clamp_pair(current, units, low, high, least), RECONCILE
    if proposed == current:
        return current, ""
    up, down = _any_up(current, proposed), _any_up(proposed, current)
    if (down and not up and band.at_floor(total)) or (up and not down and band.at_ceiling(total)):
        return current, HOLD
    if _opposing(current, proposed) and (band.at_floor(total) or band.at_ceiling(total)):
        fitted = fit_directional(current, proposed, units, band, least)
    else:
        fitted = clamp_pair(proposed, units, low, high, least)
        if not _between(current, fitted, proposed) or not band.holds(_total(fitted, units)) or _half(current, fitted, proposed):
            fitted = fit_directional(current, proposed, units, band, least)
    return (fitted, "") if fitted != current else (current, HOLD)


def _total(pair: Pair, units: tuple[float, float]) -> float:
    return pair[0] * units[0] + pair[1] * units[1]


def _any_up(a: Pair, b: Pair) -> bool:
    return b[0] > a[0] or b[1] > a[1]


def _opposing(current: Pair, proposed: Pair) -> bool:
    return (proposed[0] - current[0]) * (proposed[1] - current[1]) < 0


def _between(current: Pair, pair: Pair, proposed: Pair) -> bool:
    return all(min(c, q) <= n <= max(c, q) for c, n, q in zip(current, pair, proposed, strict=True))


def _half(current: Pair, fitted: Pair, proposed: Pair) -> bool:
    """Only one leg of two opposing moves."""
    return _opposing(current, proposed) and (fitted[0] == current[0]) != (fitted[1] == current[1])


def _down(x: float) -> int:
    return floor(x + EPSILON)


def _up(x: float) -> int:
    return ceil(x - EPSILON)
