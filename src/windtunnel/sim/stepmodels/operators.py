"""Step time from measured operators: the composition of the roofline, each term looked up in tables.

Attention of a mixed step is the sum of its prefill and decode parts. Lookups are remembered; nothing is read after construction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import floor, isinf
from typing import TypeVar

from windtunnel.errors import ConfigTableMissError, ConfigValueError
from windtunnel.policy.param import check_number
from windtunnel.sim.catalog import Architecture
from windtunnel.sim.stepmodels.grid import Line
from windtunnel.sim.stepmodels.model import Batch, Provenance
from windtunnel.sim.stepmodels.roofline import FOR_EVER, Roofline
from windtunnel.sim.stepmodels.tables import Tables

T = TypeVar("T")


@dataclass(frozen=True)
class Operators:
    """fallback: the roofline that stands in for an operator without a table; without it a miss is ConfigTableMissError.

    `fell_back` names the operators that the roofline stands in for. Always partly_uncalibrated: kernels are measured, the host is not.
    """

    arch: Architecture
    tables: Tables
    gpu_name: str = ""
    tp: int = 1
    fallback: Roofline | None = None
    fell_back: set[str] = field(default_factory=set, compare=False)
    _base: dict[tuple[int, int], float] = field(default_factory=dict, repr=False, compare=False)
    _lines: dict[int, Line] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_number("tp", self.tp, lo=1, whole=True)
        if self.fallback is not None and self.fallback.arch != self.arch:
            raise ConfigValueError("fallback", f"is a model of {self.fallback.arch.name}, not of {self.arch.name}")
        self.dense(1, 1)  # a table that is missing shows before the run
        self.decode_attention(1, 1)
        self.prefill_attention(1, 0)

    @property
    def provenance(self) -> Provenance:
        note = f"roofline for {', '.join(sorted(self.fell_back))}" if self.fell_back else "host times not fitted"
        return Provenance(self.arch.name, f"{self.gpu_name}×{self.tp}", self.tables.source, "partly_uncalibrated", note)

    def seconds(self, b: Batch) -> float:
        return self.run(b, 1)[0]

    def run(self, b: Batch, k: int) -> tuple[float, float, int]:
        a = self._base.get((b.tokens, b.sampled))
        if a is None:
            a = self._base[(b.tokens, b.sampled)] = sum(self.dense(b.tokens, b.sampled).values())
        slope = 0.0
        if b.decode_seqs:
            seconds, slope, lasts = self.decode_attention(b.decode_seqs, b.decode_kv)
            a += seconds
            k = min(k, lasts)
        for chunk, computed in b.prefill:
            seconds, grows, lasts = self.prefill_attention(chunk, computed)
            a, slope, k = a + seconds, slope + grows, min(k, lasts)
        return a, slope, max(1, k)

    def parts(self, b: Batch) -> dict[str, float]:
        """Seconds of this step by group of operators."""
        parts = self.dense(b.tokens, b.sampled)
        parts["attn_decode"] = self.decode_attention(b.decode_seqs, b.decode_kv)[0] if b.decode_seqs else 0.0
        parts["attn_prefill"] = sum(self.prefill_attention(c, s)[0] for c, s in b.prefill)
        return parts

    def fallback_share(self, b: Batch) -> float:
        """Share of this step's seconds that the roofline, not a table, stands for."""
        parts = self.parts(b)
        return sum(v for name, v in parts.items() if name in self.fell_back) / sum(parts.values())

    def dense(self, m: int, sampled: int) -> dict[str, float]:
        """Everything of a step but attention, by group: gemm, moe, comm, other."""
        a, t = self.arch, self.tables
        sparse = a.layers - a.moe.first_dense_layers if a.moe is not None else 0

        def measured() -> dict[str, float]:
            layer = t.dense(m)
            return {"gemm": a.layers * layer["gemm"] + (t.head(sampled) if sampled else 0.0), "other": a.layers * layer["other"] + layer["once"]}

        def computed(roof: Roofline) -> dict[str, float]:
            return {k: roof.dense(m, sampled)[k] for k in ("gemm", "other")}

        parts = {"moe": 0.0, "comm": 0.0} | self._or_fallback("gemm", measured, computed)
        if sparse:
            parts["moe"] = self._or_fallback("moe", lambda: sparse * t.moe(m), lambda roof: roof.dense(m, 0)["moe"])
        if self.tp > 1:
            parts["comm"] = self._or_fallback("comm", lambda: 2 * a.layers * t.all_reduce(m), lambda roof: roof.dense(m, 0)["comm"])
        return parts

    def decode_attention(self, n: int, kv: float) -> tuple[float, float, int]:
        """n decodes that attend kv tokens together: seconds, growth per step, steps until the mean is past a knot of the table."""
        if "attn_decode" in self.fell_back and self.fallback is not None:
            return self.fallback.decode_attention(n, kv)
        line = self._lines.get(n)
        if line is None:
            try:
                line = self._lines[n] = self.tables.decode(n)
            except ConfigTableMissError as miss:
                return self._roof("attn_decode", miss).decode_attention(n, kv)
        mean = kv / n
        value, slope, end = line.going_up(mean)
        layers = self.arch.layers
        return layers * value, layers * slope, FOR_EVER if isinf(end) else max(1, floor(end - mean + 1e-9) + 1)

    def prefill_attention(self, c: int, s: int) -> tuple[float, float, int]:
        """A chunk c after s tokens: seconds, growth per further chunk, chunks until that changes."""
        if "attn_prefill" in self.fell_back and self.fallback is not None:
            return self.fallback.prefill_attention(c, s)
        try:
            value, slope, lasts = self.tables.prefill(c, s)
        except ConfigTableMissError as miss:
            return self._roof("attn_prefill", miss).prefill_attention(c, s)
        return self.arch.layers * value, self.arch.layers * slope, lasts

    def _or_fallback(self, operator: str, look_up: Callable[[], T], otherwise: Callable[[Roofline], T]) -> T:
        if operator in self.fell_back and self.fallback is not None:
            return otherwise(self.fallback)
        try:
            return look_up()
        except ConfigTableMissError as miss:
            return otherwise(self._roof(operator, miss))

    def _roof(self, operator: str, miss: ConfigTableMissError) -> Roofline:
        if self.fallback is None:
            raise miss
        self.fell_back.add(operator)
        return self.fallback
