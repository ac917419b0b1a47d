"""What callers get wrong: duplicates, stale and forged things, cancels at every stage, bad weights and costs, clocks, crowds, shutdowns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from windtunnel.effects import Close, Dispatch, Reject
from windtunnel.errors import ConfigError, ConfigSchedulingError, ConfigValueError, PolicyClockError, PolicyError
from windtunnel.events import Arrived, Cancelled, Commanded, Failed, Finished, FirstToken, ReplicaReady, Request
from windtunnel.lab.scenario import Scenario
from windtunnel.policy.admission.aimd import Aimd
from windtunnel.policy.admission.denial import Denial
from windtunnel.policy.admission.endpoints import RequestAdmissionConfig
from windtunnel.policy.admission.gcra import Gcra
from windtunnel.policy.admission.lease import RequestLease
from windtunnel.policy.admission.limit import Fixed
from windtunnel.policy.admission.quota import Need, Quotas, Reservation, TenantQuota
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.admission.waiters import AlreadyGranted, RequestItem, UnknownWaiter, WaiterCancelled, Waiting
from windtunnel.policy.admission.waiting import WaitingAdmission
from windtunnel.policy.param import BuildContext
from windtunnel.policy.presets import default_control
from windtunnel.policy.queueing.bounded import BoundedQueue
from windtunnel.policy.queueing.classes import Classes
from windtunnel.policy.queueing.codel import CoDelQueue
from windtunnel.policy.queueing.deadline_drop import DeadlineDropQueue
from windtunnel.policy.queueing.edf import EdfQueue
from windtunnel.policy.queueing.fair import FairTaskQueue, Queue
from windtunnel.policy.queueing.fifo import FifoQueue
from windtunnel.policy.queueing.item import Group, QueueItem
from windtunnel.policy.queueing.lifo import AdaptiveLifo, AdaptiveLifoQueue
from windtunnel.policy.queueing.vtc import VtcQueue
from windtunnel.policy.tasks.admission import TaskAdmissionConfig, TaskAdmissionController
from windtunnel.policy.tasks.config import TaskSchedulerConfig
from windtunnel.policy.tasks.graph import Column, Graph
from windtunnel.policy.tasks.messages import CancelTask, RunCancelled, RunEnded, RunStarted, StartTask, TaskEnded
from windtunnel.policy.tasks.resolve import Generator, Resolver
from windtunnel.policy.tasks.resources import TaskLease
from windtunnel.policy.tasks.scheduler import TaskScheduler
from windtunnel.policy.tasks.task import SchedulableTask, SchedulingMetadata, Task

QUEUES: dict[str, Callable[[], Queue]] = {
    "fifo": FifoQueue, "fair": FairTaskQueue, "classes": lambda: Classes().build(BuildContext()), "edf": EdfQueue,
    "lifo": lambda: AdaptiveLifoQueue(AdaptiveLifo()), "vtc": VtcQueue, "codel": lambda: CoDelQueue(FifoQueue()),
    "bounded": lambda: BoundedQueue(FairTaskQueue(), 8), "drop": lambda: DeadlineDropQueue(FifoQueue()),
}
WRONG_NUMBERS = [0.0, -1.0, math.nan, math.inf, True, "1"]
each_queue = pytest.mark.parametrize("name", QUEUES)


def yes(item: Any, view: Any) -> bool:
    return True


def item(id_: str, group: str = "a", **more: Any) -> QueueItem:
    return QueueItem(id_, Group(group), request=Request(id_, group, "m", 0, 0.0, 1, 1), **more)


def admission(cap: int = 1) -> RequestAdmission:
    made = RequestAdmission(Fixed(cap).build(BuildContext()))
    made.register("r", cap, 0.0)
    return made


# -- duplicate ids, stale selections ------------------------------------------------------------------------------------------------------


@each_queue
def test_FQ_2_a_duplicate_id_is_reported_and_changes_nothing(name: str) -> None:
    queue = QUEUES[name]()
    assert queue.offer([item("x"), item("x"), item("x", "b")], 0.0).duplicates == ("x", "x")
    version = queue.sequence_version
    assert queue.offer([item("x")], 1.0).accepted == () and queue.sequence_version == version and len(queue) == 1
    queue.discard("x", 1.0)
    assert [i.id for i in queue.offer([item("x")], 1.0).accepted] == ["x"], "its id is free again"


@each_queue
def test_FQ_4_a_stale_selection_is_refused(name: str) -> None:
    queue = QUEUES[name]()
    queue.offer([item("x"), item("y")], 0.0)
    first = queue.select(yes, 0.0)
    assert first is not None
    queue.offer([item("z")], 0.0)
    assert queue.commit(first, 0.0) is None and len(queue) == 3
    second = queue.select(yes, 0.0)
    assert second is not None
    queue.discard(second.item.id, 0.0)
    assert queue.commit(second, 0.0) is None, "cancelled between select and commit"
    third = queue.select(yes, 0.0)
    assert third is not None and queue.commit(third, 0.0) is third.item and queue.commit(third, 0.0) is None, "a selection is used once"


def test_EE_10_a_request_id_that_is_open_cannot_arrive_again() -> None:
    control = default_control(["x"], cap=1)
    control.handle(ReplicaReady("x-0", "x", slots=1), 0.0)
    for id_ in ("runs", "waits"):
        control.handle(Arrived(Request(id_, "t", "m", 0, 0.0, 1, 1)), 0.0)
    before = control.view()
    for id_ in ("runs", "waits"):
        with pytest.raises(PolicyError, match=id_):
            control.handle(Arrived(Request(id_, "t", "m", 0, 1.0, 1, 1)), 1.0)
    assert control.view().counts == before.counts
    control.check()


# -- releases ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thing", [None, 7, "g0-1", object(), {}, RequestItem("r")])
def test_GN_9_releasing_what_is_no_lease_never_raises(thing: Any) -> None:
    requests, tasks = admission(), TaskAdmissionController(TaskAdmissionConfig(1))
    assert requests.release(thing, "success", 0.0) == "unknown_lease"
    assert tasks.release(thing, 0.0).reason == "unknown_lease"
    assert requests.snapshot("r", 0.0).in_flight == 0 and tasks.view().available == tasks.view().limits


def test_GN_9_twice_unknown_forged_and_foreign_releases_change_nothing() -> None:
    requests = admission(2)
    lease, other = requests.try_acquire("r", 0.0), requests.try_acquire("r", 0.0)
    assert isinstance(lease, RequestLease) and isinstance(other, RequestLease)
    assert [requests.release(lease, "success", 1.0) for _ in range(3)] == ["released", "duplicate", "duplicate"]
    wrong = {"unknown_lease": replace(lease, lease_id="g0-99"), "wrong_controller_generation": replace(lease, generation="g9"),
             "stale_lease": replace(other, admitted_limit=77)}
    for reason, forged in wrong.items():
        assert requests.release(forged, "rate_limited", 1.0) == reason
    unhashable = replace(lease, lease_id=[])  # type: ignore[arg-type]
    assert requests.release(unhashable, "success", 1.0) == "unknown_lease"
    assert requests.snapshot("r", 1.0).in_flight == 1 and requests.release(other, "success", 1.0) == "released"

    tasks, queue = TaskAdmissionController(TaskAdmissionConfig(2)), FairTaskQueue()
    queue.offer([QueueItem("a", Group("g"), (("submission", 1),))], 0.0)
    held = tasks.try_acquire(next(iter(queue.view().head_by_group.values())), queue.view(), 0.0)
    assert isinstance(held, TaskLease)
    assert [tasks.release(held, 0.0).reason for _ in range(2)] == ["released", "duplicate"]
    assert tasks.release(replace(held, lease_id="g0-9"), 0.0).reason == "unknown_lease" and tasks.view().available == {"submission": 2}

    quotas = Quotas({"t": TenantQuota(concurrent=1)})
    made = quotas.reserve("t", Need(5), 0.0)
    assert isinstance(made, Reservation) and [quotas.settle(made, 5, 1.0) for _ in range(2)] == ["settled", "duplicate"]


@each_queue
def test_GN_9_discarding_what_is_not_there_never_raises(name: str) -> None:
    queue = QUEUES[name]()
    assert [queue.discard(id_, 0.0) for id_ in ("nobody", "", "\ud800")] == [None] * 3 and queue.sequence_version == 0
    assert queue.discard_where(yes, 0.0) == () and queue.select(yes, 0.0) is None and queue.shed(0.0) == ()  # type: ignore[arg-type]


# -- cancel at every stage ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["queued", "dispatched", "running", "closing", "finished", "never there"])
def test_KC_16_a_request_cancelled_at_every_stage(stage: str) -> None:
    control = default_control(["x"], cap=1)
    control.handle(ReplicaReady("x-0", "x", slots=1), 0.0)
    if stage == "queued":
        control.handle(Arrived(Request("first", "t", "m", 0, 0.0, 1, 1)), 0.0)
    if stage != "never there":
        control.handle(Arrived(Request("r", "t", "m", 0, 0.0, 1, 1)), 0.0)
    if stage in ("running", "finished"):
        control.handle(FirstToken("r", 1, "x-0"), 0.5)
    if stage == "finished":
        control.handle(Finished("r", 1, "x-0", 1), 1.0)
    if stage == "closing":
        control.handle(Cancelled("r"), 1.0)
    out = list(control.handle(Cancelled("r"), 1.0))
    ends = [type(e) for e in out if isinstance(e, (Reject, Close))]
    assert ends == {"queued": [Reject], "dispatched": [Close], "running": [Close]}.get(stage, [])
    control.check()
    for id_ in ("first", "r"):
        control.handle(Failed(id_, 1, "x-0", "local_cancelled", "cancelled"), 2.0)
        control.handle(Cancelled(id_), 2.0)
    control.check()
    counts = control.view().counts
    assert (counts.waiting, counts.active, control.open_count) == (0, 0, 0)


def test_RA_10_a_waiter_cancelled_at_every_stage() -> None:
    a = WaitingAdmission(RequestAdmissionConfig(Fixed(1)))
    a.register("r", 1, 0.0)
    running = a.enqueue(RequestItem("r"), 0.0)
    waits, later = a.enqueue(RequestItem("r"), 0.0), a.enqueue(RequestItem("r"), 0.0)
    assert isinstance(running, RequestLease) and isinstance(waits, Waiting) and isinstance(later, Waiting)
    assert a.cancel(waits.waiter_id, 1.0) == WaiterCancelled(waits.waiter_id), "waiting"
    assert a.cancel(waits.waiter_id, 1.0) == UnknownWaiter(waits.waiter_id), "cancelled already"
    a.release(running, "success", 2.0)
    (granted,) = a.drain(2.0)
    said = a.cancel(later.waiter_id, 2.0)
    assert isinstance(said, AlreadyGranted) and said.lease is granted.lease, "granted, not yet used"  # type: ignore[union-attr]
    assert a.release(said.lease, "local_cancelled", 2.0) == "released"
    assert a.cancel(later.waiter_id, 3.0) == UnknownWaiter(later.waiter_id), "over"
    assert [a.cancel(bad, 3.0) for bad in ("", "g0-w99")] == [UnknownWaiter(""), UnknownWaiter("g0-w99")]  # never known
    assert (a.waiting, a.snapshot("r", 3.0).in_flight, a.next_deadline()) == (0, 0, None)


def pipeline(rows: int = 3, **config: Any) -> TaskScheduler:
    generators = {"a": Generator(("a",), SchedulingMetadata("model", ("model", "p", "m", "chat"), 4.0))}
    return TaskScheduler(Graph([Column("a")]), {0: rows}, Resolver(generators), TaskSchedulerConfig(**config))


@pytest.mark.parametrize("stage", ["before the start", "queued", "admitted", "deferred", "stopping", "finished"])
def test_TS_15_a_run_cancelled_at_every_stage(stage: str) -> None:
    s = pipeline(1 if stage in ("deferred", "finished") else 3, max_in_flight_tasks=1 if stage == "queued" else 8)
    out: list[Any] = []
    if stage != "before the start":
        out += s.handle(RunStarted(), 0.0)
    if stage in ("deferred", "finished"):
        out += s.handle(TaskEnded(next(iter(s.running)), "success" if stage == "finished" else "rate_limited", None, 5.0), 1.0)
    if stage == "stopping":
        out += s.handle(RunCancelled(), 1.0)
    out += s.handle(RunCancelled(), 1.0)
    s.check()
    assert len(s.queue) == len(s.deferred) == 0
    for start in [e for e in out if isinstance(e, StartTask)]:
        out += s.handle(TaskEnded(start.lease.lease_id, "local_cancelled"), 2.0)
    s.check()
    assert [type(e) for e in out].count(RunEnded) == 1 and s.result is not None
    assert s.result.status == ("completed" if stage == "finished" else "cancelled")
    cancels = [e.lease.lease_id for e in out if isinstance(e, CancelTask)]
    assert len(cancels) == len(set(cancels)) == {"queued": 1, "admitted": 3, "stopping": 3}.get(stage, 0)


# -- weights, costs, clocks -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", WRONG_NUMBERS)
def test_FQ_6_a_weight_is_a_real_number_above_0(weight: Any) -> None:
    with pytest.raises(ConfigValueError, match="weight"):
        Group("a", weight)
    with pytest.raises(ConfigSchedulingError) as caught:
        SchedulingMetadata("model", ("model", "p", "m", "chat"), weight)
    assert caught.value.code == "invalid_weight"
    with pytest.raises(ConfigValueError, match="weight"):
        RequestItem("r", weight)


@pytest.mark.parametrize("weight", ["0", "-1", ".nan", ".inf", "yes"])
def test_FQ_6_bad_weights_in_a_scenario_are_refused(weight: str) -> None:
    text = ("windtunnel: 1\nname: w\nfleet: {pools: {chat: {model: m, gpu: h100_sxm, service: {servers: 1}}}}\n"
            "source: {kind: arrivals, rate_rps: 1, count: 1, input_tokens: 1, output_tokens: 1, service_s: 1}\n"
            f"control: {{queue: {{kind: fair}}, tenants: {{gold: {{weight: {weight}}}}}}}\n")
    with pytest.raises(ConfigError, match="weight"):
        Scenario.load(text)


@pytest.mark.parametrize("cost", [0.0, -1.0, math.nan])
@pytest.mark.parametrize("name", ["fair", "bounded"])
def test_FQ_6_a_cost_is_above_0(name: str, cost: float) -> None:
    queue = QUEUES[name]()
    with pytest.raises(ConfigValueError, match="cost"):
        queue.offer([item("x", cost=cost)], 0.0)
    assert len(queue) == 0


def test_costs_above_capacity_end_instead_of_waiting_for_ever() -> None:
    assert Gcra(10.0, 5.0).wait_s(6.0, 0.0) is None, "more than the burst never conforms"
    denial = Quotas({"t": TenantQuota(tokens_per_min=100.0)}).reserve("t", Need(101), 0.0)
    assert isinstance(denial, Denial) and (denial.reason, denial.retriable) == ("exceeds_burst", False)
    denial = Quotas({"t": TenantQuota(kv_bytes=100.0)}).reserve("t", Need(1, 101.0), 0.0)
    assert isinstance(denial, Denial) and denial.reason == "exceeds_burst"
    tasks, queue = TaskAdmissionController(TaskAdmissionConfig(2)), FairTaskQueue()
    queue.offer([QueueItem("big", Group("g"), (("submission", 3),)), QueueItem("odd", Group("h"), (("gpu", 1),))], 0.0)
    assert queue.select(tasks.is_eligible, 0.0) is None
    assert tasks.explain_blocked(queue.view()).denial_reasons == {"no_capacity": 2}
    queue.offer([item("huge", "z", cost=1e300), item("next", "z")], 0.0)
    taken = queue.select(lambda i, v: i.id == "huge", 0.0)
    assert taken is not None and queue.commit(taken, 0.0) is taken.item and queue.finish_tag("z") == 1e300


def test_TS_8_a_task_that_asks_for_more_than_there_is_aborts_the_run_instead_of_hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    s = pipeline()
    task = s.resolver.task

    def greedy(payload: Task) -> SchedulableTask:
        return replace(task(payload), resources={"submission": 1, "llm_wait": 10**9})

    monkeypatch.setattr(s.resolver, "task", greedy)
    out = s.handle(RunStarted(), 0.0)
    assert isinstance(out[-1], RunEnded) and out[-1].result.status == "aborted" and "can ever start" in out[-1].result.reason
    s.check()


def test_GN_1_a_clock_that_stands_still_is_fine_and_one_that_goes_back_is_not() -> None:
    requests, control, s, queue = admission(2), default_control(["x"]), pipeline(), FairTaskQueue()
    held = [requests.try_acquire("r", 5.0) for _ in range(2)]
    control.handle(ReplicaReady("x-0", "x", slots=4), 5.0)
    for n in range(3):
        out = list(control.handle(Arrived(Request(f"r{n}", "t", "m", 0, 5.0, 1, 1)), 5.0))
        assert isinstance(out[0], Dispatch)
        control.handle(Finished(f"r{n}", 1, "x-0", 1), 5.0)
        queue.offer([item(f"i{n}")], 5.0)
    started = [e for e in s.handle(RunStarted(), 5.0) if isinstance(e, StartTask)]
    for start in started:
        s.handle(TaskEnded(start.lease.lease_id, "success"), 5.0)
    assert s.result is not None and s.result.tasks_completed == 3
    assert isinstance(held[0], RequestLease) and requests.release(held[0], "success", 5.0) == "released"
    for call in (lambda: requests.try_acquire("r", 4.999), lambda: s.handle(RunCancelled(), 4.999), lambda: queue.offer([], 4.999),
                 lambda: queue.select(yes, 4.999), lambda: control.handle(Cancelled("r0"), 4.999)):
        with pytest.raises(PolicyClockError):
            call()


def test_GN_5_binary_floats_do_not_move_a_rounded_limit() -> None:
    """0.1 of 0.1 + 0.7, times 8, is 1.0000000000000002 in floats; 0.7 x 10 is exact only with luck."""
    from windtunnel.policy.tasks.bounded_borrow import BoundedBorrow

    assert BoundedBorrow().share(Group("g", 0.1, 99), 8, 0.7) == 1
    a = RequestAdmission(Aimd(decrease_factor=0.7).build(BuildContext()))
    a.register("r", 10, 0.0)
    lease = a.try_acquire("r", 0.0)
    assert isinstance(lease, RequestLease) and a.release(lease, "rate_limited", 0.0) == "released"
    assert a.snapshot("r", 0.0).limit == 7


def test_GN_6_ties_go_by_activation_then_never_by_hash() -> None:
    """Equal tags: who became active first is served first, whatever the names."""
    for order in (["zeta", "alpha", "mid"], ["mid", "zeta", "alpha"]):
        queue = FairTaskQueue()
        queue.offer([item(f"{name}-{n}", name) for n in range(2) for name in order], 0.0)
        served = []
        while (selection := queue.select(yes, 0.0)) is not None:
            served.append(queue.commit(selection, 0.0).group.key)  # type: ignore[union-attr]
        assert served == order * 2


# -- shutdown with everything in flight -------------------------------------------------------------------------------------------------------


def test_AC_3_shutdown_with_something_in_every_state() -> None:
    """Waiting, dispatched, with a first token, cancelled and not yet let go, between two attempts: each ends once, all is given back."""
    from windtunnel.policy.settings import ControlSettings

    control = default_control(["x"], cap=3, settings=ControlSettings(attempts=2))
    control.handle(ReplicaReady("x-0", "x", slots=3), 0.0)
    ends: dict[str, int] = {}

    def do(event: Any, now: float) -> list[Any]:
        out = list(control.handle(event, now))
        for e in out:
            if isinstance(e, (Reject, Close)):
                ends[e.request_id] = ends.get(e.request_id, 0) + 1
        control.check()
        return out

    for n in range(8):
        do(Arrived(Request(f"r{n}", "ab"[n % 2], "m", n % 2, 0.0, 1, 1)), 0.0)
    do(FirstToken("r0", 1, "x-0"), 1.0)
    do(Cancelled("r2"), 1.0)
    do(Failed("r1", 1, "x-0", "provider_failure", "boom"), 1.0)
    do(Commanded("stop"), 2.0)
    do(Commanded("stop"), 2.0)
    late = do(Arrived(Request("late", "a", "m", 0, 2.0, 1, 1)), 2.0)
    assert isinstance(late[0], Reject) and late[0].denial.reason == "shutdown"
    for request_id, dispatch, replica in [(i, control.flow.open[i].dispatches, "x-0") for i in control.flow.open]:
        do(Finished(request_id, dispatch, replica, 1), 3.0)
    counts = control.view().counts
    assert (counts.waiting, counts.active, control.open_count, counts.arrivals) == (0, 0, 0, 9)
    assert set(ends.values()) == {1} and counts.completed + len(ends) == 9
    assert all(lane.admission.in_flight(lane.resource) == 0 for lane in control.lanes)
