"""A prior model with fitted factors: measured where it was fitted, and it says so when it is asked about anything else."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Protocol

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import check_number
from windtunnel.sim.stepmodels.model import Batch, Provenance
from windtunnel.sim.stepmodels.outside import Outside, check_extrapolation


class Prior(Protocol):
    """What a calibration scales: the roofline, or operator tables."""

    @property
    def provenance(self) -> Provenance: ...

    def dense(self, m: int, sampled: int) -> dict[str, float]:
        """Seconds by group (gemm, moe, comm, other) of everything but attention."""
        ...

    def decode_attention(self, n: int, kv: float) -> tuple[float, float, int]: ...

    def prefill_attention(self, c: int, s: int) -> tuple[float, float, int]: ...


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Factors on the prior's groups, and host times (s). 1 and 0 are the prior.

    prefill_gemm given: the dense work of prefilled tokens is a pass of its own, with its own factors; else they share one with the decodes.
    """

    gemm: float = 1.0
    moe: float = 1.0
    comm: float = 1.0
    other: float = 1.0
    attn_decode: float = 1.0
    attn_prefill: float = 1.0
    step_s: float = 0.0
    sequence_s: float = 0.0
    prefill_gemm: float | None = None
    prefill_comm: float = 1.0
    prefill_step_s: float = 0.0

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None:
                check_number(f.name, value, lo=0.0)

    @property
    def decode(self) -> dict[str, float]:
        return {"gemm": self.gemm, "moe": self.moe, "comm": self.comm, "other": self.other}

    @property
    def prefill(self) -> dict[str, float]:
        factor = self.gemm if self.prefill_gemm is None else self.prefill_gemm
        return {"gemm": factor, "moe": factor, "comm": self.prefill_comm, "other": factor}


FEATURES = ("tokens", "chunk", "sequences", "kv", "kv_mean", "context")


def features(b: Batch) -> tuple[float, ...]:
    """FEATURES of a step: tokens computed, longest chunk, sequences, attended tokens of decodes, their mean, longest prefill context."""
    chunk = context = 0
    for c, s in b.prefill:
        chunk, context = max(chunk, c), max(context, s + c)
    return b.tokens, chunk, b.sequences, b.decode_kv, b.decode_kv / b.decode_seqs if b.decode_seqs else 0.0, context


@dataclass(frozen=True)
class Calibrated:
    """valid: (least, most) of each of FEATURES in the observations; a feature that is not in it is not checked.

    on_extrapolation: "warn" (once) or "error" (ConfigValueError). `outside` says afterwards what was beyond.
    """

    prior: Prior
    theta: Coefficients = field(default_factory=Coefficients)
    valid: dict[str, tuple[float, float]] = field(default_factory=dict)
    source: str = ""
    on_extrapolation: str = "warn"
    outside: Outside = field(default_factory=Outside, compare=False)
    _base: dict[tuple[int, int, int, int], float] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_extrapolation(self.on_extrapolation)
        for name in self.valid:
            if name not in FEATURES:
                raise ConfigValueError(f"valid.{name}", f"expected one of {', '.join(FEATURES)}")

    @property
    def provenance(self) -> Provenance:
        known = self.prior.provenance
        state = "extrapolated" if self.outside.worst else "calibrated"
        return Provenance(known.model, known.gpu, " + ".join(x for x in (known.source, self.source) if x), state, self.beyond)

    @property
    def beyond(self) -> str:
        """What was asked beyond the observations, how far and for how long; empty: nothing."""
        return self.outside.beyond

    def seconds(self, b: Batch) -> float:
        return self._compose(b, 1)[0]

    def run(self, b: Batch, k: int) -> tuple[float, float, int]:
        a, slope, k = self._compose(b, k)
        if self.valid:
            self._watch(b, k * a + slope * (k * (k - 1) * 0.5))
        return a, slope, k

    def _compose(self, b: Batch, k: int) -> tuple[float, float, int]:
        t = self.theta
        key = (b.tokens, b.sampled, b.decode_seqs, b.sequences)
        a = self._base.get(key)
        if a is None:
            a = self._base[key] = self._dense(b)
        slope = 0.0
        if b.decode_seqs:
            seconds, grows, lasts = self.prior.decode_attention(b.decode_seqs, b.decode_kv)
            a, slope, k = a + t.attn_decode * seconds, t.attn_decode * grows, min(k, lasts)
        for chunk, computed in b.prefill:
            seconds, grows, lasts = self.prior.prefill_attention(chunk, computed)
            a, slope, k = a + t.attn_prefill * seconds, slope + t.attn_prefill * grows, min(k, lasts)
        return a, slope, max(1, k)

    def _dense(self, b: Batch) -> float:
        t = self.theta
        host = t.step_s + t.sequence_s * b.sequences
        if t.prefill_gemm is None:
            return host + scaled(self.prior.dense(b.tokens, b.sampled), t.decode)
        rest, n = b.tokens - b.decode_seqs, b.decode_seqs
        decode = scaled(self.prior.dense(n, n), t.decode) if n else 0.0
        prefill = t.prefill_step_s + scaled(self.prior.dense(rest, b.sampled - n), t.prefill) if rest else 0.0
        return host + decode + prefill

    def _watch(self, b: Batch, seconds: float) -> None:
        o = self.outside
        o.total_s += seconds
        beyond = False
        for name, value in zip(FEATURES, features(b)):
            least, most = self.valid.get(name, (0.0, float("inf")))
            if value > most or 0 < value < least:
                beyond = True
                o.saw(name, value, least, most, self.on_extrapolation)
        if beyond:
            o.outside_s += seconds


def scaled(parts: dict[str, float], factors: dict[str, float]) -> float:
    """Σ part · factor."""
    return sum(factors[name] * seconds for name, seconds in parts.items())
