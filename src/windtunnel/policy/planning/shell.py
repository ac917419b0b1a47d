"""The planner: ticks on a grid, observes, runs the pipeline, bounds the plan, and rolls it out. `handle(event, now) -> effects`.

Plugins of this process are answered at once; the others are asked of the driver (`Ask`), and `Answered` goes on with the tick.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from windtunnel.effects import NOTHING, Effect, WakeAt
from windtunnel.events import (
    Answered,
    Arrived,
    Commanded,
    Event,
    PoolsObserved,
    ReplicaBooting,
    ReplicaGone,
    ReplicaReady,
    Request,
    ScaleAnswered,
    StepReported,
    Woke,
)
from windtunnel.policy.planning.cadence import needs_of
from windtunnel.policy.planning.observer import Observer
from windtunnel.policy.planning.plugin import Attached
from windtunnel.policy.planning.pool_states import PoolFrame
from windtunnel.policy.planning.roster import RosterSettings
from windtunnel.policy.planning.settings import PlannerSettings
from windtunnel.policy.planning.ticks import KEY, Ticks

_POOL_EVENTS = frozenset({ReplicaBooting, ReplicaReady, ReplicaGone, PoolsObserved, ScaleAnswered})


class PipelinePlanner(Ticks):
    """Sizes the pools of one model service. Raises PlannerConfigError for plugins that cannot register.

    frames: the pools by role, default the roles' names; mine: which requests are for these pools, None: all. wants: note streams that
    are recorded. Two that get the same events give the same effects, whatever world they came from.
    """

    def __init__(self, settings: PlannerSettings, plugins: Sequence[Attached] = (), frames: Mapping[str, PoolFrame] | None = None, *,
                 observer: Observer | None = None, mine: Callable[[Request], bool] | None = None, wants: frozenset[str] = frozenset(),
                 roster: RosterSettings | None = None) -> None:
        super().__init__(settings, frames, observer=observer, mine=mine, wants=wants, roster=roster)
        self._on: dict[type, Callable[[Any, float], Sequence[Effect]]] = {
            Arrived: self._arrived, ReplicaBooting: self._booting, ReplicaReady: self._ready, ReplicaGone: self._gone,
            PoolsObserved: self._pools_observed, ScaleAnswered: self._scaled, Answered: self._answered, Woke: self._woke,
            Commanded: self._commanded, StepReported: self._reported,
        }
        self._observes = self.observer.events
        self.events: frozenset[type] = frozenset(self._on) | self._observes
        for attached in plugins:
            self._attach(attached)

    @property
    def needs(self) -> frozenset[str]:
        """What the world must give."""
        return needs_of(self.roster.snapshot())

    def start(self, now: float) -> list[Effect]:
        """The grid of ticks begins here."""
        self._t0 = now
        self.roster.begin(now)
        longest_s = max((e.window_s for e in self.roster.snapshot().entries), default=self.scale_s)
        self.observer.start(now, self.scale_s, longest_s)
        for pool in self.pools.values():
            pool.progress_s = now
        self._meter(now)
        return [*self._told(), *self._notes(), WakeAt(now + self.scale_s, KEY)]

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Take one event."""
        kind = type(event)
        if kind in self._observes:
            self.observer.handle(event, now)
        act = self._on.get(kind)
        if act is None:
            return NOTHING
        self.journal.now = now
        if kind in _POOL_EVENTS:
            self._meter(now)
        made = act(event, now)
        return [*made, *self._notes()] if self.journal.on else made

    def view(self) -> Mapping[str, Any]:
        """The last tick, and where the pools stand."""
        out = {"reason": "not_started"} if self._last is None else self._last.plain()
        states = {c: p.state() for c, p in self.pools.items()}
        return {**out, "missed": self.missed, "ticks": self.ticks,
                "pools": {c: {"ready": s.ready, "starting": s.starting, "draining": s.draining, "expected": s.expected} for c, s in states.items()}}
