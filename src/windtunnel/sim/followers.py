"""Progress of requests on fast engines: told at least every so many tokens, from the closed form, without cutting a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from windtunnel.sim.agenda import ARRIVAL, Agenda
from windtunnel.sim.engine import SimEngine
from windtunnel.sim.lifecycle import SimReplica

EVERY_TOKENS = 32  # of one request, between two reports of its replica
LOOK = ARRIVAL + 2  # after the steps that start at that time
STILL_S = 0.25  # between two looks at an engine whose requests stand still


class Followers:
    """Calls `tell(replica)` before any of its requests gets more than `every_tokens` tokens unreported.

    A replica is looked at when that is due, and at the end of each run of equal steps before; `told` is to be called with every report.
    """

    def __init__(self, replicas: Mapping[str, SimReplica], agenda: Agenda, tell: Callable[[str], None], every_tokens: int = EVERY_TOKENS) -> None:
        self._replicas, self._agenda, self._tell, self._every = replicas, agenda, tell, every_tokens
        self._told: dict[str, tuple[int, ...]] = {}  # steps of the replica's parts at its last report
        self._followed: set[str] = set()

    def told(self, name: str) -> None:
        """A report of the replica has just been made, whoever asked for it."""
        now = self._agenda.now
        self._told[name] = tuple([part.steps_at(now) for part in self._parts(name)])

    def begun(self, name: str) -> None:
        """The replica has admitted a request."""
        if name not in self._followed and self._parts(name):
            self._followed.add(name)
            self._agenda.at(self._agenda.now, LOOK, lambda _: self._look(name))

    def _parts(self, name: str) -> tuple[SimEngine, ...]:
        """What steps in it, each on its own; nothing of an engine that only serves for a while."""
        parts = getattr(self._replicas[name].engine, "parts", None)
        return () if parts is None else tuple(parts())

    def _look(self, name: str) -> None:
        now, parts = self._agenda.now, self._parts(name)
        if not any(part.load for part in parts):
            self._followed.discard(name)
            return
        before = self._told.get(name) or (0,) * len(parts)
        left = [max(1, self._every // p.width) - (p.steps_at(now) - steps) for p, steps in zip(parts, before)]
        if min(left) <= 0:
            self._tell(name)
            left = [max(1, self._every // p.width) for p in parts]
        due = [at for p, steps in zip(parts, left) if (at := p.time_after(steps)) is not None]
        self._agenda.at(min(due, default=now + STILL_S), LOOK, lambda _: self._look(name))
