"""Any pipeline, any outcomes, any order of ends: no lost wake, nothing left at the end, the same calls give the same effects."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from windtunnel.effects import Note, WakeAt
from windtunnel.events import Woke
from windtunnel.policy.tasks.bounded_borrow import BoundedBorrow
from windtunnel.policy.tasks.config import TaskSchedulerConfig
from windtunnel.policy.tasks.graph import Column, Graph
from windtunnel.policy.tasks.messages import Pressure, RequestPressure, RunCancelled, RunEnded, RunStarted, StartTask, TaskEnded
from windtunnel.policy.tasks.record import TIMELINE
from windtunnel.policy.tasks.resolve import Generator, Resolver
from windtunnel.policy.tasks.scheduler import TaskScheduler
from windtunnel.policy.tasks.strict import Strict
from windtunnel.policy.tasks.task import SchedulingMetadata

OUTCOMES = ("success",) * 8 + ("rate_limited", "provider_failure", "provider_timeout", "request_admission_timeout", "unexpected_exception",
                               "worker_spawn_failed", "local_cancelled")


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
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    return {"columns": columns, "generators": generators, "config": config, "sizes": sizes}


def make(spec: dict[str, Any]) -> TaskScheduler:
    resolver = Resolver(spec["generators"], spec["config"].max_in_flight_tasks)
    return TaskScheduler(Graph(spec["columns"]), dict(enumerate(spec["sizes"])), resolver, spec["config"], notes=True, timeline=True)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(spec=pipelines(), data=st.data())
def test_TS_8_no_lost_wake_and_every_run_ends_empty(spec: dict[str, Any], data: st.DataObject) -> None:
    scheduler, now, wake = make(spec), 0.0, None
    running: dict[str, StartTask] = {}
    calls: list[tuple[Any, float]] = []
    all_effects: list[Any] = []
    event: Any = RunStarted()
    for _ in range(400):
        calls.append((event, now))
        effects = scheduler.handle(event, now)
        all_effects.append(effects)
        for effect in effects:
            if isinstance(effect, StartTask):
                assert effect.lease.lease_id in scheduler.admission.active
                running[effect.lease.lease_id] = effect
            elif isinstance(effect, WakeAt):
                wake = effect.at
        assert scheduler.queue.select(scheduler.admission.is_eligible, now) is None
        assert set(running) == set(scheduler.admission.active)
        assert all(debt >= 0 for debts in scheduler.admission.view().debt.values() for debt in debts.values())
        if scheduler.result is not None:
            break
        assert running or wake is not None, "with nothing running and nothing to wake it, the run would hang"
        choices = (["end"] * 6 if running else []) + (["wake"] if wake is not None else []) + ["pressure", "cancel" if len(calls) > 60 else "end"]
        what = data.draw(st.sampled_from(choices))
        now += data.draw(st.sampled_from([0.0, 0.0, 0.01, 0.3]))
        if what == "cancel":
            event = RunCancelled()
        elif what == "pressure":
            event = RequestPressure(Pressure("request:p/x", blocked_until=data.draw(st.sampled_from([None, now + 0.2]))))
        elif what == "end" and running:
            lease_id = data.draw(st.sampled_from(sorted(running)))
            del running[lease_id]
            event = TaskEnded(lease_id, data.draw(st.sampled_from(OUTCOMES)), None, data.draw(st.sampled_from([None, 0.5])))
        else:
            now = now if wake is None else max(now, wake)
            wake = None
            event = Woke("tasks")
    assert scheduler.result is not None
    assert (len(scheduler.admission.active), len(scheduler.queue), len(scheduler.deferred), len(scheduler.running)) == (0, 0, 0, 0)
    assert scheduler.admission.view().available == scheduler.admission.view().limits and not scheduler.admission.view().debt
    flat = [e for effects in all_effects for e in effects]
    assert [e for e in flat if isinstance(e, RunEnded)] == [RunEnded(scheduler.result)] and flat[-1] == RunEnded(scheduler.result)
    notes = [e for e in flat if isinstance(e, Note)]
    assert [n.sequence for n in notes] == list(range(1, len(notes) + 1))
    for row in scheduler.timeline or ():
        times = [row[key] for key in TIMELINE if row.get(key) is not None]
        assert times == sorted(times)
    if scheduler.result.status == "completed":
        assert scheduler.result.row_groups_completed == len(spec["sizes"])
    again = make(spec)
    assert [again.handle(event, at) for event, at in calls] == all_effects, "INV-9"
