"""KV blocks of decodes that compute other than one token a step: those that speculate."""

from __future__ import annotations

from typing import Any

from windtunnel.sim.kv import Blocks
from windtunnel.sim.specdecode import tokens_after


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

    def join(self, base: Any) -> None:
        self.n += 1
        self.base_sum += base[0] - self.g * base[1]
        self._sets[base] = self._sets.get(base, 0) + 1

    def leave(self, base: Any) -> None:
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
