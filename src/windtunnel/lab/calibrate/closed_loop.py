"""TTFT and TPOT of a closed loop in closed form, linear in what a calibration finds.

In the steady state each of C clients has one request in the engine, so a step decodes C sequences and, as each request brings one prompt for
`osl` tokens, prefills C/osl prompts on average: TPOT = D(C, K) + C/osl · P(isl). A harness starts all clients at once and reports means, so
TTFT = host + P + the rest of a running step + P·C·(share of requests in that first burst) + what clumps of finishing requests cost, P·√C.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from math import sqrt

import numpy as np

from windtunnel.errors import ConfigTableMissError
from windtunnel.lab.calibrate.hierarchy import TPOT_LEVELS, TTFT_LEVELS, Hierarchy
from windtunnel.lab.calibrate.least_squares import Array
from windtunnel.lab.calibrate.observe import PointObs
from windtunnel.sim.catalog import gpu, model
from windtunnel.sim.stepmodels.model import Batch
from windtunnel.sim.stepmodels.operators import Operators
from windtunnel.sim.stepmodels.roofline import Roofline
from windtunnel.sim.stepmodels.tables_aic import AicTables

# name -> (coefficient before any data, its unit in the fit). Scales have no unit; the others are in milliseconds.
TPOT_TERMS = {
    "gemm": 1.0, "attn_decode": 1.0, "comm": 1.0, "prefill_gemm": 1.0, "attn_prefill": 1.0, "prefill_comm": 1.0,
    "layer_10us": 0.5, "step_ms": 0.1, "sequence_10us": 0.1, "prefill_layer_10us": 0.1,
}
TTFT_TERMS = {
    "request_10ms": 0.5, "layer_100us": 0.5, "prefill": 0.5, "step": 0.5, "first_burst": 0.5, "token_10us": 0.5, "client_ms": 0.5, "clumps": 0.5,
}
FIRST_BURST = 0.05  # mean wait in the burst, C/2 prompts, times the tenth of the requests that are in it
MS = 1e3


@cache
def prior(name: str, card: str, dtype: str, gpus: int, ep: int, dp: int) -> Roofline:
    """The uncalibrated model of an engine's step."""
    arch = model(name)
    return Roofline(arch, gpu(card), tp=gpus, ep=ep if arch.moe is not None else 1, dp=dp, dtype=dtype)


def prior_of(p: PointObs) -> Roofline:
    """The roofline of the point's model, GPU and parallelism."""
    return prior(p.model, p.gpu, p.dtype, p.gpus, p.ep, p.dp)


@cache
def tables(name: str, card: str, dtype: str, gpus: int, ep: int, dp: int) -> Operators | None:
    """The operator tables of an engine's step, with the roofline for what they lack; None where there are none, or requests are split."""
    roof = prior(name, card, dtype, gpus, ep, dp)
    if dp > 1:
        return None
    try:
        return Operators(roof.arch, AicTables(roof.arch, roof.gpu, gpus, roof.ep, dtype), card, gpus, roof)
    except ConfigTableMissError:
        return None


def tables_of(p: PointObs) -> Operators | None:
    """The operator tables of the point's GPU; None: there are none."""
    return tables(p.model, p.gpu, p.dtype, p.gpus, p.ep, p.dp)


@dataclass(frozen=True, slots=True)
class Work:
    """Milliseconds of the prior, by group of operators: one decode step of all clients, and the prefill of one prompt."""

    decode: dict[str, float]
    prefill: dict[str, float]
    layers: int

    @property
    def step_ms(self) -> float:
        return sum(self.decode.values())

    @property
    def prompt_ms(self) -> float:
        return sum(self.prefill.values())


def work(p: PointObs, step_model: Roofline | Operators | None = None) -> Work:
    """By the roofline, unless another model is given."""
    prior, c = step_model or prior_of(p), p.concurrency
    decode = prior.parts(Batch(c, round(c * (p.isl + p.osl / 2)), [], c, c, c))
    prefill = prior.parts(Batch(0, 0, [(p.isl, 0)], p.isl, 1, 1))
    return Work({k: v * MS for k, v in decode.items()}, {k: v * MS for k, v in prefill.items()}, prior.arch.layers)


def tpot_row(p: PointObs, w: Work) -> list[float]:
    """What each of TPOT_TERMS is multiplied with."""
    d, f, c = w.decode, w.prefill, p.concurrency
    prompts = c / p.osl
    return [d["gemm"] + d["moe"] + d["other"], d["attn_decode"], d["comm"], (f["gemm"] + f["moe"] + f["other"]) * prompts,
            f["attn_prefill"] * prompts, f["comm"] * prompts, 0.01 * w.layers, 1.0, 0.01 * c, 0.01 * w.layers * prompts]


def ttft_row(p: PointObs, w: Work, tpot_ms: float) -> list[float]:
    """What each of TTFT_TERMS is multiplied with."""
    c, prompt = p.concurrency, w.prompt_ms
    return [10.0, 0.1 * w.layers, prompt, tpot_ms, FIRST_BURST * c * prompt, 0.01 * p.isl, float(c), prompt * sqrt(c)]


@dataclass(slots=True)
class ClosedLoop:
    """Predicts load points. Fit it to points, or use it as it is: then it is the uncalibrated roofline with assumed host times."""

    tpot: Hierarchy = field(default_factory=lambda: Hierarchy(np.array(list(TPOT_TERMS.values())), TPOT_LEVELS))
    ttft: Hierarchy = field(default_factory=lambda: Hierarchy(np.array(list(TTFT_TERMS.values())), TTFT_LEVELS))

    def fit(self, points: Sequence[PointObs]) -> ClosedLoop:
        """Find both sets of coefficients; TTFT is fitted on top of the fitted TPOT."""
        if not points:
            return self
        loads = [work(p) for p in points]
        X = np.array([tpot_row(p, w) for p, w in zip(points, loads)])
        self.tpot.fit(points, X, np.array([p.tpot_s * MS for p in points]))
        Z = self._ttft_rows(points, loads, self.tpot.predict(points, X))
        self.ttft.fit(points, Z, np.array([p.ttft_s * MS for p in points]))
        return self

    def predict(self, points: Sequence[PointObs]) -> tuple[Array, Array]:
        """(TTFT, TPOT) in seconds."""
        if not points:
            return np.zeros(0), np.zeros(0)
        loads = [work(p) for p in points]
        tpot = self.tpot.predict(points, np.array([tpot_row(p, w) for p, w in zip(points, loads)]))
        return self.ttft.predict(points, self._ttft_rows(points, loads, tpot)) / MS, tpot / MS

    def _ttft_rows(self, points: Sequence[PointObs], loads: Sequence[Work], tpot_ms: Array) -> Array:
        return np.array([ttft_row(p, w, t) for p, w, t in zip(points, loads, tpot_ms)])
