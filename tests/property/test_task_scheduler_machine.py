"""Any pipeline, any outcomes, any order of ends: no lost wake, nothing left at the end, the same calls give the same effects."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from windtunnel.effects import Note, WakeAt
from windtunnel.events import Woke
from windtunnel.policy.tasks.bounded_borrow import BoundedBorrow
from windtunnel.policy.tasks.config import TaskSchedulerConfig
from windtunnel.policy.tasks.graph import Column, Graph
from windtunnel.policy.tasks.messages import CancelTask, Pressure, RequestPressure, RunCancelled, RunEnded, RunStarted, StartTask, TaskEnded
from windtunnel.policy.tasks.record import TIMELINE
from windtunnel.policy.tasks.resolve import Generator, Resolver
from windtunnel.policy.tasks.scheduler import TaskScheduler
from windtunnel.policy.tasks.strict import Strict
from windtunnel.policy.tasks.task import SchedulingMetadata

OUTCOMES = ("success",) * 8 + ("rate_limited", "provider_failure", "provider_timeout", "request_admission_timeout", "unexpected_exception",
                               "worker_spawn_failed", "local_cancelled")
STEPS_S = st.sampled_from([0.0, 0.0, 0.01, 0.3])


@st.composite
def pipelines(draw: st.DrawFn) -> dict[str, Any]:
    columns: list[Column] = []
    generators: dict[str, Generator] = {}
    for n in range(draw(st.integers(1, 5))):
        names = [c.name for c in columns]
        upstreams = draw(st.lists(st.sampled_from(names), unique=True, max_size=2)) if names else []
        columns.append(Column(f"c{n}", draw(st.sampled_from(["cell", "cell", "full_column"])), tuple(upstreams)))
        kind = draw(st.sampled_from(["local", "x", "y"]))
        metadata = SchedulingMetadata() if kind == "local" else SchedulingMetadata(
            "model", ("model", "p", kind, "chat"), draw(st.sampled_from([0.5, 1.0, 3.0])))
        generators[f"c{n}"] = Generator((f"c{n}",), metadata)
    config = TaskSchedulerConfig(
        draw(st.sampled_from([Strict(), BoundedBorrow(), BoundedBorrow(default_borrow_ceiling=0)])),
        max_concurrent_row_groups=draw(st.integers(1, 3)), adaptive_row_groups=draw(st.booleans()),
        max_in_flight_tasks=draw(st.integers(1, 6)), request_pressure_advisory=draw(st.booleans()), starved_after_s=2.0,
        early_stop=draw(st.booleans()))
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    return {"columns": columns, "generators": generators, "config": config, "sizes": sizes}


def make(spec: dict[str, Any]) -> TaskScheduler:
    resolver = Resolver(spec["generators"], spec["config"].max_in_flight_tasks)
    return TaskScheduler(Graph(spec["columns"]), dict(enumerate(spec["sizes"])), resolver, spec["config"], notes=True, timeline=True)


class SchedulerMachine(RuleBasedStateMachine):
    """TS-6 to TS-15, INV-1, INV-3, INV-8, INV-9. At its end every run is brought to its own end."""

    @initialize(spec=pipelines())
    def begin(self, spec: dict[str, Any]) -> None:
        self.spec, self.s = spec, make(spec)
        self.now, self.wake = 0.0, None
        self.running: dict[str, StartTask] = {}
        self.ended: list[str] = []
        self.asked_to_stop: set[str] = set()
        self.calls: list[tuple[Any, float]] = []
        self.effects: list[list[Any]] = []
        self.send(RunStarted())

    def send(self, event: Any) -> list[Any]:
        self.calls.append((event, self.now))
        effects = self.s.handle(event, self.now)
        self.effects.append(effects)
        for effect in effects:
            if isinstance(effect, StartTask):
                assert effect.lease.lease_id in self.s.admission.active, "TS-9"
                self.running[effect.lease.lease_id] = effect
            elif isinstance(effect, CancelTask):
                assert effect.lease.lease_id in self.running and effect.lease.lease_id not in self.asked_to_stop
                self.asked_to_stop.add(effect.lease.lease_id)
            elif isinstance(effect, WakeAt):
                self.wake = effect.at
        return effects

    def end(self, lease_id: str, outcome: str, retry_after_s: float | None = None, kind: str | None = None) -> list[Any]:
        del self.running[lease_id]
        self.ended.append(lease_id)
        return self.send(TaskEnded(lease_id, outcome, kind, retry_after_s))

    def wake_up(self) -> None:
        assert self.wake is not None
        self.now, self.wake = max(self.now, self.wake), None
        self.send(Woke("tasks"))

    # -- what may happen ----------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.running)
    @rule(n=st.integers(0, 99), outcome=st.sampled_from(OUTCOMES), retry_after_s=st.sampled_from([None, 0.5]), step_s=STEPS_S)
    def task_ends(self, n: int, outcome: str, retry_after_s: float | None, step_s: float) -> None:
        self.now += step_s
        self.end(sorted(self.running)[n % len(self.running)], outcome, retry_after_s)

    @precondition(lambda self: len(self.running) > 1)
    @rule(step_s=STEPS_S)
    def all_end_well(self, step_s: float) -> None:
        self.now += step_s
        for lease_id in sorted(self.running):
            self.end(lease_id, "success")

    @precondition(lambda self: self.wake is not None)
    @rule()
    def wakes(self) -> None:
        self.wake_up()

    @rule(step_s=STEPS_S)
    def wakes_too_early(self, step_s: float) -> None:
        """A stale wake is harmless."""
        self.now += step_s if self.wake is None else min(step_s, max(0.0, self.wake - self.now))
        self.send(Woke("tasks"))

    @rule(key=st.sampled_from("xy"), for_s=st.sampled_from([None, 0.2, 1.0]), waiters=st.sampled_from([None, 0, 3]))
    def pressure(self, key: str, for_s: float | None, waiters: int | None) -> None:
        self.send(RequestPressure(Pressure(f"request:p/{key}", waiters=waiters, blocked_until=None if for_s is None else self.now + for_s)))

    @precondition(lambda self: self.ended)
    @rule(n=st.integers(0, 99), outcome=st.sampled_from(OUTCOMES), unknown=st.booleans())
    def an_end_comes_twice_or_from_nowhere(self, n: int, outcome: str, unknown: bool) -> None:
        """TS-8 may start what the clock has freed, but nothing ends a second time."""
        before = self.s.admission.releases["released"]
        self.send(TaskEnded("g7-1" if unknown else self.ended[n % len(self.ended)], outcome))
        assert self.s.admission.releases["released"] == before

    @rule(odds=st.integers(0, 60), what=st.sampled_from(["cancelled", "shutdown", "KeyError"]))
    def stops(self, odds: int, what: str) -> None:
        if odds == 60 and what != "KeyError":
            self.send(RunCancelled(what))
        elif odds == 60 and self.running:
            self.end(min(self.running), "unexpected_exception", kind=what)

    # -- what must hold -----------------------------------------------------------------------------------------------------------

    @invariant()
    def nothing_that_may_start_waits(self) -> None:
        if hasattr(self, "s"):
            assert self.s.queue.select(self.s.admission.is_eligible, self.now) is None, "TS-8"

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "s"):
            self.s.check()
            assert set(self.running) == set(self.s.admission.active)
            assert self.s.result is not None or self.running or self.wake is not None, "with nothing running and no wake it would hang"

    @invariant()
    def an_end_is_an_end(self) -> None:
        if hasattr(self, "s") and self.s.result is not None:
            s = self.s
            assert (len(s.admission.active), len(s.queue), len(s.deferred), len(s.running)) == (0, 0, 0, 0)
            assert s.admission.view().available == s.admission.view().limits and not s.admission.view().debt
            told = [e for effects in self.effects for e in effects if isinstance(e, RunEnded)]
            assert told == [RunEnded(s.result)]

    def teardown(self) -> None:
        """What is left ends well; then everything is given back, and the same calls give the same effects again."""
        if not hasattr(self, "s"):
            return
        for _ in range(1000):
            if self.s.result is not None:
                break
            if self.running:
                self.end(min(self.running), "success")
            else:
                self.wake_up()
            self.nothing_that_may_start_waits()
        assert self.s.result is not None, "the run hangs"
        self.books_balance()
        self.an_end_is_an_end()
        if self.s.result.status == "completed":
            assert self.s.result.row_groups_completed == len(self.spec["sizes"])
        notes = [e for effects in self.effects for e in effects if isinstance(e, Note)]
        assert [n.sequence for n in notes] == list(range(1, len(notes) + 1))
        for row in self.s.timeline or ():
            times = [row[key] for key in TIMELINE if row.get(key) is not None]
            assert times == sorted(times)
        again = make(self.spec)
        assert [again.handle(event, at) for event, at in self.calls] == self.effects, "INV-9"


class TestTS8NoLostWakeAndEveryRunEndsEmpty(SchedulerMachine.TestCase):  # type: ignore[name-defined, misc]
    settings = settings(max_examples=100, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck))
