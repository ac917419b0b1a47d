"""Measured engine steps of a GPU (`sims/measure_gpu.py`): a step-time table from some of them, checked on the others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import yaml

from windtunnel.errors import ConfigError
from windtunnel.lab.calibrate.engine_profile import slopes
from windtunnel.sim.stepmodels.model import Batch, Provenance
from windtunnel.sim.stepmodels.table import Table


@dataclass(frozen=True, slots=True)
class StepPoint:
    """One kind of step. chunk: prompt tokens on top of `prefix` cached ones (0: none); batch: sequences that decode one token each over
    `context` tokens; step_s: median seconds."""

    chunk: int
    prefix: int
    batch: int
    context: int
    step_s: float

    @property
    def composition(self) -> Batch:
        prefilling = int(self.chunk > 0)
        return Batch(self.batch, self.batch * self.context, [(self.chunk, self.prefix)] * prefilling, self.batch + self.chunk,
                     self.batch + prefilling, self.batch + prefilling)

    @property
    def kind(self) -> str:
        return "mixed" if self.chunk and self.batch else "prefix" if self.chunk and self.prefix else "prefill" if self.chunk else "decode"


@dataclass(frozen=True, slots=True)
class GpuFit:
    """table: from whole prompts and every second context; errors: one row per point that was not used (signed error in percent)."""

    table: Table
    errors: pd.DataFrame
    measured: dict[str, Any]

    @property
    def median_error_percent(self) -> dict[str, float]:
        return {str(kind): float(rows["error_percent"].abs().median()) for kind, rows in self.errors.groupby("kind", sort=False)}

    def write(self, path: str | Path) -> Path:
        """YAML whose `profile` is a pool's key in a scenario."""
        t, path = self.table, Path(path)
        head = {**self.measured, "median_error_percent": {k: round(v, 2) for k, v in self.median_error_percent.items()}}
        profile = {"kind": "table", "decode_s": [[b, round(s, 9)] for b, s in t.decode_s], "prefill_s_per_token": 0.0,
                   "prefill_s": [[n, round(s, 9)] for n, s in t.prefill_s], "kv_s_per_token": float(f"{t.kv_s_per_token:.6g}")}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump({"measured": head, "profile": profile}, sort_keys=False, allow_unicode=True), "utf-8")
        return path


def read_steps(path: str | Path) -> tuple[list[StepPoint], dict[str, Any]]:
    """(points, what was measured: gpu, model, versions, date). Raises ConfigError naming the point that makes no sense."""
    try:
        found = json.loads(Path(path).read_text("utf-8"))
        rows, measured = found["points"], dict(found["measured"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a file of measure_gpu.py ({type(error).__name__}: {error})") from None
    points = []
    for i, row in enumerate(rows):
        try:
            point = StepPoint(int(row["chunk"]), int(row["prefix"]), int(row["batch"]), int(row["context"]), float(row["step_s"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path}: points[{i}]: {type(error).__name__}: {error}") from None
        if not 0 < point.step_s < float("inf") or min(point.chunk, point.prefix, point.batch, point.context) < 0 or not (point.chunk or point.batch):
            raise ConfigError(f"{path}: points[{i}]: expected tokens >= 0, a chunk or a batch, and seconds > 0, got {row}")
        points.append(point)
    return points, measured


def fit_steps(points: Sequence[StepPoint], measured: dict[str, Any]) -> GpuFit:
    """A decode step by batch, its growth with context (Theil 1950, Sen 1968), whole prompts by length; prefixes, mixed steps and every
    second context are held back.

    Raises ConfigError without a single decode or whole prompt.
    """
    contexts = sorted({p.context for p in points if p.kind == "decode"})
    used = {c for i, c in enumerate(contexts) if i % 2 == 0 or i == len(contexts) - 1}
    decodes = [p for p in points if p.kind == "decode" and p.context in used]
    prompts = sorted((p.chunk, p.step_s) for p in points if p.kind == "prefill")
    if not decodes or not prompts:
        raise ConfigError("expected at least one decode and one whole prompt among the points")
    by_batch: dict[int, list[tuple[float, float]]] = {}
    for p in decodes:
        by_batch.setdefault(p.batch, []).append((float(p.batch * p.context), p.step_s))
    kv = max(0.0, median([s for part in by_batch.values() for s in slopes(part)] or [0.0]))
    decode_s = tuple((b, max(1e-9, median([s - kv * x for x, s in part]))) for b, part in sorted(by_batch.items()))
    alone = decode_s[0][1]  # a step with a prompt has its own fixed part, and `of_batch` counts it already
    prefill_s = tuple(zip((n for n, _ in prompts), accumulate((max(0.0, s - alone) for _, s in prompts), max)))
    source = f"{len(points)} steps measured on {measured.get('gpu', 'a GPU')}"
    table = Table(decode_s, 0.0, kv, prefill_s, Provenance(str(measured.get("model", "")), str(measured.get("gpu", "")), source, "calibrated"))
    held = [p for p in points if p.kind in ("prefix", "mixed") or (p.kind == "decode" and p.context not in used)]
    rows = [{"kind": p.kind, "chunk": p.chunk, "prefix": p.prefix, "batch": p.batch, "context": p.context, "measured_s": p.step_s,
             "predicted_s": (said := table.seconds(p.composition)), "error_percent": 100 * (said / p.step_s - 1)} for p in held]
    columns = ["kind", "chunk", "prefix", "batch", "context", "measured_s", "predicted_s", "error_percent"]
    return GpuFit(table, pd.DataFrame(rows, columns=columns), measured)
