"""Static batching: a batch is filled, prefilled together and decoded until its longest request ends; only then comes the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from windtunnel.sim.agenda import STEP_START
from windtunnel.sim.attempt import Attempt

if TYPE_CHECKING:
    from windtunnel.sim.batching.runs import Runs


def compose(engine: Runs) -> bool:
    """Fill the next batch if the last one is over. Blocks for the whole of every request are set aside: nobody is ever preempted."""
    if engine._running or not engine._waiting:
        return False
    engine._ghosts, engine._ghost_base = 0, 0.0
    if engine._waiting < engine._max_seqs:
        start_s = engine._head().submitted_s + engine.config.batch_wait_s
        if engine.agenda._now < start_s:
            engine.agenda.at(start_s, STEP_START, engine._wake_up)
            return False
    total, blocks = engine.kv.total, 0
    while engine._waiting and len(engine._running) < engine._max_seqs:
        a = engine._head()
        blocks += engine.kv.blocks_for(a.prompt + max(1, a.output) - 1 + engine.width - 1)
        if total is not None and blocks > total:
            break
        if a.computed:
            engine._bring_in(a, engine.D)
            continue
        if a.blocks is not None:
            engine._trim(engine.D)
        hits = engine._hits(a)
        engine._enter(a, a.target - hits * engine._hash_tokens, hits)
    engine._alone = True
    return False


def joins_after(engine: Runs, a: Attempt, j: int) -> int:
    """Nobody joins a batch under way."""
    return 0
