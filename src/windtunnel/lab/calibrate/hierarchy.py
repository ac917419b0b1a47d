"""A fit that goes from the general to the special: each level starts from, and is held near, what the level above found.

A group that was never measured gets the coefficients of the nearest level that was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from windtunnel.lab.calibrate.least_squares import PER_PARAMETER, Array, solve
from windtunnel.lab.calibrate.observe import PointObs
from windtunnel.sim.catalog import model


@dataclass(frozen=True, slots=True)
class Level:
    """Points with the same `key` share coefficients; `ridge` holds them near those of the level above."""

    name: str
    key: Callable[[PointObs], str]
    ridge: float
    per: float = PER_PARAMETER


def family(p: PointObs) -> str:
    """Models of one shape: DeepSeek-V3 and -R1 differ in weights only."""
    arch = model(p.model)
    return f"{arch.layers}x{arch.hidden}:{arch.params / 1e9:.0f}B"


def _all(p: PointObs) -> str:
    return "all"


def _engine_on_gpu(p: PointObs) -> str:
    return f"{p.engine}|{p.gpu}"


def _engine_with_model(p: PointObs) -> str:
    return f"{p.engine}|{family(p)}"


def _system(p: PointObs) -> str:
    return f"{p.engine}|{family(p)}|{p.gpu}|{p.dtype}"


def _group(p: PointObs) -> str:
    return p.group


def _scenario(p: PointObs) -> str:
    return f"{p.group}|{p.isl}|{p.osl}"


# TPOT is a property of the engine. TTFT also follows how the engine was set up for one pair of lengths (step budget, context), hence a
# last level of its own; it is shrunk more, since few points share a pair.
TPOT_LEVELS = (Level("all", _all, 1e-3), Level("engine on GPU", _engine_on_gpu, 0.3), Level("engine with model", _engine_with_model, 0.3),
               Level("system", _system, 0.01), Level("group", _group, 0.003))
TTFT_LEVELS = (Level("all", _all, 1e-3), Level("engine on GPU", _engine_on_gpu, 0.3), Level("engine with model", _engine_with_model, 0.3),
               Level("system", _system, 0.03), Level("group", _group, 0.03), Level("lengths", _scenario, 0.005, per=1.0))


@dataclass(slots=True)
class Hierarchy:
    """Coefficients by (level, key). prior: those before any data, one per column of X."""

    prior: Array
    levels: Sequence[Level]
    found: dict[tuple[str, str], Array] = field(default_factory=dict)

    def fit(self, points: Sequence[PointObs], X: Array, y: Array) -> Hierarchy:
        """Find the coefficients from the most general level down. X: (points, columns); y: seconds or any unit of X."""
        current = dict.fromkeys(range(len(points)), self.prior)
        for level in self.levels:
            members: dict[str, list[int]] = {}
            for i, p in enumerate(points):
                members.setdefault(level.key(p), []).append(i)
            for key, rows in members.items():
                theta = solve(X[rows], y[rows], current[rows[0]], level.ridge, level.per)
                self.found[level.name, key] = theta
                for i in rows:
                    current[i] = theta
        return self

    def coefficients(self, p: PointObs) -> tuple[Array, str]:
        """Those of the most special level that was fitted for this point, and the level's name ("" if none)."""
        for level in reversed(self.levels):
            theta = self.found.get((level.name, level.key(p)))
            if theta is not None:
                return theta, level.name
        return self.prior, ""

    def predict(self, points: Sequence[PointObs], X: Array) -> Array:
        return np.array([x @ self.coefficients(p)[0] for p, x in zip(points, X)])
