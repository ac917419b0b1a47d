"""vLLM v1: one token budget a step; running requests first, then the queue, unless somebody lost its blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from windtunnel.sim.batching.members import Members


def compose(engine: Members) -> bool:
    """Schedule the chunks of the next step; True if a request was preempted."""
    if engine.partial is None and engine.kv.surely_fits(engine.D + 1):  # the two steps below would do nothing
        engine.admit(engine.budget - engine.kv.n)
        return False
    preempted = engine.make_room()
    budget = engine.serve_partial()
    if not preempted:
        engine.admit(budget)
    return preempted
