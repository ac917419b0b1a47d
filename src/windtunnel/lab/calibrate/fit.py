"""From observations to coefficients: steps by linear least squares, whole runs by Gauss–Newton on the simulator itself.

Load points are fitted by `closed_loop.ClosedLoop`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from windtunnel.errors import ConfigValueError
from windtunnel.lab.calibrate.least_squares import PER_PARAMETER, RIDGE, Array, free_columns, solve
from windtunnel.lab.calibrate.observe import Observations, RequestObs, StepObs
from windtunnel.lab.calibrate.replay import replay, replay_point
from windtunnel.sim.engine import EngineConfig
from windtunnel.sim.stepmodels.affine import Affine
from windtunnel.sim.stepmodels.calibrated import FEATURES, features
from windtunnel.sim.stepmodels.model import Batch, Provenance, StepModel

EVALUATIONS = 50
SMALL_STEP = 0.1  # of ln θ, for finite differences: large enough that a step boundary more or less does not decide
WIDEST = 5.0  # θ stays within this factor of its prior
BLOCK = 20  # requests that a bootstrap keeps together
RESAMPLES, LEVEL = 200, 0.90
FLOOR = 0.25  # of the mean: an error is relative to no less, so that the first, unqueued requests do not decide alone


@dataclass(frozen=True)
class Fit:
    """theta by name; theta0: the prior; intervals: 90 % bootstrap percentiles; not_identified: what the data could not move; draws: the
    resampled coefficients themselves, one row per resample, in the order of the intervals."""

    theta: dict[str, float]
    theta0: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    not_identified: list[str]
    observations: int
    objective: float
    evaluations: int = 0
    seed: int = 0
    valid: dict[str, tuple[float, float]] = field(default_factory=dict)
    draws: Array = field(default_factory=lambda: np.zeros((0, 0)), compare=False, repr=False)


AFFINE_PRIOR = {"c0": 6e-3, "c1": 2.6e-5, "c2": 2e-5, "c3": 2.4e-8, "c4": 1e-10}


def fit_steps(steps: Sequence[StepObs], *, prior: Mapping[str, float] | None = None, ridge: float = RIDGE, seed: int = 0) -> Fit:
    """Coefficients c0..c4 of `Affine` by non-negative least squares on relative errors; the intervals are a bootstrap over steps.

    Raises ConfigValueError without a step, ExtraMissingError without SciPy.
    """
    if not steps:
        raise ConfigValueError("steps", "expected at least one observed step")
    theta0 = {**AFFINE_PRIOR, **(prior or {})}
    scale = np.array(list(theta0.values()))
    X = np.array([_affine_row(s) for s in steps]) * scale
    y, ones = np.array([s.seconds for s in steps]), np.ones(len(scale))
    found = solve(X, y, ones, ridge)
    rng = np.random.default_rng(seed)
    draws = np.array([solve(X[i], y[i], ones, ridge) for i in (rng.integers(0, len(y), len(y)) for _ in range(RESAMPLES))]) * scale
    free = free_columns(X, y, ones)
    error = float(np.sum((X @ found / y - 1) ** 2))
    return Fit(dict(zip(theta0, (found * scale).tolist())), theta0, _percentiles(list(theta0), draws),
               [n for n, f in zip(theta0, free) if not f], len(y), error, seed=seed, valid=valid_range(steps), draws=draws)


def affine(fit: Fit) -> Affine:
    """The step model of `fit_steps`."""
    return Affine(**fit.theta)  # type: ignore[arg-type]


def _affine_row(s: StepObs) -> list[float]:
    b = s.batch
    return [1.0, float(sum(c for c, _ in b.prefill)), float(b.sequences), float(b.decode_kv), sum(c * (s + c / 2) for c, s in b.prefill)]


def valid_range(steps: Sequence[StepObs]) -> dict[str, tuple[float, float]]:
    """(least, most) of every feature that was seen; outside it a calibrated model extrapolates."""
    seen = np.array([features(s.batch) for s in steps])
    return {name: (float(column[column > 0].min()), float(column.max())) for name, column in zip(FEATURES, seen.T) if (column > 0).any()}


def fit_requests(requests: Sequence[RequestObs], make: Callable[[dict[str, float]], StepModel], theta0: Mapping[str, float], config: EngineConfig,
                 *, ridge: float = RIDGE, use: Sequence[bool] | None = None, seed: int = 0) -> Fit:
    """Coefficients with which a replay of `requests` comes closest to TTFT, TPOT and E2E of each.

    make: the step model for coefficients; theta0: their priors, > 0, each kept within a factor of 5; use: which requests count (all are
    replayed). Damped Gauss–Newton on ln θ by finite differences of the simulator, at most 50 replays. The intervals resample blocks of 20
    requests and take one Gauss–Newton step each.
    """
    return fit_observations(Observations(requests=requests), make, theta0, config, ridge=ridge, use=use, seed=seed)


def fit_observations(seen: Observations, make: Callable[[dict[str, float]], StepModel], theta0: Mapping[str, float], config: EngineConfig,
                     *, ridge: float = RIDGE, use: Sequence[bool] | None = None, seed: int = 0) -> Fit:
    """As `fit_requests`, of steps, requests and load points together; each kind counts as its weight says, whatever its number.

    use: which requests count. A step is asked of the model, a load point flown as a closed loop of its own. Raises ConfigValueError.
    """
    if not len(seen):
        raise ConfigValueError("observations", "expected at least one")
    names, requests = list(theta0), seen.requests
    for name in names:
        if not theta0[name] > 0:
            raise ConfigValueError(f"theta0.{name}", f"expected a prior > 0, got {theta0[name]!r}")
    counted = np.flatnonzero(np.ones(len(requests), dtype=bool) if use is None else np.asarray(use))
    free = names[:int((len(counted) + len(seen.steps) + len(seen.points)) // PER_PARAMETER)]
    target = _Target(seen, make, dict(theta0), free, config, counted, ridge)  # type: ignore[arg-type]
    x = np.zeros(len(free))
    r, damping = target.residuals(x), 1e-3
    J = target.jacobian(x, r)
    while free and target.evaluations + len(free) + 1 <= EVALUATIONS:
        step = np.linalg.solve(J.T @ J + damping * np.eye(len(free)), -J.T @ r)
        tried = np.clip(x + step, -np.log(WIDEST), np.log(WIDEST))
        r_new = target.residuals(tried)
        if r_new @ r_new < r @ r:
            small = float(np.max(np.abs(tried - x))) < 1e-3
            x, r, damping = tried, r_new, damping / 10
            if small:
                break
            J = target.jacobian(x, r)
        elif damping > 1e3:
            break
        else:
            damping *= 10
    theta = target.theta(x)
    draws = np.exp(x + target.bootstrap(J, r, np.random.default_rng(seed))) * np.array([theta0[n] for n in free]) if free else np.zeros((1, 0))
    watch = _Watch(make(theta))
    target.fly(watch)
    return Fit(theta, dict(theta0), _percentiles(free, draws), names[len(free):], len(counted) + len(seen.steps) + len(seen.points), float(r @ r),
               target.evaluations, seed, watch.range, draws)


@dataclass
class _Watch:
    """A step model that notes the range of every feature it is asked about."""

    model: StepModel
    least: Array = field(default_factory=lambda: np.full(len(FEATURES), np.inf))
    most: Array = field(default_factory=lambda: np.zeros(len(FEATURES)))

    @property
    def provenance(self) -> Provenance:
        return self.model.provenance

    @property
    def range(self) -> dict[str, tuple[float, float]]:
        return {n: (float(a), float(b)) for n, a, b in zip(FEATURES, self.least, self.most) if b > 0}

    def seconds(self, b: Batch) -> float:
        return self.model.seconds(b)

    def run(self, b: Batch, k: int) -> tuple[float, float, int]:
        a, slope, k = self.model.run(b, k)
        for step in (b, replace(b, decode_kv=b.decode_kv + b.decode_seqs * (k - 1), prefill=[(c, s + c * (k - 1)) for c, s in b.prefill])):
            seen = np.array(features(step))
            self.least = np.where(seen > 0, np.minimum(self.least, seen), self.least)
            self.most = np.maximum(self.most, seen)
        return a, slope, k


@dataclass
class _Target:
    seen: Observations
    make: Callable[[dict[str, float]], StepModel]
    theta0: dict[str, float]
    free: list[str]
    config: EngineConfig
    counted: Array
    ridge: float
    evaluations: int = 0

    def theta(self, x: Array) -> dict[str, float]:
        return self.theta0 | {name: self.theta0[name] * float(np.exp(v)) for name, v in zip(self.free, x)}

    def residuals(self, x: Array) -> Array:
        """Relative errors, √ of their weight; then what the ridge holds."""
        self.evaluations += 1
        seen = self.seen
        got, steps, points = self.fly(self.make(self.theta(x)))
        parts = []
        for measure in MEASURES if len(self.counted) else ():
            y, z = (np.array([measure(rows[i]) for i in self.counted]) for rows in (seen.requests, got))
            if measure is _ttft:  # which request just missed a step is chance: long ones are compared with long ones
                y, z = np.sort(y), np.sort(z)
            parts.append((z - y) / np.maximum(y, FLOOR * y.mean()) / np.sqrt(len(y)) * np.sqrt(seen.weights.get("requests", 1.0)))
        # a request has three measures, and so counts three times in all
        parts.append(steps * np.sqrt(len(MEASURES) * seen.weight("steps")))
        parts.append(points * np.sqrt(len(MEASURES) / 2 * seen.weight("points")))
        return np.concatenate([*parts, np.sqrt(self.ridge) * np.expm1(x)])

    def fly(self, step_model: StepModel) -> tuple[Sequence[RequestObs], Array, Array]:
        """(requests with simulated times; relative errors of the steps; those of each point's TTFT, then of each point's TPOT)."""
        seen = self.seen
        got = replay(seen.requests, step_model, self.config).requests if seen.requests else ()
        steps = np.array([step_model.run(s.batch, 1)[0] / s.seconds - 1.0 for s in seen.steps])
        flown = [replay_point(p, step_model, self.config) for p in seen.points]
        points = [[z.ttft_s / p.ttft_s - 1.0 for p, z in zip(seen.points, flown)], [z.tpot_s / p.tpot_s - 1.0 for p, z in zip(seen.points, flown)]]
        return got, steps, np.array(points).reshape(-1)

    def jacobian(self, x: Array, r: Array) -> Array:
        columns = []
        for i in range(len(x)):
            moved = x.copy()
            moved[i] += SMALL_STEP
            columns.append((self.residuals(moved) - r) / SMALL_STEP)
        return np.array(columns).T if columns else np.zeros((len(r), 0))

    def bootstrap(self, J: Array, r: Array, rng: np.random.Generator) -> Array:
        """Steps of ln θ for resampled blocks."""
        n = len(self.counted)
        blocks = np.array_split(np.arange(n), max(1, n // BLOCK))
        first, many, p = len(MEASURES) * n, len(self.seen.steps), len(self.seen.points)
        tail = np.arange(first + many + 2 * p, len(r))
        steps = []
        for _ in range(RESAMPLES):
            rows = np.concatenate([blocks[i] for i in rng.integers(0, len(blocks), len(blocks))])
            rows = np.concatenate([*(rows + m * n for m in range(len(MEASURES))), tail])
            if many or p:  # of these each is a group of its own
                drawn = first + many + rng.integers(0, p, p) if p else np.zeros(0, dtype=int)
                rows = np.concatenate([rows, first + rng.integers(0, many, many) if many else drawn[:0], drawn, drawn + p])
            A, b = J[rows], r[rows]
            steps.append(np.linalg.solve(A.T @ A + 1e-9 * np.eye(A.shape[1]), -A.T @ b))
        return np.array(steps)


def _ttft(r: RequestObs) -> float:
    return r.ttft_s


def _tpot(r: RequestObs) -> float:
    return r.tpot_s or 0.0


MEASURES: tuple[Callable[[RequestObs], float], ...] = (_ttft, _tpot, lambda r: r.e2e_s)


def _percentiles(names: Sequence[str], draws: Array) -> dict[str, tuple[float, float]]:
    lo, hi = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(names, lo, hi)}
