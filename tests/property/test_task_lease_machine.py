"""Leases and debt of the task stage under random interleavings, with a replay of everything that was called."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from windtunnel.policy.queueing.fair import FairTaskQueue
from windtunnel.policy.queueing.item import Group, QueueItem
from windtunnel.policy.tasks.admission import TaskAdmissionConfig, TaskAdmissionController
from windtunnel.policy.tasks.bounded_borrow import BoundedBorrow
from windtunnel.policy.tasks.resources import TaskLease
from windtunnel.policy.tasks.strict import Strict

LIMITS = {"llm_wait": 4, "request:a": 2}
SHAPES = ((("submission", 1),), (("submission", 1), ("llm_wait", 1)), (("submission", 2), ("llm_wait", 2), ("request:a", 1)), (("gpu", 1),))
GROUPS = (Group("A", 1.0, 2), Group("B", 0.3, 4), Group("C", 4.0, 8), Group("D", 1.0, None))
POLICIES = (Strict(), BoundedBorrow(), BoundedBorrow(default_borrow_ceiling=1), BoundedBorrow(repay_on_release=False),
            BoundedBorrow(strict_share_rounding="floor", dynamic_borrow_reserve_fraction=0.5))


def make(policy: Any) -> tuple[FairTaskQueue, TaskAdmissionController]:
    return FairTaskQueue(), TaskAdmissionController(TaskAdmissionConfig(5, LIMITS, policy))


def dispatch(queue: FairTaskQueue, controller: TaskAdmissionController, now: float) -> list[TaskLease]:
    """The dispatch cycle: select, acquire, commit, until nothing may start."""
    leases = []
    while (selection := queue.select(controller.is_eligible, now)) is not None:
        lease = controller.try_acquire(selection.item, selection.queue_view, now)
        assert isinstance(lease, TaskLease), "what select found eligible is admitted in the same instant"
        assert queue.commit(selection, now) is selection.item
        leases.append(lease)
    return leases


class LeaseMachine(RuleBasedStateMachine):
    @initialize(policy=st.sampled_from(POLICIES))
    def begin(self, policy: Any) -> None:
        self.policy = policy
        self.queue, self.controller = make(policy)
        self.calls: list[tuple[Any, ...]] = []
        self.decisions: list[Any] = []
        self.active: list[TaskLease] = []
        self.gone: list[TaskLease] = []
        self.now, self.n = 0.0, 0

    def call(self, name: str, *args: Any) -> Any:
        self.calls.append((name, *args))
        answer = apply(self.queue, self.controller, name, *args)
        self.decisions.append(answer)
        return answer

    @rule(group=st.sampled_from(GROUPS), shape=st.sampled_from(SHAPES), count=st.integers(1, 3))
    def offer(self, group: Group, shape: Any, count: int) -> None:
        items = tuple(QueueItem(f"i{self.n + k}", group, shape) for k in range(count))
        self.n += count
        self.call("offer", items, self.now)

    @rule()
    def run(self) -> None:
        self.active += self.call("dispatch", self.now)

    @rule(step=st.sampled_from([0.0, 0.5]))
    def tick(self, step: float) -> None:
        self.now += step

    @precondition(lambda self: bool(self.active))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = self.active.pop(data.draw(st.integers(0, len(self.active) - 1)))
        assert self.call("release", lease, self.now).reason == "released"
        self.gone.append(lease)

    @precondition(lambda self: bool(self.active or self.gone))
    @rule(data=st.data(), forge=st.sampled_from(["duplicate", "generation", "item", "amount", "id", "none"]))
    def wrong_release(self, data: st.DataObject, forge: str) -> None:
        lease = data.draw(st.sampled_from(self.active + self.gone))
        if forge == "duplicate" and not self.gone:
            return
        wrong: Any = {
            "duplicate": self.gone[-1] if self.gone else None, "generation": replace(lease, generation="g7"),
            "item": replace(lease, item=replace(lease.item, id="forged")), "amount": replace(lease, resources=(("submission", 99),)),
            "id": replace(lease, lease_id="g0-99999"), "none": None,
        }[forge]
        before = self.state()
        assert self.call("release", wrong, self.now).reason != "released"
        assert self.state() == before, "INV-3: a wrong release changes nothing"

    @rule(n=st.integers(0, 30))
    def discard(self, n: int) -> None:
        self.call("discard", f"i{n}", self.now)

    @rule()
    def reads_change_nothing(self) -> None:
        before = self.state()
        self.queue.select(self.controller.is_eligible, self.now)
        self.controller.explain_blocked(self.queue.view())
        assert self.state() == before

    def state(self) -> Any:
        return self.controller.view().freeze(), self.queue.sequence_version, self.queue.virtual_time, sorted(self.controller.active)

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "queue"):
            return
        view, controller = self.controller.view(), self.controller
        assert sorted(controller.active) == sorted(lease.lease_id for lease in self.active)
        assert controller.acquired == controller.releases["released"] + len(controller.active)
        used: dict[str, int] = {}
        by_group: dict[str, dict[str, int]] = {}
        for lease in self.active:
            for name, amount in lease.resources:
                used[name] = used.get(name, 0) + amount
                held = by_group.setdefault(lease.item.group.key, {})
                held[name] = held.get(name, 0) + amount
        assert view.available == {name: limit - used.get(name, 0) for name, limit in view.limits.items()}
        assert all(left >= 0 for left in view.available.values())
        assert {key: {r: n for r, n in held.items() if n} for key, held in view.leased.items()} == by_group
        for key, debts in view.debt.items():
            for name, debt in debts.items():
                assert 0 <= debt <= by_group.get(key, {}).get(name, 0)
        assert set(view.debt) <= set(by_group)

    def teardown(self) -> None:
        if not hasattr(self, "queue"):
            return
        queue, controller = make(self.policy)
        assert [apply(queue, controller, *call) for call in self.calls] == self.decisions, "INV-9: the same calls, the same answers"


def apply(queue: FairTaskQueue, controller: TaskAdmissionController, name: str, *args: Any) -> Any:
    if name == "offer":
        return queue.offer(*args)
    if name == "dispatch":
        return dispatch(queue, controller, *args)
    if name == "discard":
        return queue.discard(*args)
    return controller.release(*args)


class TestINV1389(LeaseMachine.TestCase):  # type: ignore[name-defined, misc]
    settings = settings(max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
