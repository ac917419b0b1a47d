"""Step time from first principles: each operator takes the larger of its compute and its memory time (Williams et al., 2009).

Always uncalibrated: efficiencies are assumptions, printed with every run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from windtunnel.policy.param import check_number
from windtunnel.sim.catalog import Architecture, Gpu, element_bytes
from windtunnel.sim.stepmodels.model import Batch, Provenance


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of peak that kernels reach, and what a launch and a hop cost (s)."""

    gemm: float = 0.60
    attn: float = 0.48
    mem: float = 0.80
    launch_s: float = 2e-6
    link: float = 0.75
    link_latency_s: float = 5e-6

    def __post_init__(self) -> None:
        for name in ("gemm", "attn", "mem", "link"):
            check_number(name, getattr(self, name), above=0.0, hi=1.0)
        check_number("launch_s", self.launch_s, lo=0.0)
        check_number("link_latency_s", self.link_latency_s, lo=0.0)


@dataclass(frozen=True)
class Roofline:
    """A dense decoder on `tp` GPUs. A step is affine in the attended KV tokens; the rest depends on (tokens, sampled) and is remembered."""

    arch: Architecture
    gpu: Gpu
    tp: int = 1
    dtype: str = "bf16"
    kv_dtype: str = "bf16"
    eff: Efficiency = field(default_factory=Efficiency)
    _base: dict[tuple[int, int], float] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_number("tp", self.tp, lo=1, whole=True)
        kv = 2 * element_bytes("kv_dtype", self.kv_dtype) * max(1.0, self.arch.kv_heads / self.tp) * self.arch.head_dim
        per_layer: dict[str, Any] = {
            "_w": element_bytes("dtype", self.dtype),
            "_W": self.gpu.memory_bw * self.eff.mem, "_F": self.gpu.flops.get(self.dtype, self.gpu.flops["bf16"]),
            "_kv_s": self.arch.layers * kv / (self.gpu.memory_bw * self.eff.mem),  # seconds per attended KV token, all layers
            "_launch": self.arch.layers * self.eff.launch_s,
        }
        per_layer["_attn_s"] = self.arch.layers * 4 * self.arch.heads / self.tp * self.arch.head_dim / (per_layer["_F"] * self.eff.attn)
        for name, value in per_layer.items():
            object.__setattr__(self, name, value)

    @property
    def provenance(self) -> Provenance:
        note = "" if self.dtype in self.gpu.flops else f"{self.dtype} weights computed at bf16 rate"
        return Provenance(self.arch.name, f"{self.gpu.name}×{self.tp}", "roofline", "uncalibrated", note)

    def seconds(self, b: Batch) -> float:
        return self.run(b, 1)[0]

    def run(self, b: Batch, k: int) -> tuple[float, float, int]:
        base = self._base.get((b.tokens, b.sampled))
        if base is None:
            base = self._base[(b.tokens, b.sampled)] = self._dense(b.tokens, b.sampled)
        a, slope = base, 0.0
        if b.decode_seqs:
            a += self._kv_s * b.decode_kv + self._launch  # type: ignore[attr-defined]
            slope = self._kv_s * b.decode_seqs  # type: ignore[attr-defined]
        for chunk, computed in b.prefill:
            seconds, grows, lasts = self._prefill(chunk, computed)
            a += seconds
            slope += grows
            if lasts < k:
                k = max(1, lasts)
        return a, slope, k

    def _prefill(self, c: int, s: int) -> tuple[float, float, int]:
        """Attention of a chunk c after s tokens: seconds, growth per further chunk, chunks until the other side of the roof wins."""
        compute_s, memory_s = self._attn_s * c, self._kv_s  # type: ignore[attr-defined]
        compute, memory = compute_s * (s + c / 2), memory_s * (s + c)
        launch = self._launch  # type: ignore[attr-defined]
        if compute >= memory:
            lasts = 1 << 30 if compute_s >= memory_s else int((compute - memory) / ((memory_s - compute_s) * c)) + 1
            return compute + launch, compute_s * c, lasts
        lasts = 1 << 30 if memory_s >= compute_s else int((memory - compute) / ((compute_s - memory_s) * c)) + 1
        return memory + launch, memory_s * c, lasts

    def _gemm(self, m: float, n: float, k: float) -> float:
        flops = 2 * m * n * k / (self._F * self.eff.gemm)  # type: ignore[attr-defined]
        moved = (self._w * n * k + 2 * m * (n + k)) / self._W  # type: ignore[attr-defined]
        return max(flops, moved) + self.eff.launch_s

    def _elementwise(self, m: float, width: float) -> float:
        return 4 * m * width / self._W + self.eff.launch_s  # type: ignore[attr-defined]

    def _dense(self, m: int, sampled: int) -> float:
        """Everything of a step but attention: m tokens through all layers, `sampled` of them through the head."""
        a, t = self.arch, self.tp
        d = a.hidden
        layer = (
            self._gemm(m, (a.heads + 2 * a.kv_heads) * a.head_dim / t, d) + self._gemm(m, d, a.heads * a.head_dim / t)
            + self._gemm(m, 2 * a.ffn / t, d) + self._gemm(m, d, a.ffn / t) + 4 * self._elementwise(m, d) + self._elementwise(m, a.ffn / t)
        )
        if t > 1:
            link = self.gpu.intra_bw if t <= self.gpu.gpus_per_node else self.gpu.inter_bw
            layer += 2 * (2 * (t - 1) / t * 2 * m * d / (link * self.eff.link) + self.eff.link_latency_s * (t - 1))
        return a.layers * layer + self._elementwise(m, d) + (self._gemm(sampled, a.vocab / t, d) if sampled else 0.0)
