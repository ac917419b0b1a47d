"""What a set of measured operator tables can be asked. All times in seconds of one call on one GPU."""

from __future__ import annotations

from typing import Protocol

from windtunnel.sim.stepmodels.grid import Line


class Tables(Protocol):
    """Each raises ConfigTableMissError(operator, key, nearest) for what was not measured."""

    @property
    def source(self) -> str: ...

    def dense(self, tokens: int) -> dict[str, float]:
        """One layer without attention, experts and communication: "gemm" and "other"; "once" for what a step does once."""
        ...

    def head(self, sampled: int) -> float:
        """From hidden state to token for `sampled` sequences."""
        ...

    def moe(self, tokens: int) -> float:
        """The experts of one layer."""
        ...

    def all_reduce(self, tokens: int) -> float:
        """One of the two of a layer."""
        ...

    def decode(self, sequences: int) -> Line:
        """Attention of one layer over the mean attended tokens, for so many decodes."""
        ...

    def prefill(self, chunk: int, before: int) -> tuple[float, float, int]:
        """Attention of one layer for a chunk after `before` tokens: seconds, growth per further chunk, chunks until that changes."""
        ...
