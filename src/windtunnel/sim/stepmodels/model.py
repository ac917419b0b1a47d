"""Seconds of one engine step: the protocol that all step-time models follow, and what they are asked about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(slots=True)
class Batch:
    """One step. decode_kv: Σ tokens attended by the decoding requests; prefill: (chunk tokens, tokens computed before) each;
    tokens: all tokens computed; sequences: decoding + prefilling; sampled: requests that yield a token this step."""

    decode_seqs: int = 0
    decode_kv: Any = 0  # an int; a float where decodes compute other than one token a step
    prefill: list[tuple[int, int]] = field(default_factory=list)
    tokens: int = 0
    sequences: int = 0
    sampled: int = 0


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where step times come from. state: uncalibrated, partly_uncalibrated, calibrated or extrapolated."""

    model: str = ""
    gpu: str = ""
    source: str = ""
    state: str = "uncalibrated"
    note: str = ""

    def __str__(self) -> str:
        return " | ".join(part for part in (f"{self.model} / {self.gpu}" if self.gpu else self.model, self.source, self.state, self.note) if part)


class StepModel(Protocol):
    """Law: `run(b, k)[0] == seconds(b)`, and step j < k_max of a run costs `A + B·j` (decodes advance by one token, a prefill by its chunk)."""

    @property
    def provenance(self) -> Provenance: ...

    def seconds(self, b: Batch) -> float:
        """Seconds of this step, finite and > 0."""
        ...

    def run(self, b: Batch, k: int) -> tuple[float, float, int]:
        """(A, B, k_max <= k) for k steps of this composition."""
        ...
