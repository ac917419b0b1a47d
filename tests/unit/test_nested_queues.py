"""Queues inside queues: classes in which tenants share, tenants whose own requests go by deadline; cost in tokens."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from windtunnel.errors import ConfigValueError, PolicyError
from windtunnel.events import Arrived, Finished, ReplicaReady, Request
from windtunnel.lab.scenario import Scenario
from windtunnel.policy.admission.limit import Fixed
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.control import Control
from windtunnel.policy.lane import Lane
from windtunnel.policy.param import BuildContext
from windtunnel.policy.queueing.classes import Classes
from windtunnel.policy.queueing.fair import Fair, FairTaskQueue, Queue
from windtunnel.policy.queueing.fair_edf import FairEdfQueue
from windtunnel.policy.queueing.item import Group, HeadStats, QueueItem, QueueView
from windtunnel.policy.queueing.nested import SharedClasses, StrictClasses
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.least import LeastOutstanding

CTX = BuildContext()


def item(name: str, tenant: str = "t", priority: int = 0, deadline: float | None = None, **more: Any) -> QueueItem:
    request, group = Request(name, tenant, "m", priority, 0.0, 10), more.pop("group", Group(tenant))
    return QueueItem(name, group, priority=priority, deadline=deadline, request=request, **more)


def anything(item: QueueItem, view: QueueView) -> bool:
    return True


def drain(queue: Queue, now: float = 0.0, count: int = 10**6) -> list[str]:
    out: list[str] = []
    while len(out) < count and (selection := queue.select(anything, now)) is not None:
        taken = queue.commit(selection, now)
        assert taken is not None
        out.append(taken.id)
    return out


# -- classes --------------------------------------------------------------------------------------------------------------------------


def test_KC_3_QP_5_tenants_share_within_a_class() -> None:
    queue = Classes("strict", inside="fair").build(CTX)
    queue.offer([*(item(f"b{n}", "loud", 1) for n in range(2)), *(item(f"i{n}", "loud") for n in range(4)), item("q1", "quiet"), item("q2", "quiet"),
                 item("bq", "quiet", 1)], 0.0)
    assert drain(queue) == ["i0", "q1", "i1", "q2", "i2", "i3", "b0", "bq", "b1"]
    plain = Classes("strict").build(CTX)
    plain.offer([item("i1", "loud"), item("i2", "loud"), item("q1", "quiet")], 0.0)
    assert drain(plain) == ["i1", "i2", "q1"], "in order of arrival unless told otherwise"


def test_QP_5_a_class_of_which_nothing_may_go_does_not_hold_up_the_next() -> None:
    queue = Classes("strict", inside="fair").build(CTX)
    queue.offer([item("i1", "a"), item("i2", "b"), item("b1", "a", 1)], 0.0)
    for blocked, expected in (({"i1"}, "i2"), ({"i1", "i2"}, "b1"), ({"i1", "i2", "b1"}, None)):
        found = queue.select(lambda i, v, b=blocked: i.id not in b, 0.0)  # type: ignore[misc]
        assert (None if found is None else found.item.id) == expected
    found = queue.select(lambda i, v: i.priority == 1, 0.0)
    assert found is not None and queue.commit(found, 0.0) is found.item and queue.commit(found, 0.0) is None, "the version has moved on"


def test_QP_5_weighted_classes_share_eight_to_one_and_tenants_within_them() -> None:
    queue = Classes(inside="fair").build(CTX)
    queue.offer([item(f"i{t}{n}", t) for t in "xy" for n in range(20)] + [item(f"b{n}", "x", 1) for n in range(40)], 0.0)
    first = drain(queue, count=36)
    assert sum(name.startswith("i") for name in first) == 32
    assert abs(sum(name.startswith("ix") for name in first) - 16) <= 1, "half of them each"
    assert sum(name.startswith("b") for name in drain(queue)) == 36


@pytest.mark.parametrize("weights", [{0: 8.0, 1: 1.0}, {0: 0.25, 1: 1.0, 2: 3.0}, {}])
def test_QP_5_shares_are_those_of_the_fair_queue_over_classes(weights: dict[int, float]) -> None:
    """With one tenant the order is that of a fair queue whose groups are the classes, through arrivals, discards and restores."""
    rng = Random(3)
    for _ in range(20):
        nested, model, now, n = SharedClasses(FairTaskQueue, weights), FairTaskQueue(), 0.0, 0
        for _ in range(120):
            now += rng.choice([0.0, 0.5])
            move = rng.random()
            if move < 0.55:
                n += 1
                one = item(f"i{n}", priority=rng.randrange(3), cost=rng.choice([1.0, 2.5]))
                nested.offer([one], now)
                model.offer([QueueItem(one.id, Group(str(one.priority), weights.get(one.priority, 1.0)), cost=one.cost)], now)
            elif move < 0.65:
                known = f"i{rng.randrange(n + 1)}"
                assert (nested.discard(known, now) is None) == (model.discard(known, now) is None)
            else:
                ours, theirs = nested.select(anything, now), model.select(anything, now)
                assert (ours and ours.item.id) == (theirs and theirs.item.id)
                if ours is not None and theirs is not None:
                    taken, other = nested.commit(ours, now), model.commit(theirs, now)
                    if taken is not None and other is not None and rng.random() < 0.2:
                        nested.restore(taken, now)
                        model.restore(other, now)
            assert len(nested) == len(model)


def test_straight_leaves_the_state_of_the_long_way() -> None:
    for make in (lambda: StrictClasses(FairTaskQueue), lambda: SharedClasses(FairTaskQueue, {0: 8.0, 1: 1.0}), FairEdfQueue):
        short, long = make(), make()
        assert short.straight(item("a", "x", 1, cost=3.0), 1.0)
        long.offer([item("a", "x", 1, cost=3.0)], 1.0)
        assert drain(long, 1.0) == ["a"] and short.sequence_version == long.sequence_version == 2
        rest = [item(f"{c}{n}", c, p) for n in range(3) for c, p in (("x", 1), ("y", 1), ("z", 0))]
        for queue in (short, long):
            queue.offer(rest, 1.0)
        assert not short.straight(item("late"), 1.0)
        assert drain(short, 1.0) == drain(long, 1.0)


def test_classes_look_like_one_queue() -> None:
    queue, gpu = Classes("strict", inside="fair").build(CTX), (("gpu", 1),)
    queue.offer([item("b", "x", 1, 9.0, resources=gpu), item("i", "x", resources=gpu), item("j", "y")], 0.0)
    view = queue.view()
    assert view.queued_total == 3 and view.queued_by_group == {"x": 2, "y": 1} and view.head_by_group["x"].id == "i"
    assert view.heads_by_shape == {gpu: HeadStats(2, {1.0: 2}), (): HeadStats(1, {1.0: 1})}
    assert queue.next_deadline() == 9.0
    assert queue.offer([item("b", "y", 0)], 0.0).duplicates == ("b",), "an id is one, in whatever class"
    taken = queue.discard("i", 0.0)
    assert taken is not None and queue.discard("i", 0.0) is None
    queue.restore(taken, 0.0)
    with pytest.raises(PolicyError):
        queue.restore(taken, 0.0)
    assert {i.id for i in queue.discard_where(lambda i: i.priority == 0, 0.0)} == {"i", "j"} and drain(queue) == ["b"]


# -- fair between tenants, by deadline within one -------------------------------------------------------------------------------------


def test_a_tenants_own_requests_go_by_deadline_and_shares_stay() -> None:
    queue = Fair(inside="edf").build(CTX)
    queue.offer([item("a-late", "A", deadline=90.0), item("a-none", "A"), item("b1", "B"), item("a-soon", "A", deadline=5.0), item("b2", "B"),
                 item("a-late2", "A", deadline=90.0), item("b-soon", "B", deadline=1.0)], 0.0)
    assert queue.view().head_by_group["A"].id == "a-soon"
    assert list(queue.view()._current().lines()["A"]) == ["a-soon", "a-late", "a-late2", "a-none"]
    assert drain(queue) == ["a-soon", "b-soon", "a-late", "b1", "a-late2", "b2", "a-none"]


def test_a_restored_request_is_the_first_among_equals_only() -> None:
    queue = FairEdfQueue()
    queue.offer([item("x", deadline=5.0), item("y", deadline=5.0), item("z")], 0.0)
    first = queue.commit(queue.select(anything, 0.0), 0.0)  # type: ignore[arg-type]
    assert first is not None and first.id == "x"
    queue.offer([item("soon", deadline=1.0)], 0.0)
    queue.restore(first, 0.0)
    assert drain(queue) == ["soon", "x", "y", "z"]


def test_selection_of_a_head_that_was_overtaken_is_refused() -> None:
    queue = FairEdfQueue()
    queue.offer([item("x", deadline=5.0)], 0.0)
    selection = queue.select(anything, 0.0)
    queue.offer([item("soon", deadline=1.0)], 0.0)
    assert selection is not None and queue.commit(selection, 0.0) is None and drain(queue) == ["soon", "x"]


def test_heads_are_counted_as_deadlines_move_them() -> None:
    queue, gpu = FairEdfQueue(), (("gpu", 1),)
    queue.offer([item("plain", "A", group=Group("A", 2.0))], 0.0)
    queue.offer([item("soon", "A", deadline=1.0, group=Group("A", 3.0), resources=gpu)], 0.0)
    assert queue.view().heads_by_shape == {gpu: HeadStats(1, {3.0: 1})}
    queue.discard("soon", 0.0)
    assert queue.view().heads_by_shape == {(): HeadStats(1, {3.0: 1})}
    queue.discard("plain", 0.0)
    assert queue.view().heads_by_shape == {} and not queue._lines and not queue._numbers


def test_a_thousand_cancelled_behind_a_blocked_head_do_not_pile_up() -> None:
    queue = FairEdfQueue()
    queue.offer([item("head", deadline=1.0)], 0.0)
    for n in range(2000):
        queue.offer([item(f"x{n}", deadline=9.0)], 0.0)
        queue.discard(f"x{n}", 0.0)
    assert len(queue._lines["t"]) < 200 and drain(queue) == ["head"]


@pytest.mark.parametrize("bad", [lambda: Fair(cost="money"), lambda: Fair(inside="lifo"), lambda: Classes(inside="edf")])  # type: ignore[arg-type]
def test_GN_4_bad_words_are_refused(bad: Any) -> None:
    with pytest.raises(ConfigValueError, match="expected one of"):
        bad()


# -- cost in tokens -------------------------------------------------------------------------------------------------------------------


def test_KC_3_RT_13_a_cost_in_tokens_is_what_the_ledger_would_charge() -> None:
    """Input, plus the mean of the pool's outputs or the request's own bound, whichever is smaller; nominal before the first."""
    queue = Fair(cost="tokens").build(CTX)
    lane = Lane("p", queue=queue, admission=RequestAdmission(Fixed(1).build(CTX)), router=LeastOutstanding(pools=("p",)))
    control = Control(lanes=(lane,), fleet=Fleet())
    control.handle(ReplicaReady("r", "p", slots=1), 0.0)

    def cost(n: int, **more: Any) -> float:
        control.handle(Arrived(Request(f"r{n}", "t", "m", 0, float(n), **more)), float(n))
        return control.flow.open[f"r{n}"].item.cost

    assert lane.cost == "tokens"
    assert [cost(1, input_tokens=100, max_tokens=4096), cost(2, input_tokens=100, max_tokens=10), cost(3)] == [356.0, 110.0, 356.0], \
        "256 before any answer; 1024 before any known prompt, 100 since the first was sent"
    control.handle(Finished("r1", 1, "r", 20), 4.0)
    assert [cost(5, input_tokens=100, max_tokens=4096), cost(6, input_tokens=0, max_tokens=0)] == [120.0, 1.0]
    assert Lane("q", queue=FairTaskQueue(), admission=RequestAdmission(Fixed(1).build(CTX)), router=LeastOutstanding()).cost_of(
        Request("x", "t", "m", 0, 0.0, 500)) == 1.0


# -- in a scenario --------------------------------------------------------------------------------------------------------------------

SMALL = """
windtunnel: 1
name: small
duration_s: 30
seed: 3
fleet: {pools: {chat: {model: Llama-3.1-8B, gpu: h100_sxm, replicas: 1, engine: {max_num_seqs: 2}}}}
source: {kind: arrivals, rate_rps: 4, input_tokens: 400, output_tokens: {kind: uniform, lo: 20, hi: 120}, tenants: {a: 1, b: 1}}
control: {preset: batch}
"""


def test_RG_1_preset_batch_is_fair_by_tokens_with_deadlines_inside_and_no_watchdogs() -> None:
    scenario = Scenario.load(SMALL)
    control = scenario.build_control()
    lane = control.lanes[0]
    assert isinstance(lane.queue, FairEdfQueue) and lane.cost == "tokens" and lane.admission.breaker is None
    settings = control.settings
    assert (settings.first_token_s, settings.idle_s, settings.wall_s, settings.cancel_late, settings.attempts) == (None, None, None, False, 1)
    run = scenario.run(check=True)
    assert (run.requests["outcome"] == "success").sum() > 60 and not (run.requests["reason"] == "queue_full").any(), "batch work waits"
    with_bound = scenario.with_({"control.queue.bounded": {"capacity": 3}}).run()
    assert set(with_bound.requests["reason"].dropna()) & {"queue_full", "queue_full_drop_lru"}


@pytest.mark.parametrize("changes", [{"control.queue": {"kind": "classes", "mode": "strict", "inside": "fair"}},
                                     {"control.queue": {"kind": "classes", "inside": "fair"}}, {"control.queue": {"kind": "fair", "cost": "tokens"}}])
def test_KC_3_the_same_by_name(changes: dict[str, Any]) -> None:
    run = Scenario.load(SMALL).with_(changes).run(check=True)
    assert (run.requests["outcome"] == "success").sum() > 60
