"""Who is called at a grid time, and what has to be observed for them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from windtunnel.policy.planning.contract import PipelineContext, Stage
from windtunnel.policy.planning.paths import there
from windtunnel.policy.planning.roster import Entry, Snapshot


class Gate(IntEnum):
    """CALL now; HOLD: not its turn, its last answer may count; the others neither call nor hold."""

    CALL = 0
    HOLD = 1
    DISABLED = 2
    OPEN = 3
    REQUIRES = 4


def gate(entry: Entry, ctx: PipelineContext, tick_at: float, now: float, scale_s: float) -> Gate:
    """The first gate that stops a plugin: enabled, breaker, back-off, due, requires. Sets what it waits for."""
    entry.gated_on = ""
    if not entry.enabled:
        return Gate.DISABLED
    breaker = entry.breaker
    if not breaker.callable(now):
        return Gate.OPEN
    if entry.fails and breaker.last != "half_open" and entry.backing_off(tick_at, scale_s):
        return Gate.HOLD
    if not entry.due(tick_at):
        return Gate.HOLD
    for path, steps in entry.requires:
        if not there(ctx, steps):
            entry.gated_on = path
            return Gate.REQUIRES
    return Gate.CALL


@dataclass(frozen=True, slots=True)
class Pull:
    """What to observe for a tick. windows: lengths of the traffic windows that are asked for, in seconds, ascending."""

    traffic: bool = False
    fpm: bool = False
    windows: tuple[float, ...] = ()


def pull(snapshot: Snapshot, tick_at: float, scale_s: float) -> Pull:
    """The union over enabled, callable plugins that are due at grid time `tick_at`.

    One that waited for a prediction counts only if some PREDICT plugin will be called.
    """
    ready = [e for e in snapshot.entries if e.enabled and e.breaker.callable_at(tick_at) and e.due(tick_at)
             and not (e.fails and e.breaker.last == "closed" and e.backing_off(tick_at, scale_s))]
    predicting = any(e.stage is Stage.PREDICT for e in ready)
    counted = [e for e in ready if predicting or not e.gated_on.startswith("predictions")]
    windows = tuple(sorted({e.window_s for e in counted if e.blocks[0]}))
    return Pull(bool(windows), any(e.blocks[1] for e in counted), windows)


def needs_of(snapshot: Snapshot) -> frozenset[str]:
    """What a driver must be able to produce: `fpm` if any plugin names engine reports. Who needs nothing in particular takes what is there."""
    named = (path for e in snapshot.entries for path in (*e.registration.needs, *e.registration.requires))
    return frozenset({"fpm"}) if any(path.startswith("observations.fpm") for path in named) else frozenset()
