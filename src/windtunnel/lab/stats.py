"""Intervals and quantiles without SciPy: Student t, batch means, paired and Welch differences, block bootstrap, MSER-5.

All functions take arrays of plain numbers and are deterministic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
BLOCKS, RESAMPLES = 20, 1000


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its bounds. n: what it rests on (batches, pairs); reliable: False if the batches are correlated."""

    value: float
    lo: float
    hi: float
    n: int
    reliable: bool = True

    @property
    def half_width(self) -> float:
        return (self.hi - self.lo) / 2.0


def beta_inc(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by Lentz's continued fraction; relative error about 1e-14."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1.0) / (a + b + 2.0):  # the fraction converges fast only below this point
        return 1.0 - beta_inc(b, a, 1.0 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    tiny = 1e-300
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > tiny else tiny)
    value = d
    for m in range(1, 1000):
        for numerator in (m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)), -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))):
            d = 1.0 + numerator * d
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = 1.0 + numerator / c
            c = c if abs(c) > tiny else tiny
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return front * value


def t_cdf(t: float, df: float) -> float:
    """P(T <= t) of Student's t with `df` degrees of freedom."""
    tail = 0.5 * beta_inc(df / 2.0, 0.5, df / (df + t * t))
    return 1.0 - tail if t > 0 else tail


@cache
def t_quantile(p: float, df: float) -> float:
    """The t with P(T <= t) = p, 0 < p < 1, df > 0 (need not be whole). Bisection to full precision."""
    if not 0.0 < p < 1.0 or df <= 0.0:
        raise ValueError(f"t_quantile needs 0 < p < 1 and df > 0, got p={p!r}, df={df!r}")
    if p == 0.5:
        return 0.0
    if p < 0.5:
        return -t_quantile(1.0 - p, df)
    lo, hi = 0.0, 1.0
    while t_cdf(hi, df) < p:
        lo, hi = hi, hi * 2.0
    while hi - lo > 1e-13 * hi:
        mid = 0.5 * (lo + hi)
        if mid in (lo, hi):
            break
        lo, hi = (mid, hi) if t_cdf(mid, df) < p else (lo, mid)
    return 0.5 * (lo + hi)


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student t interval of the mean of independent values. One value: lo = -inf, hi = inf."""
    x = np.asarray(values, dtype=float)
    n, mean = len(x), float(np.mean(x))
    if n < 2:
        return Interval(mean, -math.inf, math.inf, n)
    half = t_quantile(0.5 + level / 2.0, n - 1) * float(np.std(x, ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def paired(baseline: ArrayLike, candidate: ArrayLike, level: float = 0.95) -> Interval:
    """candidate - baseline of pairs with the same key; n - 1 degrees of freedom."""
    return mean_interval(np.asarray(candidate, dtype=float) - np.asarray(baseline, dtype=float), level)


def welch(baseline: ArrayLike, candidate: ArrayLike, level: float = 0.95) -> Interval:
    """Difference of means of two independent samples of at least 2 each, variances not assumed equal."""
    a, b = np.asarray(baseline, dtype=float), np.asarray(candidate, dtype=float)
    delta = float(b.mean() - a.mean())
    va, vb = float(a.var(ddof=1)) / len(a), float(b.var(ddof=1)) / len(b)
    if va + vb == 0.0:
        return Interval(delta, delta, delta, min(len(a), len(b)))
    df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    half = t_quantile(0.5 + level / 2.0, df) * math.sqrt(va + vb)
    return Interval(delta, delta - half, delta + half, min(len(a), len(b)))


def batch_means(values: ArrayLike, *, batches: int = 20, level: float = 0.95, quantile: float | None = None) -> Interval:
    """Interval of a steady-state mean (or of a quantile, by batch) from correlated observations in completion order.

    If the lag-1 correlation of the batch values is above 0.2, half as many batches are tried; if still above, `reliable` is False.
    """
    x = np.asarray(values, dtype=float)
    for count in (batches, batches // 2):
        size = len(x) // count
        if size < 1 or count < 2:
            value = float(np.mean(x) if quantile is None else np.quantile(x, quantile)) if len(x) else math.nan
            return Interval(value, -math.inf, math.inf, 0, False)
        blocks = x[len(x) - size * count:].reshape(count, size)  # the oldest rest is left out
        each = blocks.mean(axis=1) if quantile is None else np.quantile(blocks, quantile, axis=1)
        found = mean_interval(each, level)
        if lag1(each) <= 0.2:
            return found
    return Interval(found.value, found.lo, found.hi, found.n, False)


def lag1(values: ArrayLike) -> float:
    """Lag-1 autocorrelation; 0 for a constant series."""
    x = np.asarray(values, dtype=float)
    d = x - x.mean()
    total = float(d @ d)
    return float(d[1:] @ d[:-1]) / total if total > 0.0 else 0.0


def mser5(values: ArrayLike) -> int:
    """How many of the first observations to delete: a multiple of 5, at most half, for the least standard error of the rest."""
    x = np.asarray(values, dtype=float)
    k = len(x) // 5
    if k < 4:
        return 0
    means = x[: 5 * k].reshape(k, 5).mean(axis=1)
    left = np.arange(k, 0, -1)
    total = np.cumsum(means[::-1])[::-1]
    squares = np.cumsum((means**2)[::-1])[::-1]
    score = (squares - total**2 / left) / left.astype(float) ** 2
    return 5 * int(np.argmin(score[: k // 2 + 1]))


def block_weights(blocks: int = BLOCKS, resamples: int = RESAMPLES) -> Floats:
    """How often each block is drawn in each resample, shape (resamples, blocks); the same for every caller (PCG64(0))."""
    drawn = np.random.Generator(np.random.PCG64(0)).integers(0, blocks, size=(resamples, blocks))
    return np.stack([(drawn == b).sum(axis=1) for b in range(blocks)], axis=1).astype(float)


def blocks_of(n: int, blocks: int = BLOCKS) -> NDArray[np.int64]:
    """Block of each of n observations in order: `blocks` of (nearly) equal count."""
    return (np.arange(n) * blocks) // max(n, 1)


def resampled_quantile(values: Floats, block: NDArray[np.int64], weights: Floats, q: float) -> Floats:
    """The q-quantile (linear, as NumPy's) of each block resample, exactly; values without NaN. NaN for an empty resample.

    Cumulative counts at about 1,000 edges of the sorted values find the stretch of each quantile; only that stretch is counted through.
    """
    order = np.argsort(values, kind="stable")
    v, b = values[order], block[order]
    edges = np.unique(np.linspace(0, len(v), min(len(v), 1000) + 1).astype(int))
    cells = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
    counts = np.zeros((len(edges), weights.shape[1]))
    np.add.at(counts, (cells + 1, b), 1.0)
    upto = np.cumsum(counts, axis=0) @ weights.T  # (edges, resamples): how many values of a resample lie before each edge
    total = upto[-1]
    out = np.full(len(weights), np.nan)
    for i in np.flatnonzero(total >= 1.0):
        position = (total[i] - 1.0) * q
        below = math.floor(position)
        lo, hi = (_nth(n, v, b, weights[i], upto[:, i], edges) for n in (below, min(below + 1.0, total[i] - 1.0)))
        out[i] = lo + (hi - lo) * (position - below)
    return out


def _nth(n: float, v: Floats, b: NDArray[np.int64], w: Floats, upto: Floats, edges: NDArray[np.int64]) -> float:
    """The n-th smallest value (from 0) of one resample."""
    cell = int(np.searchsorted(upto, n + 0.5)) - 1
    first, last = edges[cell], edges[cell + 1]
    inside = np.cumsum(w[b[first:last]]) + upto[cell]
    return float(v[first + int(np.searchsorted(inside, n + 0.5))])


def percentile_interval(value: float, resampled: Floats, level: float = 0.95) -> Interval:
    """The percentile interval of a bootstrap; resamples without a value are left out."""
    x = resampled[np.isfinite(resampled)]
    if not len(x):
        return Interval(value, -math.inf, math.inf, 0)
    lo, hi = np.quantile(x, [0.5 - level / 2.0, 0.5 + level / 2.0])
    return Interval(value, float(lo), float(hi), len(x))
