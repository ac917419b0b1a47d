"""How a policy declares its parameters, and what it is built from. Plain data: no validation library in `policy`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from windtunnel.errors import ConfigValueError


@dataclass(frozen=True, slots=True)
class Param:
    """Annotation of a config field: slider range (not validity), unit, label and help."""

    lo: float | None = None
    hi: float | None = None
    step: float | None = None
    unit: str = ""
    label: str = ""
    help: str = ""
    scale: Literal["linear", "log"] = "linear"
    choices: tuple[str, ...] = ()
    knob: bool = True


class Rng(Protocol):
    """The two draws a policy may make; `random.Random` and the seeded generators of both worlds fit."""

    def random(self) -> float: ...

    def randrange(self, n: int, /) -> int: ...


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """What a policy may know of a pool before the run. gpus: per replica; boot_s: expected seconds from asking to ready.

    limits: of one engine (max_num_batched_tokens, max_num_seqs, max_kv_tokens, context_length), and the tokens of one prompt block hash
    (block_tokens). steps: known step times, as (prompt tokens, decoding requests, their KV tokens, seconds). kv_bytes_per_token: of its
    model at its precision, all GPUs of a replica together.
    """

    name: str
    role: str = "agg"
    model: str = ""
    replicas: int = 1
    gpus: int = 1
    slots: int | None = None
    boot_s: float | None = None
    min_replicas: int = 1
    max_replicas: int | None = None
    limits: Mapping[str, int | None] = field(default_factory=dict)
    steps: tuple[tuple[float, float, float, float], ...] = ()
    kv_bytes_per_token: float | None = None


@dataclass(frozen=True, slots=True)
class BuildContext:
    """All that a policy's `build` gets. tenants: weight by name; slo: bound by column name; wants: note streams that are recorded."""

    rng: Rng | None = None
    tenants: Mapping[str, float] = field(default_factory=dict)
    pools: tuple[PoolFacts, ...] = ()
    slo: Mapping[str, float] = field(default_factory=dict)
    wants: frozenset[str] = frozenset()


def check_number(name: str, value: Any, *, lo: float | None = None, hi: float | None = None, above: float | None = None,
                 below: float | None = None, whole: bool = False) -> None:
    """Raise ConfigValueError unless `value` is a finite number (an int if `whole`) within [lo, hi] and strictly inside (above, below)."""
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ConfigValueError(name, f"expected {'an int' if whole else 'a number'}, got {value!r}")
    if not math.isfinite(value):
        raise ConfigValueError(name, f"expected a finite number, got {value!r}")
    for bad, sign, bound in (
        (lo is not None and value < lo, ">=", lo),
        (hi is not None and value > hi, "<=", hi),
        (above is not None and value <= above, ">", above),
        (below is not None and value >= below, "<", below),
    ):
        if bad:
            raise ConfigValueError(name, f"expected a value {sign} {bound:g}, got {value!r}")
