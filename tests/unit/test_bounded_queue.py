"""Bounds: who is refused, who makes room, and that nobody vanishes."""

from __future__ import annotations

import pytest

from windtunnel.errors import ConfigValueError
from windtunnel.events import Request
from windtunnel.policy.param import BuildContext
from windtunnel.policy.queueing.bounded import Bounded, BoundedQueue
from windtunnel.policy.queueing.fair import FairTaskQueue
from windtunnel.policy.queueing.item import Group, Offered, QueueItem, QueueView


def anything(item: QueueItem, view: QueueView) -> bool:
    return True


def item(name: str, tenant: str = "t") -> QueueItem:
    return QueueItem(name, Group(tenant), priority=0 if name[0] == "i" else 1)


def full(queued: str, policy: str, capacity: int = 3) -> BoundedQueue:
    queue = BoundedQueue(FairTaskQueue(), capacity, {}, {0: policy, 1: policy})
    queue.offer([item(name) for name in queued.split()], 0.0)
    return queue


def told(offered: Offered) -> tuple[str, str]:
    if offered.rejected:
        return "rejected", offered.rejected[0].denial.reason
    shed = offered.evicted[0]
    return shed.item.id, shed.denial.reason


@pytest.mark.parametrize(("queued", "newcomer", "policy", "expected"), [
    ("b1 i1 b2", "i3", "reject", ("rejected", "queue_full")),
    ("b1 i1 b2", "i3", "drop_lru", ("b1", "queue_full_drop_lru")),
    ("b1 i1 b2", "i3", "shed_low_priority", ("b2", "shed_low_priority")),
    ("b1 i1 b2", "b3", "reject", ("rejected", "queue_full")),
    ("b1 i1 b2", "b3", "drop_lru", ("b1", "queue_full_drop_lru")),
    ("b1 i1 b2", "b3", "shed_low_priority", ("rejected", "queue_full")),
    ("i1 i2 i3", "i4", "reject", ("rejected", "queue_full")),
    ("i1 i2 i3", "i4", "drop_lru", ("i1", "queue_full_drop_lru")),
    ("i1 i2 i3", "i4", "shed_low_priority", ("rejected", "queue_full")),
    ("i1 i2 i3", "b1", "reject", ("rejected", "queue_full")),
    ("i1 i2 i3", "b1", "drop_lru", ("rejected", "queue_full_drop_lru")),
    ("i1 i2 i3", "b1", "shed_low_priority", ("rejected", "queue_full")),
])
def test_QP_2_victims(queued: str, newcomer: str, policy: str, expected: tuple[str, str]) -> None:
    queue = full(queued, policy)
    offered = queue.offer([item(newcomer)], 0.0)
    assert told(offered) == expected
    assert [i.id for i in offered.accepted] == ([] if expected[0] == "rejected" else [newcomer])
    assert len(queue) == 3


@pytest.mark.parametrize(("policy", "expected"), [
    ("reject", ("rejected", "queue_full")), ("drop_lru", ("i1", "queue_full_drop_lru")), ("shed_low_priority", ("rejected", "queue_full")),
])
def test_QP_2_a_full_class_pays_for_its_own_newcomers(policy: str, expected: tuple[str, str]) -> None:
    queue = BoundedQueue(FairTaskQueue(), 100, {0: 2, 1: None}, {0: policy})
    queue.offer([item(n) for n in ("b1", "i1", "i2", "b2")], 0.0)
    assert told(queue.offer([item("i3")], 0.0)) == expected
    assert queue.view().queued_total == 4


def test_QP_1_the_default_bounds_and_what_the_config_refuses() -> None:
    queue = Bounded().wrap(FairTaskQueue(), BuildContext())
    offered = queue.offer([item(f"i{n}") for n in range(130)] + [item(f"b{n}") for n in range(130)], 0.0)
    assert [s.item.id for s in offered.rejected] == ["i128", "i129"]
    assert [s.item.id for s in offered.evicted] == ["b0", "b1"]
    assert (len(queue), len(offered.accepted)) == (256, 258)
    for bad in ({"capacity": 0}, {"capacity": True}, {"capacity_by_class": {0: 0}}, {"on_full_by_class": {0: "explode"}}):
        with pytest.raises(ConfigValueError):
            Bounded(**bad)  # type: ignore[arg-type]


def test_QP_3_every_victim_is_told_and_when_to_come_back() -> None:
    queue = BoundedQueue(FairTaskQueue(), 3, {}, {0: "reject", 1: "drop_lru"}, completion_rate=lambda now: 4.0)
    queue.offer([item(n) for n in ("b1", "b2", "b3")], 0.0)
    evicted = queue.offer([item("b4")], 0.0).evicted
    assert [(s.item.id, s.denial.code, s.denial.retriable, s.denial.retry_after_s) for s in evicted] == [("b1", "QUEUE_FULL_DROP_LRU", True, 1.0)]
    refused = queue.offer([item("i1")], 0.0).rejected[0].denial
    assert (refused.stage, refused.reason, refused.retry_after_s) == ("queue", "queue_full", 0.25)
    queue.completion_rate = lambda now: None
    assert queue.offer([item("i1")], 0.0).rejected[0].denial.retry_after_s is None


def test_QP_4_a_batch_goes_item_by_item_and_may_evict_its_own() -> None:
    queue = full("b1 b2 b3", "drop_lru")
    offered = queue.offer([item(f"b{n}") for n in range(4, 9)], 0.0)
    assert [s.item.id for s in offered.evicted] == ["b1", "b2", "b3", "b4", "b5"]
    assert len(offered.accepted) == 5 and list(queue.view().head_by_group) == ["t"] and len(queue) == 3


def test_QP_2_a_known_id_never_costs_anybody_his_place() -> None:
    queue = full("b1 b2 b3", "drop_lru")
    offered = queue.offer([QueueItem("b2", Group("t"), priority=0)], 0.0)
    assert (offered.duplicates, offered.evicted, len(queue)) == (("b2",), (), 3)


def test_bounded_books_follow_every_way_out() -> None:
    queue = full("b1 b2 i1", "reject")
    selection = queue.select(anything, 0.0)
    assert selection is not None
    taken = queue.commit(selection, 0.0)
    assert taken is not None and len(queue) == 2
    queue.offer([item("i2")], 0.0)
    queue.restore(taken, 0.0)
    assert len(queue) == 4, "a further attempt is never refused for want of room"
    assert queue.offer([item("b9")], 0.0).rejected[0].denial.reason == "queue_full"
    assert queue.discard("i1", 0.0) is not None and queue.discard("i1", 0.0) is None
    assert [i.id for i in queue.discard_where(lambda i: i.priority == 1, 0.0)] == ["b1", "b2"]
    assert len(queue) == 1 and len(queue.inner) == 1
    assert not queue.straight(item("i7"), 0.0)
    queue.discard("i2", 0.0)
    assert queue.straight(item("i7"), 0.0) and len(queue) == 0


def came_back(name: str) -> QueueItem:
    """An item whose request was accepted before a restart."""
    priority = 0 if name[0] == "i" else 1
    return QueueItem(name, Group("t"), priority=priority, request=Request(name, "t", "m", priority, 0.0, 10, 10, recovered=True))


@pytest.mark.parametrize("policy", ["reject", "drop_lru", "shed_low_priority"])
@pytest.mark.parametrize("by_class", [{}, {0: 2, 1: 1}])
def test_KC_4_no_bound_refuses_a_recovered_request_and_nobody_goes_for_it(policy: str, by_class: dict[int, int | None]) -> None:
    queue = BoundedQueue(FairTaskQueue(), 3, by_class, {0: policy, 1: policy})
    queue.offer([item(name) for name in ("i1", "i2", "b1")], 0.0)
    offered = queue.offer([came_back("b2"), came_back("i3"), came_back("b3"), came_back("b2")], 0.0)
    assert [i.id for i in offered.accepted] == ["b2", "i3", "b3"] and offered.duplicates == ("b2",)
    assert (offered.rejected, offered.evicted, len(queue)) == ((), (), 6)
    newcomer = queue.offer([item("i9")], 0.0)
    assert len(newcomer.rejected) + len(newcomer.evicted) == 1 and len(queue) == 6, "they are counted: who comes next finds it full"
