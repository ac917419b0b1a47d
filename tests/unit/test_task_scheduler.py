"""The task scheduler, event by event."""

from __future__ import annotations

import json
from typing import Any

import pytest

from windtunnel.effects import Note, WakeAt
from windtunnel.errors import ConfigValueError, PolicyClockError
from windtunnel.events import Woke
from windtunnel.policy.tasks.bounded_borrow import BoundedBorrow
from windtunnel.policy.tasks.config import TaskSchedulerConfig
from windtunnel.policy.tasks.graph import Column, Graph
from windtunnel.policy.tasks.messages import (
    CancelTask,
    Pressure,
    RequestPressure,
    RunCancelled,
    RunEnded,
    RunStarted,
    StartTask,
    TaskEnded,
)
from windtunnel.policy.tasks.record import TIMELINE
from windtunnel.policy.tasks.resolve import Generator, Resolver
from windtunnel.policy.tasks.retry import Health
from windtunnel.policy.tasks.row_groups import RowGroupGate
from windtunnel.policy.tasks.scheduler import TaskScheduler
from windtunnel.policy.tasks.task import SchedulingMetadata


def model(name: str, weight: float = 2.0) -> SchedulingMetadata:
    return SchedulingMetadata("model", ("model", "p", name, "chat"), weight)


class Bench:
    """A scheduler with its clock and what it asked for so far."""

    def __init__(self, columns: list[Column], rows: Any, generators: dict[str, Any] | None = None, **config: Any) -> None:
        plan = dict(enumerate(rows))
        given = {c.name: Generator((c.name,), (generators or {}).get(c.name, SchedulingMetadata())) for c in columns}
        self.s = TaskScheduler(Graph(columns), plan, Resolver(given), TaskSchedulerConfig(**config), notes=True, timeline=True)
        self.now = 0.0
        self.log: list[Any] = []
        self.started: dict[str, StartTask] = {}

    def send(self, event: Any, at: float | None = None) -> list[Any]:
        self.now = self.now if at is None else at
        out = self.s.handle(event, self.now)
        self.log += out
        for effect in out:
            if isinstance(effect, StartTask):
                self.started[name(effect)] = effect
        assert self.s.queue.select(self.s.admission.is_eligible, self.now) is None, "TS-8"
        return out

    def end(self, task: str, outcome: str = "success", at: float | None = None, **fields: Any) -> list[Any]:
        return self.send(TaskEnded(self.started.pop(task).lease.lease_id, outcome, **fields), at)

    def notes(self, kind: str) -> list[Note]:
        return [e for e in self.log if isinstance(e, Note) and e.kind == kind]

    def assert_over(self, status: str) -> Any:
        ended = [e for e in self.log if isinstance(e, RunEnded)]
        assert len(ended) == 1 and isinstance(self.log[-1], RunEnded) and ended[0].result.status == status
        s = self.s
        assert (len(s.admission.active), len(s.queue), len(s.deferred), len(s.running)) == (0, 0, 0, 0)
        return ended[0].result


def name(start: Any) -> str:
    task = start.task
    return f"{task.column}{task.row_group}.{'*' if task.row_index is None else task.row_index}"


def starts(effects: list[Any]) -> list[str]:
    return [name(e) for e in effects if isinstance(e, StartTask)]


CHAIN = [Column("a"), Column("b", "cell", ("a",)), Column("sum", "full_column", ("b",))]


def test_TS_6_a_small_pipeline() -> None:
    bench = Bench(CHAIN, [2])
    assert starts(bench.send(RunStarted())) == ["a0.0", "a0.1"]
    assert starts(bench.end("a0.1")) == ["b0.1"]
    assert starts(bench.end("a0.0")) == ["b0.0"]
    assert starts(bench.end("b0.0")) == []
    assert starts(bench.end("b0.1", at=3.0)) == ["sum0.*"]
    bench.end("sum0.*", at=4.0)
    result = bench.assert_over("completed")
    assert (result.tasks_completed, result.row_groups_completed, result.rows_dropped, result.retries) == (5, 1, 0, 0)
    assert bench.send(TaskEnded("g0-1", "success"), 5.0)[0].kind == "release_diagnostic"
    with pytest.raises(PolicyClockError):
        bench.send(Woke("tasks"), 1.0)


def test_TS_7_order_of_notes_and_empty_is_not_blocked() -> None:
    bench = Bench([Column("a"), Column("b", "cell", ("a",))], [3], max_in_flight_tasks=1)
    kinds = [e.kind for e in bench.send(RunStarted()) if isinstance(e, Note)]
    assert kinds == ["scheduler_job_started", "row_group_admitted", *["dependency_ready"] * 3, *["ready_enqueued"] * 3, "selected",
                     "task_lease_acquired", "worker_spawned", "admission_blocked"]
    kinds = [e.kind for e in bench.end("a0.0") if isinstance(e, Note)]
    assert kinds == ["dependency_ready", "task_completed", "task_lease_released", "ready_enqueued", "selected", "task_lease_acquired",
                     "worker_spawned"], "the same block is said once"
    while bench.started:
        bench.end(next(iter(bench.started)))
    assert len(bench.notes("queue_empty")) == 1 and bench.assert_over("completed")


def test_TS_7_group_capped() -> None:
    """Room is left, but all that waits is at its share."""
    asks = SchedulingMetadata("model", ("model", "p", "x", "tokens"), 1.0)
    bench = Bench([Column("a")], [6], {"a": asks}, max_in_flight_tasks=8, policy=BoundedBorrow(default_borrow_ceiling=0))
    assert starts(bench.send(RunStarted())) == ["a0.0", "a0.1"]
    assert bench.notes("group_capped")[0].data["diagnostics"] == {"reasons": {"borrow_debt": 1}, "queued": 4}  # type: ignore[index]
    assert not bench.notes("admission_blocked")
    while bench.started:
        bench.end(next(iter(bench.started)))
    bench.assert_over("completed")


def test_TS_9_lease_before_start_and_kept_until_the_end() -> None:
    bench = Bench(CHAIN, [3, 2])
    bench.send(RunStarted())
    while bench.started:
        held = {s.lease.lease_id for s in bench.started.values()}
        assert held == set(bench.s.admission.active)
        bench.end(sorted(bench.started)[-1], at=bench.now + 0.5)
    seen: set[str] = set()
    for effect in bench.log:
        if isinstance(effect, Note) and effect.kind == "task_lease_acquired":
            seen.add(effect.data["task_lease_id"])
        assert not isinstance(effect, StartTask) or effect.lease.lease_id in seen


def test_TS_10_a_pressed_head_stands_back_for_another_group() -> None:
    columns = [Column("a"), Column("b")]
    bench = Bench(columns, [2], {"a": model("x"), "b": model("y")}, max_in_flight_tasks=1)
    bench.send(RequestPressure(Pressure("request:p/x", blocked_until=9.0)))
    assert starts(bench.send(RunStarted())) == ["b0.0"]
    skipped = bench.notes("request_pressure_advisory_skipped")
    assert [(n.reason, n.data["scheduler_resource_key"]) for n in skipped] == [("cooldown", "request:p/x")]
    assert starts(bench.end("b0.0", at=1.0)) == ["b0.1"]
    assert starts(bench.end("b0.1", at=2.0)) == ["a0.0"], "all are pressed: the ordinary order applies"
    bench.send(RequestPressure(Pressure("request:p/x")))
    assert starts(bench.end("a0.0", at=3.0)) == ["a0.1"]
    off = Bench(columns, [2], {"a": model("x"), "b": model("y")}, max_in_flight_tasks=1, request_pressure_advisory=False)
    off.send(RequestPressure(Pressure("request:p/x", blocked_until=9.0)))
    assert starts(off.send(RunStarted())) == ["a0.0"]


@pytest.mark.parametrize(("pressure", "reason"), [
    (Pressure("r", 4, 4, 1, 8, 8, 5.0), "endpoint_cap"), (Pressure("r", 4, 4, 1, 7, 8, 5.0), "cooldown"),
    (Pressure("r", 4, 4, 1, 7, 8, 1.0), "waiters"), (Pressure("r", 4, 4, 0), "limit"), (Pressure("r", 3, 4, 0), None), (Pressure("r"), None),
])
def test_TS_10_first_reason_that_holds(pressure: Pressure, reason: str | None) -> None:
    assert pressure.reason(1.0) == reason


def test_TS_11_fixed_concurrency_and_checkpoints() -> None:
    bench = Bench([Column("a")], [1, 2, 1, 1])
    assert starts(bench.send(RunStarted())) == ["a0.0", "a1.0", "a1.1", "a2.0"]
    assert starts(bench.end("a1.0")) == []
    assert starts(bench.end("a2.0")) == ["a3.0"]
    for task in ("a0.0", "a3.0", "a1.1"):
        bench.end(task)
    assert [n.data["diagnostics"]["row_group"] for n in bench.notes("row_group_checkpointed")] == [2, 0, 3, 1]
    bench.assert_over("completed")


def test_TS_11_adaptive_target() -> None:
    gate = RowGroupGate(dict.fromkeys(range(9), 10), adaptive=True, buffer_size=1, in_flight_cap=4)
    assert gate.next(0) == 0 and gate.next(0) is None and gate.max_rows == 90
    assert gate.tick(queued=0, room=True) and gate.target == 2
    assert gate.next(0) == 1
    assert not gate.tick(queued=5, room=True) and gate.tick(queued=5, room=True) and gate.target == 3, "two ticks when work is queued"
    assert gate.next(17) == "queued" and gate.next(16) == 2
    assert not gate.tick(queued=5, room=True) and not gate.tick(queued=5, room=False) and not gate.tick(queued=5, room=True)
    gate.closed(0)
    gate.closed(1)
    assert not gate.tick(queued=0, room=True), "a target that is not met does not grow"
    assert gate.target == 3
    big = RowGroupGate({0: 9000, 1: 500, 2: 500}, adaptive=True, buffer_size=10)
    assert big.max_rows == 8192 and big.next(0) == 0, "the first is always opened"
    big.tick(queued=0, room=True)
    assert big.next(0) == "rows"
    with pytest.raises(ConfigValueError):
        RowGroupGate({0: 1}, concurrency=0)


def test_TS_11_adaptive_run_grows_and_ends() -> None:
    bench = Bench([Column("a")], [1] * 6, adaptive_row_groups=True)
    bench.send(RunStarted())
    targets = [bench.s.row_groups.target]
    while bench.started:
        bench.end(next(iter(bench.started)))
        targets.append(bench.s.row_groups.target)
    assert targets == sorted(targets) and targets[-1] > 1 and bench.notes("row_group_admission_target_changed")
    bench.assert_over("completed")


def test_TS_12_retryable_releases_first_then_defers() -> None:
    bench = Bench(CHAIN, [1])
    bench.send(RunStarted())
    out = bench.end("a0.0", "rate_limited", retry_after_s=2.0)
    assert [e.kind for e in out if isinstance(e, Note)][:3] == ["task_completed", "task_lease_released", "retry_deferred"]
    assert [e for e in out if isinstance(e, WakeAt)] == [WakeAt(2.0, "tasks")]
    assert starts(bench.send(Woke("tasks"), 2.0)) == ["a0.0"] and bench.notes("salvage_redispatched")[0].reason == "rate_limited"
    bench.end("a0.0")
    bench.end("b0.0")
    bench.end("sum0.*")
    assert bench.assert_over("completed").retries == 1


def test_TS_12_non_retryable_drops_the_row_and_what_waits_for_it() -> None:
    columns = [Column("a"), Column("c"), Column("b", "cell", ("a", "c")), Column("sum", "full_column", ("b",))]
    bench = Bench(columns, [2], max_in_flight_tasks=3)
    assert starts(bench.send(RunStarted())) == ["a0.0", "c0.0", "a0.1"]
    bench.end("a0.0", "unexpected_exception", error_kind="ValueError")
    assert bench.notes("non_retryable_dropped")[0].reason == "ValueError"
    while bench.started:
        bench.end(next(iter(bench.started)))
    result = bench.assert_over("completed")
    assert result.rows_dropped == 1 and result.errors == {"ValueError": 1}
    assert not any(isinstance(e, StartTask) and e.task.column == "b" and e.task.row_index == 0 for e in bench.log)


def test_TS_12_a_failed_batch_drops_its_row_group() -> None:
    bench = Bench([Column("seed", "full_column"), Column("x", "cell", ("seed",))], [3, 1])
    bench.send(RunStarted())
    bench.end("seed0.*", "unexpected_exception")
    bench.end("seed1.*")
    bench.end("x1.0")
    result = bench.assert_over("completed")
    assert (result.rows_dropped, result.row_groups_completed, result.tasks_completed) == (3, 2, 2)


@pytest.mark.parametrize("kind", ["KeyError", "TypeError", "AttributeError", "AssertionError"])
def test_TS_12_programming_errors_abort(kind: str) -> None:
    bench = Bench([Column("a")], [3])
    bench.send(RunStarted())
    out = bench.end("a0.1", "unexpected_exception", error_kind=kind)
    assert [name(e) for e in out if isinstance(e, CancelTask)] == ["a0.0", "a0.2"]
    bench.end("a0.0", "local_cancelled")
    bench.end("a0.2", "success")
    assert bench.assert_over("aborted").reason == kind


def test_TS_13_paced_and_in_order_of_deferral() -> None:
    bench = Bench([Column("a")], [3])
    bench.send(RunStarted())
    bench.end("a0.2", "provider_failure", at=1.0)
    bench.end("a0.0", "provider_failure", at=1.01)
    bench.end("a0.1", "provider_failure", at=1.02)
    assert starts(bench.send(Woke("tasks"), 1.05)) == ["a0.2"], "each at its own time"
    assert starts(bench.send(Woke("tasks"), 2.0)) == ["a0.0", "a0.1"]
    same = Bench([Column("a")], [3])
    same.send(RunStarted())
    for task in ("a0.2", "a0.0", "a0.1"):
        same.end(task, "provider_failure")
    assert starts(same.send(Woke("tasks"), 1.0)) == ["a0.2", "a0.0", "a0.1"]


def test_TS_13_cooldown_of_the_resource_counts() -> None:
    bench = Bench([Column("a")], [1], {"a": model("x")})
    bench.send(RunStarted())
    bench.send(RequestPressure(Pressure("request:p/x", blocked_until=7.0)))
    assert WakeAt(7.0, "tasks") in bench.end("a0.0", "rate_limited", at=1.0)
    assert starts(bench.send(Woke("tasks"), 6.9)) == [] and starts(bench.send(Woke("tasks"), 7.0)) == ["a0.0"]


def retry_until_over(bench: Bench, outcome: str) -> int:
    tries = 0
    while bench.s.result is None and tries < 50:
        if bench.started:
            tries += 1
            bench.end(next(iter(bench.started)), outcome, at=bench.now + 1.0)
        else:
            at = bench.s.deferred.first()
            assert at is not None
            bench.send(Woke("tasks"), at)
    return tries


def test_TS_13_two_salvage_rounds_then_the_row_is_dropped() -> None:
    bench = Bench([Column("a")], [1])
    bench.send(RunStarted())
    assert retry_until_over(bench, "provider_failure") == 3, "the first try and two rounds"
    assert bench.assert_over("completed").rows_dropped == 1


def test_TS_13_work_that_was_turned_away_is_kept() -> None:
    bench = Bench([Column("a")], [1])
    bench.send(RunStarted())
    for n in range(8):
        bench.end("a0.0", "rate_limited", at=bench.now + 1.0)
        assert starts(bench.send(Woke("tasks"), bench.now + 1.0)) == ["a0.0"], n
    bench.end("a0.0")
    assert bench.assert_over("completed").rows_dropped == 0


def test_TS_14_an_endpoint_that_only_says_429_does_not_run_for_ever() -> None:
    bench = Bench([Column("a"), Column("b")], [2], {"a": model("x"), "b": model("y")}, starved_after_s=10.0)
    bench.send(RunStarted())
    bench.end("b0.0")
    bench.end("b0.1")
    assert retry_until_over(bench, "rate_limited") < 50
    result = bench.assert_over("completed")
    assert result.tasks_completed == 2 and result.rows_dropped == 2 and result.errors == {"rate_limited": 2}


def test_TS_14_early_stop() -> None:
    bench = Bench([Column("a")], [40])
    bench.send(RunStarted())
    for n in range(5):
        bench.end(f"a0.{n}", "provider_failure")
    for n in range(5, 10):
        bench.end(f"a0.{n}")
    for n in range(10, 14):
        bench.end(f"a0.{n}", "unexpected_exception")
    assert bench.s.status == "running", "the window is not full"
    bench.end("a0.14", "unexpected_exception")
    assert bench.s.status == "early_stopped"
    for task in list(bench.started):
        bench.end(task, "local_cancelled")
    bench.assert_over("early_stopped")


def test_TS_14_degraded_is_said_once_a_minute() -> None:
    health = Health()
    for n in range(20):
        assert not health.degraded(0.0)
        health.saw(error=True, retryable=n % 2 == 0)
    assert health.degraded(0.0) and not health.degraded(59.9) and health.degraded(60.0)
    assert health.hopeless


def test_TS_15_cancel_waits_for_what_runs() -> None:
    bench = Bench([Column("a")], [4], max_in_flight_tasks=2)
    bench.send(RunStarted())
    bench.end("a0.0", "rate_limited")
    out = bench.send(RunCancelled())
    assert len([e for e in out if isinstance(e, CancelTask)]) == 2 and not any(isinstance(e, RunEnded) for e in out)
    assert len(bench.notes("cancelled")) == 2 and bench.s.admission.active
    assert bench.send(RunCancelled("shutdown")) == []
    for task in list(bench.started):
        bench.end(task, "local_cancelled")
    assert bench.assert_over("cancelled").tasks_completed == 0
    idle = Bench([Column("a")], [1])
    idle.send(RunCancelled("shutdown"))
    idle.assert_over("shutdown")


def test_TS_16_defaults() -> None:
    config = TaskSchedulerConfig()
    assert (config.buffer_size, config.max_concurrent_row_groups, config.max_in_flight_tasks) == (1000, 3, 1024)
    for bad in ({"buffer_size": 0}, {"salvage_rounds": -1}, {"starved_after_s": float("nan")}, {"max_in_flight_tasks": True}):
        with pytest.raises(ConfigValueError):
            TaskSchedulerConfig(**bad)  # type: ignore[arg-type]


def test_TA_7_a_stale_selection_gives_its_lease_back_and_is_repeated() -> None:
    bench = Bench([Column("a")], [1])
    commit, calls = bench.s.queue.commit, []

    def once_stale(selection: Any, now: float) -> Any:
        calls.append(selection)
        return None if len(calls) == 1 else commit(selection, now)

    bench.s.queue.commit = once_stale  # type: ignore[method-assign]
    assert starts(bench.send(RunStarted())) == ["a0.0"]
    assert len(bench.notes("stale_selection")) == 1 and list(bench.s.admission.active) == ["g0-2"]


def test_EV_1_and_EV_4_notes_and_timeline() -> None:
    bench = Bench(CHAIN, [2, 1], {"b": model("größe")})
    bench.send(RunStarted())
    while bench.started:
        bench.end(next(iter(bench.started)), at=bench.now + 0.25,
                  request_times={"request_wait_started_at": bench.now, "request_wait_completed_at": bench.now})
    notes = [e for e in bench.log if isinstance(e, Note)]
    assert [n.sequence for n in notes] == list(range(1, len(notes) + 1)) and {n.stream for n in notes} == {"scheduler"}
    for note in notes:
        assert note.data is not None and json.dumps(note.data, allow_nan=False)
        assert note.data["correlation"]["run_id"] == "run" and note.data["at"] <= bench.now
    leased = bench.notes("task_lease_acquired")[0].data
    assert leased is not None and leased["correlation"]["task_execution_id"] == leased["task_execution_id"] == "g0-x1"
    assert bench.s.timeline is not None and len(bench.s.timeline) == 8
    for row in bench.s.timeline:
        times = [row[key] for key in TIMELINE if row.get(key) is not None]
        assert times == sorted(times) and len(times) == 9


def test_notes_off_makes_none() -> None:
    plan, columns = {0: 2}, [Column("a")]
    s = TaskScheduler(Graph(columns), plan, Resolver({"a": Generator(("a",))}))
    assert not any(isinstance(e, Note) for e in s.handle(RunStarted(), 0.0)) and s.timeline is None
