"""vLLM v0: whole prompts go first, in steps of their own; decodes stand still meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from windtunnel.sim.attempt import Attempt
from windtunnel.sim.batching.members import NO_LIMIT
from windtunnel.sim.engine_config import POLICY_DEFAULTS, EngineConfig

if TYPE_CHECKING:
    from windtunnel.sim.batching.runs import Runs


def prefill_first_config(**changes: Any) -> EngineConfig:
    """Its usual setting (4096 tokens, 128 sequences, watermark 1 %), with changes."""
    return EngineConfig(**{"policy": "prefill_first", **POLICY_DEFAULTS["prefill_first"], **changes})


def compose(engine: Runs) -> bool:
    """Schedule the prompts of a prefill-only step, or room for a decode step of all; True if a request was preempted."""
    engine._limit = NO_LIMIT
    if engine._waiting and not _held_back(engine, engine.D):
        _admit_whole(engine)
        if engine._chunks:
            engine._alone = True
            engine._admitted_D = engine.D
            return False
    return engine.make_room()


def _held_back(engine: Runs, D: int) -> int:
    """Decode steps that must come at D before the next admission; with them as the limit of the run."""
    left = engine._admitted_D + engine.config.min_decode_steps - D if engine.kv.n else 0
    if left > 0:
        engine._limit = left
    return max(0, left)


def _admit_whole(engine: Runs) -> None:
    """Whole prompts in order, while they fit; one that is longer than the budget goes alone."""
    kv, budget, hash_tokens = engine.kv, engine.budget, engine._hash_tokens
    while engine._waiting and len(engine._running) < engine._max_seqs:
        a = engine._head()
        if a.computed:
            if engine._chunks or not engine._bring_in(a, engine.D):
                return
            continue
        if a.blocks is not None:
            engine._trim(engine.D)
        hits = engine._hits(a)
        q = a.target - hits * hash_tokens
        if q > budget and engine._chunks:
            return
        if not kv.surely_fits(engine.D, -(-a.target // kv.size) + engine._reserve) and not engine._has_room(a, engine.D, hits, budget):
            return
        if engine.config.admission == "peak" and not _peak_allows(engine, a, engine.D):
            return
        engine._enter(a, q, hits)
        budget -= q


def _peak_allows(engine: Runs, a: Attempt, D: int) -> bool:
    """Will the pool hold everybody at the worst moment, if all run to their ends? S-LoRA's and VTC's admission.

    If not, the run is limited: the peak falls by at most one token a step.
    """
    kv = engine.kv
    if kv.total is None:
        return True
    ends = [(a.output - a.generated, a.target)]
    for r in engine._running.values():
        if r.end_mark < 0:
            ends.append((r.output - r.generated, r.target))
        elif engine._g is None:
            ends.append((r.end_mark - D, r.base + D))
        else:
            done = int((D - r.base[1]) * engine._g + 1e-9)
            ends.append((r.output - r.generated - done, r.base[0] + done))
    ends.sort(reverse=True)
    peak = held = 0
    for i, (remaining, stored) in enumerate(ends, 1):
        held += stored
        peak = max(peak, remaining * i + held)
    over = peak - kv.total * kv.size
    if over < 0:
        return True
    engine._limit = 1 if engine._g is not None else over + 1
    return False


def joins_after(engine: Runs, a: Attempt, j: int) -> int:
    """The first boundary, from j steps on, at which the first in line could be admitted; 0: not while this run lasts."""
    if engine._alone or len(engine._running) >= engine._max_seqs:
        return 0
    if engine.config.min_decode_steps:
        j += _held_back(engine, engine.D + j)
        engine._limit = NO_LIMIT
    kv = engine.kv
    D = engine.D + j
    if a.computed or kv.surely_fits(D, -(-a.target // kv.size) + engine._reserve) or engine._has_room(a, D, engine._hits(a), engine.budget):
        return j
    return 0
