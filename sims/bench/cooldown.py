"""Two providers, one of which refuses for a while: does the other one's work go on?

    python sims/bench/cooldown.py

Tasks of two columns share `capacity` places; each makes one request through a request admission of its own endpoint and keeps its place
while it waits there. Provider A answers 429 with Retry-After to what begins in [cools_from, cools_until). Integer ticks of 50 ms. Per
instant: ends of requests, then wakes and grants, then dispatch, as the task scheduler does it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from windtunnel.effects import WakeAt
from windtunnel.events import Woke
from windtunnel.policy.admission.aimd import Aimd
from windtunnel.policy.admission.endpoints import RequestAdmissionConfig
from windtunnel.policy.admission.lease import RequestLease
from windtunnel.policy.admission.waiters import Granted, RequestItem, Waiting
from windtunnel.policy.admission.waiting import WaitingAdmission
from windtunnel.policy.tasks.bounded_borrow import BoundedBorrow
from windtunnel.policy.tasks.config import TaskSchedulerConfig
from windtunnel.policy.tasks.decision import TaskAdmissionPolicy
from windtunnel.policy.tasks.graph import Column, Graph
from windtunnel.policy.tasks.messages import Pressure, RequestPressure, RunStarted, StartTask, TaskEnded
from windtunnel.policy.tasks.resolve import Generator, Resolver
from windtunnel.policy.tasks.scheduler import TaskScheduler
from windtunnel.policy.tasks.strict import Strict
from windtunnel.policy.tasks.task import SchedulingMetadata

TICK_S = 0.05


@dataclass(frozen=True, slots=True)
class Setup:
    """Times in ticks. refuses: for ever if cools_until is infinite."""

    capacity: int = 4
    a_tasks: int = 40
    b_tasks: int = 200
    a_ticks: int = 4
    b_ticks: int = 1
    cools_from: float = 20
    cools_until: float = 80
    advisory: bool = True
    policy: TaskAdmissionPolicy = field(default_factory=BoundedBorrow)
    starved_after: float | None = 600


@dataclass(slots=True)
class Result:
    """Times in s. b_leases: task leases of B taken while A cooled and B had work; b_gap_s: longest pause between two of them; a_held_s:
    place-seconds that A's tasks held while they waited for its cool-down; starved: was the starved state seen? left: leases, waiters,
    queued and deferred tasks at the end."""

    wall_s: float = 0.0
    b_wall_s: float = 0.0
    a_done: int = 0
    b_done: int = 0
    b_leases: int = 0
    b_gap_s: float = 0.0
    a_held_s: float = 0.0
    refused: int = 0
    starved: bool = False
    left: tuple[int, int, int, int] = (0, 0, 0, 0)
    status: str = ""
    timeline: list[dict[str, Any]] = field(default_factory=list)


class Flight:
    """One run on an integer clock."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.now, self.result = setup, 0.0, Result()
        generators = {name: Generator((name,), SchedulingMetadata("model", ("model", name, "m", "chat"), float(setup.capacity))) for name in "ab"}
        columns = [Column("a"), Column("b")]
        rows = max(setup.a_tasks, setup.b_tasks)
        config = TaskSchedulerConfig(setup.policy, max_in_flight_tasks=setup.capacity, request_pressure_advisory=setup.advisory,
                                     buffer_size=rows, starved_after_s=setup.starved_after)
        self.scheduler = TaskScheduler(Graph(columns), {0: rows}, Resolver(generators, setup.capacity), config, timeline=True)
        self.requests = WaitingAdmission(RequestAdmissionConfig(Aimd(cooldown_s=2.0)))
        for name in "ab":
            self.requests.register(name, setup.capacity, 0.0)
        self.waits: dict[str, StartTask] = {}
        self.since: dict[str, float] = {}
        self.ends: list[tuple[float, int, str, StartTask, RequestLease | None]] = []
        self.wake: float | None = None
        self.n = 0
        self.b_last = setup.cools_from

    def run(self) -> Result:
        self.tell(RunStarted())
        while self.scheduler.result is None:
            times = [t for t in (self.ends[0][0] if self.ends else None, self.wake, self.requests.next_deadline()) if t is not None]
            self.now = max(self.now, math.ceil(min(times) - 1e-9))
            self.instant()
            self.scheduler.check()
        out, s = self.result, self.scheduler
        out.wall_s, out.status, out.timeline = self.now * TICK_S, s.result.status, list(s.timeline or ())  # type: ignore[union-attr]
        in_flight = sum(self.requests.snapshot(name, self.now).in_flight for name in "ab")
        out.left = (len(s.admission.active), in_flight, self.requests.waiting, len(s.queue) + len(s.deferred))
        return out

    def instant(self) -> None:
        while self.ends and self.ends[0][0] <= self.now:
            _, _, outcome, start, lease = heappop(self.ends)
            if lease is not None:
                self.requests.release(lease, outcome, self.now)
            self.ended(start, outcome)
        for out in self.requests.drain(self.now):
            assert isinstance(out, Granted)
            start = self.waits.pop(out.waiter_id)
            self.result.a_held_s += (self.now - self.since.pop(out.waiter_id)) * TICK_S
            self.attempt(start, out.lease)
        if self.wake is not None and self.wake <= self.now:
            self.wake = None
            self.tell(Woke("tasks"))

    def tell(self, event: Any) -> None:
        for effect in self.scheduler.handle(event, self.now):
            if isinstance(effect, StartTask):
                self.start(effect)
            elif isinstance(effect, WakeAt):
                self.wake = effect.at

    def start(self, start: StartTask) -> None:
        column, setup = start.task.column, self.setup
        row = start.task.row_index or 0
        if row >= (setup.a_tasks if column == "a" else setup.b_tasks):  # columns have as many rows as the longer one: nothing to do here
            self.later(0.0, "success", start, None)
            return
        if column == "b" and setup.cools_from <= self.now < setup.cools_until:
            self.result.b_leases += 1
            self.result.b_gap_s = max(self.result.b_gap_s, (self.now - self.b_last) * TICK_S)
            self.b_last = self.now
        got = self.requests.enqueue(RequestItem(column), self.now)
        if isinstance(got, RequestLease):
            self.attempt(start, got)
        else:
            assert isinstance(got, Waiting)
            self.waits[got.waiter_id], self.since[got.waiter_id] = start, self.now
            self.press(column)

    def attempt(self, start: StartTask, lease: RequestLease) -> None:
        """The request is on its way; a provider that cools refuses it at once."""
        column, setup = start.task.column, self.setup
        if column == "a" and setup.cools_from <= self.now < setup.cools_until:
            self.result.refused += 1
            wait = setup.cools_until - self.now if math.isfinite(setup.cools_until) else 20.0
            self.requests.release(lease, "rate_limited", self.now, retry_after_s=wait)
            self.result.starved |= self.requests.snapshot(column, self.now).starved
            self.press(column)
            self.later(0.0, "rate_limited", start, None)
        else:
            self.later(setup.a_ticks if column == "a" else setup.b_ticks, "success", start, lease)

    def later(self, ticks: float, outcome: str, start: StartTask, lease: RequestLease | None) -> None:
        self.n += 1
        heappush(self.ends, (self.now + ticks, self.n, outcome, start, lease))

    def press(self, column: str) -> None:
        shown = self.requests.snapshot(column, self.now)
        self.tell(RequestPressure(Pressure(f"request:{column}/m", shown.in_flight, shown.limit, shown.waiters, blocked_until=shown.blocked_until)))

    def ended(self, start: StartTask, outcome: str) -> None:
        column, out = start.task.column, self.result
        real = (start.task.row_index or 0) < (self.setup.a_tasks if column == "a" else self.setup.b_tasks)
        if outcome == "success" and real:
            out.a_done += column == "a"
            out.b_done += column == "b"
            if column == "b":
                out.b_wall_s = self.now * TICK_S
        shown = self.requests.snapshot(column, self.now)
        self.tell(TaskEnded(start.lease.lease_id, outcome, None, shown.cooldown_remaining_s if outcome == "rate_limited" else None))


def simulate(setup: Setup) -> Result:
    return Flight(setup).run()


def main(rows: Sequence[tuple[str, Setup]] = (
        ("nobody cools", Setup(cools_until=20)), ("A cools, with advice", Setup()), ("A cools, without advice", Setup(advisory=False)),
        ("A cools, strict, with advice", Setup(policy=Strict())),
        ("A cools, strict, without advice", Setup(policy=Strict(), advisory=False)), ("A says 429 for ever", Setup(cools_until=math.inf)))) -> None:
    print(f"{'scenario':<32}{'wall s':>8}{'B done s':>10}{'B leases':>10}{'gap s':>8}{'A held s':>10}{'refused':>9}  left")
    for name, setup in rows:
        r = simulate(setup)
        print(f"{name:<32}{r.wall_s:8.2f}{r.b_wall_s:10.2f}{r.b_leases:10d}{r.b_gap_s:8.2f}{r.a_held_s:10.2f}{r.refused:9d}  {r.left} {r.status}")


if __name__ == "__main__":
    main()
