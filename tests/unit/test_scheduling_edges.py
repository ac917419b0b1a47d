"""Edges of the scheduling rules: clocks that run back, costs and ids that are none, waits that are told, parameters that explain themselves."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

import pytest

from windtunnel.effects import Reject
from windtunnel.errors import ConfigValueError, PolicyClockError
from windtunnel.events import Arrived, Finished, ReplicaReady, Request
from windtunnel.lab import registry
from windtunnel.policy.admission.limit import Fixed
from windtunnel.policy.admission.quota import Need, Quotas, TenantQuota
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.admission.waiters import UnknownWaiter
from windtunnel.policy.admission.waiting import WaitingAdmission
from windtunnel.policy.control import Control
from windtunnel.policy.lane import Lane
from windtunnel.policy.param import BuildContext, Param
from windtunnel.policy.queueing.bounded import Bounded
from windtunnel.policy.queueing.classes import Classes
from windtunnel.policy.queueing.codel import CoDel
from windtunnel.policy.queueing.deadline_drop import DeadlineDrop
from windtunnel.policy.queueing.dlpm import Dlpm
from windtunnel.policy.queueing.drr import Drr
from windtunnel.policy.queueing.edf import Edf
from windtunnel.policy.queueing.fair import Fair, FairTaskQueue
from windtunnel.policy.queueing.fifo import FifoQueue
from windtunnel.policy.queueing.item import Group, QueueItem
from windtunnel.policy.queueing.lifo import AdaptiveLifo
from windtunnel.policy.queueing.vtc import Vtc
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.least import LeastOutstanding

CTX = BuildContext()
QUEUES: dict[str, Any] = {
    "fair": FairTaskQueue, "fifo": FifoQueue, "strict": lambda: Classes("strict").build(CTX), "weighted": lambda: Classes("weighted").build(CTX),
    "ageing": lambda: Classes("ageing").build(CTX), "edf": lambda: Edf().build(CTX), "lifo": lambda: AdaptiveLifo().build(CTX),
    "vtc": lambda: Vtc().build(CTX), "dlpm": lambda: Dlpm().build(CTX), "drr": lambda: Drr().build(CTX),
    "strict fair": lambda: Classes("strict", inside="fair").build(CTX), "weighted fair": lambda: Classes(inside="fair").build(CTX),
    "fair edf": lambda: Fair(inside="edf").build(CTX),
    "codel": lambda: CoDel().wrap(FifoQueue(), CTX),
}


def item(name: str, **more: Any) -> QueueItem:
    return QueueItem(name, Group("a"), request=Request(name, "a", "m", 0, 0.0, 10, 10), **more)


@pytest.mark.parametrize("kind", QUEUES)
def test_GN_1_no_call_of_a_queue_may_lie_before_the_last_one(kind: str) -> None:
    queue = QUEUES[kind]()
    queue.offer([item("a")], 1.0)
    before = (len(queue), queue.sequence_version)
    for call in (lambda: queue.offer([item("b")], 0.5), lambda: queue.select(lambda i, v: True, 0.5), lambda: queue.discard("a", 0.5)):
        with pytest.raises(PolicyClockError):
            call()
    assert (len(queue), queue.sequence_version) == before
    assert queue.select(lambda i, v: True, 1.0).item.id == "a", "equal times are fine"


@pytest.mark.parametrize("cost", [0.0, -1.0, math.nan, math.inf])
def test_FQ_6_a_cost_is_a_finite_number_above_0(cost: float) -> None:
    """An endless one would push all that comes later to the end of time."""
    queue = FairTaskQueue()
    with pytest.raises(ConfigValueError, match="cost"):
        queue.offer([item("a", cost=cost)], 0.0)
    with pytest.raises(ConfigValueError, match="cost"):
        queue.straight(item("a", cost=cost), 0.0)
    assert (len(queue), queue.sequence_version, queue.virtual_time) == (0, 0, 0.0)


@pytest.mark.parametrize("kind", [*QUEUES, "bounded", "deadline_drop"])
@pytest.mark.parametrize("foreign", [None, 3, math.nan, "x", b"a", [1], {}, {1}, ("a", [1]), object()])
def test_GN_9_discard_of_what_no_queue_can_hold_is_discard_of_somebody_unknown(kind: str, foreign: Any) -> None:
    more = {"bounded": lambda: Bounded().wrap(FairTaskQueue(), CTX), "deadline_drop": lambda: DeadlineDrop().wrap(FairTaskQueue(), CTX)}
    queue = {**QUEUES, **more}[kind]()
    queue.offer([item("a", deadline=9.0)], 0.0)
    before = queue.sequence_version
    assert queue.discard(foreign, 1.0) is None
    if hasattr(queue, "settle"):
        queue.settle(foreign, 5, 1.0)
    assert (len(queue), queue.sequence_version, queue.next_deadline()) == (1, before, 9.0)
    assert queue.discard("a", 1.0).id == "a" and queue.discard("a", 1.0) is None, "an id is an id once"


@pytest.mark.parametrize("foreign", [None, 3, "x", [1], object()])
def test_GN_9_cancel_and_settle_take_anything(foreign: Any) -> None:
    waiting, quotas = WaitingAdmission(), Quotas({"default": TenantQuota(concurrent=1)})
    assert waiting.cancel(foreign, 0.0) == UnknownWaiter(foreign)
    made = quotas.reserve("a", Need(10), 0.0)
    assert quotas.settle(foreign, 5, 1.0) == quotas.give_back(foreign, 1.0) == "duplicate" and quotas.accounts["a"].active == 1
    assert quotas.settle(made, 5, 1.0) == "settled"  # type: ignore[arg-type]


@pytest.mark.parametrize("queue", [lambda: CoDel(target_s=0.1, interval_s=0.5).wrap(FifoQueue(), CTX),
                                   lambda: AdaptiveLifo(interval_s=0.5, controlled_delay=True).build(CTX)])
def test_DN_1_who_is_shed_for_waiting_too_long_is_told_when_to_come_again(queue: Any) -> None:
    lane = Lane("chat", queue=queue(), admission=RequestAdmission(Fixed(1).build(CTX)), router=LeastOutstanding(), cap=1)
    control, now, told = Control(lanes=(lane,), fleet=Fleet()), 0.0, list[tuple[float | None, int, float]]()
    control.handle(ReplicaReady("chat-0", "chat", slots=1), 0.0)
    running: list[str] = []

    def do(event: Any) -> None:
        for effect in control.handle(event, now):
            if isinstance(effect, Reject):
                assert effect.denial.reason == "queue_delay" and effect.state == "timed_out"
                told.append((effect.denial.retry_after_s, len(lane.queue), now))
            elif type(effect).__name__ == "Dispatch":
                running.append(effect.request.id)

    for n in range(40):
        now = n * 0.25
        do(Arrived(Request(f"r{n}", "t", "m", 0, now, 10, 10)))
        if n % 2 and running:
            do(Finished(running.pop(0), 1, "chat-0", 5, 10, 0, now, now))
    assert len(told) > 5
    known = [(wait_s, left, at) for wait_s, left, at in told if wait_s is not None]
    assert known and all(wait_s * 2.0 == pytest.approx(left + 1, abs=1.5 + 0.3 * left) for wait_s, left, _ in known), "(waiting + 1) / about 2 per s"
    control.check()


@pytest.mark.parametrize(("section", "kind"), [(s, k) for s in ("queue", "admission.limit", "admission.gates")
                                               for k in {**registry.kinds(s), **registry.wrappers(s)}])
def test_RG_1_every_parameter_of_a_policy_explains_itself(section: str, kind: str) -> None:
    cls = {**registry.kinds(section), **registry.wrappers(section)}[kind]
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        param = next((m for m in getattr(hints[field.name], "__metadata__", ()) if isinstance(m, Param)), None)
        assert param is not None and param.help and param.label, f"{kind}.{field.name} does not say what it is"
        assert field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING, f"{kind}.{field.name} has no default"
        numeric = type(field.default) in (int, float)
        assert not numeric or (param.lo is not None and param.hi is not None), f"{kind}.{field.name} has no range"
