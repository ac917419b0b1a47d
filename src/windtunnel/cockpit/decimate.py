"""Fewer points, same picture: first, last, and the extremes of each bucket."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

LIMIT = 2000


def decimate(y: np.ndarray, limit: int = LIMIT) -> np.ndarray:
    """Indices (ascending, at most `limit`) to draw of `y`; keeps first, last, and each bucket's minimum and maximum.

    NaNs stay as gaps: a bucket of NaNs keeps one. The inner points are cut by index into (limit - 2) / 2 buckets.
    """
    n = len(y)
    if n <= limit:
        return np.arange(n)
    buckets = (limit - 2) // 2
    bucket_of = (np.arange(n - 2) * buckets) // (n - 2)
    inner = np.asarray(y[1:-1], dtype=float)
    edges = np.searchsorted(bucket_of, np.arange(buckets + 1))
    keep = [0]
    for lo, hi in pairwise(edges):
        part = inner[lo:hi]
        if not len(part):
            continue
        if np.isnan(part).all():
            keep.append(1 + lo)
            continue
        low, high = int(np.nanargmin(part)), int(np.nanargmax(part))
        keep.extend(sorted({1 + lo + low, 1 + lo + high}))
    keep.append(n - 1)
    return np.array(keep)


def decimate_steps(x: np.ndarray, y: np.ndarray, limit: int = LIMIT) -> np.ndarray:
    """Like `decimate` for step lines: points equal to their predecessor are dropped first, the last always stays."""
    if len(y) < 3:
        return np.arange(len(y))
    changed = np.flatnonzero(np.r_[True, y[1:] != y[:-1]])
    if changed[-1] != len(y) - 1:
        changed = np.r_[changed, len(y) - 1]
    return np.asarray(changed[decimate(y[changed], limit)])
