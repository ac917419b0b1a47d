"""One server that takes several requests at a time, or that has to be started again after it ran empty."""

from __future__ import annotations

from collections import deque
from typing import Any

from windtunnel.sim.agenda import COMPLETION
from windtunnel.sim.attempt import WAITING
from windtunnel.sim.job import Job
from windtunnel.sim.service import Station


class Bulk(Station):
    """fcfs. A free server takes up to `batch` of those who wait, for the seconds of the first; after emptiness it needs `setup_s` first.

    A cancelled member of a batch leaves; the others' end does not move.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._line: deque[Job] = deque()
        self._members: list[Job] = []
        self._due: float | None = None  # end of the batch or of the setup under way
        self._version = 0
        self.batches = 0

    def _come(self, a: Job, now: float) -> None:
        self._line.append(a)
        if self._due is None:
            setup_s = self._setup()
            if setup_s > 0.0:
                self.setups += 1
                self._until(now + setup_s * self._slow)
            else:
                self._take(now)

    def _setup(self) -> float:
        given = self.config.setup_s
        if given is None or isinstance(given, (int, float)):
            return float(given or 0.0)
        if self.rng is None:
            raise ValueError("a random setup_s needs an rng")
        return float(given.sample(self.rng, 1)[0])

    def _until(self, due: float) -> None:
        self._due = due
        self._version = version = self._version + 1
        self.events += 1

        def over(_: Any) -> None:
            if self._version == version:
                self._over(due)

        self.agenda.at(due, COMPLETION, over)

    def _over(self, now: float) -> None:
        self._due = None
        members, self._members = [a for a in self._members if not a.cancelled], []
        for a in members:
            self._done(a, now)
        self._take(now)
        for a in members:
            self._tell(a)

    def _take(self, now: float) -> None:
        line, most = self._line, self.config.batch or 1
        taken: list[Job] = []
        while line and len(taken) < most:
            a = line.popleft()
            if a.state == WAITING:
                taken.append(a)
        if not taken:
            return
        self._members = taken
        self.batches += 1
        self._until(now + taken[0].service_s * self._slow)
        for a in taken:
            self._begin(a, now)

    def _interrupted(self, a: Job, served: bool, now: float) -> None:
        if served and not any(not m.cancelled for m in self._members):
            self._members, self._due = [], None
            self._version += 1
            self._take(now)

    def _retime(self, old: float, new: float, now: float) -> None:
        if self._due is not None:
            self._until(now + (self._due - now) * new / old)

    def _clear(self) -> None:
        self._line.clear()
        self._members, self._due = [], None
        self._version += 1
