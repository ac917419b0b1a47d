"""Waiting for a lease: lines, their order, their ends, endpoints that bound domains, and slots of a single engine."""

from __future__ import annotations

import math
from typing import Any

import pytest

from windtunnel.errors import ConfigValueError, PolicyClockError
from windtunnel.policy.admission.aimd import Aimd
from windtunnel.policy.admission.breaker import Breaker, BreakerGate
from windtunnel.policy.admission.denial import Denial
from windtunnel.policy.admission.endpoints import RequestAdmissionConfig
from windtunnel.policy.admission.lease import RequestLease
from windtunnel.policy.admission.limit import Fixed
from windtunnel.policy.admission.resource import RequestResourceKey
from windtunnel.policy.admission.slots import SlotGate, Slots
from windtunnel.policy.admission.waiters import AlreadyGranted, Expired, Granted, RequestItem, UnknownWaiter, WaiterCancelled, Waiting
from windtunnel.policy.admission.waiting import WaitingAdmission
from windtunnel.policy.param import BuildContext

CHAT, EMBED = RequestResourceKey("p", "m", "chat"), RequestResourceKey("p", "m", "embedding")


def admission(cap: int = 1, names: tuple[str, ...] = ("r",), limit: Any = None, **more: Any) -> WaitingAdmission:
    made = WaitingAdmission(RequestAdmissionConfig(limit or Aimd()), **more)
    for name in names:
        made.register(name, cap, 0.0)
    return made


def lease_of(got: object) -> RequestLease:
    assert isinstance(got, RequestLease), got
    return got


def waiter_of(got: object) -> Waiting:
    assert isinstance(got, Waiting), got
    return got


def reason_of(got: object) -> str:
    assert isinstance(got, Denial), got
    return str(got.reason)


def granted(drained: list[Granted | Expired]) -> list[str]:
    assert all(isinstance(d, Granted) for d in drained), drained
    return [d.waiter_id for d in drained]


# -- keys and endpoints -----------------------------------------------------------------------------------------------------------


def test_RA_1_a_key_is_its_three_ids_and_names_with_slashes_stay_apart() -> None:
    assert (CHAT.domain, RequestResourceKey("p", "m"), str(CHAT)) == ("chat", CHAT, "p/m/chat")
    a = WaitingAdmission()
    a.register_alias("p", "a/b", "x", 1, 0.0)
    a.register_alias("p/a", "b", "y", 1, 0.0)
    assert lease_of(a.try_acquire(RequestResourceKey("p", "a/b"), 0.0)) != lease_of(a.try_acquire(RequestResourceKey("p/a", "b"), 0.0))


def test_RA_2_the_smallest_cap_of_the_aliases_bounds_the_sum_over_the_domains() -> None:
    a = WaitingAdmission()
    a.register_alias("p", "m", "fast", 5, 0.0)
    a.register_alias("p", "m", "cheap", 3, 0.0)
    leases = [lease_of(a.try_acquire(CHAT, 0.0)), lease_of(a.try_acquire(EMBED, 0.0)), lease_of(a.try_acquire(CHAT, 0.0))]
    assert reason_of(a.try_acquire(CHAT, 0.0)) == reason_of(a.try_acquire(EMBED, 0.0)) == "no_capacity"
    seen = a.endpoint("p", "m", 0.0)
    assert (seen.static_cap, seen.aggregate_in_flight, seen.aliases, dict(seen.raw_caps), dict(seen.limits)) == (
        3, 3, ("fast", "cheap"), {"fast": 5, "cheap": 3}, {"chat": 3, "embedding": 3})
    a.release(leases[1], "success", 0.0)
    assert a.endpoint("p", "m", 0.0).aggregate_in_flight == 2
    lease_of(a.try_acquire(CHAT, 0.0))


def test_RA_2_a_lowered_cap_holds_at_once_and_a_raised_one_raises_no_learned_limit() -> None:
    a = WaitingAdmission()
    a.register_alias("p", "m", "x", 8, 0.0)
    leases = [lease_of(a.try_acquire(CHAT, 0.0)) for _ in range(6)]
    a.register_alias("p", "m", "x", 4, 1.0)
    assert (a.snapshot(CHAT, 1.0).limit, a.in_flight(CHAT), reason_of(a.try_acquire(CHAT, 1.0))) == (4, 6, "no_capacity")
    a.release(leases.pop(), "rate_limited", 1.0, retry_after_s=0.5)
    assert a.snapshot(CHAT, 1.0).limit == 4, "its lease was granted at 8: no cut"
    a.register_alias("p", "m", "x", 8, 2.0)
    assert (a.snapshot(CHAT, 2.0).limit, a.snapshot(CHAT, 2.0).effective_max) == (4, 8)


def test_RA_2_clamps_and_initial_limits_by_resource() -> None:
    a = WaitingAdmission(RequestAdmissionConfig(max_limit_clamps={EMBED: 2}, initial_limits={CHAT: 3}))
    a.register_alias("p", "m", "x", 8, 0.0)
    for key, expected in ((CHAT, (3, 8)), (EMBED, (2, 2))):
        lease_of(a.try_acquire(key, 0.0))
        seen = a.snapshot(key, 0.0)
        assert (seen.limit, seen.effective_max) == expected


def test_RA_2_bad_caps_and_configs() -> None:
    a = WaitingAdmission()
    for bad in (0, -1, 1.5, True, math.nan):
        with pytest.raises(ConfigValueError, match="cap"):
            a.register_alias("p", "m", "x", bad, 0.0)  # type: ignore[arg-type]
        with pytest.raises(ConfigValueError, match="cap"):
            a.register("r", bad, 0.0)  # type: ignore[arg-type]
    assert reason_of(a.try_acquire("r", 0.0)) == reason_of(a.try_acquire(CHAT, 0.0)) == "hard_policy_denial"
    with pytest.raises(ConfigValueError, match="initial_limits"):
        RequestAdmissionConfig(Fixed(3), initial_limits={"r": 1})
    for bad_config in ({"default_queue_wait_timeout_s": -1.0}, {"max_limit_clamps": {"r": 0}}, {"default_queue_wait_timeout_s": math.inf}):
        with pytest.raises(ConfigValueError):
            RequestAdmissionConfig(**bad_config)  # type: ignore[arg-type]


def test_RA_2_the_last_alias_takes_the_endpoint_with_it() -> None:
    a = WaitingAdmission()
    for alias in ("x", "y"):
        a.register_alias("p", "m", alias, 1, 0.0)
    lease = lease_of(a.enqueue(RequestItem(CHAT), 0.0))
    first, second = waiter_of(a.enqueue(RequestItem(CHAT), 0.0)), waiter_of(a.enqueue(RequestItem(EMBED, context="mine"), 0.0))
    assert a.unregister_alias("p", "m", "x", 1.0) == a.unregister_alias("p", "m", "x", 1.0) == a.unregister_alias("q", "m", "x", 1.0) == []
    gone = a.unregister_alias("p", "m", "y", 2.0)
    assert [(e.waiter_id, e.denial.reason, e.waited_s, e.context) for e in gone] == [
        (first.waiter_id, "hard_policy_denial", 2.0, None), (second.waiter_id, "hard_policy_denial", 2.0, "mine")]
    assert a.release(lease, "success", 3.0) == "released"
    assert reason_of(a.enqueue(RequestItem(CHAT), 3.0)) == "hard_policy_denial" and a.next_deadline() is None
    a.register_alias("p", "m", "z", 2, 4.0)
    lease_of(a.try_acquire(CHAT, 4.0))


# -- no bypass --------------------------------------------------------------------------------------------------------------------


def test_RA_5_a_newcomer_passes_nobody_of_its_resource_or_endpoint() -> None:
    a = admission(cap=2, names=("A", "B"), limit=Aimd(cooldown_s=10.0))
    for name in "AB":
        a.release(lease_of(a.try_acquire(name, 0.0)), "rate_limited", 0.0)
    waiting = [waiter_of(a.enqueue(RequestItem(name), 1.0)).waiter_id for name in "AB"]
    assert reason_of(a.try_acquire("B", 9.9)) == "cooldown"
    assert reason_of(a.try_acquire("B", 10.0)) == "queued_waiters_ahead"
    assert reason_of(a.enqueue(RequestItem("B", queue_wait_timeout_s=0.0), 10.0)) == "queue_timeout"
    assert a.next_deadline() == 10.0
    assert granted(a.drain(10.0)) == waiting
    assert reason_of(a.try_acquire("B", 10.0)) == "no_capacity"


def test_RA_5_other_endpoints_are_no_elders_and_other_domains_are() -> None:
    a = WaitingAdmission()
    a.register_alias("p", "m", "x", 1, 0.0)
    a.register("other", 1, 0.0)
    lease = lease_of(a.try_acquire(CHAT, 0.0))
    waiter_of(a.enqueue(RequestItem(EMBED), 0.0))
    a.release(lease, "success", 1.0)
    assert reason_of(a.try_acquire(CHAT, 1.0)) == "queued_waiters_ahead", "who waits in the other domain is first at this endpoint"
    lease_of(a.try_acquire("other", 1.0))


def test_RA_5_an_elder_that_cannot_go_holds_nobody_up() -> None:
    a = WaitingAdmission(RequestAdmissionConfig(Aimd(cooldown_s=10.0)))
    a.register_alias("p", "m", "x", 4, 0.0)
    a.release(lease_of(a.try_acquire(EMBED, 0.0)), "rate_limited", 0.0)
    waiter_of(a.enqueue(RequestItem(EMBED), 0.0))
    lease_of(a.try_acquire(CHAT, 0.0))
    assert (a.waiting, a.in_flight(CHAT), a.in_flight(EMBED)) == (1, 1, 0)


def test_RA_5_an_elder_whose_time_is_up_is_none() -> None:
    a = admission(cap=1)
    lease = lease_of(a.try_acquire("r", 0.0))
    waiter_of(a.enqueue(RequestItem("r", queue_wait_timeout_s=1.0), 0.0))
    a.release(lease, "success", 2.0)
    lease_of(a.try_acquire("r", 2.0))
    assert [type(e) for e in a.drain(2.0)] == [Expired]


# -- waiting ----------------------------------------------------------------------------------------------------------------------


def test_RA_6_timeouts() -> None:
    a = admission()
    first = lease_of(a.enqueue(RequestItem("r", queue_wait_timeout_s=0.0), 0.0))
    assert reason_of(a.enqueue(RequestItem("r", queue_wait_timeout_s=0.0), 0.0)) == "queue_timeout"
    assert a.waiting == 0
    assert waiter_of(a.enqueue(RequestItem("r", queue_wait_timeout_s=3.0), 1.0)) == Waiting("g0-w1", 4.0)
    assert waiter_of(a.enqueue(RequestItem("r"), 1.0)).deadline is None
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ConfigValueError, match="queue_wait_timeout_s"):
            RequestItem("r", queue_wait_timeout_s=bad)
    assert a.release(first, "success", 1.0) == "released"
    b = WaitingAdmission(RequestAdmissionConfig(default_queue_wait_timeout_s=2.0))
    b.register("r", 1, 0.0)
    lease_of(b.enqueue(RequestItem("r"), 0.0))
    assert waiter_of(b.enqueue(RequestItem("r"), 0.5)).deadline == 2.5


def test_RA_6_what_waiting_cannot_help_is_refused_at_once() -> None:
    a = admission()
    assert reason_of(a.enqueue(RequestItem("nobody"), 0.0)) == "hard_policy_denial"
    a.shutdown(1.0)
    assert reason_of(a.enqueue(RequestItem("r"), 1.0)) == reason_of(a.enqueue(RequestItem("nobody"), 1.0)) == "shutdown"


def test_RA_7_an_expired_waiter_is_never_granted_and_capacity_counts_before_the_grant_is_seen() -> None:
    a = admission()
    lease = lease_of(a.try_acquire("r", 0.0))
    late = waiter_of(a.enqueue(RequestItem("r", queue_wait_timeout_s=5.0), 0.0))
    live = [waiter_of(a.enqueue(RequestItem("r"), 0.0)) for _ in range(2)]
    a.release(lease, "success", 5.0)
    out = a.drain(5.0)
    assert isinstance(out[0], Expired) and isinstance(out[1], Granted) and len(out) == 2
    assert (out[0].waiter_id, out[0].denial.reason, out[0].waited_s) == (late.waiter_id, "queue_timeout", 5.0)
    assert (out[1].waiter_id, out[1].waited_s, a.in_flight("r")) == (live[0].waiter_id, 5.0, 1)
    assert a.drain(5.0) == []


def test_RA_7_expiries_come_in_order_of_their_time() -> None:
    a = admission()
    lease_of(a.try_acquire("r", 0.0))
    ids = [waiter_of(a.enqueue(RequestItem("r", queue_wait_timeout_s=t), 0.0)).waiter_id for t in (3.0, 1.0, 2.0)]
    assert [e.waiter_id for e in a.drain(9.0)] == [ids[1], ids[2], ids[0]]


def test_RA_8_lines_share_by_weight_and_keep_their_own_order() -> None:
    a = WaitingAdmission(RequestAdmissionConfig(Fixed(8), max_limit_clamps={CHAT: 1}))
    a.register_alias("p", "m", "x", 1, 0.0)
    lease = lease_of(a.try_acquire(CHAT, 0.0))
    names = {}
    for n in range(6):
        names[waiter_of(a.enqueue(RequestItem(CHAT, weight=2.0), 0.0)).waiter_id] = f"A{n + 1}"
    for n in range(3):
        names[waiter_of(a.enqueue(RequestItem(EMBED, weight=1.0), 0.0)).waiter_id] = f"B{n + 1}"
    order = []
    for _ in range(9):
        a.release(lease, "success", 0.0)
        (got,) = a.drain(0.0)
        assert isinstance(got, Granted)
        order.append(names[got.waiter_id])
        lease = got.lease
    assert " ".join(order) == "A1 B1 A2 B2 A3 A4 B3 A5 A6"


def test_RA_8_a_blocked_resource_blocks_only_itself() -> None:
    a = admission(cap=1, names=("A", "B"), limit=Aimd(cooldown_s=10.0))
    a.release(lease_of(a.try_acquire("A", 0.0)), "rate_limited", 0.0)
    lease = lease_of(a.try_acquire("B", 0.0))
    first, second = (waiter_of(a.enqueue(RequestItem(name), 0.0)).waiter_id for name in "AB")
    a.release(lease, "success", 1.0)
    assert granted(a.drain(1.0)) == [second]
    assert granted(a.drain(10.0)) == [first]


def test_RA_9_next_deadline_names_everything_that_time_alone_does() -> None:
    a = admission(cap=4, names=("r", "s"), limit=Aimd(cooldown_s=5.0, startup_ramp_s=8.0), breaker=Breaker(BreakerGate(min_outcomes=3)))
    assert a.next_deadline() is None
    lease = lease_of(a.try_acquire("r", 0.0))
    waiter_of(a.enqueue(RequestItem("r"), 0.0))
    assert a.next_deadline() == pytest.approx(8 / 3), "the ramp's next step"
    waiter_of(a.enqueue(RequestItem("r", queue_wait_timeout_s=1.0), 0.0))
    assert a.next_deadline() == 1.0
    assert len(a.drain(1.0)) == 1
    a.release(lease, "rate_limited", 1.0)
    assert a.next_deadline() == 6.0, "the end of the pause"
    assert granted(a.drain(6.0)) == ["g0-w1"]
    assert a.next_deadline() is None
    b = admission(cap=4, breaker=Breaker(BreakerGate(min_outcomes=2, window=2, open_s=30.0)))
    for lease in [lease_of(b.try_acquire("r", 0.0)) for _ in range(2)]:
        b.release(lease, "provider_failure", 1.0)
    for _ in range(2):
        waiter_of(b.enqueue(RequestItem("r"), 2.0))
    assert b.next_deadline() == 31.0, "the breaker's probe"
    assert len(granted(b.drain(31.0))) == 1
    assert b.next_deadline() is None, "one probe is out; only its end helps"


def test_RA_10_cancel_in_every_state() -> None:
    a = admission()
    lease = lease_of(a.try_acquire("r", 0.0))
    one, two = (waiter_of(a.enqueue(RequestItem("r"), 0.0)).waiter_id for _ in range(2))
    assert a.cancel(one, 1.0) == WaiterCancelled(one)
    assert a.cancel(one, 1.0) == UnknownWaiter(one) and a.cancel("x", 1.0) == UnknownWaiter("x")
    a.release(lease, "success", 2.0)
    assert granted(a.drain(2.0)) == [two], "a cancelled head swallows no wake"
    said = a.cancel(two, 3.0)
    assert isinstance(said, AlreadyGranted) and said.waiter_id == two
    assert a.release(said.lease, "local_cancelled", 3.0) == "released"
    assert a.cancel(two, 3.0) == UnknownWaiter(two)
    assert (a.in_flight("r"), a._given, a._waiter_of) == (0, {}, {})


def test_RA_10_wait_notes_in_order() -> None:
    a = WaitingAdmission(wants=frozenset({"request"}))
    a.register("r", 1, 0.0)
    lease = lease_of(a.enqueue(RequestItem("r"), 0.0))
    one, two, three = (waiter_of(a.enqueue(RequestItem("r", queue_wait_timeout_s=t), 0.0)).waiter_id for t in (None, 1.0, None))
    a.cancel(three, 0.5)
    a.drain(1.0)
    a.release(lease, "success", 2.0)
    a.drain(2.0)
    notes = [(n.kind.removeprefix("request_"), n.ids) for n in a.drain_notes()]
    assert notes == [
        ("resource_registered", ()), ("wait_started", ()), ("wait_completed", ()), ("lease_acquired", ("g0-1",)),
        ("queue_formed", ()), ("wait_started", (one,)), ("wait_started", (two,)),
        ("wait_started", (three,)), ("wait_cancelled", (three,)), ("wait_timeout", (two,)), ("lease_released", ("g0-1",)),
        ("wait_completed", (one,)), ("queue_drained", ()), ("lease_acquired", ("g0-2",)),
    ]


def test_shutdown_sends_everyone_away_in_the_order_in_which_they_came() -> None:
    a = admission(names=("A", "B"))
    leases = [lease_of(a.try_acquire(n, 0.0)) for n in "AB"]
    ids = [waiter_of(a.enqueue(RequestItem(n), 0.0)).waiter_id for n in "BAB"]
    assert [(e.waiter_id, e.denial.reason) for e in a.shutdown(1.0)] == [(i, "shutdown") for i in ids]
    for lease in leases:
        assert a.release(lease, "success", 1.0) == "released"
    assert (a.drain(1.0), a.waiting, a.next_deadline()) == ([], 0, None)


def test_DN_2_a_wait_that_ends_says_when_to_come_back() -> None:
    a, now = admission(cap=1), 0.0
    for _ in range(200):
        a.release(lease_of(a.try_acquire("r", now)), "success", now)
        now += 0.25
    lease_of(a.try_acquire("r", now))
    ids = [waiter_of(a.enqueue(RequestItem("r", queue_wait_timeout_s=t), now)) for t in [1.0] + [9.0] * 10]
    (expired,) = a.drain(now + 1.0)
    assert isinstance(expired, Expired) and expired.waiter_id == ids[0].waiter_id
    assert expired.denial.retry_after_s == pytest.approx(2.75, rel=0.15), "(10 + 1) / 4 per second"


def test_RA_17_pictures_show_who_waits() -> None:
    a = admission()
    lease_of(a.try_acquire("r", 0.0))
    before = a.snapshot("r", 0.0).sequence
    for n in range(3):
        waiter_of(a.enqueue(RequestItem("r"), 0.0))
        assert a.snapshot("r", 0.0).waiters == n + 1
    assert a.snapshot("r", 0.0).sequence > before


def test_GN_1_time_must_not_run_backwards() -> None:
    a = admission()
    a.try_acquire("r", 5.0)
    for call in (lambda: a.enqueue(RequestItem("r"), 4.0), lambda: a.drain(4.0), lambda: a.cancel("x", 4.0), lambda: a.shutdown(4.0),
                 lambda: a.register_alias("p", "m", "x", 1, 4.0), lambda: a.try_acquire("r", 4.0)):
        with pytest.raises(PolicyClockError):
            call()


# -- slots ------------------------------------------------------------------------------------------------------------------------


def test_LM_14_reject() -> None:
    slots = SlotGate(max_concurrent=2).build(BuildContext())
    one, two = lease_of(slots.enter(0.0)), lease_of(slots.enter(0.0))
    assert reason_of(slots.enter(0.0)) == "no_capacity"
    assert [slots.leave(one, "provider_failure", 1.0), slots.leave(one, "success", 1.0)] == ["released", "duplicate"]
    lease_of(slots.enter(1.0))
    assert slots.snapshot(1.0).in_flight == 2 and slots.leave(two, "local_cancelled", 1.0) == "released"


def test_LM_14_queue_by_arrival_with_bounds() -> None:
    slots = Slots(SlotGate(max_concurrent=1, mode="queue", queue_max_wait_s=3.0, queue_max_depth=2))
    lease = lease_of(slots.enter(0.0))
    one, two = waiter_of(slots.enter(0.0, "a")), waiter_of(slots.enter(1.0, "b"))
    assert reason_of(slots.enter(1.0)) == "queue_full"
    assert slots.next_deadline() == 3.0
    slots.leave(lease, "success", 2.0)
    assert reason_of(slots.enter(2.0)) == "queue_full", "the free slot is the first one's"
    (got,) = slots.drain(2.0)
    assert isinstance(got, Granted) and (got.waiter_id, got.context) == (one.waiter_id, "a")
    waiter_of(slots.enter(2.0))
    (over,) = slots.drain(4.0)
    assert isinstance(over, Expired) and (over.waiter_id, over.denial.reason) == (two.waiter_id, "queue_timeout")
    assert isinstance(slots.cancel(one.waiter_id, 4.0), AlreadyGranted)
    assert [e.denial.reason for e in slots.shutdown(4.5)] == ["shutdown"]
    assert reason_of(slots.enter(5.0)) == "shutdown"


def test_LM_14_a_line_of_no_length_and_a_wait_of_no_time() -> None:
    slots = Slots(SlotGate(mode="queue", queue_max_depth=0))
    lease = lease_of(slots.enter(0.0))
    assert reason_of(slots.enter(0.0)) == "queue_full"
    slots.leave(lease, "success", 0.0)
    lease_of(slots.enter(0.0))
    hasty = Slots(SlotGate(mode="queue", queue_max_wait_s=0.0))
    lease_of(hasty.enter(0.0))
    assert reason_of(hasty.enter(0.0)) == "queue_timeout"
    for bad in ({"max_concurrent": 0}, {"mode": "hope"}, {"queue_max_wait_s": -1.0}, {"queue_max_depth": -1}):
        with pytest.raises(ConfigValueError):
            SlotGate(**bad)  # type: ignore[arg-type]
