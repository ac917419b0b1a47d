"""Validation on two measured runs of vLLM, request by request, both deep in overload."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd

from windtunnel.datafiles import data_path
from windtunnel.lab.calibrate.fit import BLOCK, Fit, fit_requests
from windtunnel.lab.calibrate.observe import RequestObs, read_run
from windtunnel.lab.calibrate.replay import Replayed, replay
from windtunnel.lab.calibrate.report import error_table
from windtunnel.sim.catalog import gpu, model
from windtunnel.sim.engine import EngineConfig
from windtunnel.sim.stepmodels.calibrated import Calibrated, Coefficients
from windtunnel.sim.stepmodels.model import StepModel
from windtunnel.sim.stepmodels.operators import Operators
from windtunnel.sim.stepmodels.roofline import Roofline
from windtunnel.sim.stepmodels.tables_llmservingsim import LlmServingSimTables

FOLDS = 5


@dataclass(frozen=True)
class MeasuredRun:
    """A run and the engine that it was measured on. link: (s, bytes/s) of an all-reduce over PCIe, an assumption until it is fitted."""

    name: str
    model: str
    gpu: str
    tp: int
    config: EngineConfig
    theta0: dict[str, float]
    link: tuple[float, float] | None = None
    blocks: str | None = None
    notes: str = ""
    measured_preemptions: float | None = None

    @property
    def requests(self) -> list[RequestObs]:
        where = data_path("validation")
        return read_run(where / f"vllm_run_{self.name}_requests.csv.gz", None if self.blocks is None else data_path(self.blocks))

    def operators(self, link: tuple[float, float] | None = None) -> Operators:
        """The tables; the roofline's all-reduce unless a link is given."""
        arch = model(self.model)
        return Operators(arch, LlmServingSimTables.load(self.gpu, arch, self.tp, link=link), self.gpu, self.tp, self.roofline())

    def roofline(self) -> Roofline:
        return Roofline(model(self.model), gpu(self.gpu), tp=self.tp)


SCALES = {"gemm": 1.0, "attn_decode": 1.0, "step_s": 2e-4}
RUNS = (
    MeasuredRun("RTX4090_Llama-3.1-8B", "Llama-3.1-8B", "rtx4090", 1, EngineConfig(num_blocks=2588), SCALES,
                blocks="validation/sharegpt300_llama31_10rps.parquet", notes="prefix cache on, 2588 blocks as the engine reported"),
    MeasuredRun("RTXPRO6000_Qwen3-32B", "Qwen3-32B", "rtx_pro_6000", 2, EngineConfig(max_num_seqs=128, prefix_cache=False),
                {"comm": 1.0, **SCALES}, link=(20e-6, 14e9), notes="KV blocks not recorded, unbounded here; prompts' blocks not recorded"),
)


def calibrated(prior: Operators, theta: dict[str, float], source: str = "host fit") -> Calibrated:
    """The prior with fitted factors."""
    return Calibrated(prior, Coefficients(**theta), source=source)


@dataclass(frozen=True)
class RunsReport:
    """errors: `error_table` of every run and estimate; fits: by run; text: one paragraph; profiles: runs with their fits."""

    errors: pd.DataFrame
    fits: dict[str, Fit]
    text: str
    profiles: dict[str, tuple[MeasuredRun, Fit]] = field(default_factory=dict)


def validate_runs(runs: Sequence[MeasuredRun] = RUNS, *, folds: int = FOLDS, seed: int = 0) -> RunsReport:
    """Replay the measured runs: roofline and operator tables as they are, and calibrated in-sample and cross-validated; about 20 s.

    Cross-validated: the requests are cut into blocks of 20, blocks dealt to `folds`; each fold's requests are predicted by a fit that was scored on
    the others only. Raises ConfigFileError, ConfigTableMissError.
    """
    tables, fits = [], {}
    for run in runs:
        measured, prior = run.requests, run.operators(run.link)
        plain: list[tuple[str, StepModel]] = [("uncalibrated roofline", run.roofline()), ("uncalibrated operator tables", run.operators())]
        if run.link is not None:
            plain.append(("operator tables, assumed link", prior))
        for label, step_model in plain:
            tables.append(_table(run, label, measured, replay(measured, step_model, run.config)))
        fit = fits[run.name] = fit_requests(measured, partial(calibrated, prior), run.theta0, run.config, seed=seed)
        tables.append(_table(run, "in-sample", measured, replay(measured, calibrated(prior, fit.theta), run.config)))
        tables.append(_table(run, "cross-validated", measured, _held_out(run, measured, partial(calibrated, prior), folds)))
    errors = pd.concat(tables, ignore_index=True)
    return RunsReport(errors, fits, _text(errors), {r.name: (r, fits[r.name]) for r in runs})


def _held_out(run: MeasuredRun, measured: list[RequestObs], make: Callable[[dict[str, float]], StepModel], folds: int) -> Replayed:
    fold = np.arange(len(measured)) // BLOCK % folds
    requests: list[RequestObs] = list(measured)
    whole: Replayed | None = None
    for f in range(folds):
        theta = fit_requests(measured, make, run.theta0, run.config, use=(fold != f).tolist()).theta
        whole = replay(measured, make(theta), run.config)
        for i in np.flatnonzero(fold == f):
            requests[i] = whole.requests[i]
    assert whole is not None
    return Replayed(requests, whole.preemptions, whole.steps, whole.hit_share)


def _table(run: MeasuredRun, estimate: str, measured: list[RequestObs], got: Replayed) -> pd.DataFrame:
    extra: dict[str, tuple[float | None, float]] = {
        "preemptions": (run.measured_preemptions, got.preemptions), "kv_hit_share": (None, got.hit_share)}
    table = error_table(measured, got.requests, estimate=estimate, extra=extra)
    table.insert(0, "run", run.name)
    return table


def _text(errors: pd.DataFrame) -> str:
    means = errors[errors["statistic"].isin(("mean", "all")) & errors["metric"].isin(("ttft", "tpot", "e2e", "makespan"))]
    said = []
    for (run, estimate), part in means.groupby(["run", "estimate"], sort=False):
        said.append(f"{run}, {estimate}: " + ", ".join(f"{r.metric} {r.error:+.1%}" for r in part.itertuples()))
    return ("Errors of the mean (makespan: of the whole) against vLLM 0.19.0, 300 requests at 10 per second, in overload, so that TTFT is mostly "
            "queueing. " + "; ".join(said) + ". Cross-validated requests share the queue with those that were fitted: "
            "they check the model's form more than a new load. In-sample numbers are no predictions.")
