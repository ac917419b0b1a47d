"""Operator tables in the form of LLMServingSim's profiles of vLLM 0.19 (MIT): one folder, files `<GPU>_<model>_tp<n>_<part>.csv.gz`.

The all-reduce is not among them: a link (latency, bytes/s) is given, or it is fitted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import floor, isinf
from pathlib import Path

import numpy as np
import pandas as pd

from windtunnel.datafiles import data_path
from windtunnel.errors import ConfigTableMissError
from windtunnel.sim.catalog import Architecture
from windtunnel.sim.stepmodels.grid import Line, Plane
from windtunnel.sim.stepmodels.roofline import FOR_EVER

FOLDER = "calibration/llmservingsim"
NAMES = {"rtx4090": "RTX4090", "rtx_pro_6000": "RTXPRO6000", "rtx_pro_6000_server": "RTXPRO6000"}
MODELS = {"Qwen3-30B-A3B": "Qwen3-30B-A3B-Instruct-2507"}
GEMM, ONCE = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"), ("embedding", "final_layernorm")
TWICE = "layernorm"
US = 1e-6


@dataclass(frozen=True)
class LlmServingSimTables:
    """Read with `load`. link: seconds of an all-reduce are latency + bytes/bandwidth; None: none is known."""

    arch: Architecture
    tp: int
    source: str
    gemm: Line
    other: Line
    once: Line
    sequences: Line
    prefills: Plane
    decodes: Plane
    experts: Plane | None = None
    link: tuple[float, float] | None = None
    _rows: dict[int, Line] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def load(cls, gpu: str, arch: Architecture, tp: int = 1, *, link: tuple[float, float] | None = None,
             folder: Path | None = None) -> LlmServingSimTables:
        """Raises ConfigTableMissError for a (GPU, model, tp) that was not profiled."""
        where = folder or data_path(FOLDER)
        stem = f"{NAMES.get(gpu, gpu)}_{MODELS.get(arch.name, arch.name)}_tp{tp}"
        if not (where / f"{stem}_dense.csv.gz").exists():
            have = sorted(p.name.removesuffix("_dense.csv.gz") for p in where.glob("*_dense.csv.gz"))
            raise ConfigTableMissError(f"no operator tables {stem}", hint=f"there are {', '.join(have)}")
        dense = pd.read_csv(where / f"{stem}_dense.csv.gz")
        per = pd.read_csv(where / f"{stem}_per_sequence.csv.gz")
        attention = pd.read_csv(where / f"{stem}_attention.csv.gz")
        layers = set(dense["layer"])
        rest = [n for n in sorted(layers) if n not in GEMM and n not in ONCE]
        moe = where / f"{stem}_moe.csv.gz"
        return cls(
            arch, tp, f"operators LLMServingSim vLLM 0.19 {stem}", _lines(dense, [n for n in GEMM if n in layers], "tokens"),
            _lines(dense, [*rest, TWICE], "tokens"), _lines(dense, list(ONCE), "tokens"), _lines(per, sorted(set(per["layer"])), "sequences"),
            _plane(attention[attention["n_decode"] == 0], "prefill_chunk", "kv_prefill"),
            _plane(attention[attention["prefill_chunk"] == 0], "n_decode", "kv_decode"),
            _plane(pd.read_csv(moe), "tokens", "activated_experts") if moe.exists() else None, link)

    def dense(self, tokens: int) -> dict[str, float]:
        return {"gemm": self.gemm.at(tokens), "other": self.other.at(tokens), "once": self.once.at(tokens)}

    def head(self, sampled: int) -> float:
        return self.sequences.at(sampled)

    def moe(self, tokens: int) -> float:
        if self.experts is None or self.arch.moe is None:
            raise ConfigTableMissError(f"no table of experts at tp {self.tp} in {self.source}")
        e = self.arch.moe
        return self.experts.row(tokens).at(e.experts * (1 - (1 - e.topk / e.experts) ** tokens))

    def all_reduce(self, tokens: int) -> float:
        if self.link is None:
            raise ConfigTableMissError(f"no all-reduce table in {self.source}", hint="give a link or a fallback")
        return self.link[0] + 2 * tokens * self.arch.hidden / self.link[1]

    def decode(self, sequences: int) -> Line:
        return self.decodes.row(sequences)

    def prefill(self, chunk: int, before: int) -> tuple[float, float, int]:
        line = self._rows.get(chunk)
        if line is None:
            line = self._rows[chunk] = self.prefills.row(chunk)
        value, slope, end = line.going_up(before)
        return value, slope * chunk, FOR_EVER if isinf(end) else floor((end - before) / chunk + 1e-9) + 1


def _lines(frame: pd.DataFrame, layers: list[str], by: str) -> Line:
    """The sum of these layers, each as often as it is named."""
    knots = sorted(set(frame[by].tolist()))
    total = np.zeros(len(knots))
    for name in layers:
        part = frame[frame["layer"] == name].sort_values(by)
        total += np.interp(knots, part[by], part["time_us"])
    return Line([float(k) for k in knots], (total * US).tolist())


def _plane(frame: pd.DataFrame, rows: str, columns: str) -> Plane:
    seen = frame[(frame[rows] > 0)]
    return Plane.of(seen[rows], seen[columns], seen["time_us"] * US).filled()
