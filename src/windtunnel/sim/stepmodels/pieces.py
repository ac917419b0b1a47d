"""Functions made of straight pieces, between which they may jump: what a measured row is, and what lies between two of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isinf

HAIR = 1e-12  # of x: a sum that should be exactly on an end may be this far behind it
LEAST = 1e-3  # of the nearest measurement: what extrapolation never goes below


@dataclass(frozen=True, slots=True)
class Pieces:
    """Piece i is `values[i] + slopes[i]·(x − starts[i])` up to and with ends[i]; the last one never ends.

    least, most: the x that were measured.
    """

    ends: tuple[float, ...]
    starts: tuple[float, ...]
    values: tuple[float, ...]
    slopes: tuple[float, ...]
    least: float = 0.0
    most: float = inf

    def at(self, x: float) -> tuple[float, float, float]:
        """(value, slope, where that piece ends)."""
        i = bisect_left(self.ends, x - x * HAIR)
        return self.values[i] + self.slopes[i] * (x - self.starts[i]), self.slopes[i], self.ends[i]

    def piece(self, end: float, x: float) -> tuple[float, float]:
        """(value at x, slope) of the piece that `end` belongs to, drawn out to x."""
        i = bisect_left(self.ends, end)
        return self.values[i] + self.slopes[i] * (x - self.starts[i]), self.slopes[i]


def constant(value: float) -> Pieces:
    """The same everywhere."""
    return Pieces((inf,), (0.0,), (value,), (0.0,))


def row(points: Sequence[tuple[float, float]], ceil: bool = False) -> Pieces:
    """Through measured (x, value > 0), ascending: straight between them, or with `ceil` each x by the next measured one.

    Beyond the last it goes on as the last cell does, but never falls; below the first as the first cell does, but stays above 0.
    """
    x, y = [p[0] for p in points], [p[1] for p in points]
    if len(points) == 1:
        return Pieces((inf,), (0.0,), (y[0],), (0.0,), 0.0 if ceil else x[0], x[0])
    slopes = [(y[i + 1] - y[i]) / (x[i + 1] - x[i]) for i in range(len(x) - 1)]
    after = max(0.0, slopes[-1])
    if ceil:
        return Pieces((*x, inf), (*x, x[-1]), (*y, y[-1]), (*(0.0 for _ in x), after), 0.0, x[-1])
    before = slopes[0] if y[0] - slopes[0] * x[0] >= LEAST * y[0] else (1.0 - LEAST) * y[0] / x[0]
    return Pieces((*x, inf), (x[0], *x), (y[0], *y), (before, *slopes, after), x[0], x[-1])


def between(low: Pieces, high: Pieces, share: float) -> Pieces:
    """`low + share·(high − low)`; a share above 1 goes on beyond `high`, but never to 0."""
    ends = sorted({*low.ends, *high.ends})
    starts, values, slopes = [], [], []
    for i, end in enumerate(ends):
        start = ends[i - 1] if i else 0.0
        (y0, s0), (y1, s1) = low.piece(end, start), high.piece(end, start)
        value, slope = y0 + share * (y1 - y0), s0 + share * (s1 - s0)
        if not 0.0 <= share <= 1.0:
            value, slope = _kept_above(LEAST * low.values[0], value, slope, end - start)
        starts.append(start)
        values.append(value)
        slopes.append(slope)
    return Pieces(tuple(ends), tuple(starts), tuple(values), tuple(slopes), max(low.least, high.least), min(low.most, high.most))


def _kept_above(floor: float, value: float, slope: float, length: float) -> tuple[float, float]:
    """The piece, or the floor instead of one that would fall below it."""
    if isinf(length):
        slope = max(0.0, slope)
    if value < floor or (slope and value + slope * length < floor):
        return floor, 0.0
    return value, slope
