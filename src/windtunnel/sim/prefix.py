"""Prefix cache: which blocks of which prompt prefixes are in KV memory, by chained hash, least recently released out first."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import repeat
from typing import Literal

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import check_number


class PrefixCache:
    """Entries are chained hashes of full blocks: an equal hash means an equal prefix.

    capacity: entries held at most by `access` (None: unbounded). touch: `reverse` releases the last block of a prompt first, so that a tail
    is evicted before the prefix that it depends on; `forward` the first block first.
    """

    __slots__ = ("_line", "_queued", "_releases", "_reverse", "capacity", "evictions", "idle", "refs")

    def __init__(self, capacity: int | None = None, touch: Literal["reverse", "forward"] = "reverse") -> None:
        if capacity is not None:
            check_number("capacity", capacity, lo=1, whole=True)
        if touch not in ("reverse", "forward"):
            raise ConfigValueError("touch", f'expected "reverse" or "forward", got {touch!r}')
        self.capacity, self._reverse = capacity, touch == "reverse"
        self.refs: dict[int, int] = {}  # referenced entries
        self.idle: dict[int, int] = {}  # findable, referenced by nobody: the number of its last release
        self._line: deque[tuple[int, list[int]]] = deque()  # (number, what it let go of, the first one last) of each release, the oldest first
        self._queued = self._releases = 0  # entries in the line, those referenced or released again since included
        self.evictions = 0

    def __len__(self) -> int:
        return len(self.refs) + len(self.idle)

    def lookup(self, blocks: Sequence[int], limit: int) -> int:
        """Leading blocks that are here, at most `limit`; changes nothing."""
        refs, idle = self.refs, self.idle
        if not refs and not idle:
            return 0
        n = 0
        for h in blocks:
            if n == limit or not (h in refs or h in idle):
                break
            n += 1
        return n

    def referenced(self, blocks: Sequence[int], n: int) -> int:
        """How many of the first n blocks somebody holds already."""
        refs = self.refs
        return sum(h in refs for h in blocks[:n])

    def acquire(self, blocks: Sequence[int]) -> int:
        """Reference blocks that are here; returns how many were referenced by nobody before."""
        refs, idle = self.refs, self.idle
        woken = 0
        for h in blocks:
            held = refs.get(h)
            if held is None:
                del idle[h]
                refs[h] = 1
                woken += 1
            else:
                refs[h] = held + 1
        return woken

    def insert(self, block: int) -> bool:
        """A block has just been filled: findable, held by whom filled it; False if an equal one was here (the new one stays private)."""
        refs = self.refs
        if block in refs or block in self.idle:
            return False
        refs[block] = 1
        return True

    def insert_all(self, blocks: Sequence[int]) -> Sequence[int]:
        """`insert` of each; returns those that were new."""
        if self.refs.keys().isdisjoint(blocks) and self.idle.keys().isdisjoint(blocks):
            fresh = dict.fromkeys(blocks, 1)
            if len(fresh) == len(blocks):
                self.refs.update(fresh)
                return blocks
        return [h for h in blocks if self.insert(h)]

    def release(self, blocks: Sequence[int]) -> int:
        """Give references back; returns how many entries nobody holds any more. They stay findable until evicted."""
        refs = self.refs
        held = list(map(refs.__getitem__, blocks))
        if held.count(1) == len(held):
            line = list(blocks)
            for h in line:
                del refs[h]
            if not self._reverse:
                line.reverse()
        else:
            line = self._let_go(blocks)
        self._releases = number = self._releases + 1
        self.idle.update(dict.fromkeys(line, number))
        self._line.append((number, line))
        self._queued += len(line)
        if self._queued > 2 * len(self.idle) + 1024:
            self._tidy()
        return len(line)

    def _let_go(self, blocks: Sequence[int]) -> list[int]:
        """One reference less of each; those that nobody holds any more, the first one last."""
        refs, line = self.refs, []
        for h in reversed(blocks) if self._reverse else blocks:
            held = refs.pop(h)
            if held == 1:
                line.append(h)
            else:
                refs[h] = held - 1
        line.reverse()
        return line

    def _tidy(self) -> None:
        """Most of the line was referenced again: without that it is at most as long as what is idle."""
        idle = self.idle
        kept = ((number, [h for h in line if idle.get(h) == number]) for number, line in self._line)
        self._line = deque((number, line) for number, line in kept if line)
        self._queued = len(idle)

    def trim(self, room: int) -> None:
        """Evict idle entries until at most `room` are left."""
        idle, queue = self.idle, self._line
        excess = len(idle) - max(0, room)
        if excess <= 0:
            return
        self.evictions += excess
        while excess:
            number, line = queue[0]
            oldest = line[-excess:]
            del line[-excess:]
            if not line:
                queue.popleft()
            self._queued -= len(oldest)
            released = list(map(idle.pop, oldest, repeat(0)))
            evicted = released.count(number)
            excess -= evicted
            if evicted < len(oldest):  # some are referenced, or were released again since
                idle.update((h, again) for h, again in zip(oldest, released) if again and again != number)

    def clear(self) -> None:
        self.refs.clear()
        self.idle.clear()
        self._line.clear()
        self._queued = 0

    def access(self, blocks: Sequence[int]) -> int:
        """One whole request at once: look up, hold, fill the rest, release. Returns the blocks that were found."""
        hits = self.lookup(blocks, len(blocks))
        self.acquire(blocks[:hits])
        for h in blocks[hits:]:
            if not self.insert(h):
                self.acquire((h,))  # it had outlived a block before it
        if self.capacity is not None:
            self.trim(self.capacity - len(self.refs))
        self.release(blocks)
        return hits
