"""Non-negative least squares on relative errors, held near known values by a ridge; robust against points that no curve fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from windtunnel.errors import ExtraMissingError

Array = np.ndarray[Any, np.dtype[np.float64]]
RIDGE = 1e-3
PER_PARAMETER = 3.0  # independent observations that one parameter needs
SMALLEST = 1e-2  # of a coefficient in the ridge's denominator; columns are scaled so that coefficients are near 1
ROUNDS = 4  # of re-weighting


def _nnls() -> Callable[[Array, Array], tuple[Array, float]]:
    try:
        from scipy.optimize import nnls
    except ImportError:
        raise ExtraMissingError("fitting step times", "calibrate") from None
    return nnls  # type: ignore[no-any-return]


def free_columns(X: Array, y: Array, prior: Array, per: float = PER_PARAMETER) -> Any:
    """Which coefficients the data may move: at most one per `per` observations, those that make up most of y first."""
    free = np.zeros(len(prior), dtype=bool)
    count = int(len(y) // per)
    if count:
        share = np.mean(X * np.maximum(prior, SMALLEST) / y[:, None], axis=0)
        free[np.argsort(-share, kind="stable")[:count]] = True
        free &= share > 1e-3
    return free


def solve(X: Array, y: Array, prior: Array, ridge: float = RIDGE, per: float = PER_PARAMETER) -> Array:
    """θ ≥ 0 minimising Σ wᵢ (Xθ/y − 1)² + ridge·Σ((θ−prior)/prior)², w from Huber's loss; coefficients that are not free stay at `prior`.

    X: (observations, coefficients), y: > 0. The same data gives the same θ, bit for bit. Raises ExtraMissingError without SciPy.
    """
    free = free_columns(X, y, prior, per)
    if not free.any():
        return prior
    nnls = _nnls()
    theta, rest = prior.copy(), (y - X[:, ~free] @ prior[~free]) / y
    scale = np.maximum(prior[free], SMALLEST)
    A, pull = X[:, free] / y[:, None], np.sqrt(ridge) / scale
    w = np.ones(len(y))
    for _ in range(ROUNDS):
        root = np.sqrt(w)
        theta[free] = nnls(np.vstack([A * root[:, None], np.diag(pull)]), np.concatenate([rest * root, pull * prior[free]]))[0]
        error = np.abs(X @ theta / y - 1)
        spread = max(float(np.median(error)) * 1.48, 0.02)
        w = 1 / np.maximum(1.0, error / (1.5 * spread))
    return theta
