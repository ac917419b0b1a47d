"""Step time as an affine function of the batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from windtunnel.policy.param import Param, check_number
from windtunnel.sim.stepmodels.model import Batch, Provenance


@dataclass(frozen=True)
class Affine:
    """`c0 + c1·Σchunk + c2·sequences + c3·K + c4·Σ chunk·(computed + chunk/2)` seconds (K: tokens attended by decodes)."""

    c0: Annotated[float, Param(unit="s", label="base", help="every step", knob=False)] = 6e-3
    c1: Annotated[float, Param(unit="s/token", label="prefill token", help="per prefilled token", knob=False)] = 2.6e-5
    c2: Annotated[float, Param(unit="s", label="sequence", help="per sequence in the batch", knob=False)] = 2e-5
    c3: Annotated[float, Param(unit="s/token", label="KV token", help="per attended token of a decode", knob=False)] = 2.4e-8
    c4: Annotated[float, Param(unit="s/token²", label="prefill attention", help="per prefilled token and token before it", knob=False)] = 0.0
    provenance: Provenance = field(default_factory=lambda: Provenance("affine", "", "coefficients given"))

    def __post_init__(self) -> None:
        for name in ("c0", "c1", "c2", "c3", "c4"):
            check_number(name, getattr(self, name), lo=0.0)
        check_number("c0 + c2", self.c0 + self.c2, above=0.0)

    def seconds(self, b: Batch) -> float:
        return self.run(b, 1)[0]

    def run(self, b: Batch, k: int) -> tuple[float, float, int]:
        a = self.c0 + self.c2 * b.sequences + self.c3 * b.decode_kv
        slope = self.c3 * b.decode_seqs
        for chunk, computed in b.prefill:
            a += self.c1 * chunk + self.c4 * chunk * (computed + chunk / 2)
            slope += self.c4 * chunk * chunk
        return a, slope, k
