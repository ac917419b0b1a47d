"""vLLM v1: one token budget a step; running requests first, then the queue, unless somebody lost its blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from windtunnel.sim.attempt import Attempt

if TYPE_CHECKING:
    from windtunnel.sim.batching.runs import Runs


def compose(engine: Runs) -> bool:
    """Schedule the chunks of the next step; True if the one after it must be composed anew: a request was preempted."""
    kv = engine.kv
    if engine.partial is None and kv.surely_fits(engine.D + 1):  # the two steps below would do nothing
        return engine.admit(engine.budget - kv.n * engine.width)
    preempted = engine.make_room()
    budget = engine.serve_partial()
    return preempted or engine.admit(budget)


def joins_after(engine: Runs, a: Attempt, j: int) -> int:
    """The first boundary, from j steps on, at which the first in line could be admitted; 0: not while this run lasts."""
    kv = engine.kv  # blocks only get fewer
    budget = engine.budget - kv.n * engine.width
    if engine._chunks or len(engine._running) >= engine._max_seqs or budget <= 0:
        return 0
    if not engine.config.chunked_prefill and a.target - engine._hits(a) * engine._hash_tokens > budget:
        return 0
    D = engine.D + j + 1  # blocks that the step after the boundary takes for those who run come first
    if kv.surely_fits(D, -(-a.target // kv.size) + engine._reserve) or a.computed or engine._has_room(a, D, engine._hits(a), budget):
        return j
    return 0 if engine._reserve_full or not engine._hits(a) else j
