"""The shadow's adapter: one world's happenings in the terms of another's decisions."""

from __future__ import annotations

from windtunnel.effects import Close, Dispatch, Reject
from windtunnel.events import (
    Arrived,
    Cancelled,
    Commanded,
    Failed,
    Finished,
    FirstToken,
    Progressed,
    ReplicaGone,
    ReplicaReady,
    Request,
    ScaleAnswered,
    Started,
    Woke,
)
from windtunnel.live.shadow import ENDED_ELSEWHERE, SERVED_ELSEWHERE, ShadowAdapter


def request(name):
    return Request(name, "t", "m", 0, 0.0)


def dispatch(name, n=1, replica="chat-9"):
    return Dispatch(request(name), n, replica, "lease", "why")


def shadow(**decided):
    """An adapter with open requests: `dispatched`, `waiting` or `rejected` by the shadow."""
    adapter = ShadowAdapter()
    for name, how in decided.items():
        assert adapter.translate(Arrived(request(name))) == (Arrived(request(name)),)
        if how == "dispatched":
            adapter.observe([dispatch(name, 3)])
        elif how == "rejected":
            adapter.observe([Reject(name, None, "rejected", "rate_limited")])  # type: ignore[arg-type]
    return adapter


def test_DV_6_an_end_of_what_it_dispatched_has_its_own_replica_and_dispatch():
    adapter = shadow(a="dispatched", b="dispatched")
    assert adapter.translate(Finished("a", 1, "chat-0", 7)) == (Finished("a", 3, "chat-9", 7),)
    refused = Failed("b", 1, "chat-0", "rate_limited", "http_429")
    assert adapter.translate(refused) == (Failed("b", 3, "chat-9", "rate_limited", "http_429"),)
    assert adapter.translate(Finished("a", 1, "chat-0", 7)) == ()


def test_DV_6_what_it_holds_waiting_was_served_elsewhere_and_what_it_refused_is_dropped():
    adapter = shadow(a="waiting", b="rejected")
    assert adapter.translate(Failed("a", 1, "chat-0", "provider_failure", "reset")) == ()
    assert adapter.translate(Finished("a", 2, "chat-0", 7)) == (Cancelled("a", None, SERVED_ELSEWHERE),)
    assert adapter.translate(Finished("b", 1, "chat-0", 7)) == ()


def test_DV_6_an_end_without_an_attempts_end_closes_the_books_too():
    adapter = shadow(a="dispatched", b="waiting", c="rejected")
    closes = [Close(n, "failed", "provider_failure", "crash") for n in "abc"]
    assert adapter.translate(closes[0]) == (Failed("a", 3, "chat-9", "local_cancelled", ENDED_ELSEWHERE),)
    assert adapter.translate(closes[1]) == (Cancelled("b", None, SERVED_ELSEWHERE),)
    assert adapter.translate(closes[2]) == adapter.translate(closes[0]) == ()


def test_DV_6_a_failed_attempt_may_be_tried_again_by_the_shadow():
    adapter = shadow(a="dispatched")
    adapter.translate(Failed("a", 1, "chat-0", "provider_failure", "reset"))
    adapter.observe([dispatch("a", 4, "chat-8")])
    assert adapter.translate(Finished("a", 2, "chat-1", 7)) == (Finished("a", 4, "chat-8", 7),)


def test_DV_6_observations_are_told_by_its_own_replicas():
    adapter = shadow(a="dispatched", b="dispatched", c="waiting")
    adapter.observe([dispatch("b", 1, "chat-7")])
    assert adapter.translate(Started("a", 1, "chat-0")) == (Started("a", 3, "chat-9"),)
    assert adapter.translate(FirstToken("c", 1, "chat-0")) == ()
    assert adapter.translate(Progressed("chat-0", (("a", 5), ("b", 6), ("c", 7)))) == (
        Progressed("chat-9", (("a", 5),)), Progressed("chat-7", (("b", 6),)))


def test_DV_6_replicas_pass_and_answers_to_the_main_control_do_not():
    adapter = shadow(a="waiting")
    for event in (ReplicaReady("chat-0", "chat"), ReplicaGone("chat-0", "down"), Commanded("reconfigure"), Cancelled("a")):
        assert adapter.translate(event) == (event,)
    for event in (Woke("queue"), ScaleAnswered(1, "accepted"), Commanded("stop"), Cancelled("never-seen")):
        assert adapter.translate(event) == ()
