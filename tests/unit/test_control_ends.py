"""Every way in which an attempt ends: said once, counted once, and everything it held given back."""

from __future__ import annotations

import pytest
from control_bench import Bench, refused, sent, wakes

from windtunnel.effects import Cancel, Close, Dispatch, WakeAt
from windtunnel.events import (
    Cancelled,
    Commanded,
    FirstToken,
    ReplicaGone,
    Woke,
)
from windtunnel.policy.admission.aimd import Aimd
from windtunnel.policy.admission.breaker import BreakerGate

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
