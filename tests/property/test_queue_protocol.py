"""Every queue keeps the same promises: selecting changes nothing, versions move with every change, nothing is lost or doubled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from windtunnel.events import Request
from windtunnel.policy.param import BuildContext
from windtunnel.policy.queueing.bounded import BoundedQueue
from windtunnel.policy.queueing.classes import Classes
from windtunnel.policy.queueing.codel import CoDelQueue
from windtunnel.policy.queueing.deadline_drop import DeadlineDropQueue
from windtunnel.policy.queueing.dlpm import Dlpm, DlpmQueue
from windtunnel.policy.queueing.drr import Drr, DrrQueue
from windtunnel.policy.queueing.edf import EdfQueue
from windtunnel.policy.queueing.fair import Fair, FairTaskQueue, Queue
from windtunnel.policy.queueing.fifo import FifoQueue
from windtunnel.policy.queueing.item import Group, QueueItem
from windtunnel.policy.queueing.lifo import AdaptiveLifo, AdaptiveLifoQueue
from windtunnel.policy.queueing.vtc import Vtc, VtcQueue

CONTEXT = BuildContext()
QUEUES: dict[str, Callable[[], Queue]] = {
    "fifo": FifoQueue, "fair": FairTaskQueue, "strict": lambda: Classes(mode="strict").build(CONTEXT),
    "weighted": lambda: Classes().build(CONTEXT), "ageing": lambda: Classes(mode="ageing").build(CONTEXT), "edf": EdfQueue,
    "lifo": lambda: AdaptiveLifoQueue(AdaptiveLifo(interval_s=2.0, controlled_delay=True, target_s=1.0)),
    "vtc": VtcQueue, "vtc skipping": lambda: VtcQueue(Vtc(skip_blocked=True, predict=True)),
    "dlpm": lambda: DlpmQueue(Dlpm(quantum_tokens=64.0), matched=lambda r: (r.input_tokens or 0) // 2),
    "drr": DrrQueue, "drr in tenths": lambda: DrrQueue(Drr(quantum_tokens=0.1)),
    "strict fair": lambda: Classes("strict", inside="fair").build(CONTEXT), "weighted fair": lambda: Classes(inside="fair").build(CONTEXT),
    "fair edf": lambda: Fair(inside="edf").build(CONTEXT),
    "codel": lambda: CoDelQueue(FairTaskQueue()), "bounded vtc": lambda: BoundedQueue(VtcQueue(), capacity=6),
    "deadline codel fifo": lambda: DeadlineDropQueue(CoDelQueue(FifoQueue())),
}


def items(now: float) -> st.SearchStrategy[QueueItem]:
    return st.builds(
        lambda n, client, tokens, priority, left: QueueItem(
            f"i{n}", Group(client, {"A": 1.0, "B": 0.25, "é": 3.0}[client]), (), 1.0, priority, now, None if left is None else now + left,
            Request(f"i{n}", client, "m", priority, now, tokens)),
        st.integers(0, 20), st.sampled_from(["A", "B", "é"]), st.sampled_from([0, 7, 500]), st.integers(0, 2),
        st.sampled_from([None, 0.0, 1.0, 5.0]))


class QueueMachine(RuleBasedStateMachine):
    make: Callable[[], Queue]

    @initialize()
    def begin(self) -> None:
        self.queue, self.now = type(self).make(), 0.0
        self.waiting: dict[str, QueueItem] = {}
        self.running: dict[str, QueueItem] = {}
        self.stale: Any = None
        self.entered = self.left = 0

    def gone(self, item: QueueItem) -> None:
        assert self.waiting.pop(item.id) == item
        self.left += 1

    @rule(data=st.data(), step=st.sampled_from([0.0, 0.0, 0.5, 3.0]))
    def offer(self, data: st.DataObject, step: float) -> None:
        self.now += step
        bounded = isinstance(self.queue, BoundedQueue)  # it might evict an item and take another one of that id in the same batch
        batch = data.draw(st.lists(items(self.now), min_size=1, max_size=1 if bounded else 4, unique_by=lambda i: i.id))
        if not bounded:
            batch += batch[: data.draw(st.integers(0, 1))]
        version, before = self.queue.sequence_version, set(self.waiting)
        offered = self.queue.offer(batch, self.now)
        assert len(offered.accepted) + len(offered.duplicates) + len(offered.rejected) == len(batch)
        for item in offered.accepted:
            self.waiting[item.id] = item
            self.entered += 1
        for shed in offered.evicted:
            self.gone(shed.item)
        assert all(d in before or d in {i.id for i in offered.accepted} for d in offered.duplicates)
        assert (self.queue.sequence_version > version) == bool(offered.accepted or offered.evicted)

    @rule(commit=st.booleans(), blocked=st.sets(st.integers(0, 20), max_size=5))
    def select(self, commit: bool, blocked: set[int]) -> None:
        names = {f"i{n}" for n in blocked}
        first = self.queue.select(lambda i, v: i.id not in names, self.now)
        again = self.queue.select(lambda i, v: i.id not in names, self.now)
        assert (first and first.item) == (again and again.item), "selecting changes nothing"
        self.stale = first
        if first is None:
            return
        assert first.item.id in self.waiting and first.item.id not in names
        if commit:
            taken = self.queue.commit(first, self.now)
            assert taken == first.item
            self.gone(taken)
            self.running[taken.id] = taken

    @precondition(lambda self: self.stale is not None and self.stale.sequence_version != self.queue.sequence_version)
    @rule()
    def commit_stale(self) -> None:
        assert self.queue.commit(self.stale, self.now) is None

    @precondition(lambda self: self.running)
    @rule(data=st.data(), tokens=st.integers(0, 300), again=st.booleans())
    def end(self, data: st.DataObject, tokens: int, again: bool) -> None:
        """A running item produces, ends, and perhaps comes back for another attempt."""
        item = self.running.pop(data.draw(st.sampled_from(sorted(self.running))))
        meter = next((q for q in (self.queue, getattr(self.queue, "inner", None)) if hasattr(q, "charge")), None)
        if meter is not None:
            meter.charge(item.id, tokens, self.now)  # type: ignore[union-attr]
            meter.settle(item.id, None if again else tokens + 1, self.now)  # type: ignore[union-attr]
        if again and item.id not in self.waiting:
            self.queue.restore(item, self.now)
            self.waiting[item.id] = item
            self.entered += 1

    @rule(n=st.integers(0, 20))
    def discard(self, n: int) -> None:
        version, known = self.queue.sequence_version, f"i{n}" in self.waiting
        taken = self.queue.discard(f"i{n}", self.now)
        assert (taken is not None) == known
        assert self.queue.sequence_version == version + known
        if taken is not None:
            self.gone(taken)

    @rule(step=st.sampled_from([0.0, 0.2, 2.0]))
    def shed(self, step: float) -> None:
        self.now += step
        for shed in self.queue.shed(self.now):
            self.gone(shed.item)
            assert shed.denial.reason in ("queue_delay", "deadline_passed", "deadline_infeasible")

    @rule()
    def discard_where(self) -> None:
        for item in self.queue.discard_where(lambda i: i.priority == 2, self.now):
            assert item.priority == 2
            self.gone(item)
        assert all(i.priority != 2 for i in self.waiting.values())

    @invariant()
    def conserved(self) -> None:
        if not hasattr(self, "queue"):
            return
        assert len(self.queue) == len(self.waiting) == self.entered - self.left
        view = self.queue.view()
        assert view.queued_total == len(self.waiting)
        assert {i for line in view._current().lines().values() for i in line} == set(self.waiting)


@pytest.mark.parametrize("name", QUEUES)
def test_INV_2_queue_promises(name: str) -> None:
    machine = type("Machine", (QueueMachine,), {"make": staticmethod(QUEUES[name])})
    nightly = settings.get_current_profile_name() == "nightly"
    run_state_machine_as_test(machine, settings=settings() if nightly else settings(max_examples=25, stateful_step_count=30, deadline=None))
    assert machine.make is QUEUES[name]


@pytest.mark.parametrize("name", QUEUES)
def test_INV_2_looking_does_not_change_the_order(name: str) -> None:
    looked_at, left_alone = QUEUES[name](), QUEUES[name]()
    orders = []
    for queue in (looked_at, left_alone):
        queue.offer([QueueItem(f"i{n}", Group("AB"[n % 2]), arrived_at=0.0, priority=n % 2) for n in range(6)], 0.0)
        order = []
        for turn in range(6):
            for blocked in range(6) if queue is looked_at else ():
                queue.select(lambda i, v, b=blocked: i.id != f"i{b}", 0.001 * turn)  # type: ignore[misc]
                queue.view().freeze()
            taken = queue.commit(queue.select(lambda i, v: True, 0.001 * turn), 0.001 * turn)  # type: ignore[arg-type]
            order.append(taken.id if taken else None)
        orders.append(order)
    assert orders[0] == orders[1] and len(set(orders[0])) == 6
