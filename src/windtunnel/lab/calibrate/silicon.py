"""Validation on published measurements of whole engines: closed loops of many models, GPUs and engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from windtunnel.datafiles import data_path
from windtunnel.lab.calibrate.closed_loop import MS, ClosedLoop, Work, prior_of, tables_of, work
from windtunnel.lab.calibrate.hierarchy import family
from windtunnel.lab.calibrate.least_squares import Array
from windtunnel.lab.calibrate.observe import PointObs, read_points
from windtunnel.sim.capacity import kv_blocks

POINTS = "validation/silicon_points_train.csv.gz"
FOLDS = 5
JUMP = 10.0  # TTFT over that of the next lower concurrency: the queue no longer empties
SAME = 2e-3  # two rows whose TTFT and TPOT agree this closely are one measurement, published twice
TARGETS = {"tpot": 0.05, "ttft": 0.10, "throughput": 0.05}


@dataclass(frozen=True)
class SiliconReport:
    """points: one row a measurement, with what was predicted cross-validated, for its group unseen, in-sample and uncalibrated (s);
    errors: median and 90th percentile of the absolute relative error by estimate, metric and slice; text: one paragraph."""

    points: pd.DataFrame
    errors: pd.DataFrame
    text: str
    model: ClosedLoop


def saturated(points: Sequence[PointObs]) -> list[bool]:
    """Points with more KV than fits, or whose TTFT jumped: they measure a queue, not an engine."""
    out = [p.concurrency * (p.isl + p.osl / 2) > _kv_tokens(p) for p in points]
    ladders: dict[tuple[str, int, int], list[int]] = {}
    for i, p in enumerate(points):
        ladders.setdefault((p.group, p.isl, p.osl), []).append(i)
    for rows in ladders.values():
        rows.sort(key=lambda i: (points[i].concurrency, points[i].ttft_s))
        below, here, jumped = None, (0, 0.0), False
        for i in rows:
            p = points[i]
            if p.concurrency != here[0]:
                below, here = here[1] or None, (p.concurrency, p.ttft_s)
            jumped = jumped or (below is not None and p.ttft_s > JUMP * below)
            out[i] = out[i] or jumped
    return out


def _kv_tokens(p: PointObs) -> float:
    roof = prior_of(p)
    return 16.0 * p.dp * kv_blocks(roof.arch, roof.gpu, tp=p.gpus, dtype=p.dtype)


def measurements(points: Sequence[PointObs]) -> list[int]:
    """A number for each point, the same for rows that are one measurement (published for two names, or rounded once more)."""
    number, last = [0] * len(points), 0
    at: dict[tuple[object, ...], list[int]] = {}
    for i, p in enumerate(points):
        at.setdefault((family(p), p.gpu, p.engine, p.isl, p.osl, p.concurrency), []).append(i)
    for rows in at.values():
        rows.sort(key=lambda i: points[i].tpot_s)
        before: PointObs | None = None
        for i in rows:
            p = points[i]
            if before is None or abs(p.tpot_s / before.tpot_s - 1) > SAME or abs(p.ttft_s / before.ttft_s - 1) > SAME:
                last += 1
            number[i], before = last, p
    return number


def validate_silicon(path: Path | None = None, *, seed: int = 0, folds: int = FOLDS) -> SiliconReport:
    """Fit the closed loop to the points and predict each from folds without it; about 5 s.

    Saturated points are neither fitted nor in the headline, they have rows of their own. "cross-validated" leaves out single measurements,
    "unseen" whole (model, GPU, engine) systems. Raises ConfigFileError, TraceFormatError.
    """
    everything = read_points(path or data_path(POINTS))
    number = measurements(everything)
    first = {n: i for i, n in reversed(list(enumerate(number)))}
    points = [everything[i] for i in sorted(first.values())]
    full = saturated(points)
    table = _table(points, full)
    rng = np.random.default_rng(seed)
    calm = [i for i, f in enumerate(full) if not f]
    groups = sorted({_system(p) for p in points})
    group_fold = dict(zip(groups, rng.permutation(len(groups)) % (2 * folds)))
    estimates = {
        "cross-validated": _held_out(points, calm, rng.permutation(len(points)) % folds),
        "unseen system": _held_out(points, calm, np.array([group_fold[_system(p)] for p in points])),
    }
    fitted = ClosedLoop().fit([points[i] for i in calm])
    estimates["in-sample"] = fitted.predict(points)
    estimates["uncalibrated roofline"] = _steps_only(points, [work(p) for p in points])
    estimates["uncalibrated operator tables"] = _steps_only(points, [None if (t := tables_of(p)) is None else work(p, t) for p in points])
    for name, (ttft, tpot) in estimates.items():
        table[f"{name} ttft_s"], table[f"{name} tpot_s"] = ttft, tpot
        table[f"{name} throughput"] = _throughput(table, ttft, tpot)
    errors = _errors(table, list(estimates))
    return SiliconReport(table, errors, _text(table, errors, len(everything)), fitted)


def _system(p: PointObs) -> str:
    return f"{family(p)}|{p.gpu}|{p.engine}"


def _held_out(points: Sequence[PointObs], calm: Sequence[int], fold: np.ndarray[Any, Any]) -> tuple[Array, Array]:
    """Each point predicted by a fit that has not seen its fold; saturated points are in no fit."""
    ttft, tpot = np.full(len(points), np.nan), np.full(len(points), np.nan)
    for f in sorted(set(fold.tolist())):
        rows = np.flatnonzero(fold == f)
        ttft[rows], tpot[rows] = ClosedLoop().fit([points[i] for i in calm if fold[i] != f]).predict([points[int(i)] for i in rows])
    return ttft, tpot


def _steps_only(points: Sequence[PointObs], loads: Sequence[Work | None]) -> tuple[Array, Array]:
    """Step times of a model alone: no host, no queue; NaN where there is none."""
    ttft, tpot = np.full(len(points), np.nan), np.full(len(points), np.nan)
    for i, (p, w) in enumerate(zip(points, loads)):
        if w is not None:
            ttft[i], tpot[i] = (w.prompt_ms + w.step_ms / 2) / MS, (w.step_ms + p.concurrency / p.osl * w.prompt_ms) / MS
    return ttft, tpot


def _throughput(table: pd.DataFrame, ttft: Array, tpot: Array) -> Array:
    result: Array = (table["concurrency"] * table["osl"] / (ttft + (table["osl"] - 1) * tpot)).to_numpy()
    return result


def _table(points: Sequence[PointObs], full: Sequence[bool]) -> pd.DataFrame:
    rows = [(p.id, p.model, p.gpu, p.engine, p.version, p.dtype, p.gpus, p.ep, p.dp, p.isl, p.osl, p.concurrency, p.origin, p.group, f,
             p.ttft_s, p.tpot_s, p.throughput) for p, f in zip(points, full)]
    return pd.DataFrame(rows, columns=["id", "model", "gpu", "engine", "version", "dtype", "gpus", "ep", "dp", "isl", "osl", "concurrency", "origin",
                                       "group", "saturated", "ttft_s", "tpot_s", "throughput"])


def _errors(table: pd.DataFrame, estimates: Sequence[str]) -> pd.DataFrame:
    calm = table[~table["saturated"]]
    slices = {"all": calm, "saturated": table[table["saturated"]]}
    slices |= {f"engine {name}": part for name, part in calm.groupby("engine")}
    slices |= {f"origin {name}": part for name, part in calm.groupby("origin")}
    rows = []
    for where, part in slices.items():
        for name in estimates:
            for metric, column in (("ttft", "ttft_s"), ("tpot", "tpot_s"), ("throughput", "throughput")):
                error = (part[f"{name} {column}"] / part[column] - 1).dropna().to_numpy()
                if len(error):
                    rows.append((where, name, metric, np.median(error), np.median(np.abs(error)), np.quantile(np.abs(error), 0.9), len(error)))
    return pd.DataFrame(rows, columns=["slice", "estimate", "metric", "median_error", "median_abs_error", "p90_abs_error", "n"])


def _text(table: pd.DataFrame, errors: pd.DataFrame, read: int) -> str:
    calm = int((~table["saturated"]).sum())
    head = errors[errors["slice"] == "all"].set_index(["estimate", "metric"])["median_abs_error"]
    said = "; ".join(f"{name}: " + ", ".join(f"{metric.upper() if metric != 'throughput' else metric} {head[name, metric]:.1%}" for metric in TARGETS)
                     for name in head.index.get_level_values(0).unique())
    return (
        f"{read} published points of aggregated serving are {len(table)} measurements of {table['group'].nunique()} engine set-ups; {calm} are "
        f"not saturated. Median absolute error, {said}. Throughput is that of a closed loop with the TTFT and TPOT of each side. "
        "Cross-validated: each measurement predicted by a fit without it. Unseen system: by a fit without any of its (model, GPU, engine). "
        "Operator tables where there are any: kernels of vLLM, the roofline for what they lack. "
        "In-sample numbers are no predictions.")


def predict_unseen(path: Path, *, fitted_on: Path | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predict the points of another file by a fit to the shipped ones: (points, errors) as in SiliconReport, estimate "prediction".

    Measurements that are among the fitted ones are left out: a point used in a fit is no prediction.
    """
    known = read_points(fitted_on or data_path(POINTS))
    others = read_points(path)
    number = measurements([*known, *others])
    seen = set(number[:len(known)])
    points = [p for p, n in zip(others, number[len(known):]) if n not in seen]
    fitted = ClosedLoop().fit([p for p, full in zip(known, saturated(known)) if not full])
    table = _table(points, saturated([*known, *points])[len(known):])
    ttft, tpot = fitted.predict(points)
    table["prediction ttft_s"], table["prediction tpot_s"] = ttft, tpot
    table["prediction throughput"] = _throughput(table, ttft, tpot)
    return table, _errors(table, ["prediction"])
