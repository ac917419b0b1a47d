"""One line of a validation page: what was expected, what came out, and whether that is near enough."""

from __future__ import annotations

import math
from dataclasses import dataclass

from windtunnel.lab.stats import Interval

NO_TARGET = "no target"


@dataclass(frozen=True, slots=True)
class Check:
    """expected, got: in `unit`; tolerance: what was allowed, in words; half_width: of the 95 % interval, None if exact; n: what it rests on."""

    section: str
    what: str
    metric: str
    expected: float
    got: float
    tolerance: str
    passed: bool
    n: int
    unit: str = ""
    half_width: float | None = None
    note: str = ""

    @property
    def judged(self) -> bool:
        """Has it a target? A row that is only there to compare with neither passes nor fails."""
        return self.tolerance != NO_TARGET

    @property
    def error(self) -> float:
        """Relative to the expected value; absolute if that is 0."""
        return (self.got - self.expected) / (abs(self.expected) or 1.0)


def exact(section: str, what: str, metric: str, worst: float, allowed: float, n: int, unit: str = "s") -> Check:
    """The largest difference to an independent calculation."""
    return Check(section, what, metric, 0.0, worst, f"≤ {allowed:g}", bool(worst <= allowed), n, unit, note="largest difference")


def within(section: str, what: str, metric: str, expected: float, got: float, rel: float, n: int, unit: str = "", note: str = "") -> Check:
    """A deterministic number, within a relative tolerance."""
    return Check(section, what, metric, expected, got, f"± {rel:g} relative", bool(abs(got - expected) <= rel * abs(expected)), n, unit, note=note)


def near(section: str, what: str, metric: str, expected: float, got: float, by: float, n: int, unit: str = "", note: str = "") -> Check:
    """A deterministic number, within an absolute tolerance; 0: exactly."""
    tolerance = f"± {by:g}" if by else "exact"
    return Check(section, what, metric, expected, got, tolerance, bool(abs(got - expected) <= by), n, unit, note=note)


def between(section: str, what: str, metric: str, low: float, high: float, got: float, n: int, unit: str = "", note: str = "") -> Check:
    """A number in a range; a side may be infinite."""
    if math.isinf(high) or math.isinf(low):
        bound, sign = (low, "≥") if math.isinf(high) else (high, "≤")
        return Check(section, what, metric, bound, got, f"{sign} {bound:g}", bool(low <= got <= high), n, unit, note=note)
    return Check(section, what, metric, (low + high) / 2, got, f"in [{low:g}, {high:g}]", bool(low <= got <= high), n, unit, note=note)


def shown(section: str, what: str, metric: str, expected: float, got: float, n: int, unit: str = "", note: str = "for comparison") -> Check:
    """A number without a target."""
    return Check(section, what, metric, expected, got, NO_TARGET, True, n, unit, note=note)


def statistical(section: str, what: str, metric: str, expected: float, found: Interval, n: int, *, loose: bool, unit: str = "") -> Check:
    """A steady-state estimate with its interval.

    Passes within max(2 half-widths, 1 %) if the half-width is at most 2.5 %; waits and quantiles (`loose`): 2 % and 10 %. An interval that
    is wider, or whose batches are correlated, is inconclusive, and that is a failure too.
    """
    floor, widest = (0.02, 0.10) if loose else (0.01, 0.025)
    half, scale = found.half_width, abs(expected)
    conclusive = found.reliable and math.isfinite(half) and half <= widest * scale
    near = abs(found.value - expected) <= max(2.0 * half, floor * scale)
    note = "" if conclusive else ("batches are correlated" if not found.reliable else f"inconclusive: interval wider than {widest:.1%}")
    return Check(section, what, metric, expected, found.value, f"max(2 half-widths, {floor:.0%})", conclusive and near, n, unit, half, note)
