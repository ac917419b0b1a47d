"""Speculative decoding: a draft proposes k tokens, one step verifies them and yields as many as were right, and one more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor
from typing import Annotated

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import Param, check_number

SLACK = 1e-9  # m·g of a float g must not miss its whole number


@dataclass(frozen=True, slots=True)
class SpecDecode:
    """k draft tokens a step; accept: chance that draft token i is right, given that those before it were, one number or k of them.

    expected: every step yields g tokens on average, without chance, still fast-forwarded; sampled: each request draws at each step, which
    makes the engine step one by one. draft_s: seconds per draft token, added to every step with decodes.
    Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding" (2023), equation 1.
    """

    k: Annotated[int, Param(lo=1, hi=8, step=1, label="draft tokens", help="proposed a step")]
    accept: Annotated[float | tuple[float, ...], Param(lo=0.0, hi=1.0, label="acceptance", help="chance that a draft token is right, or one of "
                                                       "each position")] = 0.7
    draft_s: Annotated[float, Param(unit="s", label="draft", help="seconds per draft token", knob=False)] = 0.0
    mode: Annotated[str, Param(choices=("expected", "sampled"), help="the mean without chance, or drawn per step", knob=False)] = "expected"

    def __post_init__(self) -> None:
        check_number("spec_decode.k", self.k, lo=1, whole=True)
        check_number("spec_decode.draft_s", self.draft_s, lo=0.0)
        if self.mode not in ("expected", "sampled"):
            raise ConfigValueError("spec_decode.mode", f"expected expected or sampled, got {self.mode!r}")
        given = self.accept if isinstance(self.accept, (tuple, list)) else (self.accept,)
        if isinstance(self.accept, (tuple, list)) and len(given) != self.k:
            raise ConfigValueError("spec_decode.accept", f"expected one number, or one for each of {self.k} draft tokens, got {len(given)}")
        for a in given:
            check_number("spec_decode.accept", a, lo=0.0, hi=1.0)

    @property
    def chances(self) -> tuple[float, ...]:
        """Of each draft token, given that those before it were right."""
        return tuple(self.accept) if isinstance(self.accept, (tuple, list)) else (self.accept,) * self.k

    @property
    def mean_tokens(self) -> float:
        """g, the tokens that a step yields on average: 1 + Σ over i of the product of the first i chances."""
        g, reached = 1.0, 1.0
        for chance in self.chances:
            reached *= chance
            g += reached
        return g

    def draw(self, random: Callable[[], float]) -> int:
        """Draft tokens that turn out right in one step, 0 to k."""
        n = 0
        for chance in self.chances:
            if random() >= chance:
                break
            n += 1
        return n


def tokens_after(steps: int, g: float) -> int:
    """Tokens that so many decode steps have yielded."""
    return floor(steps * g + SLACK)


def steps_for(tokens: int, g: float) -> int:
    """Decode steps until so many tokens have come."""
    return ceil(tokens / g - SLACK)
