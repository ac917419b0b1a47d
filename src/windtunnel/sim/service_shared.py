"""Processor sharing: everybody is served at once, each at the same rate."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any

from windtunnel.sim.agenda import COMPLETION
from windtunnel.sim.attempt import RUNNING
from windtunnel.sim.job import Job
from windtunnel.sim.service import Station


class Shared(Station):
    """Virtual time: the seconds of work that everybody present has got since the station was last empty, at rate min(1, servers/n).

    A job ends when it has grown by the job's seconds: a heap of ends, one agenda entry; O(log n) per arrival and end.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._ends: list[tuple[float, int, Job]] = []
        self._got = 0.0
        self._since = 0.0
        self._version = 0

    def _rate(self) -> float:
        n = self.running
        return min(1.0, self.config.servers / n) / self._slow if n else 0.0

    def _pass(self, now: float) -> None:
        self._got = self._got + (now - self._since) * self._rate() if self.running else 0.0
        self._since = now

    def _come(self, a: Job, now: float) -> None:
        self._pass(now)
        a.ends_at = self._got + a.service_s
        heappush(self._ends, (a.ends_at, a.order, a))
        self._begin(a, now)
        self._schedule()

    def _schedule(self) -> None:
        self._version = version = self._version + 1
        ends = self._ends
        while ends and ends[0][2].state != RUNNING:
            heappop(ends)
        if not ends:
            return
        self.events += 1
        due = max(self._since, self._since + (ends[0][0] - self._got) / self._rate())

        def over(_: Any) -> None:
            if self._version == version:
                self._over(due)

        self.agenda.at(due, COMPLETION, over)

    def _over(self, now: float) -> None:
        a = heappop(self._ends)[2]
        self._got, self._since = a.ends_at, now  # exactly, so that rounding does not add up
        self._done(a, now)
        self._schedule()
        self._tell(a)

    def _interrupted(self, a: Job, served: bool, now: float) -> None:
        n = self.running + 1  # it was still here until now
        self._got += (now - self._since) * min(1.0, self.config.servers / n) / self._slow
        self._since = now
        self._schedule()

    def _retime(self, old: float, new: float, now: float) -> None:
        self._pass(now)
        self._slow = new
        self._schedule()

    def _clear(self) -> None:
        self._ends.clear()
        self._version += 1
