"""KV cache blocks of one replica, with the growth of decodes in closed form."""

from __future__ import annotations


class Blocks:
    """`used` of `total` blocks (None: unbounded) of `size` tokens.

    A decoding request takes a block whenever its computed tokens are a multiple of `size`; since all decodes advance together, it is
    enough to count them by (computed - D) mod size, a bin that never changes while a request decodes.
    """

    __slots__ = ("_bins", "size", "total", "used")

    def __init__(self, size: int, total: int | None) -> None:
        self.size, self.total, self.used = size, total, 0
        self._bins = [0] * size

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.size)

    def join(self, base: int) -> None:
        """A request starts to decode with computed = base + D."""
        self._bins[base % self.size] += 1

    def leave(self, base: int) -> None:
        self._bins[base % self.size] -= 1

    def growth(self, D: int, k: int, b: int) -> int:
        """Blocks that k decode steps from counter D take for all b decodes together."""
        if not b or not k:
            return 0
        rounds, rest = divmod(k, self.size)
        if not rest:
            return rounds * b
        bins, hi = self._bins, -D % self.size
        lo = hi - rest + 1
        part = sum(bins[lo : hi + 1]) if lo >= 0 else sum(bins[: hi + 1]) + sum(bins[lo + self.size :])
        return rounds * b + part

    def affordable(self, D: int, k: int, b: int) -> int:
        """The most steps <= k that the free blocks last for; at least 1 (the caller has made room for one)."""
        if self.total is None:
            return k
        free = self.total - self.used
        if free >= b * (k // self.size + 1):
            return k
        steps = free // b * self.size
        left = free - free // b * b
        bins, size = self._bins, self.size
        for i in range(size):
            left -= bins[(-D - i) % size]
            if left < 0:
                break
            steps += 1
        return max(1, min(k, steps))

    def clear(self) -> None:
        self.used = 0
        self._bins = [0] * self.size
