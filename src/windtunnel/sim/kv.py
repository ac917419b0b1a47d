"""KV cache blocks of one replica: how many are in use at any step, in closed form."""

from __future__ import annotations

from operator import mul
from typing import Any


class Blocks:
    """`total` blocks (None: unbounded) of `size` tokens, and the set of decoding requests that fill them.

    A decoding request has computed `base + D` tokens, D being the replica's step counter: all advance together. It holds
    `ceil((base + D) / size)` blocks, so the sum over all needs only Σ base, their number `n` and a count of them by `base mod size`, a bin
    that never changes while a request decodes. `fixed` is the rest: blocks of requests that prefill, and what prefix sharing saves.
    """

    __slots__ = ("_spare", "base_sum", "bins", "fixed", "n", "size", "stretched", "total")

    def __init__(self, size: int, total: int | None) -> None:
        self.size, self.total = size, total
        self._spare = [-i % size for i in range(2 * size)]
        self.stretched = False  # do decodes compute anything but one token a step?
        self.clear()

    def clear(self) -> None:
        self.fixed = self.n = 0
        self.base_sum: Any = 0  # an int; a float if stretched
        self.bins = [0] * self.size

    def blocks_for(self, tokens: int) -> int:
        """Blocks of one request with so many computed tokens."""
        return -(-tokens // self.size)

    def join(self, base: Any) -> None:
        """A request decodes from now on; its blocks leave `fixed` with the caller. base: an int here."""
        tokens: int = base
        self.n += 1
        self.base_sum += tokens
        self.bins[tokens % self.size] += 1

    def leave(self, base: Any) -> None:
        tokens: int = base
        self.n -= 1
        self.base_sum -= tokens
        self.bins[tokens % self.size] -= 1

    def used(self, D: int) -> int:
        """Blocks in use when the decodes have computed `base + D` tokens each. O(size)."""
        size = self.size
        at = D % size
        spare = sum(map(mul, self.bins, self._spare[at : at + size]))  # those of bin r lack -(r + D) mod size tokens to full blocks
        return self.fixed + (self.base_sum + self.n * D + spare) // size  # type: ignore[no-any-return]

    def surely_fits(self, D: int, cached: int = 0) -> bool:
        """True if the blocks in use at D, and `cached` ones, fit whatever the bins are. O(1); False says nothing."""
        total = self.total
        return total is None or self.base_sum + self.n * (D + self.size - 1) <= (total - self.fixed - cached) * self.size

    def fits(self, D: int, more: int = 0) -> bool:
        """Are the blocks in use at D, and `more`, no more than there are?"""
        total = self.total
        return total is None or self.surely_fits(D, more) or self.used(D) + more <= total

    def growth(self, D: int, k: int) -> int:
        """Blocks that k steps from counter D take for all decodes together."""
        rounds, rest = divmod(k, self.size)
        bins, size = self.bins, self.size
        return rounds * self.n + sum(bins[-(D + i) % size] for i in range(rest))

    def affordable(self, D: int, k: int) -> int:
        """The most steps <= k from counter D that the free blocks last for."""
        total = self.total
        if total is None or self.surely_fits(D + k):
            return k
        free = total - self.used(D)
        if free < 0:
            return 0
        rounds, free = divmod(free, self.n)
        steps = rounds * self.size
        bins, size = self.bins, self.size
        for i in range(size):
            if steps >= k:
                break
            free -= bins[-(D + i) % size]
            if free < 0:
                break
            steps += 1
        return min(k, steps)
