"""Prefill quadratic in its tokens, decode affine in context and batch, with one fit for small and one for large batches (DistServe, OSDI 2024)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from difflib import get_close_matches

from windtunnel.datafiles import data_path
from windtunnel.errors import ConfigTableMissError
from windtunnel.policy.param import check_number
from windtunnel.sim.stepmodels.model import Batch, Provenance

CONSTANTS = "calibration/distserve_a100_distserve.json"
MS = 1e-3


@dataclass(frozen=True)
class TwoRegime:
    """prefill: (a, b, c) of `a + b·Σn + c·Σn²`; small, large: (a, b, c) of `a + b·K + c·sequences`, large from `threshold` sequences on; seconds.

    A mixed step is the sum of both.
    """

    prefill: tuple[float, float, float]
    small: tuple[float, float, float]
    large: tuple[float, float, float]
    threshold: int
    provenance: Provenance = field(default_factory=lambda: Provenance("two regimes", "", "coefficients given"))

    def __post_init__(self) -> None:
        for name in ("prefill", "small", "large"):
            for value in getattr(self, name):
                check_number(name, value, lo=0.0)
            check_number(f"{name} at rest", getattr(self, name)[0], above=0.0)
        check_number("threshold", self.threshold, lo=1, whole=True)

    @classmethod
    def published(cls, model: str, tp: int = 1) -> TwoRegime:
        """The constants for A100-80G that DistServe ships, such as facebook/opt-13b. Raises ConfigTableMissError."""
        known = json.loads(data_path(CONSTANTS).read_text(encoding="utf-8"))
        found = known.get(model, {}).get(str(tp))
        if found is None:
            close = get_close_matches(model, known, 3, 0.0)
            have = "; ".join(f"{m} at tp {', '.join(known[m])}" for m in close)
            raise ConfigTableMissError(f"no constants of {model} at tp {tp}", hint=f"there are {have}")
        keys = ("prefill", "decoding_smallbs", "decoding_largebs")
        prefill, small, large = ((float(a) * MS, float(b) * MS, float(c) * MS) for a, b, c in (found[key] for key in keys))
        return cls(prefill, small, large, found["decoding_large_small_bs_threshold"],
                   Provenance(model, f"a100_sxm×{tp}", "two regimes, constants of DistServe", "calibrated"))

    def seconds(self, b: Batch) -> float:
        return self.run(b, 1)[0]

    def run(self, b: Batch, k: int) -> tuple[float, float, int]:
        a = slope = 0.0
        if b.prefill:
            fixed, per, square = self.prefill
            a += fixed + sum(per * n + square * n * n for n, _ in b.prefill)
        if b.decode_seqs:
            fixed, per_kv, per_seq = self.small if b.decode_seqs < self.threshold else self.large
            a += fixed + per_kv * b.decode_kv + per_seq * b.decode_seqs
            slope = per_kv * b.decode_seqs
        return a, slope, k
