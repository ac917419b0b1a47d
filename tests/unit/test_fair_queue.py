"""The fair queue: order, versions, idempotence, views."""

from __future__ import annotations

import copy

import pytest

from windtunnel.errors import ConfigValueError, PolicyClockError, PolicyError, PolicyStaleViewError
from windtunnel.policy.param import BuildContext
from windtunnel.policy.queueing import fair
from windtunnel.policy.queueing.fair import Fair, FairTaskQueue
from windtunnel.policy.queueing.item import Group, HeadStats, QueueItem, QueueView, Selection


def anything(item: QueueItem, view: QueueView) -> bool:
    return True


def items(name: str, weight: float, cost: float, count: int, first: int = 1) -> list[QueueItem]:
    return [QueueItem(f"{name}{n}", Group(name, weight), cost=cost) for n in range(first, first + count)]


def serve(queue: FairTaskQueue, count: int = 10**6) -> list[str]:
    out: list[str] = []
    while len(out) < count and (selection := queue.select(anything, 0.0)) is not None:
        taken = queue.commit(selection, 0.0)
        assert taken is selection.item
        out.append(taken.id)
    return out


@pytest.mark.parametrize(("groups", "order"), [
    ([("A", 1, 1, 4), ("B", 1, 1, 4)], "A1 B1 A2 B2 A3 B3 A4 B4"),
    ([("A", 2, 1, 6), ("B", 1, 1, 3)], "A1 B1 A2 B2 A3 A4 B3 A5 A6"),
    ([("A", 3, 1, 6), ("B", 1, 1, 2)], "A1 B1 A2 A3 B2 A4 A5 A6"),
    ([("A", 0.25, 1, 3), ("B", 1, 1, 6)], "A1 B1 B2 B3 B4 A2 B5 B6 A3"),
    ([("A", 1, 3, 3), ("B", 1, 1, 6)], "A1 B1 B2 B3 A2 B4 B5 B6 A3"),
])
def test_FQ_order_examples(groups: list[tuple[str, float, float, int]], order: str) -> None:
    queue = FairTaskQueue()
    queue.offer([item for group in groups for item in items(*group)], 0.0)
    assert serve(queue) == order.split()


def test_FQ_1_virtual_time_and_finish_tags() -> None:
    queue = FairTaskQueue()
    queue.offer(items("A", 1, 1, 4) + items("B", 1, 1, 4), 0.0)
    assert queue.finish_tag("A") is None
    serve(queue)
    assert (queue.virtual_time, queue.finish_tag("A"), queue.finish_tag("B"), len(queue)) == (3.0, 4.0, 4.0, 0)


def test_FQ_7_a_group_that_returns_is_first_at_most_once() -> None:
    queue = FairTaskQueue()
    queue.offer(items("A", 1, 1, 2), 0.0)
    order = serve(queue)
    queue.offer(items("B", 1, 1, 4), 0.0)
    order += serve(queue, 3)
    queue.offer(items("A", 1, 1, 3, first=3), 0.0)
    assert order + serve(queue) == ["A1", "A2", "B1", "B2", "B3", "A3", "B4", "A4", "A5"]


def test_FQ_7_tags_of_groups_idle_for_long_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair, "IDLE_GROUPS_KEPT", 2)
    queue = FairTaskQueue()
    for name in "ABA":
        queue.straight(QueueItem("x", Group(name)), 0.0)
    queue.offer(items("C", 1, 1, 1), 0.0)
    serve(queue)
    assert queue.finish_tag("B") is None
    assert (queue.finish_tag("A"), queue.finish_tag("C")) == (2.0, 2.0)


def test_FQ_3_blocked_head_blocks_only_its_group() -> None:
    queue = FairTaskQueue()
    queue.offer([*items("A", 1, 1, 1), *items("B", 1, 1, 1), *items("A", 1, 1, 1, first=2)], 0.0)
    selection = queue.select(lambda item, view: item.id != "A1", 0.0)
    assert selection is not None and selection.item.id == "B1"
    assert queue.sequence_version == 1
    queue.offer(items("C", 1, 1, 1), 0.0)
    assert queue.commit(selection, 0.0) is None
    assert queue.select(lambda item, view: item.id == "A2", 0.0) is None
    assert serve(queue) == ["A1", "B1", "C1", "A2"]


def test_FQ_3_an_exception_from_eligible_leaves_the_queue_as_it_was() -> None:
    queue = FairTaskQueue()
    queue.offer(items("A", 1, 1, 2) + items("B", 1, 1, 1), 0.0)

    def angry(item: QueueItem, view: QueueView) -> bool:
        if item.group.key == "B":
            raise RuntimeError("no")
        return False

    with pytest.raises(RuntimeError):
        queue.select(angry, 0.0)
    assert (queue.sequence_version, serve(queue)) == (1, ["A1", "B1", "A2"])


def test_FQ_2_offer_is_idempotent_by_id_and_the_latest_group_spec_wins() -> None:
    queue = FairTaskQueue()
    first = queue.offer(items("A", 1, 1, 2), 0.0)
    again = queue.offer(items("A", 9, 1, 2), 0.0)
    assert ([i.id for i in first.accepted], again.accepted, again.duplicates) == (["A1", "A2"], (), ("A1", "A2"))
    assert queue.sequence_version == 1
    queue.offer(items("A", 4, 1, 1, first=3), 0.0)
    serve(queue, 1)
    assert queue.finish_tag("A") == 0.25
    assert [i.id for i in queue.offer(items("A", 4, 1, 1), 0.0).accepted] == ["A1"], "an id may come again after its commit"


def test_FQ_4_commit_refuses_what_is_gone_or_not_the_head() -> None:
    queue = FairTaskQueue()
    queue.offer(items("A", 1, 1, 2), 0.0)
    selection = queue.select(anything, 0.0)
    assert selection is not None
    second = Selection(items("A", 1, 1, 1, first=2)[0], queue.view(), queue.sequence_version)
    assert queue.commit(second, 0.0) is None
    stranger = Selection(QueueItem("Z1", Group("Z")), queue.view(), queue.sequence_version)
    assert queue.commit(stranger, 0.0) is None
    assert queue.commit(selection, 0.0) is selection.item
    assert queue.commit(selection, 0.0) is None, "the version has moved on"


def test_FQ_5_what_moves_the_version() -> None:
    queue = FairTaskQueue()
    versions = []
    queue.offer(items("A", 1, 1, 3) + items("B", 1, 1, 1), 0.0)
    versions.append(queue.sequence_version)
    queue.offer(items("A", 1, 1, 3), 0.0), queue.view(), queue.select(anything, 0.0), queue.discard("nobody", 0.0)
    versions.append(queue.sequence_version)
    queue.discard("A2", 0.0)
    versions.append(queue.sequence_version)
    serve(queue, 1)
    versions.append(queue.sequence_version)
    assert [i.id for i in queue.discard_where(lambda i: True, 0.0)] == ["A3", "B1"]
    versions.append(queue.sequence_version)
    assert versions == [1, 1, 2, 3, 5]


@pytest.mark.parametrize("cost", [0.0, -1.0, float("nan")])
def test_FQ_6_costs_and_weights_are_above_zero(cost: float) -> None:
    queue = FairTaskQueue()
    with pytest.raises(ConfigValueError, match="cost: expected a number > 0"):
        queue.offer([QueueItem("a", Group("A"), cost=cost)], 0.0)
    with pytest.raises(ConfigValueError, match="cost"):
        queue.straight(QueueItem("a", Group("A"), cost=cost), 0.0)
    with pytest.raises(ConfigValueError, match="weight"):
        Group("A", cost)
    with pytest.raises(ConfigValueError, match=r"tenants\.A\.weight"):
        Fair().build(BuildContext(tenants={"A": cost}))
    assert (len(queue), queue.sequence_version) == (0, 0)


def test_FQ_8_a_view_reads_until_the_queue_moves_on() -> None:
    queue = FairTaskQueue()
    queue.offer([QueueItem("a1", Group("A", 2.0), (("gpu", 2),)), QueueItem("a2", Group("A", 2.0), (("gpu", 1), ("io", 3))),
                 QueueItem("b1", Group("B"))], 0.0)
    view = queue.view()
    frozen = view.freeze()
    assert (view.queued_total, view.queued_by_group, view.demand_by_resource) == (3, {"A": 2, "B": 1}, {"gpu": 3, "io": 3})
    assert view.queued_demand_by_group == {"A": {"gpu": 3, "io": 3}, "B": {}}
    assert {key: head.id for key, head in view.head_by_group.items()} == {"A": "a1", "B": "b1"}
    serve(queue, 1)
    with pytest.raises(PolicyStaleViewError, match="version 2, this view at 1"):
        _ = view.queued_total
    assert frozen["queued_total"] == 3 and set(frozen["heads_by_shape"]) == {(("gpu", 2),), ()}


def test_FQ_9_heads_are_counted_per_shape_and_weight() -> None:
    queue = FairTaskQueue()
    gpu = (("gpu", 1),)
    queue.offer([QueueItem("a", Group("A", 2.0), gpu), QueueItem("b", Group("B", 2.0), gpu), QueueItem("c", Group("C", 0.5), gpu),
                 QueueItem("a2", Group("A", 2.0))], 0.0)
    assert queue.view().heads_by_shape == {gpu: HeadStats(3, {2.0: 2, 0.5: 1})}
    queue.discard("a", 0.0)
    assert queue.view().heads_by_shape == {gpu: HeadStats(2, {2.0: 1, 0.5: 1}), (): HeadStats(1, {2.0: 1})}
    queue.offer([QueueItem("b2", Group("B", 3.0))], 0.0)
    assert queue.view().heads_by_shape == {gpu: HeadStats(2, {3.0: 1, 0.5: 1}), (): HeadStats(1, {2.0: 1})}
    queue.discard_where(lambda item: True, 0.0)
    assert queue.view().heads_by_shape == {}


def test_FQ_10_cancelling_behind_a_blocked_head_does_not_pile_up() -> None:
    queue = FairTaskQueue()
    queue.offer(items("A", 1, 1, 1), 0.0)
    for n in range(2000):
        queue.offer([QueueItem(f"b{n}", Group("B"), deadline=9.0)], 0.0)
        queue.discard(f"b{n}", 0.0)
    assert len(queue._order._heap) < 200 and len(queue._deadlines._heap) < 200
    assert serve(queue) == ["A1"]


def test_INV_2_select_and_view_change_nothing() -> None:
    queue = FairTaskQueue()
    queue.offer(items("A", 1, 1, 2) + items("B", 2, 1, 2), 0.0)
    twin = copy.deepcopy(queue)
    queue.select(lambda item, view: bool(view.freeze()) and item.id == "B1", 0.0)
    queue.select(lambda item, view: False, 0.0)
    assert (queue.sequence_version, queue.virtual_time, serve(queue)) == (twin.sequence_version, twin.virtual_time, serve(twin))


def test_restored_item_leads_its_group_and_is_never_banked() -> None:
    queue = FairTaskQueue()
    queue.offer(items("A", 1, 1, 3) + items("B", 1, 1, 2), 0.0)
    selection = queue.select(anything, 0.0)
    assert selection is not None
    first = queue.commit(selection, 0.0)
    assert first is not None
    queue.restore(first, 0.0)
    assert serve(queue) == ["B1", "A1", "B2", "A2", "A3"]
    queue.restore(first, 0.0)
    with pytest.raises(PolicyError, match="restored while it is queued"):
        queue.restore(first, 0.0)


def test_GN_1_time_must_not_run_backwards() -> None:
    queue = FairTaskQueue()
    queue.offer(items("A", 1, 1, 1), 2.0)
    for call in (lambda: queue.offer((), 1.0), lambda: queue.select(anything, 1.0), lambda: queue.discard("A1", 1.0)):
        with pytest.raises(PolicyClockError, match=r"now=1\.0 after 2\.0"):
            call()
    assert queue.select(anything, 2.0) is not None


def test_next_deadline_is_the_earliest_that_waits() -> None:
    queue = FairTaskQueue()
    queue.offer([QueueItem(f"a{d}", Group("A"), deadline=float(d)) for d in (5, 3, 9)] + [QueueItem("b", Group("B"))], 0.0)
    seen = [queue.next_deadline()]
    queue.discard("a3", 0.0)
    seen.append(queue.next_deadline())
    queue.discard_where(lambda item: item.group.key == "A", 0.0)
    assert [*seen, queue.next_deadline()] == [3.0, 5.0, None]
