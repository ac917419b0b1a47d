"""Classes, ageing, earliest deadline, adaptive LIFO, CoDel, prefix match: their order and what they drop."""

from __future__ import annotations

import pytest

from windtunnel.errors import ConfigValueError, PolicyError
from windtunnel.events import Request
from windtunnel.policy.param import BuildContext
from windtunnel.policy.queueing.classes import Classes, ageing_queue
from windtunnel.policy.queueing.codel import CoDel, CoDelQueue
from windtunnel.policy.queueing.dlpm import Dlpm, DlpmQueue
from windtunnel.policy.queueing.edf import Edf, EdfQueue
from windtunnel.policy.queueing.fair import Queue
from windtunnel.policy.queueing.fifo import FifoQueue
from windtunnel.policy.queueing.item import Group, QueueItem, QueueView
from windtunnel.policy.queueing.lifo import AdaptiveLifo, AdaptiveLifoQueue


def anything(item: QueueItem, view: QueueView) -> bool:
    return True


def item(name: str, at: float = 0.0, *, priority: int = 0, deadline: float | None = None, client: str = "A", tokens: int = 100) -> QueueItem:
    return QueueItem(name, Group(client), (), 1.0, priority, at, deadline, Request(name, client, "m", priority, at, tokens))


def drain(queue: Queue, now: float) -> list[str]:
    out = []
    while (selection := queue.select(anything, now)) is not None:
        taken = queue.commit(selection, now)
        assert taken is not None
        out.append(taken.id)
    return out


def test_QP_5_strict_classes() -> None:
    queue = Classes(mode="strict").build(BuildContext())
    queue.offer([item("b1", priority=1), item("i1"), item("b2", priority=1), item("i2")], 0.0)
    assert drain(queue, 0.0) == ["i1", "i2", "b1", "b2"]


def test_QP_5_weighted_classes_share_eight_to_one() -> None:
    queue = Classes().build(BuildContext())
    queue.offer([item(f"i{n}") for n in range(40)] + [item(f"b{n}", priority=1) for n in range(40)], 0.0)
    first = drain(queue, 0.0)[:36]
    assert sum(name.startswith("i") for name in first) == 32
    queue.offer([item("again")], 1.0)
    selection = queue.select(anything, 1.0)
    assert selection is not None and selection.item.group.key == "A", "items come out as they went in"
    assert queue.straight(item("s"), 1.0) is False


def test_QP_6_ageing_by_a_key_that_time_does_not_reorder() -> None:
    queue = ageing_queue(30.0)
    queue.offer([item("batch", 0.0, priority=1)], 0.0)
    queue.offer([item("late", 31.0)], 31.0)
    queue.offer([item("early", 29.0)], 31.0)
    queue.offer([item("level", 30.0)], 31.0)
    assert drain(queue, 31.0) == ["early", "batch", "level", "late"]


def test_QP_7_edf_order_and_refusals() -> None:
    queue = EdfQueue(Edf(service_s=1.0))
    offered = queue.offer([item("none"), item("late", deadline=9.0), item("soon", deadline=3.0), item("past", deadline=0.0)], 0.0)
    assert [s.denial.reason for s in offered.rejected] == ["deadline_passed"]
    assert not offered.rejected[0].denial.retriable
    assert drain(queue, 0.0) == ["soon", "late", "none"]
    queue.completion_rate = lambda now: 2.0
    queue.offer([item(f"q{n}", deadline=2.0) for n in range(2)] + [item("far", deadline=50.0)], 0.0)
    refused = queue.offer([item("q9", deadline=1.9)], 0.0).rejected
    assert not refused, "nobody is due before it: start 0, end 1"
    refused = queue.offer([item("x", deadline=2.0)], 0.0).rejected
    assert [s.denial.reason for s in refused] == ["deadline_infeasible"], "three ahead at 2/s, then 1 s of service: 2.5 > 2"
    assert queue.predicted_start_s(item("far", deadline=50.0), 0.0) == 1.5


def test_QP_7_edf_sheds_what_can_no_longer_be_in_time() -> None:
    queue = EdfQueue(Edf(min_service_s=1.0))
    queue.offer([item("a", deadline=2.0), item("b", deadline=5.0)], 0.0)
    assert queue.shed(1.0) == ()
    assert [(s.item.id, s.denial.reason) for s in queue.shed(1.5)] == [("a", "deadline_infeasible")]
    assert [(s.item.id, s.denial.reason) for s in queue.shed(5.0)] == [("b", "deadline_passed")]
    assert len(queue) == 0 and queue.next_deadline() is None


def test_QP_9_newest_first_while_backlogged_until_empty_once() -> None:
    queue = AdaptiveLifoQueue(AdaptiveLifo(interval_s=1.0))
    queue.offer([item("a")], 0.0)
    queue.offer([item("b", 0.5)], 0.5)
    queue.offer([item("c", 0.9)], 0.9)
    selection = queue.select(anything, 0.99)
    assert selection is not None and selection.item.id == "a"
    assert drain(queue, 1.0) == ["c", "b", "a"]
    queue.offer([item("d", 1.0), item("e", 1.0)], 1.0)
    assert drain(queue, 1.5) == ["d", "e"], "it was empty: first in, first out again"


def test_QP_9_controlled_delay_sheds_the_oldest() -> None:
    queue = AdaptiveLifoQueue(AdaptiveLifo(interval_s=1.0, controlled_delay=True, target_s=0.1))
    queue.offer([item("a")], 0.0)
    assert queue.shed(0.9) == ()
    queue.offer([item("b", 0.95)], 0.95)
    assert [s.item.id for s in queue.shed(1.0)] == ["a"]
    assert [s.denial.reason for s in queue.shed(1.06)] == ["queue_delay"]
    assert len(queue) == 0


def test_QP_10_OR_8_codel_drop_times() -> None:
    queue = CoDelQueue(FifoQueue(), CoDel())
    queue.offer([item(f"r{n}", 0.0) for n in range(40)], 0.0)
    drops = []
    for tick in range(10_000):
        now = tick * 1e-4
        drops += [now] * len(queue.shed(now))
        if len(drops) >= 10:
            break
    expected = [0, .1, .17071, .22845, .27845, .32317, .36399, .40179, .43714, .47048]
    assert [d - drops[0] for d in drops] == pytest.approx(expected, abs=2e-4)


def test_QP_10_codel_forgets_when_the_head_is_fresh() -> None:
    queue = CoDelQueue(FifoQueue(), CoDel(target_s=0.1, interval_s=1.0))
    queue.offer([item("old", 0.0)], 0.0)
    assert queue.shed(0.5) == () and queue.shed(1.4) == ()
    queue.discard("old", 1.4)
    queue.offer([item("fresh", 1.4)], 1.4)
    assert queue.shed(1.45) == (), "below target: the clock starts anew"
    assert queue.shed(1.6) == () and queue.shed(2.59) == ()
    assert [s.item.id for s in queue.shed(2.6)] == ["fresh"]
    assert queue.shed(3.0) == (), "empty"


def test_VT_8_longest_prefix_first_within_the_deficit() -> None:
    matched = {"a1": 0, "a2": 80, "b1": 50, "b2": 10}
    queue = DlpmQueue(Dlpm(quantum_tokens=100.0), matched=lambda r: matched[r.id])
    queue.offer([item("a1", client="A"), item("a2", client="A"), item("b1", client="B"), item("b2", client="B")], 0.0)
    assert drain(queue, 0.0) == ["a2", "b1", "b2", "a1"]
    assert queue.deficits == {"A": 100 - 20 - 100, "B": 100 - 50 - 90}


def test_VT_8_a_greedy_client_waits_for_its_deficit() -> None:
    queue = DlpmQueue(Dlpm(quantum_tokens=150.0), matched=lambda r: 99 if r.tenant == "A" else 0)
    queue.offer([item(f"a{n}", client="A") for n in range(3)] + [item("b1", client="B"), item("b2", client="B")], 0.0)
    taken = queue.commit(queue.select(anything, 0.0), 0.0)  # type: ignore[arg-type]
    assert taken is not None and taken.id == "a0"
    queue.charge("a0", 75, 0.0)
    assert queue.deficits == {"A": 150 - 1 - 150, "B": 150}
    queue.charge("a0", 80, 0.0)
    assert queue.deficits["A"] < 0
    selection = queue.select(anything, 0.0)
    assert selection is not None and selection.item.id == "b1", "its prefix matches less, but A is out of deficit"
    assert drain(queue, 0.0) == ["b1", "b2", "a1", "a2"], "with B gone the quanta come round again"


def test_restored_items_keep_their_place_among_equals() -> None:
    for queue in (Classes(mode="strict").build(BuildContext()), EdfQueue(), Classes(mode="ageing").build(BuildContext())):
        queue.offer([item("a"), item("b"), item("c")], 0.0)
        first = queue.commit(queue.select(anything, 0.0), 0.0)  # type: ignore[arg-type]
        assert first is not None
        queue.restore(first, 1.0)
        with pytest.raises(PolicyError):
            queue.restore(first, 1.0)
        assert drain(queue, 1.0) == ["a", "b", "c"]


@pytest.mark.parametrize("make", [
    lambda: Edf(min_service_s=-1.0), lambda: AdaptiveLifo(interval_s=0.0), lambda: CoDel(target_s=float("nan")),
    lambda: Classes(weights={0: 0.0}), lambda: Classes(mode="random"), lambda: Dlpm(quantum_tokens=0.0), lambda: Classes(promote_after_s=0.0),
])
def test_bad_numbers_are_refused(make: object) -> None:
    with pytest.raises(ConfigValueError):
        make()  # type: ignore[operator]
