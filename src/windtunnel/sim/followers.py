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
        self._told: dict[str, int] = {}  # steps of the replica at its last report
        self._followed: set[str] = set()

    def told(self, name: str) -> None:
        """A report of the replica has just been made, whoever asked for it."""
        engine = self._replicas[name].engine
        if isinstance(engine, SimEngine):
            self._told[name] = engine.steps_at(self._agenda.now)

    def begun(self, name: str) -> None:
        """The replica has admitted a request."""
        if name not in self._followed and isinstance(self._replicas[name].engine, SimEngine):
            self._followed.add(name)
            self._agenda.at(self._agenda.now, LOOK, lambda _: self._look(name))

    def _look(self, name: str) -> None:
        engine, now = self._replicas[name].engine, self._agenda.now
        assert isinstance(engine, SimEngine)
        if not engine.load:
            self._followed.discard(name)
            return
        allowed = max(1, self._every // engine.width)
        since = engine.steps_at(now) - self._told.get(name, 0)
        if since >= allowed:
            self._tell(name)
            since = 0
        due = engine.time_after(allowed - since)
        self._agenda.at(now + STILL_S if due is None else due, LOOK, lambda _: self._look(name))
