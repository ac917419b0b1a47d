"""The plain line, and dropping at the deadline around it."""

from __future__ import annotations

import pytest

from windtunnel.errors import ConfigValueError, PolicyClockError, PolicyError
from windtunnel.policy.param import BuildContext
from windtunnel.policy.queueing.deadline_drop import DeadlineDrop, DeadlineDropQueue
from windtunnel.policy.queueing.fifo import Fifo, FifoQueue
from windtunnel.policy.queueing.item import Group, QueueItem, QueueView


def anything(item: QueueItem, view: QueueView) -> bool:
    return True


def item(name: str, deadline: float | None = None, group: str = "t") -> QueueItem:
    return QueueItem(name, Group(group), deadline=deadline)


def test_fifo_order_and_a_blocked_head_blocks_the_line() -> None:
    queue = Fifo().build(BuildContext())
    queue.offer([item("a", group="A"), item("b", group="B"), item("c", group="A")], 0.0)
    assert queue.select(lambda i, v: i.id != "a", 0.0) is None
    selection = queue.select(anything, 0.0)
    assert selection is not None and queue.commit(selection, 0.0) is selection.item
    assert queue.commit(selection, 0.0) is None
    queue.restore(selection.item, 0.0)
    with pytest.raises(PolicyError):
        queue.restore(selection.item, 0.0)
    view = queue.view()
    assert (next(iter(view.head_by_group.values())).id, view.queued_by_group, view.heads_by_shape[()].groups) == ("a", {"A": 2, "B": 1}, 1)
    assert [i.id for i in queue.discard_where(lambda i: i.group.key == "A", 0.0)] == ["a", "c"]
    assert (len(queue), queue.sequence_version) == (1, 5)


def test_fifo_duplicates_and_clock() -> None:
    queue = FifoQueue()
    queue.offer([item("a")], 1.0)
    assert queue.offer([item("a")], 1.0).duplicates == ("a",) and queue.sequence_version == 1
    assert queue.discard("nobody", 1.0) is None
    with pytest.raises(PolicyClockError):
        queue.offer([item("b")], 0.5)


def test_KC_11_fifo_straight_is_offer_select_commit() -> None:
    short, long = FifoQueue(), FifoQueue()
    assert short.straight(item("a"), 1.0)
    long.offer([item("a")], 1.0)
    selection = long.select(anything, 1.0)
    assert selection is not None and long.commit(selection, 1.0) is not None
    assert (short.sequence_version, len(short)) == (long.sequence_version, len(long)) == (2, 0)
    short.offer([item("b")], 1.0)
    assert not short.straight(item("c"), 1.0)


def test_QP_8_nothing_is_dispatched_at_or_after_its_deadline() -> None:
    queue = DeadlineDrop().wrap(FifoQueue(), BuildContext())
    queue.offer([item("a", 2.0), item("b"), item("c", 1.0)], 0.0)
    assert queue.next_deadline() == 1.0
    assert queue.shed(0.999) == ()
    shed = queue.shed(1.0)
    assert [(s.item.id, s.denial.reason, s.denial.retriable) for s in shed] == [("c", "deadline_passed", False)]
    assert [s.item.id for s in queue.shed(5.0)] == ["a"]
    assert (len(queue), queue.next_deadline(), queue.shed(9.0)) == (1, None, ())


@pytest.mark.parametrize(("deadline", "service"), [(10.0, 3.0), (30.0, 29.9999), (1e6 + 0.1, 0.3), (0.7, 0.1)])
def test_QP_8_least_service_and_a_wake_that_finds_something(deadline: float, service: float) -> None:
    queue = DeadlineDropQueue(FifoQueue(), service)
    queue.offer([item("a", deadline)], 0.0)
    at = queue.next_deadline()
    assert at is not None and deadline - service <= at <= deadline
    assert queue.shed(deadline - service - 1e-6) == ()
    assert [s.item.id for s in queue.shed(at)] == ["a"]


def test_QP_8_an_item_that_came_back_has_its_own_deadline() -> None:
    queue = DeadlineDropQueue(FifoQueue())
    queue.offer([item("a", 1.0)], 0.0)
    queue.discard("a", 0.0)
    queue.offer([item("a", 8.0)], 0.0)
    assert queue.shed(2.0) == () and queue.next_deadline() == 8.0
    selection = queue.select(anything, 2.0)
    assert selection is not None and queue.commit(selection, 2.0) is not None
    assert queue.next_deadline() is None
    queue.restore(selection.item, 2.0)
    assert [s.item.id for s in queue.shed(8.0)] == ["a"]


def test_QP_8_straight_refuses_what_would_be_shed() -> None:
    queue = DeadlineDropQueue(FifoQueue(), 2.0)
    assert queue.straight(item("a", 3.0), 1.0)
    assert not queue.straight(item("b", 3.0), 1.5)
    assert queue.straight(item("c"), 1.5)


def test_GN_4_deadline_drop_config() -> None:
    with pytest.raises(ConfigValueError, match="min_service_s"):
        DeadlineDrop(-1.0)
