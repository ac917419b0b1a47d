"""Speculative decoding: a draft proposes k tokens, one step verifies them and yields as many as were right, and one more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor
from typing import Annotated

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import Param, check_number
from windtunnel.sim.kv import Blocks

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


class StretchedBlocks(Blocks):
    """Decodes that compute g tokens a step. A decode is told by (tokens computed when it joined, D then); O(decodes), not O(block size)."""

    __slots__ = ("_sets", "g")

    def __init__(self, size: int, total: int | None, g: float) -> None:
        self.g = g
        super().__init__(size, total)
        self.stretched = True

    def clear(self) -> None:
        super().clear()
        self._sets: dict[tuple[int, int], int] = {}

    def join(self, base: tuple[int, int]) -> None:  # type: ignore[override]
        self.n += 1
        self.base_sum += base[0] - self.g * base[1]
        self._sets[base] = self._sets.get(base, 0) + 1

    def leave(self, base: tuple[int, int]) -> None:  # type: ignore[override]
        self.n -= 1
        self.base_sum = self.base_sum - (base[0] - self.g * base[1]) if self.n else 0.0
        left = self._sets[base] - 1
        if left:
            self._sets[base] = left
        else:
            del self._sets[base]

    def attended(self, D: int) -> float:
        """Tokens that the decodes attend in the step after D."""
        return self.base_sum + self.n * (self.g * D + 1.0)

    def used(self, D: int) -> int:
        size, g = self.size, self.g
        return self.fixed + sum(n * -(-(computed + tokens_after(D - since, g)) // size) for (computed, since), n in self._sets.items())

    def surely_fits(self, D: int, cached: int = 0) -> bool:
        total = self.total
        return total is None or self.base_sum + self.n * (self.g * D + self.size) <= (total - self.fixed - cached) * self.size

    def affordable(self, D: int, k: int) -> int:
        if self.fits(D + k):
            return k
        lo, hi = 0, k  # lo fits or is the answer, hi does not
        while hi - lo > 1:
            mid = (lo + hi) // 2
            if self.fits(D + mid):
                lo = mid
            else:
                hi = mid
        return lo


class LookaheadBlocks(Blocks):
    """Decodes that may compute up to 1 + k tokens in any step: room for all of them is asked for before every step."""

    __slots__ = ("ahead",)

    def __init__(self, size: int, total: int | None, ahead: int) -> None:
        super().__init__(size, total)
        self.ahead, self.stretched = ahead, True

    def attended(self, D: int) -> float:
        return self.base_sum + self.n * (D + 1)

    def surely_fits(self, D: int, cached: int = 0) -> bool:
        return super().surely_fits(D + self.ahead, cached)

    def fits(self, D: int, more: int = 0) -> bool:
        return self.total is None or self.used(D + self.ahead) + more <= self.total

    def affordable(self, D: int, k: int) -> int:
        return k if self.fits(D + k) else 0
