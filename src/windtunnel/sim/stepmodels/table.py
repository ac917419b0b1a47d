"""Decode step time measured per batch size; prefill per token. For engines that are not linear in the batch, such as llama.cpp on CPU."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import check_number
from windtunnel.sim.stepmodels.model import Batch, Provenance


@dataclass(frozen=True)
class Table:
    """decode_s: ((batch, seconds), ...) in ascending batch, linear between knots, the last slope beyond them; prefill_s_per_token: added
    per prefilled token; kv_s_per_token: added per attended token of a decode."""

    decode_s: tuple[tuple[int, float], ...]
    prefill_s_per_token: float
    kv_s_per_token: float = 0.0
    provenance: Provenance = field(default_factory=lambda: Provenance("table", "", "measured per batch"))

    def __post_init__(self) -> None:
        if not self.decode_s:
            raise ConfigValueError("decode_s", "expected at least one (batch, seconds)")
        for batch, seconds in self.decode_s:
            check_number("decode_s.batch", batch, lo=1, whole=True)
            check_number("decode_s.seconds", seconds, above=0.0)
        batches = [b for b, _ in self.decode_s]
        if batches != sorted(set(batches)):
            raise ConfigValueError("decode_s", f"expected ascending batches, got {batches}")
        check_number("prefill_s_per_token", self.prefill_s_per_token, lo=0.0)
        check_number("kv_s_per_token", self.kv_s_per_token, lo=0.0)

    def of_batch(self, n: int) -> float:
        """Seconds of a decode step of n sequences, without the KV term."""
        knots = self.decode_s
        if len(knots) == 1 or n <= knots[0][0]:
            return knots[0][1]
        i = min(bisect_left(knots, (n, 0.0)), len(knots) - 1)
        (b0, s0), (b1, s1) = knots[i - 1], knots[i]
        return max(knots[0][1] * 1e-3, s0 + (s1 - s0) * (n - b0) / (b1 - b0))

    def seconds(self, b: Batch) -> float:
        return self.run(b, 1)[0]

    def run(self, b: Batch, k: int) -> tuple[float, float, int]:
        a = self.of_batch(b.sequences) + self.kv_s_per_token * b.decode_kv
        for chunk, _ in b.prefill:
            a += self.prefill_s_per_token * chunk
        return a, self.kv_s_per_token * b.decode_seqs, k
