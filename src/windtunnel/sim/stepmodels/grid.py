"""Measured grids: piecewise linear in the value itself, with the slope of the cell that a point is in."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Line:
    """Values at ascending knots; linear between them and, from the edge cells, beyond them."""

    knots: list[float]
    values: list[float]

    def cell(self, x: float, *, right: bool = False) -> int:
        """Index of the cell's lower knot; a point on a knot is at the end of the cell below it, or with `right` at the start of the next."""
        i = bisect_left(self.knots, x)
        if right and i < len(self.knots) and self.knots[i] == x:
            i += 1
        return min(max(i, 1), len(self.knots) - 1) - 1 if len(self.knots) > 1 else 0

    def at(self, x: float) -> float:
        if len(self.knots) == 1:
            return self.values[0]
        i = self.cell(x)
        x0, x1, y0, y1 = self.knots[i], self.knots[i + 1], self.values[i], self.values[i + 1]
        if x < x0:  # below the first knot a launch is what is left
            return y0
        return y0 + (y1 - y0) * (x - x0) / (x1 - x0)

    def going_up(self, x: float) -> tuple[float, float, float]:
        """(value, slope, where the cell ends) for an x that grows; the end is infinite in the last cell."""
        if len(self.knots) == 1:
            return self.values[0], 0.0, float("inf")
        if x < self.knots[0]:
            return self.values[0], 0.0, self.knots[0]
        i = self.cell(x, right=True)
        x0, x1, y0, y1 = self.knots[i], self.knots[i + 1], self.values[i], self.values[i + 1]
        slope = (y1 - y0) / (x1 - x0)
        return y0 + slope * (x - x0), slope, x1 if i + 2 < len(self.knots) else float("inf")


@dataclass(frozen=True, slots=True)
class Plane:
    """Values on a grid rows × columns; NaN where nothing was measured."""

    rows: list[float]
    columns: list[float]
    values: Array

    @classmethod
    def of(cls, rows: Any, columns: Any, values: Any) -> Plane:
        """From columns of a table; of several values for one cell the least counts."""
        r, c, v = (np.asarray(x, dtype=float) for x in (rows, columns, values))
        rs, cs = sorted(set(r.tolist())), sorted(set(c.tolist()))
        grid = np.full((len(rs), len(cs)), np.inf)
        np.minimum.at(grid, (np.searchsorted(rs, r), np.searchsorted(cs, c)), v)
        grid[np.isinf(grid)] = np.nan
        return cls(rs, cs, grid)

    def filled(self) -> Plane:
        """Missing cells by the nearest measured one, scaled with row · column: time that goes with batch · KV."""
        grid, known = self.values.copy(), np.argwhere(~np.isnan(self.values))
        r, c = np.log(np.maximum(self.rows, 1.0)), np.log(np.maximum(self.columns, 1.0))
        for i, j in np.argwhere(np.isnan(self.values)):
            a, b = known[np.argmin((r[known[:, 0]] - r[i]) ** 2 + (c[known[:, 1]] - c[j]) ** 2)]
            ratio = max(self.rows[i], 1.0) * max(self.columns[j], 1.0) / (max(self.rows[a], 1.0) * max(self.columns[b], 1.0))
            grid[i, j] = self.values[a, b] * ratio
        return Plane(self.rows, self.columns, grid)

    def row(self, x: float) -> Line:
        """The line over the columns at row x: linear between rows, beyond them from the edge; constant below the first."""
        if len(self.rows) == 1 or x <= self.rows[0]:
            return Line(self.columns, self.values[0].tolist())
        i = min(bisect_left(self.rows, x), len(self.rows) - 1)
        share = (x - self.rows[i - 1]) / (self.rows[i] - self.rows[i - 1])
        line = self.values[i - 1] + (self.values[i] - self.values[i - 1]) * share
        return Line(self.columns, np.maximum(line, 1e-9).tolist())
