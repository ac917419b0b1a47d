"""Task admission: metadata, resolver, strict and bounded-borrow sharing, leases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from windtunnel.errors import ConfigSchedulingError, ConfigValueError, PolicyClockError
from windtunnel.policy.admission.denial import Denial
from windtunnel.policy.queueing.fair import FairTaskQueue
from windtunnel.policy.queueing.fifo import FifoQueue
from windtunnel.policy.queueing.item import Group, QueueItem
from windtunnel.policy.tasks.admission import RELEASED_KEPT, TaskAdmissionConfig, TaskAdmissionController
from windtunnel.policy.tasks.bounded_borrow import BoundedBorrow
from windtunnel.policy.tasks.decision import NO_CHANGE, PolicyDecision
from windtunnel.policy.tasks.resolve import Generator, Resolver
from windtunnel.policy.tasks.resources import TaskLease
from windtunnel.policy.tasks.strict import Strict
from windtunnel.policy.tasks.task import SchedulableTask, SchedulingMetadata, Task, task_id

BOTH = (("submission", 1), ("llm_wait", 1))
ONLY = (("submission", 1),)


def controller(limit: int = 8, **policy: Any) -> TaskAdmissionController:
    return TaskAdmissionController(TaskAdmissionConfig(limit, {"llm_wait": limit}, BoundedBorrow(**policy)))


def item(name: str, group: Group, resources: Any = BOTH) -> QueueItem:
    return QueueItem(name, group, resources)


def queue_of(*items: QueueItem) -> FairTaskQueue:
    queue = FairTaskQueue()
    queue.offer(items, 0.0)
    return queue


def take(ctl: TaskAdmissionController, one: QueueItem, queue: Any = None) -> TaskLease:
    lease = ctl.try_acquire(one, (queue or FairTaskQueue()).view(), 0.0)
    assert isinstance(lease, TaskLease), lease
    return lease


def denied(ctl: TaskAdmissionController, one: QueueItem, queue: Any) -> str:
    denial = ctl.try_acquire(one, queue.view(), 0.0)
    assert isinstance(denial, Denial) and denial.stage == "task"
    return denial.reason


# -- tasks and metadata -----------------------------------------------------------------------------------------------------------


def test_TA_1_task_ids() -> None:
    assert task_id(Task("answer", 0, 3, "cell")) == "task-0ffe98e13bbbee0d"
    assert task_id(Task("seed", 1, None, "from_scratch")) == "task-ded153b43246dba6"
    assert task_id(Task("größe 🌊", 0, 0, "cell")) != task_id(Task("größe", 0, 0, "cell"))
    assert Task("a", 0, 1, "cell") == Task("a", 0, 1, "cell") and len({Task("a", 0, 1, "cell"), Task("a", 0, 1, "cell")}) == 1


@pytest.mark.parametrize(("code", "fields"), [
    ("invalid_kind", {"kind": "gpu"}),
    ("invalid_kind", {"kind": ["model"]}),
    ("invalid_identity", {"identity": ("model", "x")}),
    ("invalid_identity", {"kind": "model", "identity": ("model", "p", "m")}),
    ("invalid_identity", {"kind": "model", "identity": ("model", "p", "", "chat")}),
    ("invalid_identity", {"identity": ["local", "default"]}),
    ("invalid_weight", {"weight": 0.0}), ("invalid_weight", {"weight": float("nan")}), ("invalid_weight", {"weight": True}),
])
def test_TA_2_bad_metadata(code: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigSchedulingError) as caught:
        SchedulingMetadata(**fields)
    assert caught.value.code == code


def test_TA_2_fallback_is_taken_and_recorded() -> None:
    bad = {"kind": "model", "identity": ("model", "p", "m"), "weight": 2.0}
    resolver = Resolver({"q": Generator(("q",), bad, fallback=SchedulingMetadata())})
    assert resolver.fallbacks["q"].code == "invalid_identity" and resolver.task(Task("q", 0, 0, "cell")).resources == {"submission": 1}
    with pytest.raises(ConfigSchedulingError, match=r"^q: "):
        Resolver({"q": Generator(("q",), bad)})


@pytest.mark.parametrize("resources", [{"": 1}, {"a": 0}, {"a": True}, {"a": 1.0}, {}, {3: 1}])
def test_TA_3_bad_resources(resources: Any) -> None:
    with pytest.raises(ConfigValueError):
        SchedulableTask("t", Task("a", 0, 0, "cell"), Group("g"), resources)


def model(name: str, weight: float, kind: str = "chat", provider: str = "p") -> SchedulingMetadata:
    return SchedulingMetadata("model", ("model", provider, name, kind), weight)


def test_TA_4_resolver() -> None:
    resolver = Resolver({
        "seed": Generator(("seed",)), "q": Generator(("q", "a"), model("big", 4.0)), "j": Generator(("j",), model("big", 2.5)),
        "x": Generator(("x",), model("odd", 0.3, "tokens")),
        "c": Generator(("c",), SchedulingMetadata("custom_model", ("custom_model", "n", "m", "1"))),
    }, in_flight_cap=6)
    q = resolver.task(Task("q", 0, 0, "cell"))
    assert list(q.resources.items()) == [("submission", 1), ("llm_wait", 1), ("request:p/big", 1)] and q.request_resource_key == "request:p/big"
    assert (q.group.key, q.group.weight, q.group.admitted_limit) == ("model/p/big/chat/q/a", 4.0, 6), "2 x 4 is clamped to the cap"
    assert resolver.group("j").admitted_limit == 5 and resolver.group("x").admitted_limit == 1
    assert resolver.task(Task("x", 0, 0, "cell")).resources == {"submission": 1, "llm_wait": 1}, "its kind is no request"
    seed = resolver.task(Task("seed", 0, None, "from_scratch"))
    assert dict(seed.resources) == {"submission": 1} and seed.group.admitted_limit is None and seed.request_resource_key is None
    assert resolver.limits == {"llm_wait": 6, "request:p/big": 2}, "smallest weight of the endpoint, floored"
    assert Resolver({"q": Generator(("q",), model("big", 4.0))}, request_limits={"request:p/big": 9}).limits["request:p/big"] == 9
    assert Resolver({"s": Generator(("s",))}).limits == {}
    slashes = [model("m/x", 1.0), model("m", 1.0, provider="p/x")]
    assert len({Resolver({"q": Generator(("q",), m)}).group("q").key for m in slashes}) == 2


@pytest.mark.parametrize("fields", [{"submission_capacity": 0}, {"resource_limits": {"llm_wait": 0}}, {"resource_limits": {"submission": 4}},
                                    {"submission_capacity": True}, {"resource_limits": {"x": 2.0}}])
def test_TA_5_bad_config(fields: Any) -> None:
    with pytest.raises(ConfigValueError):
        TaskAdmissionConfig(**fields)


def test_TA_5_defaults() -> None:
    config = TaskAdmissionConfig()
    assert config.limits == {"submission": 1024} and isinstance(config.policy, BoundedBorrow)


@pytest.mark.parametrize("fields", [
    {"default_borrow_ceiling": -1}, {"dynamic_borrow_reserve_fraction": 1.5}, {"dynamic_borrow_reserve_fraction": float("nan")},
    {"dynamic_borrow_max_reserved_slots": 0}, {"strict_share_rounding": "near"}, {"repay_on_release": 1},
    {"borrow_ceiling_by_group_resource": {("g", "r"): -1}},
])
def test_GN_4_bad_policy_config(fields: Any) -> None:
    with pytest.raises(ConfigValueError):
        BoundedBorrow(**fields)


# -- capacity ---------------------------------------------------------------------------------------------------------------------


def test_TA_6_capacity_first_and_unknown_resources_have_none() -> None:
    ctl, group = controller(2), Group("g")
    first, second = take(ctl, item("a", group)), take(ctl, item("b", group))
    queue = queue_of(item("c", group))
    assert denied(ctl, item("c", group), queue) == "no_capacity" and not ctl.may_admit_any()
    assert ctl.release(first, 0.0).released and ctl.may_admit_any()
    assert denied(ctl, item("d", group, (("submission", 1), ("gpu", 1))), queue) == "no_capacity"
    assert denied(ctl, item("e", group, (("submission", 1), ("llm_wait", 2))), queue) == "no_capacity"
    assert ctl.release(second, 0.0).released and ctl.view().available == {"submission": 2, "llm_wait": 2}
    assert ctl.view().running == {} and ctl.view().leased == {} and ctl.view().debt == {}


def test_TA_6_try_acquire_judges_afresh() -> None:
    ctl, group = controller(1), Group("g")
    queue = queue_of(item("a", group), item("b", group))
    assert ctl.is_eligible(item("a", group), queue.view()) and ctl.is_eligible(item("b", group), queue.view())
    take(ctl, item("a", group), queue)
    assert denied(ctl, item("b", group), queue) == "no_capacity"


def test_GN_1_clock() -> None:
    ctl = controller()
    assert isinstance(ctl.try_acquire(item("a", Group("g")), FairTaskQueue().view(), 2.0), TaskLease)
    with pytest.raises(PolicyClockError):
        ctl.try_acquire(item("b", Group("g")), FairTaskQueue().view(), 1.0)


# -- strict -----------------------------------------------------------------------------------------------------------------------


def strict(limit: int, **resources: int) -> TaskAdmissionController:
    return TaskAdmissionController(TaskAdmissionConfig(limit, resources or {"llm_wait": limit}, Strict()))


def test_TA_8_strict_denies_at_the_limit_only_under_pressure() -> None:
    ctl, hot, peer = strict(4), Group("hot", 1.0, 2), Group("peer", 1.0, 2)
    queue = queue_of(item("h", hot))
    for n in range(3):
        take(ctl, item(f"h{n}", hot), queue)  # past its limit: nobody presses
    queue.offer([item("p", peer)], 0.0)
    assert denied(ctl, item("h", hot), queue) == "group_cap"
    assert ctl.is_eligible(item("p", peer), queue.view())


def test_TA_8_no_pressure_from_a_head_that_does_not_fit_or_shares_only_submission() -> None:
    ctl, hot = strict(4, llm_wait=4, gpu=1), Group("hot", 1.0, 1)
    take(ctl, item("h0", hot))
    too_big = queue_of(item("h", hot), item("p", Group("peer"), (("submission", 1), ("llm_wait", 9))))
    assert ctl.is_eligible(item("h", hot), too_big.view())
    elsewhere = queue_of(item("h", hot), item("p", Group("peer"), (("submission", 1), ("gpu", 1))))
    assert ctl.is_eligible(item("h", hot), elsewhere.view()), "submission is not fair for who asks for more"
    local = Group("local", 1.0, 1)
    take(ctl, item("l0", local, ONLY))
    both = queue_of(item("l", local, ONLY), item("p", Group("peer"), (("submission", 1), ("gpu", 1))))
    assert denied(ctl, item("l", local, ONLY), both) == "group_cap", "who asks for submission alone competes for it"


def test_TA_8_unlimited_group_is_always_allowed() -> None:
    ctl = strict(4)
    queue = queue_of(item("a", Group("a")), item("b", Group("b", 9.0, 1)))
    assert [take(ctl, item(f"a{n}", Group("a")), queue) for n in range(4)]


# -- bounded borrow ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "weight", "peers", "admitted", "up", "down"), [
    (8, 4, [1], 99, 7, 6), (8, 1, [4], 99, 2, 1), (8, 1, [], 99, 4, 4), (7, 1, [], 99, 4, 3), (10, 1, [1, 1], 99, 4, 3),
    (8, 0.5, [0.5, 1], 99, 2, 2), (8, 0.1, [0.7], 99, 1, 1), (10, 1, [9, 9], 99, 1, 1), (1, 1, [5], 99, 1, 1), (8, 4, [1], 5, 5, 5),
    (0, 1, [1], 99, 0, 0),
])
def test_TA_9_shares(limit: int, weight: float, peers: list[float], admitted: int, up: int, down: int) -> None:
    group = Group("me", weight, admitted)
    assert BoundedBorrow().share(group, limit, sum(peers)) == up
    assert BoundedBorrow(strict_share_rounding="floor").share(group, limit, sum(peers)) == down


@pytest.mark.parametrize("queue_class", [FairTaskQueue, FifoQueue])
def test_TA_9_share_beside_queued_peers(queue_class: Any) -> None:
    """The same share through the controller: 10 slots, weights 1, 1, 1: the fifth is over it."""
    ctl, queue = controller(10), queue_class()
    me = Group("me", 1.0, 99)
    queue.offer([item("m", me)], 0.0)
    peers = 0 if queue_class is FifoQueue else 2
    for n in range(4):
        take(ctl, item(f"m{n}", me), queue)
    if peers:
        queue.offer([item("p", Group("p")), item("q", Group("q"))], 0.0)
        assert denied(ctl, item("m", me), queue) == "group_cap"
    assert ctl.is_eligible(item("m", me), queue_of(item("m", me)).view())


def test_TA_9_walk() -> None:
    """Eight slots, a lone group: four free of debt, four borrowed; then a peer waits and one slot comes free."""
    ctl, hot, peer = controller(8), Group("hot", 4.0, 8), Group("peer", 1.0, 8)
    queue = queue_of(item("h", hot))
    leases, debts = [], []
    for n in range(8):
        leases.append(take(ctl, item(f"h{n}", hot), queue))
        debts.append(ctl.view().debt.get("hot", {}).get("llm_wait", 0))
    assert debts == [0, 0, 0, 0, 1, 2, 3, 4]
    assert denied(ctl, item("h", hot), queue) == "no_capacity"
    queue.offer([item("p", peer)], 0.0)
    assert denied(ctl, item("h", hot), queue) == "no_capacity", "nothing fits, so nobody presses"
    assert ctl.release(leases[0], 0.0).released
    assert ctl.view().debt["hot"]["llm_wait"] == 3
    assert denied(ctl, item("h", hot), queue) == "borrow_debt"
    take(ctl, item("p", peer), queue)


def test_TA_9_ceilings() -> None:
    group = Group("g", 1.0, 99)
    for policy, started in ((BoundedBorrow(), 8), (BoundedBorrow(default_borrow_ceiling=0), 4), (BoundedBorrow(default_borrow_ceiling=1), 5),
                            (BoundedBorrow(dynamic_borrow_reserve_fraction=0.25), 6),
                            (BoundedBorrow(dynamic_borrow_reserve_fraction=1.0), 4),
                            (BoundedBorrow(dynamic_borrow_reserve_fraction=1.0, dynamic_borrow_max_reserved_slots=1), 7),
                            (BoundedBorrow({("g", "llm_wait"): 3}), 7), (BoundedBorrow({("other", "llm_wait"): 0}), 8)):
        ctl, n = TaskAdmissionController(TaskAdmissionConfig(8, {"llm_wait": 8}, policy)), 0
        while isinstance(ctl.try_acquire(item(f"i{n}", group), queue_of(item("x", group)).view(), 0.0), TaskLease):
            n += 1
        assert n == started, policy


def test_TA_9_denial_on_one_resource_books_nothing() -> None:
    ctl = TaskAdmissionController(TaskAdmissionConfig(8, {"llm_wait": 8, "r": 2}, BoundedBorrow({("g", "r"): 0})))
    group = Group("g", 1.0, 99)
    wants = (("submission", 1), ("llm_wait", 1), ("r", 1))
    for n in range(4):
        take(ctl, item(f"i{n}", group))
    take(ctl, item("r0", group, wants))
    before = ctl.view().freeze()
    assert denied(ctl, item("r1", group, wants), FairTaskQueue()) == "borrow_debt"
    assert ctl.view().freeze() == before


def test_TA_9_group_without_limit_is_always_allowed() -> None:
    ctl = controller(4)
    queue = queue_of(item("a", Group("a")), item("b", Group("b", 9.0, 4)))
    for n in range(4):
        take(ctl, item(f"a{n}", Group("a")), queue)
    assert ctl.view().debt == {}


def test_TA_9_weight_of_the_latest_item_counts() -> None:
    """A group whose weight changed while it waits is still told apart from its peers."""
    ctl = controller(8)
    queue = queue_of(item("m", Group("me", 1.0, 8)), item("m2", Group("me", 4.0, 8)), item("p", Group("p", 1.0, 8)))
    assert ctl.is_eligible(item("m", Group("me", 1.0, 8)), queue.view())


@pytest.mark.parametrize(("repay", "after"), [(True, [3, 2, 1, 0, 0, 0, 0, 0]), (False, [4, 4, 4, 4, 3, 2, 1, 0])])
def test_TA_10_release_repays_the_groups_debt(repay: bool, after: list[int]) -> None:
    ctl, group = controller(8, repay_on_release=repay), Group("g", 1.0, 8)
    leases = [take(ctl, item(f"i{n}", group)) for n in range(8)]
    seen = []
    for lease in leases:
        ctl.release(lease, 1.0)
        seen.append(ctl.view().debt.get("g", {}).get("llm_wait", 0))
    assert seen == after


# -- leases -----------------------------------------------------------------------------------------------------------------------


def test_TA_11_release_reasons() -> None:
    ctl, group = controller(4), Group("g")
    lease = take(ctl, item("a", group))
    assert lease.lease_id == "g0-1" and lease.acquired_at == 0.0
    before = ctl.view().freeze()
    assert ctl.release(replace(lease, generation="g1"), 1.0).reason == "wrong_controller_generation"
    assert ctl.release(replace(lease, item=item("b", group)), 1.0).reason == "stale_lease"
    assert ctl.release(replace(lease, resources=(("submission", 3),)), 1.0).reason == "stale_lease"
    assert ctl.release(replace(lease, lease_id="g0-9"), 1.0).reason == "unknown_lease"
    assert ctl.release(replace(lease, lease_id=[]), 1.0).reason == "unknown_lease"  # type: ignore[arg-type]
    assert ctl.release(None, 1.0).reason == "unknown_lease"  # type: ignore[arg-type]
    assert ctl.view().freeze() == before and set(ctl.active) == {"g0-1"}
    assert ctl.release(lease, 1.0).reason == "released"
    assert ctl.release(lease, 1.0).reason == "duplicate"
    assert ctl.releases == {"wrong_controller_generation": 1, "stale_lease": 2, "unknown_lease": 3, "released": 1, "duplicate": 1}


def test_TA_11_remembers_8192_releases() -> None:
    ctl, group = controller(4), Group("g")
    first = take(ctl, item("a", group))
    ctl.release(first, 0.0)
    for n in range(RELEASED_KEPT):
        assert ctl.release(first, 0.0).reason == "duplicate" if n == 0 else True
        ctl.release(take(ctl, item(f"i{n}", group)), 0.0)
    assert ctl.release(first, 0.0).reason == "unknown_lease"


class Later:
    """A policy that knows when its answer changes."""

    def evaluate(self, item: QueueItem, queue_view: Any, admission_view: Any) -> PolicyDecision:
        return PolicyDecision(False, "policy_denial", "llm_wait", (), {"a": 7.0, "b": 5.0}.get(item.group.key))

    def on_acquire(self, lease: TaskLease, decision: PolicyDecision) -> Any:
        return NO_CHANGE

    def on_release(self, lease: TaskLease) -> Any:
        return NO_CHANGE


def test_TA_12_block_summary() -> None:
    ctl = TaskAdmissionController(TaskAdmissionConfig(8, {"llm_wait": 8}, Later()))
    queue = queue_of(item("a", Group("a")), item("a2", Group("a")), item("b", Group("b")), item("c", Group("c"), (("gpu", 1),)))
    summary = ctl.explain_blocked(queue.view())
    assert summary.queued_count == 4 and summary.denial_reasons == {"policy_denial": 2, "no_capacity": 1} and summary.available_after == 5.0
    empty = ctl.explain_blocked(FairTaskQueue().view())
    assert (empty.queued_count, empty.denial_reasons, empty.available_after) == (0, {}, None)
