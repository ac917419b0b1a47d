"""A against B in pairs: is B neutral, and does a claim survive without its best and its worst pair?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import check_number

NEUTRAL = 0.05
LEAST_PAIRS = 5
Claim = Literal["better", "worse", "none"]


@dataclass(frozen=True, slots=True)
class Paired:
    """Of a number of which less is better (wall time in s). change: of the mean, relative to the base; trimmed_change: without the pair of
    the fastest and that of the slowest candidate; neutral: the mean rises by at most `NEUTRAL`."""

    pairs: int
    base_mean: float
    candidate_mean: float
    change: float
    trimmed_change: float
    neutral: bool
    claim: Claim


def paired(base: Sequence[float], candidate: Sequence[float], *, least: float = 0.01) -> Paired:
    """The verdict on at least five pairs. A claim: all changes that count agree in sign and are larger than `least`.

    Raises ConfigValueError for fewer pairs, unequal lengths and numbers that are not above 0.
    """
    if len(base) != len(candidate) or len(base) < LEAST_PAIRS:
        raise ConfigValueError("pairs", f"expected at least {LEAST_PAIRS} pairs, got {len(base)} and {len(candidate)} numbers")
    for name, values in (("base", base), ("candidate", candidate)):
        for value in values:
            check_number(name, value, above=0.0)
    order = sorted(range(len(candidate)), key=lambda n: candidate[n])[1:-1]
    change = fmean(candidate) / fmean(base) - 1.0
    trimmed = fmean([candidate[n] for n in order]) / fmean([base[n] for n in order]) - 1.0
    claim: Claim = "none"
    if min(abs(change), abs(trimmed)) > least and (change > 0) == (trimmed > 0):
        claim = "worse" if change > 0 else "better"
    return Paired(len(base), fmean(base), fmean(candidate), change, trimmed, change <= NEUTRAL, claim)
