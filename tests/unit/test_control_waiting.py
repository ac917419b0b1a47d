"""Requests that wait: how long, for whom, and who is refused at the door."""

from __future__ import annotations

import pytest
from control_bench import Bench, refused, sent, wakes

from windtunnel.effects import Close, Effect, Reject
from windtunnel.events import (
    Arrived,
    Cancelled,
    Commanded,
    ReplicaReady,
    Request,
    Woke,
)
from windtunnel.policy.admission.aimd import Aimd
from windtunnel.policy.admission.breaker import BreakerGate
from windtunnel.policy.admission.limit import Fixed
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.control import Control
from windtunnel.policy.lane import Lane
from windtunnel.policy.param import BuildContext
from windtunnel.policy.queueing.bounded import BoundedQueue
from windtunnel.policy.queueing.deadline_drop import DeadlineDropQueue
from windtunnel.policy.queueing.edf import Edf, EdfQueue
from windtunnel.policy.queueing.fair import FairTaskQueue
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.least import LeastOutstanding

# -- waiting ----------------------------------------------------------------------------------------------------------------------


def test_queue_wait_timeout() -> None:
    b = Bench(queue_wait_timeout_s=2.0)
    b.arrive("a", 1.0)
    assert wakes(b.arrive("b", 1.5)) == {"queue": 3.5}
    assert b.arrive("c", 2.0) == []  # the wake that is armed comes earlier
    out = b.do(Woke("queue"), 3.5)
    assert refused(out) == [("b", "queue_timeout", "timed_out", "rate_limited")]
    assert wakes(out) == {"queue": 4.0}
    assert sent(b.finish("a", 3.9)) == [("c", 1, "chat-0")]
    assert b.do(Woke("queue"), 4.0) == []
    assert b.counts == {"arrivals": 3, "completed": 1, "active": 1, "timed_out": 1}


def test_QP_8_deadline_while_waiting_and_at_intake() -> None:
    b = Bench()
    b.arrive("a", 1.0)
    assert wakes(b.arrive("b", 1.5, deadline_s=3.0)) == {"queue": 3.0}
    assert refused(b.arrive("late", 2.0, deadline_s=2.0)) == [("late", "deadline_passed", "timed_out", "local_timeout")]
    assert refused(b.do(Woke("queue"), 3.0)) == [("b", "deadline_passed", "timed_out", "local_timeout")]
    assert b.counts == {"arrivals": 3, "active": 1, "timed_out": 2}


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("at", [3.0, 3.1])
def test_QP_8_nothing_is_dispatched_at_or_after_its_deadline_however_late_the_wake(at: float, drop: bool) -> None:
    b = Bench(queue=DeadlineDropQueue(FairTaskQueue()) if drop else None)
    b.arrive("a", 1.0)
    b.arrive("b", 1.5, deadline_s=3.0)
    b.arrive("c", 1.6)
    out = b.finish("a", at)
    assert refused(out) == [("b", "deadline_passed", "timed_out", "local_timeout")]
    assert sent(out) == [("c", 1, "chat-0")]
    assert b.do(Woke("queue"), at) == []


def test_a_queue_timeout_that_is_due_is_not_overtaken_by_a_dispatch() -> None:
    b = Bench(queue_wait_timeout_s=1.0)
    b.arrive("a", 1.0)
    b.arrive("b", 1.0)
    out = b.finish("a", 2.0)
    assert refused(out) == [("b", "queue_timeout", "timed_out", "rate_limited")]
    assert sent(out) == []


def test_QP_3_an_evicted_victim_gets_exactly_one_reject_before_anything_else() -> None:
    b = Bench(queue=BoundedQueue(FairTaskQueue(), 1, {}, {0: "drop_lru"}))
    b.arrive("a", 1.0)
    b.arrive("b", 1.1)
    out = b.arrive("c", 1.2)
    assert refused(out) == [("b", "queue_full_drop_lru", "rejected", "rate_limited")]
    assert b.counts == {"arrivals": 3, "waiting": 1, "active": 1, "rejected": 1, "evicted": 1}
    assert sent(b.finish("a", 2.0)) == [("c", 1, "chat-0")]
    assert b.do(Cancelled("b"), 2.1) == []


def test_QP_1_a_full_queue_refuses_the_newcomer() -> None:
    b = Bench(queue=BoundedQueue(FairTaskQueue(), 1))
    b.arrive("a", 1.0)
    b.arrive("b", 1.1)
    assert refused(b.arrive("c", 1.2)) == [("c", "queue_full", "rejected", "rate_limited")]
    assert b.counts == {"arrivals": 3, "waiting": 1, "active": 1, "rejected": 1}


def test_KC_4_what_was_accepted_before_a_restart_is_refused_neither_by_the_queue_nor_by_a_breaker() -> None:
    b = Bench(queue=BoundedQueue(FairTaskQueue(), 1, {0: 1}), breaker=BreakerGate(window=5, min_outcomes=1, open_s=30.0))
    b.arrive("a", 1.0)
    b.arrive("b", 1.0)
    b.fail("a", 2.0)
    assert refused(b.arrive("new", 3.0)) == [("new", "breaker_open", "rejected", "rate_limited")]
    for id in ("r1", "r2"):
        assert refused(b.arrive(id, 4.0, recovered=True)) == [], id
    assert b.counts == {"arrivals": 5, "rejected": 1, "waiting": 3, "failed": 1}
    assert [i for i, _, _ in sent(b.do(Woke("requests"), 32.0))] == ["b"]
    assert [i for i, _, _ in sent(b.finish("b", 33.0))] == ["r1"], "in the order in which they came back"
    assert refused(b.arrive("late", 33.1)) == [("late", "queue_full", "rejected", "rate_limited")]
    assert [i for i, _, _ in sent(b.finish("r1", 34.0))] == ["r2"]


def test_KC_4_even_a_recovered_request_is_not_served_past_its_deadline() -> None:
    b = Bench(queue=EdfQueue(Edf(service_s=5.0)))
    for n in range(40):
        b.arrive(f"a{n}", 0.25 * n)
        b.finish(f"a{n}", 0.25 * n + 0.25)
    b.arrive("run", 10.0)
    assert refused(b.arrive("new", 10.0, deadline_s=14.0)) == [("new", "deadline_infeasible", "rejected", "rate_limited")]
    assert refused(b.arrive("back", 10.0, deadline_s=14.0, recovered=True)) == []
    assert refused(b.arrive("late", 10.0, deadline_s=10.0, recovered=True)) == [("late", "deadline_passed", "timed_out", "local_timeout")]
    assert refused(b.do(Woke("queue"), 14.0)) == [("back", "deadline_passed", "timed_out", "local_timeout")]


def test_DN_2_a_full_queue_says_when_the_next_completion_is_due() -> None:
    b = Bench(queue=BoundedQueue(FairTaskQueue(), 1))
    for n in range(40):
        b.arrive(f"a{n}", 0.25 * n)
        b.finish(f"a{n}", 0.25 * n + 0.25)
    b.arrive("run", 10.0)
    b.arrive("wait", 10.0)
    (reject,) = b.arrive("full", 10.0)
    assert isinstance(reject, Reject)
    assert reject.denial.retry_after_s == pytest.approx(0.25, rel=0.05)


# -- doors closed -----------------------------------------------------------------------------------------------------------------


def test_LM_12_an_open_breaker_refuses_at_intake_and_lets_one_probe_through() -> None:
    b = Bench(limit=1, breaker=BreakerGate(window=5, min_outcomes=1, open_s=30.0))
    b.arrive("a", 1.0)
    b.arrive("w", 1.0)
    assert wakes(b.fail("a", 2.0)) == {"requests": 32.0}  # w waits: it was let in before
    (reject,) = b.arrive("b", 3.0)
    assert isinstance(reject, Reject)
    assert (reject.denial.reason, reject.denial.code, reject.denial.retry_after_s) == ("breaker_open", "POOL_UNAVAILABLE", 29.0)
    assert sent(b.do(Woke("requests"), 32.0)) == [("w", 1, "chat-0")]
    assert refused(b.arrive("c", 32.5)) == [("c", "breaker_open", "rejected", "rate_limited")]
    b.finish("w", 33.0)
    assert sent(b.arrive("d", 33.5)) == [("d", 1, "chat-0")]


def test_LM_12_the_reason_is_the_breaker_even_while_the_limit_is_full_too() -> None:
    b = Bench(limit=2, breaker=BreakerGate(window=5, min_outcomes=1))
    b.arrive("a", 1.0)
    b.arrive("b", 1.0)
    b.fail("a", 2.0)
    b.lane.admission.set_cap("chat", 1, 2.0)
    assert refused(b.arrive("c", 3.0)) == [("c", "breaker_open", "rejected", "rate_limited")]


def test_stop_ends_what_waits_and_lets_what_runs_go_on() -> None:
    b = Bench(attempts=2, aimd=Aimd(initial_limit=2))
    for id in "abc":
        b.arrive(id, 1.0)
    b.fail("a", 2.0, "rate_limited")  # a waits for its second attempt
    out = b.do(Commanded("stop"), 2.5)
    assert refused(out) == [("c", "stopped", "rejected", "rate_limited")]
    assert [(e.request_id, e.state, e.reason) for e in out if isinstance(e, Close)] == [("a", "failed", "stopped")]
    assert refused(b.arrive("d", 3.0)) == [("d", "shutdown", "rejected", "rate_limited")]
    b.finish("b", 4.0)
    assert b.control.open_count == 0
    assert b.counts == {"arrivals": 4, "completed": 1, "failed": 1, "rejected": 2}


def test_KC_1_requests_go_to_the_lane_of_their_pool_or_model() -> None:
    def lane(name: str) -> Lane:
        return Lane(name, queue=FairTaskQueue(), admission=RequestAdmission(Fixed(1).build(BuildContext())),
                    router=LeastOutstanding(pools=(name,)), models=frozenset({f"m-{name}"}))

    control = Control(lanes=(lane("x"), lane("y")), fleet=Fleet())
    for pool in "xy":
        control.handle(ReplicaReady(f"{pool}-0", pool, slots=4), 0.0)

    def arrive(id: str, model: str, pool: str | None = None) -> list[Effect]:
        return list(control.handle(Arrived(Request(id, "t", model, 0, 1.0, pool=pool)), 1.0))

    assert sent(arrive("a", "m-x")) == [("a", 1, "x-0")]
    assert sent(arrive("b", "m-x")) == []  # x is full, which does not concern y
    assert sent(arrive("c", "m-x", "y")) == [("c", 1, "y-0")]
    assert refused(arrive("d", "nobody's")) == [("d", "hard_policy_denial", "rejected", "rate_limited")]
    assert refused(arrive("e", "m-x", "z")) == [("e", "hard_policy_denial", "rejected", "rate_limited")]
    control.check()
