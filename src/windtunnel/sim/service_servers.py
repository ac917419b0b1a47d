"""Servers that each hold one request: in order of arrival, of priority or of length, with or without interruption."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any

from windtunnel.sim.agenda import COMPLETION
from windtunnel.sim.attempt import RUNNING, WAITING
from windtunnel.sim.job import Job
from windtunnel.sim.service import Station


class Servers(Station):
    """fcfs, priority, sjf, preemptive and srpt. Entries of heaps and agenda that are out of date are skipped: every call O(log n)."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._line: list[tuple[tuple[float, ...], Job]] = []  # by rank, which ends in the order of arrival
        self._worst: list[tuple[tuple[float, ...], float, Job]] = []  # served ones, who would be interrupted first
        self._rank = {"fcfs": self._by_order, "priority": self._by_priority, "preemptive": self._by_priority, "sjf": self._by_length,
                      "srpt": self._by_length}[self.config.discipline]
        self._interrupts = self.config.discipline in ("preemptive", "srpt")
        self._remaining = self.config.discipline == "srpt"

    @staticmethod
    def _by_order(a: Job) -> tuple[float, ...]:
        return (a.order,)

    @staticmethod
    def _by_priority(a: Job) -> tuple[float, ...]:
        return (a.priority, a.order)

    @staticmethod
    def _by_length(a: Job) -> tuple[float, ...]:
        return (a.left_s, a.order)

    def _come(self, a: Job, now: float) -> None:
        if self.running < self.config.servers:
            self._serve(a, now)
            return
        if self._interrupts:
            worst = self._worst_served()
            if worst is not None and self._before(a, worst, now):
                self._put_back(worst, now)
                self._serve(a, now)
                return
        self._queue(a)

    def _before(self, a: Job, b: Job, now: float) -> bool:
        if self._remaining:
            return a.left_s < (b.ends_at - now) / self._slow
        return a.priority < b.priority

    def _queue(self, a: Job) -> None:
        a.rank = self._rank(a)
        heappush(self._line, (a.rank, a))

    def _serve(self, a: Job, now: float) -> None:
        self._begin(a, now)
        self._schedule(a, now)

    def _schedule(self, a: Job, now: float) -> None:
        a.ends_at = ends_at = now + a.left_s * self._slow
        self.events += 1
        if self._interrupts:
            key = (-ends_at, -a.order) if self._remaining else (-a.priority, -a.order)
            heappush(self._worst, (key, ends_at, a))

        def over(_: Any) -> None:
            if a.state == RUNNING and a.ends_at == ends_at:
                self._over(a, ends_at)

        self.agenda.at(ends_at, COMPLETION, over)

    def _over(self, a: Job, now: float) -> None:
        self._done(a, now)
        self._next(now)
        self._tell(a)

    def _next(self, now: float) -> None:
        line = self._line
        while line and self.running < self.config.servers:
            rank, a = heappop(line)
            if a.state == WAITING and a.rank is rank:
                self._serve(a, now)

    def _worst_served(self) -> Job | None:
        heap = self._worst
        while heap and (heap[0][2].state != RUNNING or heap[0][2].ends_at != heap[0][1]):
            heappop(heap)
        return heap[0][2] if heap else None

    def _put_back(self, a: Job, now: float) -> None:
        a.left_s = (a.ends_at - now) / self._slow
        a.state = WAITING
        a.preemptions += 1
        self.running -= 1
        self.preemptions += 1
        self._queue(a)

    def _interrupted(self, a: Job, served: bool, now: float) -> None:
        if served:
            self._next(now)

    def _retime(self, old: float, new: float, now: float) -> None:
        for a in self._here.values():
            if a.state == RUNNING:
                a.left_s = (a.ends_at - now) / old
        self._slow = new
        for a in self._here.values():
            if a.state == RUNNING:
                self._schedule(a, now)

    def _clear(self) -> None:
        self._line.clear()
        self._worst.clear()
