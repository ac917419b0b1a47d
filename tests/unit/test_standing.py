"""How a request stands: its place in line, when it may start, and who says so."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from chat_request import chat_request

from windtunnel.errors import PolicyClockError
from windtunnel.events import Arrived, Cancelled, Failed, Finished, ReplicaReady
from windtunnel.policy.admission.limit import Fixed
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.control import Control
from windtunnel.policy.lane import Lane
from windtunnel.policy.param import BuildContext
from windtunnel.policy.queueing.bounded import BoundedQueue
from windtunnel.policy.queueing.edf import Edf
from windtunnel.policy.queueing.fair import FairTaskQueue, Queue
from windtunnel.policy.queueing.fifo import FifoQueue
from windtunnel.policy.queueing.item import Group, QueueItem
from windtunnel.policy.queueing.lifo import AdaptiveLifo
from windtunnel.policy.queueing.ranked import RankedQueue
from windtunnel.policy.queueing.vtc import Vtc
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.least import LeastOutstanding
from windtunnel.policy.settings import ControlSettings
from windtunnel.policy.standing import Standing

CTX = BuildContext()


def control_of(queue: Queue | None = None, slots: int | None = 4, limit: int = 1, **settings: Any) -> Control:
    lane = Lane("chat", queue=queue or FairTaskQueue(), admission=RequestAdmission(Fixed(limit).build(CTX)), router=LeastOutstanding(), cap=limit)
    control = Control(lanes=(lane,), fleet=Fleet(), settings=ControlSettings(**settings))
    control.handle(ReplicaReady("chat-0", "chat", slots=slots), 0.0)
    return control


def arrive(control: Control, id: str, now: float, priority: int = 0, tenant: str = "t") -> None:
    control.handle(Arrived(chat_request(id, tenant, now, priority=priority)), now)


def finish(control: Control, id: str, now: float) -> None:
    control.handle(Finished(id, 1, "chat-0", 5, 100, 0, now, now), now)


def places(control: Control, ids: str, now: float) -> list[int | None]:
    return [s.position if (s := control.standing(i, now)) is not None else None for i in ids.split()]


def test_KC_19_more_urgent_classes_and_those_before_in_its_own() -> None:
    control = control_of()
    for n, (id, priority) in enumerate({"run": 0, "b1": 1, "i1": 0, "b2": 1, "i2": 0, "c1": 2}.items()):
        arrive(control, id, 0.1 * n, priority)
    assert places(control, "i1 i2 b1 b2 c1", 1.0) == [0, 1, 2, 3, 4]
    assert control.standing("run", 1.0) == Standing("running") and control.standing("nobody", 1.0) is None
    control.handle(Cancelled("i1"), 1.0)
    arrive(control, "i3", 1.0)
    assert places(control, "i1 i2 i3 b1 b2 c1", 1.0) == [None, 0, 1, 2, 3, 4]
    control.handle(Cancelled("run"), 1.0)
    assert control.standing("run", 1.0) == Standing("closing"), "ended, and its engine has not let go"
    control.handle(Failed("run", 1, "chat-0", "local_cancelled", "cancelled"), 1.5)
    assert control.standing("run", 1.5) is None


def test_TQ_5_ten_ahead_at_four_per_second_start_in_two_and_a_half() -> None:
    control = control_of()
    for n in range(400):
        arrive(control, f"w{n}", n / 4)
        finish(control, f"w{n}", (n + 1) / 4)
    for n in range(12):
        arrive(control, f"r{n}", 100.0)
    standing = control.standing("r11", 100.0)
    assert standing is not None and (standing.state, standing.position, standing.source) == ("waiting", 10, "measured")
    assert standing.predicted_start_s == pytest.approx(102.5, abs=0.05), "weighted over 10 s, right after a completion"
    starts = [s.predicted_start_s for n in range(1, 12) if (s := control.standing(f"r{n}", 100.0)) is not None]
    assert starts == sorted(starts) and starts[0] == 100.0  # type: ignore[type-var]


@pytest.mark.parametrize(("slots", "wait_s"), [(4, 0.5), (1, 2.0), (None, 2 / 64)])
def test_TQ_5_before_any_completion_the_slots_at_a_second_each(slots: int | None, wait_s: float) -> None:
    control = control_of(slots=slots)
    for n in range(4):
        arrive(control, f"r{n}", 1.0)
    assert control.standing("r3", 1.0) == Standing("waiting", 2, 1.0 + wait_s, "prior")
    assert control.standing("r1", 5.0) == Standing("waiting", 0, 5.0, "prior")


def test_KC_19_a_further_attempt_keeps_its_place() -> None:
    control = control_of(attempts=2)
    for id in ("a", "b", "c"):
        arrive(control, id, 1.0)
    assert places(control, "b c", 1.0) == [0, 1]
    control.handle(Failed("a", 1, "chat-0", "rate_limited", "http_429", 429, 9.0), 2.0)
    assert places(control, "a b c", 2.0) in ([None, 0, 1], [0, 1, 2]), "sent again at once, or the first in line"


def test_KC_19_foreign_questions() -> None:
    control = control_of()
    for foreign in (None, 3, [1], {}, b"a", ""):
        assert control.standing(foreign, 0.0) is None
    arrive(control, "a", 5.0)
    with pytest.raises(PolicyClockError):
        control.standing("a", 4.0)


QUEUES: dict[str, Callable[[], Queue]] = {
    "fair": FairTaskQueue, "fifo": FifoQueue, "bounded": lambda: BoundedQueue(FairTaskQueue(), 6, {}, {0: "drop_lru", 1: "shed_low_priority"}),
    "edf": lambda: Edf().build(CTX), "lifo": lambda: AdaptiveLifo(interval_s=0.3, controlled_delay=True).build(CTX), "vtc": lambda: Vtc().build(CTX)}


@pytest.mark.parametrize("kind", QUEUES)
def test_KC_19_asking_changes_nothing(kind: str) -> None:
    """Two equal controls, one of which is asked all the time: equal effects, and places as a scan over who waits has them."""
    rng = Random(5)
    asked, left_alone = control_of(QUEUES[kind](), limit=2, attempts=2), control_of(QUEUES[kind](), limit=2, attempts=2)
    now, n, seen = 0.0, 0, 0
    for _ in range(400):
        now += rng.choice([0.0, 0.05, 0.2])
        running = sorted(i for i, o in left_alone.flow.open.items() if o.state == 1)
        move = rng.random()
        if move < 0.6 or not running:
            n += 1
            event: Any = Arrived(chat_request(f"r{n}", rng.choice("abc"), now, priority=rng.randrange(3)))
        elif move < 0.9:
            opened = left_alone.flow.open[rng.choice(running)]
            event = Finished(opened.request.id, opened.dispatches, "chat-0", 5, 10, 0, now, now)
        elif move < 0.95:
            opened = left_alone.flow.open[rng.choice(running)]
            event = Failed(opened.request.id, opened.dispatches, "chat-0", "provider_failure", "crash")
        else:
            event = Cancelled(f"r{rng.randrange(1, n + 1)}")
        if isinstance(event, Failed) and event.dispatch > 1:
            continue
        assert list(asked.handle(event, now)) == list(left_alone.handle(event, now))
        asked.check()
        waiting = [o.item for o in asked.flow.open.values() if o.state == 0]
        for item in waiting:
            standing = asked.standing(item.id, now)
            assert standing is not None and standing.position is not None
            before = [o for o in waiting if (o.priority, o.arrived_at) < (item.priority, item.arrived_at)]
            ties = [o for o in waiting if (o.priority, o.arrived_at) == (item.priority, item.arrived_at)]
            assert len(before) <= standing.position < len(before) + len(ties)
            seen += 1
    assert seen > 500 and isinstance(asked.lanes[0].queue, RankedQueue) and not isinstance(left_alone.lanes[0].queue, RankedQueue)


def test_a_batch_that_evicts_its_own_leaves_no_place_behind() -> None:
    queue = RankedQueue(BoundedQueue(FifoQueue(), 2, {}, {1: "drop_lru"}))
    items = [QueueItem(f"b{n}", Group("t"), priority=1, arrived_at=float(n)) for n in range(5)]
    offered = queue.offer(items, 5.0)
    assert [s.item.id for s in offered.evicted] == ["b0", "b1", "b2"]
    assert [queue.position(i.id) for i in items] == [None, None, None, 0, 1] and len(queue) == 2
    assert [i.id for i in queue.discard_where(lambda i: True, 6.0)] == ["b3", "b4"] and queue.position("b3") is None
