"""The roofline that the peers' step-time tables are made of: Llama-3-8B on one H100 SXM, with that simulator's roundings."""

from __future__ import annotations

from dataclasses import dataclass, field

from windtunnel.sim.stepmodels.model import Batch, Provenance

F = 989e12 * 0.60
W = 3.35e12 * 0.80
LAUNCH_S = 2e-6
LAYERS, HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM = 32, 4096, 14336, 32, 8, 128
GRAIN = 256
KV_BYTES = 4 * KV_HEADS * HEAD_DIM  # per token and layer
QK_FLOPS, QK_RATE = 4 * HEADS * HEAD_DIM, 0.8 * F


def up(x: int, grain: int) -> int:
    """The next multiple of `grain` that is not below x."""
    return -(-x // grain) * grain


@dataclass(frozen=True)
class VidurRoofline:
    """Tokens are rounded up to 8, KV lengths to 256, prefill chunks to 32; no embedding, head or host time."""

    provenance: Provenance = field(default_factory=lambda: Provenance("Llama-3-8B", "h100_sxm×1", "roofline of the peers' tables"))
    _linear: dict[int, float] = field(default_factory=dict, repr=False, compare=False)

    def seconds(self, b: Batch) -> float:
        return self.run(b, 1)[0]

    def run(self, b: Batch, k: int) -> tuple[float, float, int]:
        layer = self._linear.get(b.tokens)
        if layer is None:
            rounded = up(b.tokens, 8)
            layer = self._linear.get(rounded) or _linear_ops(rounded)
            self._linear[rounded] = self._linear[b.tokens] = layer
        n, attended = b.decode_seqs, b.decode_kv + b.decode_seqs
        for chunk, computed in b.prefill:
            if chunk == 1:  # a prefill tail of one token is a decode to these tables
                n, attended = n + 1, attended + computed + 1
            else:
                kv, c = -(-(computed + chunk) // GRAIN) * GRAIN, -(-chunk // 32) * 32
                flops_s, bytes_s = QK_FLOPS * c * (kv + c / 2) / QK_RATE, KV_BYTES * (kv + c) / W
                layer += (flops_s if flops_s > bytes_s else bytes_s) + LAUNCH_S
                if k > 1:
                    k = min(k, (kv - computed - chunk) // chunk + 1)
        if n:
            mean = attended // n
            kv = -(-mean // GRAIN) * GRAIN
            attention = n * kv * KV_BYTES / W + LAUNCH_S
            layer += attention * 1.1 if n > 1 else attention
            lasts = kv - mean + 1  # steps until the mean, which grows by 1 a step, is past this grain
            if lasts < k:
                k = lasts
        return LAYERS * layer, 0.0, k


def _gemm(r: int, n: int, k: int) -> float:
    return max(2 * r * n * k / F, 2 * (n * k + r * (n + k)) / W) + LAUNCH_S


def _elementwise(r: int, width: int) -> float:
    return 4 * r * width / W + LAUNCH_S


def _linear_ops(r: int) -> float:
    """One layer without attention for r (rounded) tokens."""
    return (
        _gemm(r, 6144, HIDDEN) + _gemm(r, HIDDEN, HIDDEN) + _gemm(r, 2 * FFN, HIDDEN) + _gemm(r, HIDDEN, FFN) + _elementwise(r, FFN)
        + 4 * _elementwise(r, HIDDEN)
    )
