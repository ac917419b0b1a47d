"""Nothing appears and nothing is lost: a recount of an engine's blocks and requests."""

from __future__ import annotations

from collections import Counter

from windtunnel.sim.attempt import GONE, MOVING, RUNNING, SWAPPED, WAITING
from windtunnel.sim.batching.members import Members
from windtunnel.sim.specdecode import tokens_after


def assert_conserved(engine: Members) -> None:
    """Blocks and counters agree with a recount."""
    kv, D, per = engine.kv, engine.D, engine._per_entry
    decoding = [a for a in engine._running.values() if a.end_mark >= 0]
    computed = [a.base + D if engine._g is None else a.base[0] + tokens_after(D - a.base[1], engine._g) for a in decoding]
    held = sum(kv.blocks_for(tokens) for tokens in computed)
    holders = (a for a in engine._here.values() if a.end_mark < 0 and (a.state in (RUNNING, MOVING) or (a.state == WAITING and a.computed)))
    held += sum(a.held + len(a.refs or ()) * per for a in holders)
    if engine.cache is not None:
        counted = Counter(h for a in engine._here.values() for h in a.refs or ())
        assert counted == engine.cache.refs, engine.name
        held -= per * (counted.total() - len(counted))
    assert kv.used(D) == held, (engine.name, kv.used(D), held)
    assert kv.n == len(decoding), (engine.name, kv.n)
    assert engine._g is not None or kv.base_sum == sum(a.base for a in decoding), engine.name
    assert kv.total is None or held <= kv.total, (engine.name, held)
    states = Counter(a.state for a in engine._here.values())
    assert (states[RUNNING], states[WAITING] + states[SWAPPED], states[GONE]) == (len(engine._running), engine._waiting, 0), (engine.name, states)
