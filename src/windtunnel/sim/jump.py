"""Arithmetic of a run of equal steps: step j (from 0) lasts `A + B·j`, so k steps last `k·A + B·k(k-1)/2`. Times in s."""

from __future__ import annotations

from math import sqrt


def span(A: float, B: float, k: int) -> float:
    """Seconds of the first k steps."""
    return k * A + B * (k * (k - 1) * 0.5)


def first_boundary(t0: float, A: float, B: float, t: float) -> int:
    """The smallest j >= 1 whose boundary `t0 + span(j)` is not before t; every step must last more than 0.

    The boundary's own float is compared, so that an arrival at exactly its time counts as in time.
    """
    if t0 + A >= t:
        return 1
    gap = t - t0
    if B:
        p = A - B * 0.5
        inside = p * p + 2.0 * B * gap
        j = int((sqrt(inside) - p) / B) if inside > 0.0 else 1
    else:
        j = int(gap / A)
    if j < 1:
        j = 1
    while t0 + (j * A + B * (j * (j - 1) * 0.5)) < t:
        j += 1
    while j > 1 and t0 + ((j - 1) * A + B * ((j - 1) * (j - 2) * 0.5)) >= t:
        j -= 1
    return j


def steps_ended(t0: float, A: float, B: float, t: float, k: int) -> int:
    """How many of the k steps have ended at t."""
    if t <= t0:
        return 0
    if t >= t0 + span(A, B, k):
        return k
    j = first_boundary(t0, A, B, t)
    return j if t0 + span(A, B, j) <= t else j - 1
