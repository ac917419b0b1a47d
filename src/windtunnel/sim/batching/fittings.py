"""What an engine is fitted with, beside its name, its configuration, its step model and those whom it tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from windtunnel.sim.attempt import Attempt
from windtunnel.sim.batching.reports import Reports


@dataclass(slots=True)
class Fittings:
    """on_prefilled: of a prefill engine, see `HandOver`. rng: a NumPy generator, for noise and sampled speculation. reports: of forward passes.

    step_every: an event per step (for tests); check: assert conservation after every run; pieces: keep what token times are made from.
    """

    on_prefilled: Callable[[Attempt], None] | None = None
    rng: Any = None
    reports: Reports | None = None
    step_every: bool = False
    check: bool = False
    pieces: bool = False
