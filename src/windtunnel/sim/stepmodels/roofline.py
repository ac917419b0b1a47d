"""Step time from first principles: each operator takes the larger of its compute and its memory time (Williams et al., 2009).

Always uncalibrated: efficiencies are assumptions, printed with every run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import check_number
from windtunnel.sim.catalog import Architecture, Gpu, element_bytes
from windtunnel.sim.stepmodels.model import Batch, Provenance

FOR_EVER = 1 << 30  # steps without an edge


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of peak that kernels reach, what a launch and a hop cost (s), and the load of the busiest expert rank over the mean."""

    gemm: float = 0.60
    attn: float = 0.48
    mem: float = 0.80
    launch_s: float = 2e-6
    link: float = 0.75
    link_latency_s: float = 5e-6
    imbalance: float = 1.2

    def __post_init__(self) -> None:
        for name in ("gemm", "attn", "mem", "link"):
            check_number(name, getattr(self, name), above=0.0, hi=1.0)
        check_number("launch_s", self.launch_s, lo=0.0)
        check_number("link_latency_s", self.link_latency_s, lo=0.0)
        check_number("imbalance", self.imbalance, lo=1.0)


@dataclass(frozen=True, slots=True)
class Scales:
    """Factors on the time of each group of operators: what a calibration finds. 1 is the prior."""

    gemm: float = 1.0
    attn_prefill: float = 1.0
    attn_decode: float = 1.0
    moe: float = 1.0
    comm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("gemm", "attn_prefill", "attn_decode", "moe", "comm"):
            check_number(name, getattr(self, name), above=0.0)


@dataclass(frozen=True)
class Roofline:
    """A decoder on `tp` GPUs, its experts over `ep` of them (the rest of `tp` splits each expert), its attention over tp / `dp`.

    A step is affine in the attended KV tokens; the rest depends on (tokens, sampled) and is remembered. Raises ConfigValueError.
    """

    arch: Architecture
    gpu: Gpu
    tp: int = 1
    dtype: str = "bf16"
    kv_dtype: str = "bf16"
    eff: Efficiency = field(default_factory=Efficiency)
    ep: int = 1
    dp: int = 1
    scales: Scales = field(default_factory=Scales)
    _base: dict[tuple[int, int], float] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("tp", "ep", "dp"):
            check_number(name, getattr(self, name), lo=1, whole=True)
        if self.tp % self.ep or self.tp % self.dp:
            raise ConfigValueError("ep" if self.tp % self.ep else "dp", f"expected a divisor of tp {self.tp}")
        a, gpu, eff = self.arch, self.gpu, self.eff
        heads_tp = self.tp / self.dp
        W, F = gpu.memory_bw * eff.mem, gpu.flops.get(self.dtype, gpu.flops["bf16"])
        kvb, mla = element_bytes("kv_dtype", self.kv_dtype), a.mla
        windowed = a.layers - a.attending_layers if a.sliding_window is not None else 0
        if mla is None:
            kv, score, absorbed = 2 * kvb * max(1.0, a.kv_heads / heads_tp) * a.head_dim, 4 * a.heads / heads_tp * a.head_dim, 0.0
        else:
            kv, score = kvb * (mla.kv_lora_rank + mla.rope_dim), 2 * a.heads / heads_tp * (mla.nope_dim + mla.rope_dim + mla.v_dim)
            absorbed = 2 * a.heads / heads_tp * (2 * mla.kv_lora_rank + mla.rope_dim)
        attends = a.attending_layers + windowed
        link = gpu.intra_bw if self.tp <= gpu.gpus_per_node else gpu.inter_bw
        made: dict[str, Any] = {
            "_w": element_bytes("dtype", self.dtype), "_W": W, "_F": F, "_link": link * eff.link,
            "_kv_s": kv / W, "_attn_s": score / (F * eff.attn),  # seconds per attended token and layer
            "_decode_s": max(kv / W, absorbed / (F * eff.attn)) * self.scales.attn_decode / self.dp,
            "_full": a.attending_layers, "_windowed": windowed, "_window": a.sliding_window or 0, "_launch": attends * eff.launch_s,
        }
        for name, value in made.items():
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
            base = self._base[(b.tokens, b.sampled)] = sum(self.dense(b.tokens, b.sampled).values())
        a, slope = base, 0.0
        if b.decode_seqs:
            seconds, slope, lasts = self.decode_attention(b.decode_seqs, b.decode_kv)
            a += seconds
            if lasts < k:
                k = lasts
        for chunk, computed in b.prefill:
            seconds, grows, lasts = self.prefill_attention(chunk, computed)
            a += seconds
            slope += grows
            if lasts < k:
                k = max(1, lasts)
        return a, slope, k

    def parts(self, b: Batch) -> dict[str, float]:
        """Seconds of this step by group of operators: the keys of Scales, and "other" for what no factor scales."""
        parts = self.dense(b.tokens, b.sampled)
        parts["attn_decode"] = self.decode_attention(b.decode_seqs, b.decode_kv)[0] if b.decode_seqs else 0.0
        parts["attn_prefill"] = sum(self.prefill_attention(c, s)[0] for c, s in b.prefill)
        return parts

    def decode_attention(self, n: int, kv: float) -> tuple[float, float, int]:
        """n decodes that attend kv tokens together: seconds, growth per step, steps until the mean leaves the sliding window."""
        per = self._decode_s  # type: ignore[attr-defined]
        launch = self._launch * self.scales.attn_decode  # type: ignore[attr-defined]
        full, windowed, window = self._full, self._windowed, self._window  # type: ignore[attr-defined]
        if not windowed:
            return per * full * kv + launch, per * full * n, FOR_EVER
        if kv >= n * window:
            return per * (full * kv + windowed * n * window) + launch, per * full * n, FOR_EVER
        return per * (full + windowed) * kv + launch, per * (full + windowed) * n, -int((kv - n * window) // n)

    def prefill_attention(self, c: int, s: int) -> tuple[float, float, int]:
        """A chunk c after s tokens: seconds, growth per further chunk, chunks until another side of the roof or the window wins."""
        launch = self._launch * self.scales.attn_prefill  # type: ignore[attr-defined]
        a, grows, lasts = self._attend(c, s, self._full)  # type: ignore[attr-defined]
        windowed, window = self._windowed, self._window  # type: ignore[attr-defined]
        if windowed:
            if s >= window:
                more, also, until = self._attend(c, window, windowed)[0], 0.0, FOR_EVER
            else:
                more, also, until = self._attend(c, s, windowed)
                until = min(until, -((s - window) // c))
            a, grows, lasts = a + more, grows + also, min(lasts, until)
        return a + launch, grows, lasts

    def _attend(self, c: int, s: int, layers: int) -> tuple[float, float, int]:
        scale = layers * self.scales.attn_prefill / self.dp
        compute_s, memory_s = self._attn_s * c, self._kv_s  # type: ignore[attr-defined]
        compute, memory = compute_s * (s + c / 2), memory_s * (s + c)
        if compute >= memory:
            lasts = FOR_EVER if compute_s >= memory_s else int((compute - memory) / ((memory_s - compute_s) * c)) + 1
            return compute * scale, compute_s * c * scale, lasts
        lasts = FOR_EVER if memory_s >= compute_s else int((memory - compute) / ((compute_s - memory_s) * c)) + 1
        return memory * scale, memory_s * c * scale, lasts

    def dense(self, m: int, sampled: int) -> dict[str, float]:
        """Everything of a step but attention: m tokens through all layers, `sampled` of them through the head; by group."""
        a, t = self.arch, self.tp
        d, mine = a.hidden, m / self.dp  # tokens of one attention rank
        sparse = a.layers - a.moe.first_dense_layers if a.moe is not None else 0
        linear = a.layers - a.attending_layers if a.linear_params is not None else 0
        gemm = (a.layers - linear) * self._projections(mine)
        if linear:
            gemm += linear * self._gemm(mine, (a.linear_params or 0) / d * self.dp / t, d)
        gemm += (a.layers - sparse) * self._mlp(m, a.ffn, t)
        other = a.layers * 4 * self._elementwise(m, d) + (a.layers - sparse) * self._elementwise(m, a.ffn / t) + self._elementwise(m, d)
        moe = sparse * self._experts(m) if sparse else 0.0
        comm = self._comm(m, sparse)
        if sampled:
            gemm += self._gemm(sampled, a.vocab / t, d)
        s = self.scales
        return {"gemm": gemm * s.gemm, "moe": moe * s.moe, "comm": comm * s.comm, "other": other}

    def _projections(self, m: float) -> float:
        """Query, key, value and output of one layer."""
        a, t = self.arch, self.tp / self.dp
        d, mla = a.hidden, a.mla
        if mla is None:
            return self._gemm(m, (a.heads + 2 * a.kv_heads) * a.head_dim / t, d) + self._gemm(m, d, a.heads * a.head_dim / t)
        head, rank = mla.nope_dim + mla.rope_dim, mla.q_lora_rank
        down = self._gemm(m, mla.kv_lora_rank + mla.rope_dim + (rank or 0), d)
        up = self._gemm(m, a.heads * head / t, rank or d) + self._gemm(m, a.heads * (mla.nope_dim + mla.v_dim) / t, mla.kv_lora_rank)
        return down + up + self._gemm(m, d, a.heads * mla.v_dim / t)

    def _mlp(self, m: float, width: float, t: float) -> float:
        d = self.arch.hidden
        return self._gemm(m, (2 if self.arch.ffn_gated else 1) * width / t, d) + self._gemm(m, d, width / t)

    def _experts(self, m: int) -> float:
        """One sparse layer on the busiest rank: the touched experts' weights, the tokens routed to them, router and shared experts."""
        a, moe = self.arch, self.arch.moe
        assert moe is not None
        d, split = a.hidden, self.tp / self.ep
        touched = moe.experts / self.ep * (1 - (1 - moe.topk / moe.experts) ** m)
        matrix = 3 * d * moe.expert_ffn / split
        tokens = m * moe.topk / self.ep * (self.eff.imbalance if self.ep > 1 else 1.0)
        flops = 2 * tokens * matrix / (self._F * self.eff.gemm)  # type: ignore[attr-defined]
        moved = (self._w * touched * matrix + 2 * tokens * (2 * d + 3 * moe.expert_ffn / split)) / self._W  # type: ignore[attr-defined]
        seconds = max(flops, moved) + 2 * self.eff.launch_s + self._gemm(m, moe.experts, d)
        return seconds + (self._mlp(m, moe.shared * moe.expert_ffn, self.tp) if moe.shared else 0.0)

    def _comm(self, m: int, sparse: int) -> float:
        """All-reduces after attention and MLP; with experts on several ranks, two all-to-alls around each sparse layer instead of one."""
        a, t, ep = self.arch, self.tp, self.ep
        if t == 1:
            return 0.0
        link, latency = self._link, self.eff.link_latency_s  # type: ignore[attr-defined]
        reduce = 2 * (t - 1) / t * 2 * m * a.hidden / link + latency * (t - 1)
        if ep == 1 or a.moe is None:
            return a.layers * 2 * reduce
        to_all = m * a.moe.topk * a.hidden * 2 * (ep - 1) / ep / link / ep + latency
        return (2 * a.layers - sparse) * reduce + 2 * sparse * to_all

    def _gemm(self, m: float, n: float, k: float) -> float:
        flops = 2 * m * n * k / (self._F * self.eff.gemm)  # type: ignore[attr-defined]
        moved = (self._w * n * k + 2 * m * (n + k)) / self._W  # type: ignore[attr-defined]
        return max(flops, moved) + self.eff.launch_s

    def _elementwise(self, m: float, width: float) -> float:
        return 4 * m * width / self._W + self.eff.launch_s  # type: ignore[attr-defined]
