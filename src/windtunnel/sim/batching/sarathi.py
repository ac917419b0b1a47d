"""Sarathi: a fixed chunk a step; every decode gets its token, prompts share what is left of the chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from windtunnel.sim.engine_config import POLICY_DEFAULTS, EngineConfig

if TYPE_CHECKING:
    from windtunnel.sim.batching.runs import Runs


def sarathi_config(**changes: Any) -> EngineConfig:
    """Sarathi's usual setting (chunk 512, 128 sequences, watermark 1 %), with changes."""
    return EngineConfig(**{"policy": "sarathi", **POLICY_DEFAULTS["sarathi"], **changes})


def compose(engine: Runs) -> bool:
    """Schedule the chunks of the next step; True if the one after it must be composed anew: a request was preempted."""
    kv = engine.kv
    if engine.partial is None and kv.surely_fits(engine.D + 1):  # nobody loses its blocks, no prompt is under way
        return engine.admit(engine.budget - kv.n * engine.width)
    preempted = engine.make_room()
    return engine.admit(engine.serve_partial()) or preempted
