"""Operator tables in the form of aiconfigurator's microbenchmarks of vLLM (Apache-2.0): `<gpu>_vllm<version>_<operator>.parquet`, ms per call.

Elementwise kernels are not among them: they take their memory time at 80 % of the GPU's bandwidth.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from windtunnel.datafiles import data_path
from windtunnel.errors import ConfigTableMissError
from windtunnel.sim.catalog import Architecture, Gpu
from windtunnel.sim.stepmodels.grid import Array, Line, Plane
from windtunnel.sim.stepmodels.roofline import FOR_EVER

FOLDER = "calibration/aic"
DTYPES = {"bf16": "bfloat16", "fp16": "bfloat16", "fp8": "fp8", "fp4": "nvfp4"}
EXPERT_DTYPES = {"bf16": ("bfloat16",), "fp16": ("bfloat16",), "fp8": ("fp8_block", "fp8"), "fp4": ("nvfp4", "w4a16_mxfp4"), "int4": ("int4_wo",)}
LOAD = "power_law_1.2"  # how unevenly tokens choose experts
GRAPH_TOKENS = 512  # steps up to this size run as CUDA graphs
LAUNCH_S, MEMORY = 2e-6, 0.80
MS = 1e-3


@cache
def _read(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path)


@dataclass(frozen=True)
class Gemm:
    """Seconds over (n, k, m). Off the grid in n or k: latency per n·k, bilinear."""

    n: list[int]
    k: list[int]
    m: list[float]
    seconds: Array  # [n, k, m], NaN where not measured

    @classmethod
    def of(cls, frame: pd.DataFrame) -> Gemm:
        n, k, m = (sorted(set(frame[c].tolist())) for c in "nkm")
        grid = np.full((len(n), len(k), len(m)), np.inf)
        at = tuple(np.searchsorted(v, frame[c]) for v, c in ((n, "n"), (k, "k"), (m, "m")))
        np.minimum.at(grid, at, frame["latency_ms"].to_numpy(dtype=float) * MS)  # of several kernels the fastest
        grid[np.isinf(grid)] = np.nan
        return cls(n, k, [float(x) for x in m], grid)

    def at(self, m: float, n: float, k: float) -> float:
        corners = [(i, j, wi * wj) for i, wi in _ends(self.n, n) for j, wj in _ends(self.k, k)]
        if not corners:
            raise ConfigTableMissError(f"gemm n {n:g} k {k:g} is outside the table {self.n[0]}..{self.n[-1]} × {self.k[0]}..{self.k[-1]}")
        return n * k * sum(w * self._line(i, j).at(m) / (self.n[i] * self.k[j]) for i, j, w in corners)

    def _line(self, i: int, j: int) -> Line:
        column = self.seconds[i, j]
        known = ~np.isnan(column)
        if known.sum() < 2:
            raise ConfigTableMissError(f"gemm n {self.n[i]} k {self.k[j]} was not measured")
        return Line([x for x, ok in zip(self.m, known) if ok], column[known].tolist())


def _ends(grid: list[int], x: float) -> list[tuple[int, float]]:
    """The grid indices around x with their weights; nothing if x is outside."""
    i = bisect_left(grid, x)
    if i < len(grid) and grid[i] == x:
        return [(i, 1.0)]
    if i in (0, len(grid)):
        return []
    share = (x - grid[i - 1]) / (grid[i] - grid[i - 1])
    return [(i - 1, 1 - share), (i, share)]


@dataclass(frozen=True)
class AicTables:
    """The tables of one model on one GPU type; raises ConfigTableMissError where a key was not measured."""

    arch: Architecture
    gpu: Gpu
    tp: int = 1
    ep: int = 1
    dtype: str = "bf16"
    kv_dtype: str = "bf16"
    folder: Path | None = None
    _stem: str = field(init=False, default="")
    _made: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        where = self.folder or data_path(FOLDER)
        found = sorted(where.glob(f"{self.gpu.name}_vllm*_gemm.parquet"))
        if not found:
            have = sorted(p.name.split("_vllm")[0] for p in where.glob("*_gemm.parquet"))
            raise ConfigTableMissError(f"no operator tables of {self.gpu.name}", hint=f"there are tables of {', '.join(have)}")
        object.__setattr__(self, "_stem", str(found[-1]).removesuffix("_gemm.parquet"))

    @property
    def source(self) -> str:
        return f"operators aiconfigurator {Path(self._stem).name}"

    def dense(self, tokens: int) -> dict[str, float]:
        a, t, d = self.arch, self.tp, self.arch.hidden
        if a.mla is not None or a.linear_params is not None:
            raise ConfigTableMissError(f"no projections of {a.name}: latent and linear attention are not in the tables")
        sparse = a.layers - a.moe.first_dense_layers if a.moe is not None else 0
        share = (a.layers - sparse) / a.layers
        gemm = self.gemm(tokens, (a.heads + 2 * max(a.kv_heads, t)) * a.head_dim / t, d) + self.gemm(tokens, d, a.heads * a.head_dim / t)
        other = 4 * self._elementwise(tokens, d)
        if share:
            gemm += share * (self.gemm(tokens, (2 if a.ffn_gated else 1) * a.ffn / t, d) + self.gemm(tokens, d, a.ffn / t))
            other += share * self._elementwise(tokens, a.ffn / t)
        return {"gemm": gemm, "other": other, "once": self._elementwise(tokens, d)}

    def head(self, sampled: int) -> float:
        """By rows of the table's widest n: a vocabulary is wider than most grids."""
        n = self.arch.vocab / self.tp
        table = self._gemm_table()
        pieces = ceil(n / table.n[-1])
        return pieces * self.gemm(sampled, n / pieces, self.arch.hidden)

    def gemm(self, m: float, n: float, k: float) -> float:
        key = ("gemm", m, n, k)
        seconds: float | None = self._made.get(key)
        if seconds is None:
            seconds = self._made[key] = self._gemm_table().at(m, n, k)
        return seconds

    def _gemm_table(self) -> Gemm:
        table = self._made.get("gemm")
        if table is None:
            frame = self._frame("gemm")
            mine = frame[frame["gemm_dtype"] == DTYPES.get(self.dtype, self.dtype)]
            if mine.empty:
                have = ", ".join(sorted(set(frame["gemm_dtype"])))
                raise ConfigTableMissError(f"no gemm in {self.dtype} on {self.gpu.name}", hint=f"there is {have}")
            table = self._made["gemm"] = Gemm.of(mine)
        return table  # type: ignore[no-any-return]

    def moe(self, tokens: int) -> float:
        line: Line | None = self._made.get("moe")
        if line is None:
            line = self._made["moe"] = self._experts()
        return line.at(tokens)

    def _experts(self) -> Line:
        moe = self.arch.moe
        if moe is None:
            raise ConfigTableMissError(f"{self.arch.name} has no experts")
        f = self._frame("moe")
        f = f[(f["hidden_size"] == self.arch.hidden) & (f["inter_size"] == moe.expert_ffn) & (f["topk"] == moe.topk)
              & (f["num_experts"] == moe.experts) & (f["moe_tp_size"] == self.tp // self.ep) & (f["moe_ep_size"] == self.ep)
              & (f["distribution"] == LOAD) & f["moe_dtype"].isin(EXPERT_DTYPES.get(self.dtype, ()))]
        if f["num_tokens"].nunique() < 2:
            split = f"at tp {self.tp // self.ep} ep {self.ep} in {self.dtype}"
            raise ConfigTableMissError(f"no experts {moe.experts} × {moe.expert_ffn} top {moe.topk} {split}")
        best = f.groupby("num_tokens")["latency_ms"].min().sort_index()
        return Line([float(x) for x in best.index], (best.to_numpy(dtype=float) * MS).tolist())

    def all_reduce(self, tokens: int) -> float:
        kind = "vllm_graph" if tokens <= GRAPH_TOKENS else "vllm_eager"
        line: Line | None = self._made.get(kind)
        if line is None:
            if not Path(f"{self._stem}_allreduce.parquet").exists():
                raise ConfigTableMissError(f"no all-reduce table of {self.gpu.name}")
            f = self._frame("allreduce")
            f = f[(f["num_gpus"] == self.tp) & (f["backend"] == kind)].sort_values("message_size")
            if len(f) < 2:
                raise ConfigTableMissError(f"no all-reduce of {self.tp} GPUs on {self.gpu.name}")
            line = self._made[kind] = Line(f["message_size"].astype(float).tolist(), (f["latency_ms"].to_numpy(dtype=float) * MS).tolist())
        return line.at(tokens * self.arch.hidden)  # message_size counts elements of two bytes

    def decode(self, sequences: int) -> Line:
        plane = self._made.get("decode")
        if plane is None:
            f = self._attention("attn_decode")
            plane = self._made["decode"] = Plane.of(f["batch_size"], f["step"] + 1, f["latency_ms"] * MS).filled()
        return plane.row(sequences)  # type: ignore[no-any-return]

    def prefill(self, chunk: int, before: int) -> tuple[float, float, int]:
        """The whole prompt's time up to the chunk's end, less that up to its start, and at least that of one token."""
        least, end = self.whole_prompt(1)[0], before + chunk
        (upper, up, top), (lower, low, mid) = self.whole_prompt(end), self.whole_prompt(before) if before else (0.0, 0.0, float("inf"))
        value, slope = upper - lower, (up - low) * chunk
        if before == 0 or value < least:  # the next chunk starts in another cell, or is no longer held up by the least
            return max(value, least), 0.0, 1
        lasts = min(_points(top, end, chunk), _points(mid, before, chunk))
        if slope < 0:
            lasts = min(lasts, int((value - least) / -slope) + 1)
        return value, slope, max(1, lasts)

    def whole_prompt(self, tokens: int) -> tuple[float, float, float]:
        """(seconds, seconds per token, where that ends) of a prompt's attention in one go; beyond the table quadratic, a cell each token."""
        line: Line | None = self._made.get("prefill")
        if line is None:
            f = self._attention("attn_prefill")
            best = f[f["batch_size"] == 1].groupby("isl")["latency_ms"].min().sort_index()
            line = self._made["prefill"] = Line([float(x) for x in best.index], (best.to_numpy(dtype=float) * MS).tolist())
        if tokens <= line.knots[-1]:
            value, slope, end = line.going_up(tokens)
            return value, slope, min(end, line.knots[-1])
        (x0, x1, x2), (y0, y1, y2) = line.knots[-3:], line.values[-3:]
        x = float(tokens)
        value = (y0 * (x - x1) * (x - x2) / ((x0 - x1) * (x0 - x2)) + y1 * (x - x0) * (x - x2) / ((x1 - x0) * (x1 - x2))
                 + y2 * (x - x0) * (x - x1) / ((x2 - x0) * (x2 - x1)))
        return value, 0.0, x

    def _attention(self, operator: str) -> pd.DataFrame:
        a, f = self.arch, self._frame(operator)
        heads, kv_heads = a.heads // self.tp, max(1, a.kv_heads // self.tp)
        if a.mla is not None or a.sliding_window is not None:
            raise ConfigTableMissError(f"no {operator} of latent or windowed attention in the tables")
        mine = f[(f["num_heads"] == heads) & (f["head_dim"] == a.head_dim) & (f["kv_cache_dtype"] == DTYPES.get(self.kv_dtype, self.kv_dtype))]
        same = mine[mine["num_key_value_heads"] == kv_heads]
        if same.empty:
            near = ", ".join(str(x) for x in sorted(set(mine["num_key_value_heads"]))) or "none"
            raise ConfigTableMissError(f"no {operator} of {heads} heads, {kv_heads} KV heads of {a.head_dim}",
                                       hint=f"KV heads with these heads: {near}")
        return same

    def _frame(self, operator: str) -> pd.DataFrame:
        return _read(Path(f"{self._stem}_{operator}.parquet"))

    def _elementwise(self, m: float, width: float) -> float:
        return 4 * m * width / (self.gpu.memory_bw * MEMORY) + LAUNCH_S


def _points(end: float, x: float, step: int) -> int:
    """How many of x, x + step, ... are not past `end`."""
    return FOR_EVER if end == float("inf") else int((end - x) / step + 1e-9) + 1
