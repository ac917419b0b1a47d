"""How far requests are, told to who needs it: before the batch of their replica changes, and between its changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from windtunnel.events import Event, Progressed
from windtunnel.sim.agenda import ARRIVAL, COMPLETION, Agenda
from windtunnel.sim.fleet import SimFleet
from windtunnel.sim.followers import Followers
from windtunnel.sim.lifecycle import DRAINING, READY

PROGRESS_S = 0.25  # run s between two reports of a replica whose batch does not change


class ProgressReports:
    """Sends `Progressed` of the replicas of `fleet` through `back`."""

    def __init__(self, fleet: SimFleet, agenda: Agenda, back: Callable[[Event], None]) -> None:
        self._fleet, self._agenda, self._back = fleet, agenda, back
        self._told_s: dict[str, float] = {}
        self._followers = Followers(fleet.replicas, agenda, self.tell)
        self.begun = self._followers.begun

    def start(self) -> None:
        """From now on a report is at most PROGRESS_S old."""
        self._agenda.at(self._agenda._now + PROGRESS_S, ARRIVAL, self._tick)

    def tell(self, name: str, through: Callable[[Event], None] | None = None) -> None:
        """How far the requests of a replica are, before its batch changes: once per instant."""
        now = self._agenda._now
        if self._told_s.get(name) != now:
            self._told_s[name] = now
            self._followers.told(name)
            counts = self._fleet.replicas[name].engine.progress_at(now)
            if counts:
                (through or self._back)(Progressed(name, counts))

    def tell_clients(self, tell: Callable[[Progressed], None], network_s: float) -> None:
        """What clients will have received when they wake and judge how long nothing came; the control hears of it in its own time."""
        now = self._agenda._now
        replicas = [r for r in self._fleet.replicas.values() if r.state in (READY, DRAINING)]
        counts = tuple(count for r in replicas for count in r.engine.progress_at(now))
        if counts and network_s:
            self._agenda.at(now + network_s, COMPLETION, lambda _: tell(Progressed("", counts)))
        elif counts:
            tell(Progressed("", counts))

    def _tick(self, _: Any) -> None:
        for name, replica in list(self._fleet.replicas.items()):
            if replica.state in (READY, DRAINING):
                self.tell(name)
        self.start()
