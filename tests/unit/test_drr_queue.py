"""Deficit round robin: the worked order, a literal model, the bound, and what groups may keep."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windtunnel.effects import Dispatch
from windtunnel.errors import ConfigValueError
from windtunnel.events import Arrived, Finished, ReplicaReady, Request
from windtunnel.lab import registry
from windtunnel.policy.admission.limit import Fixed
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.control import Control
from windtunnel.policy.lane import Lane
from windtunnel.policy.param import BuildContext
from windtunnel.policy.queueing.bounded import BoundedQueue
from windtunnel.policy.queueing.drr import Drr, DrrQueue
from windtunnel.policy.queueing.fair import Queue
from windtunnel.policy.queueing.item import Group, QueueItem, QueueView
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.least import LeastOutstanding


def anything(item: QueueItem, view: QueueView) -> bool:
    return True


def line(key: str, costs: list[float], weight: float = 1.0) -> list[QueueItem]:
    return [QueueItem(f"{key}{n}", Group(key, weight), cost=cost) for n, cost in enumerate(costs, 1)]


def take(queue: DrrQueue, n: int = 10_000) -> list[str]:
    out: list[str] = []
    while len(out) < n and (selection := queue.select(anything, 0.0)) is not None:
        taken = queue.commit(selection, 0.0)
        assert taken is selection.item
        out.append(taken.id)
    return out


def literal(groups: dict[str, tuple[float, list[float]]], quantum: float) -> list[str]:
    """The rule as it is written: visit after visit, round after round."""
    lines = {key: line(key, costs, weight) for key, (weight, costs) in groups.items() if costs}
    deficits, out = dict.fromkeys(lines, 0.0), []
    while lines:
        for key in list(lines):
            deficits[key] += quantum * groups[key][0]
            while key in lines and lines[key][0].cost <= deficits[key]:
                deficits[key] -= lines[key][0].cost
                out.append(lines[key].pop(0).id)
                if not lines[key]:
                    del lines[key]
    return out


def test_VT_9_order_of_the_worked_example() -> None:
    queue = DrrQueue(Drr(quantum_tokens=200.0))
    queue.offer(line("A", [300.0] * 3) + line("B", [100.0] * 6), 0.0)
    assert "".join(name[0] for name in take(queue)) == "BBABBABBA"
    assert queue.deficit("A") == 0.0 and queue.round == 4 and len(queue) == 0


QUARTERS = st.integers(1, 40).map(lambda n: n / 4)
GROUPS = st.dictionaries(st.sampled_from("ABCé"), st.tuples(st.sampled_from([0.25, 0.5, 1.0, 4.0]), st.lists(QUARTERS, max_size=6)))


@given(groups=GROUPS, quantum=st.sampled_from([0.25, 1.0, 3.0, 16.0, 1e6]))
def test_VT_9_order_equals_the_literal_rounds(groups: dict[str, tuple[float, list[float]]], quantum: float) -> None:
    queue = DrrQueue(Drr(quantum_tokens=quantum))
    queue.offer([item for key, (weight, costs) in groups.items() for item in line(key, costs, weight)], 0.0)
    assert take(queue) == literal(groups, quantum)


@given(costs=st.tuples(*[st.lists(QUARTERS, min_size=30, max_size=30)] * 2), weights=st.tuples(*[st.sampled_from([0.5, 1.0, 3.0])] * 2),
       quantum=QUARTERS)
def test_VT_9_two_waiting_groups_differ_by_a_quantum_and_a_cost_at_most(
        costs: tuple[list[float], list[float]], weights: tuple[float, float], quantum: float) -> None:
    queue = DrrQueue(Drr(quantum_tokens=quantum))
    queue.offer(line("A", costs[0], weights[0]) + line("B", costs[1], weights[1]), 0.0)
    served = {"A": 0.0, "B": 0.0}
    bound = quantum + max(max(c) / w for c, w in zip(costs, weights, strict=True))
    for n in count():
        assert abs(served["A"] - served["B"]) <= bound + 1e-9
        if n >= 60 or set(queue.view().queued_by_group) != {"A", "B"}:
            break
        selection = queue.select(anything, 0.0)
        assert selection is not None
        item = selection.item
        queue.commit(selection, 0.0)
        served[item.group.key] += item.cost / item.group.weight
    assert n >= 30 or len(queue) < 31


def test_VT_9_an_emptied_group_forfeits_its_deficit_and_comes_back_last() -> None:
    queue = DrrQueue(Drr(quantum_tokens=10.0))
    queue.offer(line("A", [4.0]) + line("B", [10.0] * 3), 0.0)
    assert take(queue, 1) == ["A1"] and queue.deficit("A") == 0.0
    queue.offer([QueueItem("again", Group("A"), cost=16.0)], 0.0)  # 6 were left of the round: with them it could go in the next one
    assert take(queue) == ["B1", "B2", "again", "B3"], "B was there first in every round"


def test_VT_9_a_group_that_comes_in_a_round_has_its_turn_in_it() -> None:
    queue = DrrQueue(Drr(quantum_tokens=2.0))
    queue.offer(line("A", [1.0] * 4) + line("B", [1.0] * 4), 0.0)
    assert take(queue, 1) == ["A1"]
    queue.offer(line("C", [1.0] * 4), 0.0)
    assert take(queue) == ["A2", "B1", "B2", "C1", "C2", "A3", "A4", "B3", "B4", "C3", "C4"]


def test_VT_9_the_place_follows_a_head_that_changes() -> None:
    queue = DrrQueue(Drr(quantum_tokens=10.0))
    queue.offer(line("A", [50.0, 10.0]) + line("B", [10.0, 10.0]), 0.0)
    assert queue.discard("A1", 0.0) is not None
    assert take(queue, 2) == ["A2", "B1"], "the dear head is gone, its wait with it"
    queue.restore(QueueItem("A2", Group("A"), cost=10.0), 0.0)
    queue.offer([QueueItem("A3", Group("A", 5.0), cost=90.0)], 0.0)
    assert take(queue) == ["A2", "B2", "A3"], "back in the round that is on"
    queue.offer(line("A", [30.0]) + line("B", [20.0]), 0.0)
    queue.offer([QueueItem("heavier", Group("A", 3.0), cost=1.0)], 0.0)  # the newest weight holds for the whole group
    assert take(queue) == ["A1", "heavier", "B1"]


def test_VT_9_a_blocked_head_blocks_only_its_group() -> None:
    queue = DrrQueue(Drr(quantum_tokens=1.0))
    queue.offer(line("A", [1.0, 1.0]) + line("B", [1.0]), 0.0)
    selection = queue.select(lambda item, view: item.group.key != "A", 0.0)
    assert selection is not None and selection.item.id == "B1"
    assert queue.commit(selection, 0.0) is not None and take(queue) == ["A1", "A2"]


def test_VT_9_straight_is_offer_select_and_commit() -> None:
    straight, long = DrrQueue(Drr(quantum_tokens=3.0)), DrrQueue(Drr(quantum_tokens=3.0))
    first, rest = QueueItem("x", Group("A"), cost=7.0), line("A", [4.0, 2.0]) + line("B", [3.0, 3.0])
    assert straight.straight(first, 0.0)
    long.offer([first], 0.0)
    assert take(long) == ["x"]
    for queue in (straight, long):
        queue.offer(rest, 0.0)
        assert not queue.straight(QueueItem("y", Group("A")), 0.0)
    assert straight.sequence_version == long.sequence_version
    assert take(straight) == take(long) == ["B1", "A1", "A2", "B2"]


@pytest.mark.parametrize("cost", [0.0, -1.0, math.nan, math.inf])
def test_VT_9_bad_costs_and_quanta(cost: float) -> None:
    queue = DrrQueue()
    for call in (lambda i: queue.offer([i], 0.0), lambda i: queue.straight(i, 0.0)):
        with pytest.raises(ConfigValueError, match="cost"):
            call(QueueItem("x", Group("A"), cost=cost))
    assert len(queue) == 0 and take(queue) == []
    with pytest.raises(ConfigValueError, match="quantum_tokens"):
        Drr(quantum_tokens=cost)


@pytest.mark.parametrize("wrap", [lambda q: q, BoundedQueue])
def test_VT_9_a_lane_counts_its_requests_in_tokens(wrap: Callable[[Queue], Queue]) -> None:
    """Two tenants ask for as many answers; the one with prompts of three times the tokens has to wait two rounds of three."""
    lane = Lane("p", queue=wrap(DrrQueue(Drr(quantum_tokens=200.0))), admission=RequestAdmission(Fixed(1).build(BuildContext())),
                router=LeastOutstanding(pools=("p",)))
    control, sent = Control(lanes=(lane,), fleet=Fleet()), []
    control.handle(ReplicaReady("r", "p", slots=1), 0.0)
    asked = [Request(f"A{n}", "A", "m", 0, 0.0, 290, max_tokens=10) for n in range(3)]
    asked += [Request(f"B{n}", "B", "m", 0, 0.0, 90, max_tokens=10) for n in range(6)]
    for request in (Request("first", "C", "m", 0, 0.0, 1), *asked):
        sent += [e.request.id for e in control.handle(Arrived(request), 0.0) if type(e) is Dispatch]
    for n in range(9):
        ended = Finished(sent[-1], 1, "r", 1)
        sent += [e.request.id for e in control.handle(ended, 1.0 + n) if type(e) is Dispatch]
    assert "".join(name[0] for name in sent[1:]) == "BBABBABBA" and lane.cost == "tokens"


def test_VT_9_registered_with_a_parameter_and_built_from_it() -> None:
    assert registry.kinds("queue")["drr"] is Drr
    assert Drr(quantum_tokens=64.0).build(BuildContext(tenants={"a": 2.0})).config.quantum_tokens == 64.0
    with pytest.raises(ConfigValueError, match=r"tenants\.a\.weight"):
        Drr().build(BuildContext(tenants={"a": 0.0}))
    huge = DrrQueue(Drr(quantum_tokens=1e-3))
    huge.offer(line("A", [1e12]) + line("B", [1e12]), 0.0)
    assert take(huge) == ["A1", "B1"], "a thousand billion rounds are one division"
