"""How sure a fit is of what it predicts, and which of several models the data speak for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from windtunnel.errors import ConfigValueError
from windtunnel.lab.calibrate.fit import BLOCK, LEVEL, MEASURES, SMALL_STEP, Fit, fit_requests
from windtunnel.lab.calibrate.observe import RequestObs
from windtunnel.lab.calibrate.replay import replay
from windtunnel.lab.stats import Interval
from windtunnel.sim.engine import EngineConfig
from windtunnel.sim.stepmodels.model import StepModel

FOLDS = 5
Make = Callable[[dict[str, float]], StepModel]


def metric_intervals(fit: Fit, predict: Callable[[dict[str, float]], Mapping[str, float]], level: float = LEVEL) -> dict[str, Interval]:
    """Percentile intervals of predicted metrics over the fit's resampled coefficients; `n`: resamples.

    predict: metrics (> 0) for coefficients, by a flight of the simulator. It is asked once per fitted coefficient and once more; between,
    the logarithm of a metric is taken as linear in those of the coefficients. Coefficients that the data did not move have no spread.
    """
    at = {name: float(value) for name, value in predict(dict(fit.theta)).items()}
    moved = [name for name in fit.intervals if fit.theta[name] > 0]
    if not moved or not len(fit.draws):
        return {name: Interval(value, value, value, len(fit.draws)) for name, value in at.items()}
    slopes: dict[str, list[float]] = {name: [] for name in at}
    for theta in moved:
        found = predict({**fit.theta, theta: fit.theta[theta] * float(np.exp(SMALL_STEP))})
        for name, value in at.items():
            slopes[name].append((float(np.log(found[name])) - float(np.log(value))) / SMALL_STEP)
    columns = [list(fit.intervals).index(name) for name in moved]
    away = np.log(np.maximum(fit.draws[:, columns], 1e-300)) - np.log([fit.theta[name] for name in moved])
    out = {}
    for name, value in at.items():
        drawn = value * np.exp(np.clip(away @ np.array(slopes[name]), -50.0, 50.0))
        lo, hi = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
        out[name] = Interval(value, float(lo), float(hi), len(drawn))
    return out


@dataclass(frozen=True, slots=True)
class Chosen:
    """name: of the candidate with the least cross-validated error; errors: of all (mean absolute relative error of TTFT, TPOT and E2E)."""

    name: str
    errors: dict[str, float]


def choose(candidates: Mapping[str, tuple[Make, Mapping[str, float]]], requests: Sequence[RequestObs], config: EngineConfig, *,
           folds: int = FOLDS, seed: int = 0) -> Chosen:
    """Which model predicts requests best that it was not fitted to: candidates as name → (step model for coefficients, their priors).

    The requests are cut into blocks of 20, the blocks dealt to `folds`. An error in-sample decides nothing. Equal errors: the first.
    Raises ConfigValueError without a candidate, or with fewer blocks than folds.
    """
    blocks = -(-len(requests) // BLOCK)
    if not candidates:
        raise ConfigValueError("candidates", "expected at least one")
    if folds < 2 or blocks < folds:
        raise ConfigValueError("folds", f"{len(requests)} requests are {blocks} blocks of {BLOCK}: not enough for {folds} folds")
    fold = np.arange(len(requests)) // BLOCK % folds
    errors = {name: _held_out(make, theta0, requests, config, fold, seed) for name, (make, theta0) in candidates.items()}
    return Chosen(min(errors, key=errors.__getitem__), errors)


def _held_out(make: Make, theta0: Mapping[str, float], requests: Sequence[RequestObs], config: EngineConfig, fold: np.ndarray, seed: int) -> float:
    wrong: list[float] = []
    for f in range(int(fold.max()) + 1):
        theta = fit_requests(requests, make, theta0, config, use=(fold != f).tolist(), seed=seed).theta
        got = replay(requests, make(theta), config).requests
        for i in np.flatnonzero(fold == f):
            for measure in MEASURES:
                y = measure(requests[int(i)])
                if y > 0:
                    wrong.append(abs(measure(got[int(i)]) / y - 1.0))
    return float(np.mean(wrong))
