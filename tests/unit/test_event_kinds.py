"""Every kind of note that the task and the request stage can make is made by something that happens; what each one carries; timelines."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from test_scheduling_contract import REQUEST_KINDS, SCHEDULER_KINDS
from test_task_scheduler import Bench, model

from windtunnel.effects import Note
from windtunnel.events import Arrived, Failed, Finished, ReplicaReady, Request, Started, Woke
from windtunnel.lab.artifact import artifact_of
from windtunnel.lab.scenario import Scenario
from windtunnel.policy.admission.aimd import Aimd
from windtunnel.policy.admission.endpoints import RequestAdmissionConfig
from windtunnel.policy.admission.lease import RequestLease
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.admission.waiters import RequestItem, Waiting
from windtunnel.policy.admission.waiting import WaitingAdmission
from windtunnel.policy.control import Control
from windtunnel.policy.lane import Lane
from windtunnel.policy.param import BuildContext
from windtunnel.policy.presets import default_control
from windtunnel.policy.queueing.bounded import BoundedQueue
from windtunnel.policy.queueing.fair import FairTaskQueue
from windtunnel.policy.queueing.item import Group, QueueItem, QueueView
from windtunnel.policy.request_stream import RequestStream
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.least import LeastOutstanding
from windtunnel.policy.tasks.bounded_borrow import BoundedBorrow
from windtunnel.policy.tasks.decision import ALLOWED, NO_CHANGE, PolicyDecision, PolicyStateDelta, TaskAdmissionView
from windtunnel.policy.tasks.graph import Column
from windtunnel.policy.tasks.messages import Pressure, RequestPressure, RunCancelled, RunStarted, TaskEnded
from windtunnel.policy.tasks.record import CORRELATION, TIMELINE, correlation_of, labels_of
from windtunnel.policy.tasks.resources import TaskLease
from windtunnel.policy.tasks.task import SchedulingMetadata

WANTS = frozenset({"request"})
EVERY_NOTE = {"at", "correlation", "diagnostics"}
OF_TASKS = EVERY_NOTE | {"snapshot", "task_id", "task_execution_id", "task_lease_id", "scheduler_resource_key"}
OF_REQUESTS = EVERY_NOTE | {"request_attempt_id", "request_lease_id", "request_resource_key", "request_group_key", "pressure_snapshot"}
SMALL = """
windtunnel: 1
name: tiny-pipeline
seed: 4
fleet: {pools: {large: {model: Llama-3.1-70B, gpu: h100_sxm, tp: 4}, small: {model: Llama-3.1-8B, gpu: h100_sxm}}}
source:
  kind: mix
  sources:
    - {kind: arrivals, name: chat, model: Llama-3.1-8B, rate_rps: 20, count: 6, input_tokens: 30, output_tokens: 5}
    - kind: pipeline
      rows: 6
      buffer_size: 3
      max_in_flight_tasks: 4
      columns:
        seed: {strategy: full_column, local_s: 0.02}
        question: {needs: [seed], model: Llama-3.1-70B, input_tokens: 20, output_tokens: 5}
        labels: {needs: [question], model: Llama-3.1-8B, requests: 3, parallel: true, input_tokens: 15, output_tokens: 2}
control: {queue: {kind: fair}, admission: {limit: {kind: fixed, limit: 8}}}
"""


def kinds_of(bench: Bench) -> set[str]:
    return {e.kind for e in bench.log if isinstance(e, Note)}


def to_the_end(bench: Bench, outcome: str = "success") -> Bench:
    while bench.started:
        bench.end(next(iter(bench.started)), outcome, at=bench.now + 0.25)
    return bench


# -- the task stage: one scenario each ----------------------------------------------------------------------------------------------


def grows_while_nothing_blocks() -> Bench:
    bench = Bench([Column("a")], [1] * 4, adaptive_row_groups=True)
    bench.send(RunStarted())
    return to_the_end(bench)


def has_too_many_rows_open() -> Bench:
    """The guard of the adaptive target: 8000 rows and 500 more are beyond 8192."""
    bench = Bench([Column("a", "full_column")], [8000, 500], adaptive_row_groups=True, buffer_size=1)
    bench.send(RunStarted())
    return to_the_end(bench)


def has_one_place() -> Bench:
    bench = Bench([Column("a")], [3], max_in_flight_tasks=1)
    bench.send(RunStarted())
    return to_the_end(bench)


def is_at_its_share() -> Bench:
    asks = SchedulingMetadata("model", ("model", "p", "x", "tokens"), 1.0)
    bench = Bench([Column("a")], [6], {"a": asks}, max_in_flight_tasks=8, policy=BoundedBorrow(default_borrow_ceiling=0))
    bench.send(RunStarted())
    return to_the_end(bench)


def is_pressed() -> Bench:
    bench = Bench([Column("a"), Column("b")], [1], {"a": model("x"), "b": model("y")}, max_in_flight_tasks=1)
    bench.send(RequestPressure(Pressure("request:p/x", blocked_until=9.0)))
    bench.send(RunStarted())
    return to_the_end(bench)


def fails_for_a_while_and_for_good() -> Bench:
    bench = Bench([Column("a")], [3])
    bench.send(RunStarted())
    bench.end("a0.0", "rate_limited")
    bench.end("a0.1", "unexpected_exception", error_kind="ValueError")
    bench.send(Woke("tasks"), 1.0)
    return to_the_end(bench)


def is_cancelled() -> Bench:
    bench = Bench([Column("a")], [4], max_in_flight_tasks=2)
    bench.send(RunStarted())
    bench.send(RunCancelled())
    return to_the_end(bench, "local_cancelled")


def has_a_provider_that_mostly_fails() -> Bench:
    bench = Bench([Column("a")], [20])
    bench.send(RunStarted())
    for n in range(20):
        bench.end(f"a0.{n}", "provider_failure" if n % 2 else "success", at=1.0)
    return bench


def cannot_spawn_a_worker() -> Bench:
    bench = Bench([Column("a")], [1])
    bench.send(RunStarted())
    lease_id = bench.started["a0.0"].lease.lease_id
    bench.end("a0.0", "unexpected_exception", error_kind="worker_spawn_failed")
    bench.send(TaskEnded(lease_id, "success"))
    return bench


class Meddling:
    """A policy that is none: it answers twice differently, or changes the queue while it is asked."""

    def __init__(self, queue: FairTaskQueue | None = None, says_no: bool = False) -> None:
        self.queue, self.says_no, self.asked = queue, says_no, 0

    def evaluate(self, item: QueueItem, queue_view: QueueView, admission_view: TaskAdmissionView) -> PolicyDecision:
        self.asked += 1
        return PolicyDecision(False, "policy_denial", "submission") if self.says_no and self.asked % 2 == 0 else ALLOWED

    def on_acquire(self, lease: TaskLease, decision: PolicyDecision) -> PolicyStateDelta:
        if self.queue is not None:
            queue, self.queue = self.queue, None
            queue.offer([QueueItem("stranger", Group("z"))], 0.0)
            queue.discard("stranger", 0.0)
        return NO_CHANGE

    def on_release(self, lease: TaskLease) -> PolicyStateDelta:
        return NO_CHANGE


def has_a_queue_that_moves_on() -> Bench:
    policy = Meddling()
    bench = Bench([Column("a")], [1], policy=policy)
    policy.queue = bench.s.queue
    bench.send(RunStarted())
    assert list(bench.s.admission.active) == ["g0-2"], "the first lease went back at once"
    return to_the_end(bench)


def has_a_policy_that_contradicts_itself() -> Bench:
    bench = Bench([Column("a")], [1], policy=Meddling(says_no=True))
    bench.log += bench.s.handle(RunStarted(), 0.0)
    return bench


SCENES = {
    grows_while_nothing_blocks: {"row_group_admission_target_changed"}, has_too_many_rows_open: {"row_group_admission_blocked"},
    has_one_place: {"scheduler_job_started", "row_group_admitted", "dependency_ready", "ready_enqueued", "selected", "task_lease_acquired",
                    "worker_spawned", "admission_blocked", "task_completed", "task_lease_released", "row_group_checkpointed", "queue_empty",
                    "scheduler_job_completed"},
    is_at_its_share: {"group_capped"}, is_pressed: {"request_pressure_advisory_skipped"},
    fails_for_a_while_and_for_good: {"retry_deferred", "salvage_redispatched", "non_retryable_dropped"},
    is_cancelled: {"cancelled", "queue_drained"}, has_a_provider_that_mostly_fails: {"scheduler_health_snapshot"},
    cannot_spawn_a_worker: {"worker_spawn_failed", "release_diagnostic"}, has_a_queue_that_moves_on: {"stale_selection"},
    has_a_policy_that_contradicts_itself: {"admission_denied"},
}


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_EV_2_what_happens_is_told(scene: Any) -> None:
    bench = scene()
    assert kinds_of(bench) >= SCENES[scene]
    notes = [e for e in bench.log if isinstance(e, Note)]
    assert [n.sequence for n in notes] == list(range(1, len(notes) + 1)) and {n.stream for n in notes} == {"scheduler"}
    for note in notes:
        assert note.data is not None and set(note.data) >= OF_TASKS, note.kind
        assert json.loads(json.dumps(note.data, allow_nan=False)) == note.data
        if note.data["task_id"] is not None:
            assert set(note.data["correlation"]) == set(CORRELATION) and note.ids == (note.data["task_id"],), note.kind


def test_EV_2_all_27_kinds_occur() -> None:
    assert set().union(*SCENES.values()) == SCHEDULER_KINDS and len(SCHEDULER_KINDS) == 27
    assert set().union(*(kinds_of(scene()) for scene in SCENES)) == SCHEDULER_KINDS


# -- the request stage ----------------------------------------------------------------------------------------------------------------


def lease_of(got: object) -> RequestLease:
    assert isinstance(got, RequestLease), got
    return got


def busy_endpoint() -> list[Note]:
    """One endpoint: a refusal and its recovery, three who wait, and how each wait ends."""
    a = WaitingAdmission(RequestAdmissionConfig(Aimd(initial_limit=2, successes_until_increase=1, cooldown_s=1.0)), wants=WANTS)
    a.register("r", 5, 0.0)
    a.set_cap("r", 4, 0.0)
    first, second = lease_of(a.enqueue(RequestItem("r"), 0.0)), lease_of(a.try_acquire("r", 0.0))
    a.began(first, 0.1)
    a.try_acquire("r", 0.5)
    waits = [a.enqueue(RequestItem("r", queue_wait_timeout_s=wait_s), 0.5) for wait_s in (None, 0.4, None)]
    assert all(isinstance(w, Waiting) for w in waits)
    a.release(first, "rate_limited", 1.0, retry_after_s=0.5)
    a.release(first, "success", 1.0)
    a.drain(1.0)
    a.cancel(waits[2].waiter_id, 1.2)  # type: ignore[union-attr]
    a.release(second, "success", 2.0)
    (granted,) = a.drain(2.0)
    a.release(granted.lease, "success", 3.0)  # type: ignore[union-attr]
    a.release(lease_of(a.try_acquire("r", 3.0)), "success", 3.0)
    return a.drain_notes()


def test_EV_3_all_19_kinds_occur() -> None:
    notes = busy_endpoint()
    assert {n.kind for n in notes} == REQUEST_KINDS and len(REQUEST_KINDS) == 19
    assert [n.sequence for n in notes] == list(range(1, len(notes) + 1)) and {n.stream for n in notes} == {"request"}
    times = [n.data["at"] for n in notes if n.data is not None]
    assert times == sorted(times) and len(times) == len(notes)
    for note in notes:
        assert note.data is not None and set(note.data) == OF_REQUESTS and note.data["request_resource_key"] == "r"
        assert json.loads(json.dumps(note.data, allow_nan=False)) == note.data
        if note.kind != "request_release_diagnostic":
            assert set(note.data["pressure_snapshot"]) == {"effective_max", "limit", "in_flight", "waiters", "blocked_until"}


def test_EV_1_numbers_without_end_become_texts() -> None:
    a = RequestAdmission(Aimd().build(BuildContext()), wants=WANTS)
    a.register("r", 2, 0.0)
    a.release(lease_of(a.try_acquire("r", 0.0)), "rate_limited", 1.0, retry_after_s=math.inf)
    data = a.drain_notes()[-1].data
    assert data is not None and data["pressure_snapshot"]["blocked_until"] == "inf" and json.dumps(data, allow_nan=False)


def test_EV_4_no_wait_is_a_wait_of_no_time() -> None:
    a = WaitingAdmission(wants=WANTS)
    a.register("r", 1, 0.0)
    lease_of(a.enqueue(RequestItem("r"), 3.0))
    told = [(n.kind, n.data["at"]) for n in a.drain_notes()[1:] if n.data is not None]
    assert told == [("request_wait_started", 3.0), ("request_wait_completed", 3.0), ("request_lease_acquired", 3.0)]


# -- in a control ---------------------------------------------------------------------------------------------------------------------


def told_by(control: Control, event: Any, now: float) -> list[Note]:
    return [e for e in control.handle(event, now) if isinstance(e, Note)]


def test_EV_3_a_control_says_whose_attempt_it_is() -> None:
    control = default_control(pools=("p",), wants=WANTS)
    told = told_by(control, ReplicaReady("r", "p", slots=2), 0.0)
    task = {"run_id": "rows", "row_group": 2, "task_column": "größe", "task_type": "cell", "group_kind": "model", "group_identity_hash": "0f",
            "task_execution_id": "g0-x7"}
    told += told_by(control, Arrived(Request("a", "t1", "m", 0, 1.0, 10, labels=labels_of(task))), 1.0)
    told += told_by(control, Started("a", 1, "r"), 1.5) + told_by(control, Finished("a", 1, "r", 5), 2.0)
    told += told_by(control, Arrived(Request("b", "t2", "m", 0, 3.0, 10)), 3.0)
    told += told_by(control, Failed("b", 1, "r", "provider_failure", "crash"), 4.0)
    mine = [n for n in told if n.data is not None and n.data["request_lease_id"] == "g0-1"]
    assert [n.kind for n in mine] == ["request_lease_acquired", "model_request_started", "model_request_completed", "request_lease_released"]
    for note in mine:
        assert note.data is not None and note.data["correlation"] == task
        assert (note.data["request_attempt_id"], note.data["request_group_key"]) == ("a/1", "t1")
    other = told[-1].data
    assert other is not None and (other["request_attempt_id"], other["request_group_key"], other["correlation"]) == ("b/1", "t2", None)
    assert control._stream is not None and not control._stream._about, "nothing is kept of what is over"


def test_EV_1_the_lanes_of_a_control_are_one_stream() -> None:
    lanes = [Lane(name, queue=BoundedQueue(FairTaskQueue()), admission=RequestAdmission(Aimd().build(BuildContext()), wants=WANTS),
                  router=LeastOutstanding(pools=(name,)), models=frozenset({name})) for name in ("x", "y")]
    control, told = Control(lanes=lanes, fleet=Fleet(), wants=WANTS), list[Note]()
    for name in ("x", "y"):
        told += told_by(control, ReplicaReady(f"{name}-0", name, slots=2), 0.0)
    for n, name in enumerate("xyyx"):
        told += told_by(control, Arrived(Request(f"r{n}", "t", name, 0, 1.0, 10)), 1.0)
    assert [n.sequence for n in told] == list(range(1, len(told) + 1))
    leases = [(n.data["request_resource_key"], n.data["request_lease_id"], n.data["request_attempt_id"])
              for n in told if n.kind == "request_lease_acquired" and n.data is not None]
    assert leases == [("x", "g0-1", "r0/1"), ("y", "g0-1", "r1/1"), ("y", "g0-2", "r2/1"), ("x", "g0-2", "r3/1")], "equal ids of two lanes"


def test_EV_1_what_nobody_came_for_leaves_a_gap() -> None:
    admission = RequestAdmission(Aimd().build(BuildContext()), wants=WANTS)
    lane = Lane("x", queue=FairTaskQueue(), admission=admission, router=LeastOutstanding(pools=("x",)))
    stream, out = RequestStream(), list[Any]()
    for n in range(5000):
        admission.set_cap("x", 5 + n % 2, 0.0)
    stream.tell((lane,), {}, out)
    assert len(out) == 4096 and out[0].sequence > 900 and out[-1].sequence - out[0].sequence == 4095


@pytest.mark.parametrize("correlation", [dict.fromkeys(CORRELATION), {"run_id": "x"}, {**dict.fromkeys(CORRELATION, "é"), "row_group": 0}])
def test_EV_1_a_correlation_travels_as_labels(correlation: dict[str, Any]) -> None:
    labels = labels_of(correlation)
    assert all(isinstance(text, str) for pair in labels for text in pair)
    whole = {key: correlation.get(key) for key in CORRELATION}
    assert correlation_of((*labels, ("adapter", "x"))) == (whole if any(v is not None for v in whole.values()) else None)


def test_EV_1_and_EV_4_a_recorded_run_tells_both_streams_and_their_times() -> None:
    world, control, source = Scenario.load(SMALL).build(record="full", check=True)
    run = world.run(control, source)
    pipeline = source.sources[1]  # type: ignore[attr-defined]
    notes = {stream: run.notes[run.notes["stream"] == stream] for stream in ("scheduler", "request")}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for stream, rows in notes.items():
        assert rows["sequence"].tolist() == list(range(1, len(rows) + 1)), "without a gap"
        for kind, at_s, detail in zip(rows["kind"], rows["t_s"], map(json.loads, rows["detail"])):
            assert detail["at"] == at_s
            execution = (detail["correlation"] or {}).get("task_execution_id")
            found.setdefault((stream, kind), {})[execution or f"? {len(found)}"] = detail
    started = found["scheduler", "task_lease_acquired"]
    asked = {e: d for e, d in found["request", "request_lease_acquired"].items() if not e.startswith("?")}
    assert len(started) == 2 + 6 + 6 and len(asked) == 12 and all(asked[e]["correlation"] == started[e]["correlation"] for e in asked)
    (iteration,) = artifact_of("tiny", [(run, pipeline)]).iterations
    for row in iteration.timeline:
        times = [row[key] for key in TIMELINE if row[key] is not None]
        assert times == sorted(times) and len(times) == (7 if row["column"] == "seed" else 13)
        assert row["request_wait_started_at"] == row["request_wait_completed_at"], "there was room: two equal times"
    faulty = Scenario.load(SMALL).with_({"faults": [{"kind": "errors", "pool": "small", "at_s": 0.01, "for_s": 9.0, "status": 429, "p": 0.4}]})
    world, control, source = faulty.build(record="full", check=True)
    troubled = world.run(control, source)
    (iteration,) = artifact_of("tiny", [(troubled, source.sources[1])]).iterations  # type: ignore[attr-defined]
    assert len({row["outcome"] for row in iteration.timeline}) > 1
    for row in iteration.timeline:
        times = [row[key] for key in TIMELINE if row[key] is not None]
        assert times == sorted(times), "also of attempts that failed"
    plain_world, plain_control, plain_source = Scenario.load(SMALL).build(record="decisions")
    plain = plain_world.run(plain_control, plain_source)
    assert plain.requests["ended_s"].equals(run.requests["ended_s"]) and not (plain.notes["stream"] == "scheduler").any()
