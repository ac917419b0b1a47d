"""Which prompt blocks each replica is thought to hold: a bit mask of replicas per block, one bounded LRU per replica."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence


class PrefixIndex:
    """Blocks are chained hashes, so what counts of a prompt is the longest run from its first block.

    A replica has a bit while it holds a block; bits of replicas that are forgotten are given out again, so masks stay as long as the
    fleet is large.
    """

    __slots__ = ("_bits", "_free", "_held", "_names", "holders")

    def __init__(self) -> None:
        self.holders: dict[int, int] = {}  # block -> mask of the replicas that hold it; never 0
        self._held: dict[str, OrderedDict[int, None]] = {}  # by replica, the least recent first
        self._bits: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._free: list[int] = []

    def match(self, blocks: Sequence[int]) -> dict[str, int]:
        """Leading blocks held by each replica that holds the first, in no special order; recency stays as it is.

        One walk that stops where no replica is left: O(blocks + replicas).
        """
        holders, left, n = self.holders, -1, 0
        ends: list[tuple[int, int]] = []
        for block in blocks:
            still = holders.get(block, 0) & left
            if still != left:
                if n:
                    ends.append((left ^ still, n))
                left = still
                if not left:
                    break
            n += 1
        if left and n:
            ends.append((left, n))
        return {self._names[bit]: matched for mask, matched in ends for bit in _bits_of(mask)}

    def held(self, replica: str) -> list[int]:
        """The blocks of a replica, the least recent first."""
        return list(self._held.get(replica, ()))

    def insert(self, replica: str, blocks: Iterable[int], most: int | None = None) -> None:
        """The replica holds these, front to back as its most recent; the least recent beyond `most` blocks go."""
        held = self._held.get(replica)
        if held is None:
            held = self._join(replica)
        holders, bit = self.holders, self._bits[replica]
        for block in blocks:
            if block in held:
                held.move_to_end(block)
            else:
                held[block] = None
                holders[block] = holders.get(block, 0) | bit
        if most is not None:
            while len(held) > most:
                self._lose(held.popitem(last=False)[0], bit)

    def remove(self, replica: str, blocks: Iterable[int]) -> None:
        """The replica holds these no more; those it did not hold are ignored."""
        held = self._held.get(replica)
        if held is not None:
            bit = self._bits[replica]
            for block in blocks:
                if block in held:
                    del held[block]
                    self._lose(block, bit)

    def forget(self, replica: str) -> None:
        """The replica holds nothing: O(its blocks)."""
        held = self._held.pop(replica, None)
        if held is None:
            return
        bit = self._bits.pop(replica)
        for block in held:
            self._lose(block, bit)
        del self._names[bit]
        self._free.append(bit)

    def _join(self, replica: str) -> OrderedDict[int, None]:
        self._bits[replica] = bit = self._free.pop() if self._free else 1 << len(self._bits)
        self._names[bit] = replica
        held = self._held[replica] = OrderedDict()
        return held

    def _lose(self, block: int, bit: int) -> None:
        holders = self.holders
        if left := holders[block] ^ bit:
            holders[block] = left
        else:
            del holders[block]


def _bits_of(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest
        mask ^= lowest
