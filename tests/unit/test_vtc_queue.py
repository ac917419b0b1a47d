"""Token fairness: charges, lifts, predictions, and the order they give."""

from __future__ import annotations

import math

import pytest

from windtunnel.errors import ConfigValueError
from windtunnel.events import Request
from windtunnel.policy.queueing.item import Group, QueueItem, QueueView
from windtunnel.policy.queueing.vtc import Vtc, VtcQueue


def anything(item: QueueItem, view: QueueView) -> bool:
    return True


def item(name: str, client: str, tokens_in: int | None, weight: float = 1.0) -> QueueItem:
    return QueueItem(name, Group(client, weight), request=Request(name, client, "m", 0, 0.0, tokens_in))


def serve_one(queue: VtcQueue, outputs: dict[str, int]) -> str:
    selection = queue.select(anything, 0.0)
    assert selection is not None
    taken = queue.commit(selection, 0.0)
    assert taken is selection.item
    queue.settle(taken.id, outputs[taken.group.key], 0.0)
    return taken.id


@pytest.mark.parametrize(("weight", "order", "counters"), [
    (1.0, "A1 B1 B2 B3 B4 B5 A2 B6 B7 B8 A3", (600.0, 320.0)),
    (4.0, "A1 B1 B2 A2 B3 A3 B4 B5 B6 B7 B8", (150.0, 320.0)),
])
def test_VT_3_order_of_the_worked_example(weight: float, order: str, counters: tuple[float, float]) -> None:
    queue = VtcQueue()
    queue.offer([item(f"A{n}", "A", 100, weight) for n in (1, 2, 3)] + [item(f"B{n}", "B", 20) for n in range(1, 9)], 0.0)
    outputs = {"A": 50, "B": 10}
    assert [serve_one(queue, outputs) for _ in range(11)] == order.split()
    assert (queue.counter("A"), queue.counter("B")) == counters
    assert queue.select(anything, 0.0) is None


def test_VT_1_a_blocked_first_client_blocks_all_unless_told_otherwise() -> None:
    for skip, expected in ((False, None), (True, "b")):
        queue = VtcQueue(Vtc(skip_blocked=skip))
        queue.offer([item("a", "A", 10), item("b", "B", 10)], 0.0)
        found = queue.select(lambda i, v: i.id != "a", 0.0)
        assert (None if found is None else found.item.id) == expected


def test_VT_2_lift_to_the_least_that_waits() -> None:
    queue = VtcQueue()
    queue.offer([item("a1", "A", 100), item("a2", "A", 100)], 0.0)
    assert serve_one(queue, {"A": 0}) == "a1"
    assert queue.counter("A") == 100.0
    queue.offer([item("b", "B", 1)], 0.0)
    assert queue.counter("B") == 100.0


def test_VT_2_lift_to_the_one_that_left_last() -> None:
    queue = VtcQueue()
    queue.offer([item("a", "A", 100)], 0.0)
    serve_one(queue, {"A": 0})
    assert len(queue) == 0
    queue.offer([item("b", "B", 1)], 0.0)
    assert queue.counter("B") == 100.0
    queue = VtcQueue()
    queue.offer([item("c", "C", 300)], 0.0)
    serve_one(queue, {"C": 0})
    queue.offer([item("a", "A", 100)], 0.0)
    assert queue.counter("A") == 300.0, "lifted to C, the last to leave"
    queue.offer([item("c2", "C", 1)], 0.0)
    assert queue.counter("C") == 300.0, "a higher counter stays"


def test_VT_2_the_one_that_left_last_counts_with_what_it_was_charged_since() -> None:
    queue = VtcQueue()
    queue.offer([item("a", "A", 100)], 0.0)
    queue.commit(queue.select(anything, 0.0), 0.0)  # type: ignore[arg-type]
    queue.charge("a", 25, 1.0)
    queue.offer([item("b", "B", 1)], 1.0)
    assert queue.counter("A") == queue.counter("B") == 150.0


def test_VT_2_without_lift_an_idle_client_hoards_credit() -> None:
    queue = VtcQueue(Vtc(lift=False))
    queue.offer([item("a1", "A", 1000), item("a2", "A", 1000)], 0.0)
    serve_one(queue, {"A": 0})
    queue.offer([item("b", "B", 1)], 0.0)
    assert queue.counter("B") == 0.0
    assert serve_one(queue, {"B": 0}) == "b"


def test_VT_3_charges_are_idempotent_and_unknown_ids_change_nothing() -> None:
    queue = VtcQueue()
    queue.offer([item("a", "A", 10)], 0.0)
    queue.commit(queue.select(anything, 0.0), 0.0)  # type: ignore[arg-type]
    for tokens in (5, 5, 3):
        queue.charge("a", tokens, 0.0)
    queue.charge("nobody", 99, 0.0)
    assert queue.counter("A") == 20.0
    queue.settle("a", 7, 0.0)
    queue.settle("a", 70, 0.0)
    assert queue.counter("A") == 24.0


def test_VT_5_a_prediction_is_charged_at_commit_and_paid_back() -> None:
    queue = VtcQueue(predict=lambda client: 30.0)
    queue.offer([item("a", "A", 10), item("b", "A", 10)], 0.0)
    queue.commit(queue.select(anything, 0.0), 0.0)  # type: ignore[arg-type]
    assert queue.counter("A") == 70.0
    queue.charge("a", 20, 0.0)
    assert queue.counter("A") == 70.0, "within the prediction"
    queue.charge("a", 40, 0.0)
    assert queue.counter("A") == 90.0, "ten tokens beyond it"
    queue.settle("a", 40, 0.0)
    assert queue.counter("A") == 90.0
    queue.commit(queue.select(anything, 0.0), 0.0)  # type: ignore[arg-type]
    queue.settle("b", None, 0.0)
    assert queue.counter("A") == 100.0, "cancelled: only the prompt was produced"


def test_VT_5_the_default_prediction_is_the_mean_of_the_last_five() -> None:
    queue = VtcQueue(Vtc(predict=True))
    for n, tokens in enumerate((1000, 10, 20, 30, 40, 50)):
        queue.offer([item(f"a{n}", "A", 0)], 0.0)
        serve_one(queue, {"A": tokens})
    before = queue.counter("A")
    queue.offer([item("next", "A", 0)], 0.0)
    queue.commit(queue.select(anything, 0.0), 0.0)  # type: ignore[arg-type]
    assert queue.counter("A") - before == 2 * 30.0


def test_VT_6_profiled_cost() -> None:
    queue = VtcQueue(Vtc(profiled=True))
    for x, y, cost in ((256, 0, 54.9108555), (256, 256, 554.7998104), (64, 64, 50.6664741)):
        assert math.isclose(queue._profile(x, y), cost, rel_tol=1e-7)
    queue.offer([item("a", "A", 256)], 0.0)
    queue.commit(queue.select(anything, 0.0), 0.0)  # type: ignore[arg-type]
    queue.charge("a", 100, 0.0)
    queue.settle("a", 256, 0.0)
    assert math.isclose(queue.counter("A"), 554.7998104, rel_tol=1e-7)


def test_straight_leaves_the_same_state_as_the_long_way() -> None:
    short, long = VtcQueue(), VtcQueue()
    assert short.straight(item("a", "A", 100), 0.0)
    long.offer([item("a", "A", 100)], 0.0)
    long.commit(long.select(anything, 0.0), 0.0)  # type: ignore[arg-type]
    assert short.counter("A") == long.counter("A") == 100.0
    short.offer([item("b", "B", 1)], 0.0)
    assert not short.straight(item("c", "C", 1), 0.0)


def test_unknown_input_counts_as_nominal() -> None:
    queue = VtcQueue()
    queue.offer([item("a", "A", None), QueueItem("b", Group("B"))], 0.0)
    serve_one(queue, {"A": 0, "B": 0})
    assert queue.counter("A") == 1024.0


@pytest.mark.parametrize("bad", [{"w_in": -1.0}, {"w_out": float("nan")}, {"coefficients": (1.0, float("inf"), 0.0, 0.0, 0.0)}])
def test_bad_numbers_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigValueError):
        Vtc(**bad)  # type: ignore[arg-type]
