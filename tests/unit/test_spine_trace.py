"""The worked trace of the control: every event, every effect, every wake."""

from __future__ import annotations

import pytest
from chat_request import chat_request

from windtunnel.effects import Close, Dispatch, Reject, WakeAt
from windtunnel.errors import PolicyClockError, PolicyError
from windtunnel.events import Arrived, Cancelled, Commanded, Failed, Finished, ReplicaBooting, ReplicaGone, ReplicaReady, Woke
from windtunnel.policy.control import Control
from windtunnel.policy.presets import default_control
from windtunnel.policy.settings import ControlSettings


def control(**settings: object) -> Control:
    return default_control(["chat"], initial_limit=1, cap=1, settings=ControlSettings(**settings))  # type: ignore[arg-type]


def up_to_five(c: Control) -> list[list[object]]:
    return [
        list(c.handle(ReplicaReady("chat-0", "chat", slots=8), 0.0)),
        list(c.handle(Arrived(chat_request("a", "t1", 1.0)), 1.0)),
        list(c.handle(Arrived(chat_request("b", "t1", 1.2)), 1.2)),
        list(c.handle(Arrived(chat_request("c", "t2", 1.5, deadline_s=9.0)), 1.5)),
        list(c.handle(Finished("a", 1, "chat-0", 64, 100, 0, 1.0, 1.1), 2.0)),
    ]


def dispatch(effect: object) -> tuple[str, int, str, str, str]:
    assert isinstance(effect, Dispatch)
    return effect.request.id, effect.dispatch, effect.replica, effect.lease_id, effect.reason


def test_main_trace() -> None:
    c = control()
    one, two, three, four, five = up_to_five(c)
    assert one == []
    assert [dispatch(e) for e in two] == [("a", 1, "chat-0", "g0-1", "least_requests")]
    assert three == []
    assert four == [WakeAt(9.0, "queue")]
    assert [dispatch(e) for e in five] == [("c", 1, "chat-0", "g0-2", "least_requests")]
    six = list(c.handle(Failed("c", 1, "chat-0", "rate_limited", "http_429", 429, 1.0), 2.6))
    assert six == [Close("c", "failed", "rate_limited", "http_429", 1.0), WakeAt(3.6, "requests")]
    pressure = c.view().lanes[0].limit
    assert (pressure.blocked_until, pressure.limit) == (3.6, 1)
    assert list(c.handle(Finished("a", 1, "chat-0", 64), 3.0)) == []
    assert c.late_events == 1
    eight = list(c.handle(Woke("requests"), 3.6))
    assert [dispatch(e) for e in eight] == [("b", 1, "chat-0", "g0-3", "least_requests")]
    assert list(c.handle(Finished("b", 1, "chat-0", 10, 100, 0, 3.6, 3.9), 4.4)) == []
    counts = c.view().counts
    assert (counts.arrivals, counts.completed, counts.failed, counts.active) == (3, 2, 1, 0)
    assert list(c.handle(Woke("queue"), 9.0)) == []
    assert c.view().wakes == {}
    c.check()


def test_cancelled_while_waiting_is_abandoned() -> None:
    c = control()
    up_to_five(c)
    c.handle(Failed("c", 1, "chat-0", "rate_limited", "http_429", 429, 1.0), 2.6)
    c.handle(Finished("a", 1, "chat-0", 64), 3.0)
    (reject,) = c.handle(Cancelled("b"), 3.1)
    assert isinstance(reject, Reject)
    assert (reject.request_id, reject.state, reject.outcome) == ("b", "abandoned", "local_cancelled")
    assert list(c.handle(Woke("requests"), 3.6)) == []
    c.check()


def test_second_attempt_keeps_its_place_but_not_its_turn() -> None:
    c = control(attempts=2)
    up_to_five(c)
    assert list(c.handle(Failed("c", 1, "chat-0", "rate_limited", "http_429", 429, 1.0), 2.6)) == [WakeAt(3.6, "requests")]
    (sent,) = c.handle(Woke("requests"), 3.6)
    assert dispatch(sent)[0] == "b"
    c.check()
    assert c.view().counts.waiting == 0  # c was admitted once: it is active while it waits for its second attempt
    (again,) = c.handle(Finished("b", 1, "chat-0", 10), 4.4)
    assert dispatch(again)[:2] == ("c", 2)
    c.check()


def test_lost_replica_ends_what_ran_then_what_waits() -> None:
    c = control()
    up_to_five(c)
    effects = list(c.handle(ReplicaGone("chat-0", "crash"), 2.2))
    assert effects[0] == Close("c", "failed", "provider_failure", "crash", None)
    assert isinstance(effects[1], Reject)
    assert (effects[1].request_id, effects[1].state, effects[1].outcome, effects[1].denial.reason) == ("b", "rejected", "rate_limited", "no_replica")
    c.check()


def test_lost_replica_with_one_booting_lets_the_rest_wait() -> None:
    c = control()
    up_to_five(c)
    c.handle(ReplicaBooting("chat-1", "chat"), 2.1)
    assert list(c.handle(ReplicaGone("chat-0", "crash"), 2.2)) == [Close("c", "failed", "provider_failure", "crash", None)]
    (sent,) = c.handle(ReplicaReady("chat-1", "chat", slots=8), 5.0)
    assert dispatch(sent)[:3] == ("b", 1, "chat-1")


def test_arrival_without_any_replica_is_rejected() -> None:
    (reject,) = control().handle(Arrived(chat_request("a", "t", 0.0)), 0.0)
    assert isinstance(reject, Reject)
    assert reject.denial.reason == "no_replica"


def test_stop_rejects_waiting_and_later_ones() -> None:
    c = control()
    up_to_five(c)
    (reject,) = c.handle(Commanded("stop"), 2.1)
    assert isinstance(reject, Reject)
    assert (reject.request_id, reject.denial.reason) == ("b", "stopped")
    (late,) = c.handle(Arrived(chat_request("d", "t", 2.2)), 2.2)
    assert isinstance(late, Reject)
    assert late.denial.reason == "shutdown"
    c.handle(Finished("c", 1, "chat-0", 5), 2.5)
    c.check()
    assert c.open_count == 0


def test_GN_1_clock_and_duplicates_are_refused() -> None:
    c = control()
    up_to_five(c)
    with pytest.raises(PolicyClockError):
        c.handle(Woke("queue"), 1.0)
    with pytest.raises(PolicyError, match="arrived while"):
        c.handle(Arrived(chat_request("b", "t1", 2.0)), 2.0)
