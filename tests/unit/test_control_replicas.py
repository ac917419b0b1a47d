"""Replicas that come, go and are asked for by name: what waits and what runs there."""

from __future__ import annotations

import pytest
from control_bench import Bench, refused, sent, wakes

from windtunnel.effects import Close, Reject
from windtunnel.events import (
    Cancelled,
    FirstToken,
    ReplicaBooting,
    ReplicaGone,
    ReplicaReady,
    Woke,
)
from windtunnel.policy.admission.aimd import Aimd


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
