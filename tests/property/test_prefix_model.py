"""The prefix cache against the plainest one there is: an ordered dictionary of what is idle."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from windtunnel.sim.prefix import PrefixCache


class Plain:
    """References and, by time of release, what nobody holds."""

    def __init__(self, reverse: bool) -> None:
        self.refs: dict[int, int] = {}
        self.idle: OrderedDict[int, None] = OrderedDict()
        self.reverse, self.evictions = reverse, 0

    def take(self, blocks: Sequence[int]) -> list[int]:
        """Hold the leading blocks that are here, fill the others; those that it now holds."""
        held, found = [], True
        for h in blocks:
            here = h in self.refs or h in self.idle
            found = found and here
            if found or not here:
                self.idle.pop(h, None)
                self.refs[h] = self.refs.get(h, 0) + 1
                held.append(h)
        return held

    def release(self, blocks: Sequence[int]) -> int:
        before = len(self.idle)
        for h in reversed(blocks) if self.reverse else blocks:
            self.refs[h] -= 1
            if not self.refs[h]:
                del self.refs[h]
                self.idle[h] = None
        return len(self.idle) - before

    def trim(self, room: int) -> None:
        while len(self.idle) > max(0, room):
            self.idle.popitem(last=False)
            self.evictions += 1


PROMPTS = st.lists(st.integers(1, 12), max_size=8)


@settings(max_examples=200, deadline=None)
@given(st.booleans(), st.lists(st.one_of(PROMPTS, st.integers(0, 9)), max_size=60))
def test_SK_5_who_is_findable_held_and_evicted_is_as_in_the_plain_cache(reverse: bool, script: list[list[int] | int]) -> None:
    cache, plain = PrefixCache(touch="reverse" if reverse else "forward"), Plain(reverse)
    running: list[list[int]] = []
    for what in script:
        if isinstance(what, list):
            hits = cache.lookup(what, len(what))
            held = list(what[:hits])
            cache.acquire(held)
            held += cache.insert_all(what[hits:])
            assert held == plain.take(what)
            running.append(held)
        elif what < 5 and running:
            done = running.pop(what % len(running))
            assert cache.release(done) == plain.release(done)
        else:
            cache.trim(what)
            plain.trim(what)
        assert (cache.refs, cache.idle.keys(), cache.evictions) == (plain.refs, plain.idle.keys(), plain.evictions)


def test_SK_5_a_prefix_that_is_used_for_ever_leaves_no_trail() -> None:
    cache, prompt = PrefixCache(), list(range(1, 101))
    cache.release(cache.insert_all(prompt))
    for _ in range(500):
        cache.acquire(prompt)
        cache.release(prompt)
    assert (len(cache.idle), cache._queued) == (100, sum(len(line) for _, line in cache._line))
    assert cache._queued <= 2 * 100 + 1024
    cache.trim(40)
    assert sorted(cache.idle) == prompt[:40], "the tail goes first"
    cache.trim(0)
    assert (cache.idle, cache.evictions, cache._queued) == ({}, 100, sum(len(line) for _, line in cache._line))
