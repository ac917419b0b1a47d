"""Every way in which a request ends: said once, counted once, and everything it held given back."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from chat_request import chat_request

from windtunnel.effects import Cancel, Close, Dispatch, Effect, Reject, WakeAt
from windtunnel.events import (
    Arrived,
    Cancelled,
    Commanded,
    Event,
    Failed,
    Finished,
    FirstToken,
    ReplicaBooting,
    ReplicaGone,
    ReplicaReady,
    Request,
    Woke,
)
from windtunnel.policy.admission.aimd import Aimd
from windtunnel.policy.admission.breaker import Breaker, BreakerGate
from windtunnel.policy.admission.limit import Fixed
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.control import Control
from windtunnel.policy.lane import Lane
from windtunnel.policy.param import BuildContext
from windtunnel.policy.queueing.bounded import BoundedQueue
from windtunnel.policy.queueing.deadline_drop import DeadlineDropQueue
from windtunnel.policy.queueing.edf import Edf, EdfQueue
from windtunnel.policy.queueing.fair import FairTaskQueue, Queue
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.least import LeastOutstanding
from windtunnel.policy.settings import ControlSettings


class Bench:
    """A control with one lane over the pool `chat`; `do` handles an event and checks the books."""

    def __init__(self, *, limit: int = 1, queue: Queue | None = None, breaker: BreakerGate | None = None, aimd: Aimd | None = None,
                 replicas: int = 1, **settings: object) -> None:
        settings.setdefault("cancellation_deadline_s", None)  # tests of their own: test_control_commands.py
        factory = (aimd or Fixed(limit)).build(BuildContext())
        self.admission = RequestAdmission(factory, breaker=Breaker(breaker) if breaker else None)
        self.lane = Lane("chat", queue=FairTaskQueue() if queue is None else queue, admission=self.admission,
                         router=LeastOutstanding(pools=("chat",)), models=frozenset({"m"}))
        self.control = Control(lanes=(self.lane,), fleet=Fleet(), settings=ControlSettings(**settings))  # type: ignore[arg-type]
        for n in range(replicas):
            self.do(ReplicaReady(f"chat-{n}", "chat", slots=8), 0.0)

    def do(self, event: Event, now: float) -> list[Effect]:
        effects = list(self.control.handle(event, now))
        self.control.check()
        return effects

    def arrive(self, id: str, now: float, *, tenant: str = "t", priority: int = 0, **more: object) -> list[Effect]:
        return self.do(Arrived(chat_request(id, tenant, now, priority=priority, **more)), now)

    def finish(self, id: str, now: float, *, dispatch: int = 1, replica: str = "chat-0") -> list[Effect]:
        return self.do(Finished(id, dispatch, replica, 64, 100, 0, None, now - 0.5), now)

    def fail(self, id: str, now: float, outcome: str = "provider_failure", *, dispatch: int = 1, replica: str = "chat-0",
             reason: str = "crash", **more: object) -> list[Effect]:
        return self.do(Failed(id, dispatch, replica, outcome, reason, **more), now)  # type: ignore[arg-type]

    @property
    def counts(self) -> Mapping[str, int]:
        """Those that are not zero."""
        counts = self.control.view().counts
        return {n: v for n in type(counts).__dataclass_fields__ if (v := getattr(counts, n))}

    @property
    def in_flight(self) -> int:
        return self.admission.in_flight("chat")


def sent(effects: list[Effect]) -> list[tuple[str, int, str]]:
    return [(e.request.id, e.dispatch, e.replica) for e in effects if isinstance(e, Dispatch)]


def refused(effects: list[Effect]) -> list[tuple[str, str, str, str]]:
    """(request, reason, state, outcome)."""
    return [(e.request_id, str(e.denial.reason), e.state, e.outcome) for e in effects if isinstance(e, Reject)]


def wakes(effects: list[Effect]) -> dict[str, float | None]:
    return {e.key: e.at for e in effects if isinstance(e, WakeAt)}


# -- attempts ---------------------------------------------------------------------------------------------------------------------


def test_KC_15_redispatch_avoids_the_replica_that_failed() -> None:
    b = Bench(replicas=2, attempts=2)
    assert sent(b.arrive("a", 1.0)) == [("a", 1, "chat-0")]
    assert sent(b.fail("a", 2.0)) == [("a", 2, "chat-1")]
    assert b.counts == {"arrivals": 1, "active": 1}
    assert b.fail("a", 2.1) == []  # the first attempt once more
    assert b.control.late_events == 1
    assert b.fail("a", 3.0, dispatch=2, replica="chat-1") == [Close("a", "failed", "provider_failure", "crash", None)]
    assert b.counts == {"arrivals": 1, "failed": 1}
    assert b.in_flight == 0


def test_KC_15_the_only_replica_is_tried_again() -> None:
    b = Bench(attempts=2)
    b.arrive("a", 1.0)
    (again,) = b.fail("a", 2.0)
    assert isinstance(again, Dispatch)
    assert (again.replica, again.dispatch, again.reason) == ("chat-0", 2, "least_requests+tried_again")


def test_KC_15_a_rate_limited_replica_is_not_avoided() -> None:
    b = Bench(attempts=2, replicas=2)
    b.arrive("a", 1.0)
    (again,) = b.fail("a", 2.0, "rate_limited")
    assert isinstance(again, Dispatch)
    assert again.request.tried == frozenset()


@pytest.mark.parametrize("outcome", ["provider_timeout", "local_cancelled", "local_timeout", "unexpected_exception"])
def test_KC_15_other_outcomes_are_not_tried_again(outcome: str) -> None:
    b = Bench(attempts=3, replicas=2)
    b.arrive("a", 1.0)
    (close,) = b.fail("a", 2.0, outcome)
    assert isinstance(close, Close)
    assert (close.outcome, close.state) == (outcome, "cancelled" if outcome.startswith("local_") else "failed")


@pytest.mark.parametrize("token", ["event", "first_token_s", "output_tokens"])
def test_KC_15_never_again_once_a_token_was_out(token: str) -> None:
    b = Bench(attempts=2, replicas=2)
    b.arrive("a", 1.0)
    more: dict[str, object] = {}
    if token == "event":
        b.do(FirstToken("a", 1, "chat-0"), 1.5)
    else:
        more = {token: 1.5 if token == "first_token_s" else 3}
    assert b.fail("a", 2.0, **more) == [Close("a", "failed", "provider_failure", "crash", None)]


def test_KC_15_never_again_after_the_deadline_or_a_stop() -> None:
    b = Bench(attempts=2, limit=2, replicas=2)
    b.arrive("a", 1.0, deadline_s=2.0)
    b.arrive("b", 1.0)
    assert sent(b.fail("a", 2.0)) == []
    b.do(Commanded("stop"), 2.5)
    assert b.fail("b", 3.0, replica="chat-1") == [Close("b", "failed", "provider_failure", "crash", None)]
    assert b.counts == {"arrivals": 2, "failed": 2}


def test_KC_15_a_further_attempt_that_waits_ends_with_close() -> None:
    b = Bench(attempts=2, aimd=Aimd(initial_limit=1), queue_wait_timeout_s=1.0)
    b.arrive("a", 1.0)
    assert b.fail("a", 2.0, "rate_limited", retry_after_s=30.0) == [WakeAt(3.0, "queue"), WakeAt(32.0, "requests")]
    assert b.counts == {"arrivals": 1, "active": 1}
    (close,) = b.do(Woke("queue"), 3.0)
    assert isinstance(close, Close)
    assert (close.request_id, close.state, close.outcome, close.reason) == ("a", "failed", "rate_limited", "queue_timeout")
    assert b.counts == {"arrivals": 1, "failed": 1}
    assert b.do(Woke("requests"), 32.0) == []


def test_KC_16_cancelled_between_two_attempts() -> None:
    b = Bench(attempts=2, aimd=Aimd(initial_limit=1))
    b.arrive("a", 1.0)
    b.fail("a", 2.0, "rate_limited")
    assert b.do(Cancelled("a"), 2.5) == [Close("a", "cancelled", "local_cancelled", "cancellation", None)]
    assert b.counts == {"arrivals": 1, "cancelled": 1}


def test_EE_30_a_clients_mistake_fails_but_neither_limit_nor_breaker_learn() -> None:
    b = Bench(aimd=Aimd(initial_limit=4), breaker=BreakerGate(window=5, min_outcomes=1, failure_ratio=0.1), attempts=2)
    b.arrive("a", 1.0)
    assert b.fail("a", 2.0, "local_cancelled", reason="invalid_request") == [
        Close("a", "failed", "unexpected_exception", "invalid_request", None)]
    pressure = b.admission.snapshot("chat", 2.0)
    assert (pressure.limit, pressure.breaker) == (4, "closed")


# -- cancelling -------------------------------------------------------------------------------------------------------------------


def test_EE_21_cancel_of_a_running_request_keeps_its_slot_until_the_engine_let_go() -> None:
    b = Bench()
    b.arrive("a", 1.0)
    b.arrive("b", 1.1)
    assert b.do(Cancelled("a", reason="client left"), 2.0) == [
        Close("a", "cancelled", "local_cancelled", "client left", None), Cancel("a", 1, "chat-0", "client left")]
    assert b.counts == {"arrivals": 2, "cancelled": 1, "waiting": 1}
    assert (b.in_flight, b.control.open_count, b.control.open_ids()) == (1, 2, ["b"])
    assert b.do(Cancelled("a"), 2.1) == []  # said once
    assert sent(b.fail("a", 2.5, "local_cancelled")) == [("b", 1, "chat-0")]
    assert b.counts == {"arrivals": 2, "cancelled": 1, "active": 1}
    assert b.fail("a", 2.6, "local_cancelled") == []
    assert b.control.late_events == 1


def test_KC_16_an_answer_that_comes_after_the_cancel_loses() -> None:
    b = Bench()
    b.arrive("a", 1.0)
    b.do(Cancelled("a"), 2.0)
    assert b.finish("a", 2.0) == []
    assert b.counts == {"arrivals": 1, "cancelled": 1}
    assert (b.in_flight, b.control.open_count) == (0, 0)


def test_KC_16_a_cancel_that_comes_after_the_answer_or_of_nobody_changes_nothing() -> None:
    b = Bench()
    b.arrive("a", 1.0)
    b.finish("a", 2.0)
    assert b.do(Cancelled("a"), 2.0) == b.do(Cancelled("nobody"), 2.0) == b.do(Cancelled(session="s"), 2.0) == []
    assert b.counts == {"arrivals": 1, "completed": 1}


def test_EE_21_a_lost_replica_lets_go_of_a_cancelled_attempt() -> None:
    b = Bench()
    b.arrive("a", 1.0)
    b.do(Cancelled("a"), 2.0)
    assert b.do(ReplicaGone("chat-0", "crash"), 2.5) == []
    assert (b.in_flight, b.control.open_count) == (0, 0)


@pytest.mark.parametrize(("outcome", "state"), [("local_cancelled", "cancelled"), ("local_timeout", "cancelled")])
def test_EE_30_a_clients_own_clock_is_told_apart(outcome: str, state: str) -> None:
    b = Bench()
    b.arrive("a", 1.0)
    b.arrive("b", 1.0)
    assert refused(b.do(Cancelled("b", outcome=outcome), 2.0)) == [("b", "cancellation", "abandoned", outcome)]
    close = b.do(Cancelled("a", outcome=outcome), 2.0)[0]
    assert isinstance(close, Close)
    assert (close.state, close.outcome) == (state, outcome)


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


# -- watchdogs --------------------------------------------------------------------------------------------------------------------


def test_first_token_watchdog() -> None:
    b = Bench(limit=2, first_token_s=1.0)
    assert "first_token" in b.control.needs
    assert wakes(b.arrive("slow", 1.0)) == {"watch": 2.0}
    b.arrive("quick", 1.0)
    b.do(FirstToken("quick", 1, "chat-0"), 1.5)
    assert b.do(Woke("watch"), 2.0) == [
        Close("slow", "failed", "provider_timeout", "first_token_timeout", None), Cancel("slow", 1, "chat-0", "first_token_timeout")]
    b.fail("slow", 2.2, "local_cancelled")
    b.finish("quick", 9.0)
    assert b.counts == {"arrivals": 2, "completed": 1, "failed": 1}


def test_wall_watchdog_fires_even_while_tokens_come() -> None:
    b = Bench(wall_s=5.0)
    b.arrive("a", 1.0)
    b.do(FirstToken("a", 1, "chat-0"), 1.5)
    assert b.do(Woke("watch"), 6.0) == [
        Close("a", "failed", "provider_timeout", "wall_timeout", None), Cancel("a", 1, "chat-0", "wall_timeout")]


def test_watchdogs_are_of_one_attempt_and_a_wake_that_came_too_early_is_renewed() -> None:
    b = Bench(attempts=2, replicas=2, wall_s=5.0)
    b.arrive("a", 1.0)
    b.fail("a", 3.0)
    assert b.do(Woke("watch"), 6.0) == [WakeAt(8.0, "watch")]
    assert [type(e) for e in b.do(Woke("watch"), 8.0)] == [Close, Cancel]


def test_EE_30_the_breaker_learns_of_a_watchdog_and_not_of_a_client_who_left() -> None:
    gate = BreakerGate(window=5, min_outcomes=1, failure_ratio=0.5)
    left = Bench(breaker=gate, wall_s=5.0)
    left.arrive("a", 1.0)
    left.do(Cancelled("a"), 2.0)
    left.fail("a", 2.5, "local_cancelled")
    assert left.admission.snapshot("chat", 3.0).breaker == "closed"
    hung = Bench(breaker=gate, wall_s=5.0)
    hung.arrive("a", 1.0)
    hung.do(Woke("watch"), 6.0)
    hung.fail("a", 6.5, "local_cancelled")
    assert hung.admission.snapshot("chat", 7.0).breaker == "open"


def test_cancel_late_stops_only_what_has_no_token_yet() -> None:
    b = Bench(limit=2, cancel_late=True)
    assert wakes(b.arrive("slow", 1.0, deadline_s=3.0)) == {"watch": 3.0}
    b.arrive("quick", 1.0, deadline_s=3.0)
    b.do(FirstToken("quick", 1, "chat-0"), 2.0)
    assert b.do(Woke("watch"), 3.0) == [
        Close("slow", "failed", "local_timeout", "deadline_passed", None), Cancel("slow", 1, "chat-0", "deadline_passed")]


# -- the fleet --------------------------------------------------------------------------------------------------------------------


def test_KC_17_hold_unready_bounds_the_wait_for_a_first_replica() -> None:
    b = Bench(replicas=0, hold_unready_s=5.0)
    b.do(ReplicaBooting("chat-0", "chat"), 0.0)
    assert wakes(b.arrive("a", 1.0)) == {"queue": 6.0}
    assert refused(b.do(Woke("queue"), 6.0)) == [("a", "none_ready", "rejected", "rate_limited")]
    b.arrive("b", 7.0)
    assert sent(b.do(ReplicaReady("chat-0", "chat", slots=1), 8.0)) == [("b", 1, "chat-0")]
    b.arrive("c", 9.0)
    assert refused(b.do(Woke("queue"), 12.0)) == []  # waits for capacity, not for a replica


def test_KC_17_the_hold_counts_from_when_the_last_replica_went() -> None:
    b = Bench(limit=1, hold_unready_s=5.0)
    b.arrive("a", 1.0)
    b.arrive("b", 1.5)
    b.do(ReplicaBooting("chat-1", "chat"), 2.0)
    out = b.do(ReplicaGone("chat-0", "crash"), 10.0)
    assert [e.request_id for e in out if isinstance(e, Close)] == ["a"]
    assert wakes(out) == {"queue": 15.0}
    assert refused(b.do(Woke("queue"), 15.0)) == [("b", "none_ready", "rejected", "rate_limited")]


def test_KC_17_a_hold_starts_anew_with_every_gap() -> None:
    b = Bench(replicas=0, hold_unready_s=5.0)
    b.do(ReplicaBooting("chat-0", "chat"), 0.0)
    b.do(ReplicaBooting("chat-1", "chat"), 0.0)
    b.arrive("a", 1.0)
    b.arrive("b", 1.0)
    assert sent(b.do(ReplicaReady("chat-0", "chat", slots=1), 2.0)) == [("a", 1, "chat-0")]
    b.do(ReplicaGone("chat-0", "crash"), 4.0)
    assert refused(b.do(Woke("queue"), 6.0)) == []
    assert refused(b.do(Woke("queue"), 9.0)) == [("b", "none_ready", "rejected", "rate_limited")]


def test_KC_17_notice_of_a_loss_lets_what_runs_finish() -> None:
    b = Bench()
    b.arrive("a", 1.0)
    b.arrive("b", 1.0)
    assert b.do(ReplicaGone("chat-0", "spot", effective_at=10.0), 2.0) == []
    assert b.finish("a", 3.0) == []
    assert refused(b.do(ReplicaGone("chat-0", "spot"), 10.0)) == [("b", "no_replica", "rejected", "rate_limited")]
    assert b.counts == {"arrivals": 2, "completed": 1, "rejected": 1}


def test_RT_32_a_lost_replica_fails_its_attempts_in_dispatch_order_and_others_take_over() -> None:
    b = Bench(limit=4, replicas=2, attempts=2)
    for n, id in enumerate("abcd"):
        b.arrive(id, 1.0 + n / 10)
    b.do(FirstToken("c", 1, "chat-0"), 2.0)
    out = b.do(ReplicaGone("chat-0", "crash"), 3.0)
    assert [e.request_id for e in out if isinstance(e, Close)] == ["c"]
    assert sent(out) == [("a", 2, "chat-1")]
    assert b.do(ReplicaGone("chat-0", "crash"), 3.1) == []
    assert b.finish("a", 3.2) == []  # the first attempt, which died with its replica
    assert b.control.late_events == 2


def test_RA_2_the_ceiling_follows_the_slots_of_ready_replicas() -> None:
    b = Bench(aimd=Aimd(), replicas=0)
    b.do(ReplicaReady("x", "chat", slots=2), 0.0)
    b.do(ReplicaReady("y", "chat", slots=3), 0.0)
    assert b.admission.snapshot("chat", 0.0).limit == 5
    b.do(ReplicaGone("y", "scaled"), 1.0)
    assert b.admission.snapshot("chat", 1.0).limit == 2
    b.do(ReplicaReady("y", "chat", slots=3), 2.0)
    b.do(ReplicaBooting("y", "chat"), 3.0)  # restarts
    assert b.admission.snapshot("chat", 3.0).limit == 2


def test_a_request_for_one_replica_holds_up_its_own_tenant_only() -> None:
    b = Bench(limit=8, replicas=2)
    b.do(ReplicaBooting("chat-0", "chat"), 0.5)
    b.arrive("pinned", 1.0, tenant="t", replica="chat-0")
    b.arrive("behind", 1.1, tenant="t")
    assert sent(b.arrive("other", 1.2, tenant="u")) == [("other", 1, "chat-1")]
    assert b.counts == {"arrivals": 3, "waiting": 2, "active": 1}
    out = b.do(Cancelled("pinned"), 2.0)
    assert sent(out) == [("behind", 1, "chat-1")]


def test_a_request_for_a_replica_that_is_no_more_ends_at_once() -> None:
    b = Bench(limit=8, replicas=2)
    assert refused(b.arrive("a", 1.0, replica="chat-9")) == [("a", "no_replica", "rejected", "rate_limited")]
    b.do(ReplicaBooting("chat-0", "chat"), 2.0)
    b.arrive("b", 3.0, replica="chat-0")
    b.arrive("c", 3.0)
    out = b.do(ReplicaGone("chat-0", "crash"), 4.0)
    assert refused(out) == [("b", "no_replica", "rejected", "rate_limited")]
    assert sent(out) == [("c", 1, "chat-1")]


def test_EE_11_a_first_token_of_the_attempt_before_is_late() -> None:
    b = Bench(attempts=2, aimd=Aimd(initial_limit=1))
    b.arrive("a", 1.0)
    b.fail("a", 2.0, "rate_limited")
    assert b.do(FirstToken("a", 1, "chat-0"), 2.1) == []
    assert b.control.late_events == 1


def test_DN_2_a_queue_timeout_says_when_its_turn_would_have_come() -> None:
    b = Bench(queue_wait_timeout_s=1.0)
    for n in range(40):
        b.arrive(f"a{n}", 0.25 * n)
        b.finish(f"a{n}", 0.25 * n + 0.25)
    b.arrive("run", 10.0)
    b.arrive("first", 10.0)
    b.arrive("second", 10.0)
    out = [e for e in b.do(Woke("queue"), 11.0) if isinstance(e, Reject)]
    rate_rps = b.admission.completion_rate("chat", 11.0)
    assert rate_rps is not None
    assert [e.denial.retry_after_s for e in out] == [pytest.approx(2 / rate_rps), pytest.approx(1 / rate_rps)]


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
