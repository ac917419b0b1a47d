"""The fair queue against its naive model: a sorted scan that keeps every tag for ever."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from windtunnel.policy.queueing.bounded import BoundedQueue
from windtunnel.policy.queueing.deadline_drop import DeadlineDropQueue
from windtunnel.policy.queueing.fair import FairTaskQueue, Queue
from windtunnel.policy.queueing.fifo import FifoQueue
from windtunnel.policy.queueing.item import Group, HeadStats, QueueItem, QueueView

GROUPS = "ABCD"
WEIGHTS = (0.25, 0.5, 1.0, 2.0, 3.0)
COSTS = (0.5, 1.0, 1.0, 3.0, 10.0)
SHAPES: tuple[tuple[tuple[str, int], ...], ...] = ((), (("gpu", 1),), (("gpu", 2), ("io", 1)))
QUICK = settings(max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))


class Model:
    """Start-time fair queueing as one would write it on a whiteboard: lists and a sort."""

    def __init__(self) -> None:
        self.v, self.version, self.sequence = 0.0, 0, 0
        self.f: dict[str, float] = {}
        self.lines: dict[str, list[QueueItem]] = {}
        self.group: dict[str, Group] = {}
        self.entry: dict[str, tuple[float, int]] = {}

    def ids(self) -> set[str]:
        return {i.id for line in self.lines.values() for i in line}

    def activate(self, key: str, tag: float) -> None:
        self.sequence += 1
        self.entry[key] = (tag, self.sequence)

    def add(self, item: QueueItem, front: bool = False) -> None:
        key = item.group.key
        self.group[key] = item.group
        line = self.lines.setdefault(key, [])
        if not line:
            self.activate(key, self.f.get(key, self.v))
        line.insert(0 if front else len(line), item)

    def offer(self, items: list[QueueItem]) -> list[str]:
        accepted = []
        for item in items:
            if item.id not in self.ids():
                self.add(item)
                accepted.append(item.id)
        self.version += bool(accepted)
        return accepted

    def select(self, blocked: set[str]) -> str | None:
        active = sorted((self.entry[key], key) for key, line in self.lines.items() if line)
        return next((self.lines[key][0].id for _, key in active if self.lines[key][0].id not in blocked), None)

    def commit(self, item_id: str) -> None:
        key = next(k for k, line in self.lines.items() if line and line[0].id == item_id)
        item = self.lines[key].pop(0)
        self.v = max(self.v, self.f.get(key, self.v))
        self.f[key] = self.v + item.cost / self.group[key].weight
        self.version += 1
        if self.lines[key]:
            self.activate(key, self.f[key])

    def discard(self, item_id: str) -> None:
        for line in self.lines.values():
            for item in line:
                if item.id == item_id:
                    line.remove(item)
                    self.version += 1
                    return

    def heads(self) -> dict[Any, HeadStats]:
        counts: dict[Any, dict[float, int]] = {}
        for key, line in self.lines.items():
            if line:
                by_weight = counts.setdefault(line[0].resources, {})
                by_weight[self.group[key].weight] = by_weight.get(self.group[key].weight, 0) + 1
        return {shape: HeadStats(sum(w.values()), w) for shape, w in counts.items()}


items = st.builds(
    lambda n, key, weight, cost, shape: QueueItem(f"i{n}", Group(key, weight), shape, cost),
    st.integers(0, 30), st.sampled_from(GROUPS), st.sampled_from(WEIGHTS), st.sampled_from(COSTS), st.sampled_from(SHAPES),
)


class FairMachine(RuleBasedStateMachine):
    """FQ-10, INV-2, the queue part of AC-2, KC-11."""

    @initialize()
    def begin(self) -> None:
        self.queue, self.model, self.now = FairTaskQueue(), Model(), 0.0
        self.new = self.committed = self.discarded = self.restored = 0
        self.gone: list[QueueItem] = []
        self.stale: Any = None

    @rule(batch=st.lists(items, min_size=1, max_size=5))
    def offer(self, batch: list[QueueItem]) -> None:
        self.now += 1.0
        offered = self.queue.offer(batch, self.now)
        assert [i.id for i in offered.accepted] == self.model.offer(batch)
        assert len(offered.accepted) + len(offered.duplicates) == len(batch)
        self.new += len(offered.accepted)

    @rule(blocked=st.sets(st.integers(0, 30).map(lambda n: f"i{n}"), max_size=12), commit=st.booleans())
    def select(self, blocked: set[str], commit: bool) -> None:
        selection = self.queue.select(lambda item, view: item.id not in blocked, self.now)
        assert (None if selection is None else selection.item.id) == self.model.select(blocked)
        self.stale = selection
        if selection is None or not commit:
            return
        taken = self.queue.commit(selection, self.now)
        assert taken is selection.item
        self.model.commit(taken.id)
        self.committed += 1
        self.gone.append(taken)

    @precondition(lambda self: self.stale is not None and self.stale.sequence_version != self.queue.sequence_version)
    @rule()
    def commit_stale(self) -> None:
        assert self.queue.commit(self.stale, self.now) is None

    @rule(n=st.integers(0, 30))
    def discard(self, n: int) -> None:
        known = f"i{n}" in self.model.ids()
        taken = self.queue.discard(f"i{n}", self.now)
        assert (taken is not None) == known
        self.model.discard(f"i{n}")
        self.discarded += known

    @rule(key=st.sampled_from(GROUPS))
    def discard_group(self, key: str) -> None:
        taken = self.queue.discard_where(lambda item: item.group.key == key, self.now)
        assert [i.id for i in taken] == [i.id for i in self.model.lines.get(key, [])]
        for item in taken:
            self.model.discard(item.id)
        self.discarded += len(taken)

    @precondition(lambda self: bool(self.gone))
    @rule()
    def restore(self) -> None:
        item = self.gone.pop()
        if item.id in self.model.ids():
            return
        self.queue.restore(item, self.now)
        self.model.add(item, front=True)
        self.model.version += 1
        self.restored += 1

    @rule(item=items)
    def straight(self, item: QueueItem) -> None:
        empty = not self.model.ids()
        assert self.queue.straight(item, self.now) == empty
        if empty:
            self.model.offer([item])
            self.model.commit(item.id)
            self.new += 1
            self.committed += 1

    @invariant()
    def same_state(self) -> None:
        if not hasattr(self, "queue"):
            return
        queue, model = self.queue, self.model
        assert (queue.sequence_version, queue.virtual_time) == (model.version, model.v)
        assert {key: queue.finish_tag(key) for key in GROUPS} == {key: model.f.get(key) for key in GROUPS}
        view = queue.view()
        assert len(queue) == view.queued_total == len(model.ids())
        assert {key: head.id for key, head in view.head_by_group.items()} == {key: line[0].id for key, line in model.lines.items() if line}
        assert view.heads_by_shape == model.heads()
        assert self.new + self.restored == self.committed + self.discarded + len(queue)


class TestFQ10EqualsTheNaiveModel(FairMachine.TestCase):  # type: ignore[name-defined, misc]
    settings = QUICK


@settings(max_examples=60, deadline=None)
@given(weights=st.lists(st.floats(0.1, 8.0), min_size=2, max_size=5), data=st.data())
def test_FQ_11_fairness_bound(weights: list[float], data: st.DataObject) -> None:
    """|W_f/w_f - W_g/w_g| <= c_f/w_f + c_g/w_g over every interval in which both are backlogged."""
    queue, per_group = FairTaskQueue(), 25
    costs = {f"g{n}": data.draw(st.lists(st.floats(0.1, 10.0), min_size=per_group, max_size=per_group)) for n in range(len(weights))}
    for n, weight in enumerate(weights):
        queue.offer([QueueItem(f"g{n}-{k}", Group(f"g{n}", weight), cost=c) for k, c in enumerate(costs[f"g{n}"])], 0.0)
    served = {key: [0.0] for key in costs}
    while len(queue.view().queued_by_group) == len(weights):
        selection = queue.select(lambda item, view: True, 0.0)
        assert selection is not None and queue.commit(selection, 0.0) is not None
        for n, key in enumerate(served):
            mine = selection.item.cost / weights[n] if selection.item.group.key == key else 0.0
            served[key].append(served[key][-1] + mine)
    keys = list(served)
    for f in range(len(keys)):
        for g in range(f):
            gap = [a - b for a, b in zip(served[keys[f]], served[keys[g]])]
            bound = max(costs[keys[f]]) / weights[f] + max(costs[keys[g]]) / weights[g]
            assert max(gap) - min(gap) <= bound + 1e-9


def through(queue: Queue, item: QueueItem, now: float) -> None:
    queue.offer([item], now)
    selection = queue.select(lambda i, v: True, now)
    assert selection is not None and queue.commit(selection, now) is item


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.booleans(), items), max_size=40), kind=st.sampled_from(["fair", "fifo", "bounded", "deadline"]))
def test_KC_11_straight_equals_offer_select_commit(steps: list[tuple[bool, QueueItem]], kind: str) -> None:
    """One queue goes straight where it can, its twin never does: same versions, same tags, same order afterwards."""
    make = {"fair": FairTaskQueue, "fifo": FifoQueue, "bounded": lambda: BoundedQueue(FairTaskQueue()),
            "deadline": lambda: BoundedQueue(DeadlineDropQueue(FairTaskQueue(), 1.0))}[kind]
    short, long = make(), make()
    now = 0.0
    for serve, item in steps:
        now += 1.0
        if serve and not len(short):
            assert short.straight(item, now)
            through(long, item, now)
        else:
            assert short.offer([item], now) == long.offer([item], now)
        if not serve and len(short) > 3:
            while (selection := short.select(yes, now)) is not None:
                twin = long.select(yes, now)
                assert twin is not None and twin.item == selection.item
                assert short.commit(selection, now) == long.commit(twin, now)
        assert (short.sequence_version, len(short)) == (long.sequence_version, len(long))
        assert tags(short) == tags(long)


def yes(item: QueueItem, view: QueueView) -> bool:
    return True


def tags(queue: Any) -> Any:
    while not isinstance(queue, FairTaskQueue):
        if isinstance(queue, FifoQueue):
            return None
        queue = queue.inner
    return queue.virtual_time, queue._order.activations, list(queue._idle.items()), [queue.finish_tag(key) for key in GROUPS]


bounded_items = st.builds(lambda n, p: QueueItem(f"i{n}", Group("AB"[n % 2]), priority=p), st.integers(0, 40), st.integers(0, 2))


@settings(max_examples=80, deadline=None)
@given(batches=st.lists(st.lists(bounded_items, max_size=6), max_size=20), capacity=st.integers(1, 6), bound=st.integers(1, 4),
       policies=st.tuples(*[st.sampled_from(["reject", "drop_lru", "shed_low_priority"])] * 3))
def test_AC_2_a_bounded_queue_loses_nobody(batches: list[list[QueueItem]], capacity: int, bound: int, policies: tuple[str, str, str]) -> None:
    queue = BoundedQueue(FairTaskQueue(), capacity, {0: bound, 1: None, 2: bound}, dict(enumerate(policies)))
    inside: Counter[tuple[str, int]] = Counter()  # in one batch an id may come in, be evicted, and come in again
    for batch in batches:
        offered = queue.offer(batch, 0.0)
        assert len(offered.accepted) + len(offered.duplicates) + len(offered.rejected) == len(batch)
        assert len(offered.evicted) <= len(offered.accepted), "at most one victim per newcomer, and only for one who came in"
        inside.update((i.id, i.priority) for i in offered.accepted)
        inside.subtract((v.item.id, v.item.priority) for v in offered.evicted)
        selection = queue.select(yes, 0.0)
        if selection is not None and queue.commit(selection, 0.0) is not None:
            inside.subtract([(selection.item.id, selection.item.priority)])
        assert set(inside.values()) <= {0, 1}
        assert len(queue) == len(queue.inner) == inside.total() <= capacity
        classes = [priority for (_, priority), n in inside.items() if n]
        assert classes.count(0) <= bound and classes.count(2) <= bound
