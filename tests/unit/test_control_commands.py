"""Engines that do not let go, streams that fall silent, sessions given up, and what an operator may say to a running control."""

from __future__ import annotations

from typing import Any

import pytest
from chat_request import chat_request

from windtunnel.effects import Cancel, Close, Dispatch, Drain, Effect, Note, Reject, WakeAt
from windtunnel.events import (
    Arrived,
    Cancelled,
    Commanded,
    Event,
    Failed,
    Finished,
    FirstToken,
    Progressed,
    ReplicaBooting,
    ReplicaGone,
    ReplicaReady,
    Scrape,
    Scraped,
    Woke,
)
from windtunnel.policy.admission.limit import Fixed
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.control import Control
from windtunnel.policy.lane import Lane
from windtunnel.policy.param import BuildContext
from windtunnel.policy.queueing.fair import FairTaskQueue
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.least import LeastOutstanding
from windtunnel.policy.routing.turns import TurnRef
from windtunnel.policy.settings import ControlSettings


class Flown:
    """A control with one lane over the pool `chat`; every event is followed by a check of the books."""

    def __init__(self, *, limit: int = 8, replicas: int = 1, wants: frozenset[str] = frozenset(), **settings: Any) -> None:
        self.admission = RequestAdmission(Fixed(limit).build(BuildContext()))
        self.router = LeastOutstanding(pools=("chat",))
        lane = Lane("chat", queue=FairTaskQueue(), admission=self.admission, router=self.router, models=frozenset({"m"}))
        self.control = Control(lanes=(lane,), fleet=Fleet(), settings=ControlSettings(**settings), wants=wants)
        for n in range(replicas):
            self.do(ReplicaReady(f"chat-{n}", "chat", slots=8), 0.0)

    def do(self, event: Event, now: float) -> list[Effect]:
        effects = list(self.control.handle(event, now))
        self.control.check()
        return effects

    def arrive(self, id: str, now: float, session: str | None = None, tenant: str = "t") -> list[Effect]:
        turn = None if session is None else TurnRef(session, 0, None)
        return self.do(Arrived(chat_request(id, tenant, now, turn=turn)), now)

    def scrape(self, now: float, running: int | None, sampled_s: float | None = None, waiting: int | None = 0) -> list[Effect]:
        return self.do(Scraped("chat-0", Scrape(now if sampled_s is None else sampled_s, running, waiting)), now)

    def stuck(self, *ids: str) -> None:
        """Requests that were cancelled at 2 s and whose engine has said nothing until 7 s."""
        for id in ids:
            self.arrive(id, 1.0)
        for id in ids:
            self.do(Cancelled(id), 2.0)
        self.do(Woke("watch"), 7.0)

    @property
    def in_flight(self) -> int:
        return self.admission.in_flight("chat")


# -- cancellation deadline --------------------------------------------------------------------------------------------------------


def test_KC_16_a_cancelled_attempt_has_five_seconds_and_then_its_slot_is_in_quarantine() -> None:
    c = Flown()
    c.arrive("a", 1.0)
    assert c.do(Cancelled("a"), 2.0) == [
        Close("a", "cancelled", "local_cancelled", "cancelled"), Cancel("a", 1, "chat-0", "cancelled"), WakeAt(7.0, "watch")]
    assert c.do(Woke("watch"), 7.0) == []
    view = c.control.view()
    assert (view.cancel_forced, view.quarantined) == (1, {"chat-0": 1})
    assert (c.in_flight, c.control.open_count) == (1, 1)  # used, for all that is known


@pytest.mark.parametrize("end", [Finished("a", 1, "chat-0", 5), Failed("a", 1, "chat-0", "local_cancelled", "stopped")])
def test_KC_16_an_engine_that_lets_go_in_time_is_never_in_quarantine(end: Event) -> None:
    c = Flown()
    c.arrive("a", 1.0)
    c.do(Cancelled("a"), 2.0)
    c.do(end, 3.0)
    c.do(Woke("watch"), 7.0)
    assert (c.control.view().cancel_forced, c.in_flight, c.control.open_count) == (0, 0, 0)


@pytest.mark.parametrize("end", [
    Finished("a", 1, "chat-0", 5), Failed("a", 1, "chat-0", "local_cancelled", "stopped"), ReplicaGone("chat-0", "crash"),
    ReplicaBooting("chat-0", "chat"), Scraped("chat-0", Scrape(7.5, 0, 0)),
])
def test_TQ_11_quarantine_ends_with_an_answer_a_new_start_or_a_scrape_without_it(end: Event) -> None:
    c = Flown()
    c.stuck("a")
    assert c.in_flight == 1
    assert c.do(end, 8.0) == []
    assert (c.in_flight, c.control.open_count, c.control.view().quarantined) == (0, 0, {})
    late = c.control.late_events
    c.do(Failed("a", 1, "chat-0", "local_cancelled", "stopped"), 9.0)  # it comes after all
    assert c.control.late_events == late + 1


@pytest.mark.parametrize(("running", "waiting", "sampled_s"), [
    (1, 0, 7.5), (0, 1, 7.5), (None, 0, 7.5), (0, None, 7.5), (0, 0, 6.9), (5, 0, 7.5)])
def test_TQ_11_a_scrape_that_is_older_or_unknown_or_still_shows_it_frees_nothing(running: int | None, waiting: int | None, sampled_s: float) -> None:
    c = Flown()
    c.stuck("a")
    c.scrape(8.0, running, sampled_s, waiting)
    assert c.in_flight == 1


def test_TQ_11_as_many_leave_quarantine_as_the_engine_no_longer_has_the_oldest_first() -> None:
    c = Flown()
    c.stuck("a", "b")
    c.arrive("c", 7.0)
    c.scrape(8.0, 2)  # c and one of the two
    assert (c.in_flight, c.control.view().quarantined) == (2, {"chat-0": 1})
    assert "a" not in c.control.flow.open
    c.arrive("d", 9.0)
    c.scrape(9.5, 1, sampled_s=8.5)  # sampled before d was sent: c alone
    assert (c.in_flight, c.control.view().quarantined) == (2, {})


def test_TQ_11_room_that_comes_free_is_used_at_once() -> None:
    c = Flown(limit=1)
    c.stuck("a")
    assert [type(e) for e in c.arrive("next", 7.5)] == []
    assert [e.request.id for e in c.scrape(8.0, 0) if isinstance(e, Dispatch)] == ["next"]


def test_KC_16_without_a_deadline_nothing_is_watched() -> None:
    c = Flown(cancellation_deadline_s=None)
    c.arrive("a", 1.0)
    assert not any(isinstance(e, WakeAt) for e in c.do(Cancelled("a"), 2.0))


# -- idle watchdog ----------------------------------------------------------------------------------------------------------------


def test_KC_18_an_idle_watchdog_needs_progress() -> None:
    assert {"first_token", "progress"} <= Flown(idle_s=5.0).control.needs
    assert "progress" not in Flown().control.needs


def test_idle_watchdog_stops_a_stream_that_falls_silent_and_not_one_that_goes_on() -> None:
    c = Flown(idle_s=5.0, cancellation_deadline_s=None)
    c.arrive("talks", 1.0)
    c.arrive("falls", 1.0)
    assert c.do(FirstToken("talks", 1, "chat-0"), 2.0) == [WakeAt(7.0, "watch")]
    c.do(FirstToken("falls", 1, "chat-0"), 2.0)
    c.do(Progressed("chat-0", (("talks", 32), ("falls", 1))), 6.0)  # no token since the first: that is silence
    assert c.do(Woke("watch"), 7.0) == [
        Close("falls", "failed", "provider_timeout", "idle_timeout"), Cancel("falls", 1, "chat-0", "idle_timeout"), WakeAt(11.0, "watch")]
    c.do(Progressed("chat-0", (("talks", 64),)), 9.0)
    assert c.do(Woke("watch"), 11.0) == [WakeAt(14.0, "watch")]
    c.do(Finished("talks", 1, "chat-0", 70), 12.0)
    assert c.do(Woke("watch"), 14.0) == []
    assert not c.control.flow._heard


def test_idle_watchdog_of_an_earlier_attempt_leaves_the_next_one_alone() -> None:
    c = Flown(idle_s=5.0, attempts=2, replicas=2, cancellation_deadline_s=None)
    c.arrive("a", 1.0)
    c.do(FirstToken("a", 1, "chat-0"), 2.0)
    c.do(ReplicaGone("chat-0", "crash"), 3.0)  # a token was out: it ends
    c.do(Woke("watch"), 7.0)
    assert c.control.view().counts.failed == 1
    assert not c.control.flow._heard


def test_idle_watchdog_says_nothing_before_the_first_token() -> None:
    c = Flown(idle_s=5.0)
    assert not any(isinstance(e, WakeAt) for e in c.arrive("a", 1.0))
    assert c.do(Woke("watch"), 60.0) == []


# -- sessions -----------------------------------------------------------------------------------------------------------------------


def test_ST_7_a_session_given_up_ends_what_is_open_of_it_and_tells_the_router() -> None:
    c = Flown(limit=1, cancellation_deadline_s=None)
    told: list[tuple[str, float]] = []
    c.router.abort = lambda session, now: told.append((session, now))  # type: ignore[attr-defined]
    c.arrive("s-0", 1.0, "s")
    c.arrive("other", 1.1, "s2")
    c.arrive("s-1", 1.2, "s")
    c.arrive("none", 1.3)
    effects = c.do(Cancelled(session="s", reason="gave up"), 2.0)
    assert [type(e) for e in effects] == [Close, Cancel, Reject]
    assert [e.request_id for e in effects] == ["s-0", "s-0", "s-1"]  # type: ignore[union-attr]
    assert told == [("s", 2.0)]
    assert c.control.open_ids() == ["other", "none"]
    assert c.do(Cancelled(session="s"), 3.0) == []


def test_a_cancel_of_nothing_is_nothing() -> None:
    c = Flown()
    c.arrive("a", 1.0, "s")
    assert c.do(Cancelled(), 2.0) == c.do(Cancelled("b", session="s"), 2.0) == []
    assert c.control.open_ids() == ["a"]


# -- commands -----------------------------------------------------------------------------------------------------------------------


def test_drain_takes_a_replica_out_and_undrain_brings_it_back() -> None:
    c = Flown(limit=1, replicas=1)
    c.arrive("runs", 1.0)
    assert c.do(Commanded("drain", {"replica": "chat-0", "deadline_s": 30.0}), 2.0) == [Drain("chat-0", 32.0, "operator")]
    c.do(Finished("runs", 1, "chat-0", 5), 3.0)
    assert not any(isinstance(e, Dispatch) for e in c.arrive("waits", 4.0))
    undone = c.do(Commanded("undrain", {"replica": "chat-0"}), 5.0)
    assert undone[0] == Drain("chat-0", None, "operator", True)  # before work is sent there again
    assert [e.request.id for e in undone if isinstance(e, Dispatch)] == ["waits"]


def test_undrain_of_a_replica_that_never_served_goes_on_booting() -> None:
    c = Flown()
    c.do(ReplicaBooting("chat-1", "chat"), 1.0)
    c.do(Commanded("drain", {"replica": "chat-1"}), 2.0)
    c.do(Commanded("undrain", {"replica": "chat-1"}), 3.0)
    assert c.control.fleet.replicas["chat-1"].state == "booting"


def test_reconfigure_changes_patience_and_weights_from_now_on() -> None:
    c = Flown(limit=1)
    c.arrive("runs", 1.0)
    c.arrive("old", 1.0)
    assert c.do(Commanded("reconfigure", {"settings": {"queue_wait_timeout_s": 3.0}, "tenants": {"gold": 4.0, "default": 0.5}}), 2.0) == []
    assert c.arrive("new", 2.0, tenant="gold") == [WakeAt(5.0, "queue")]
    assert (c.control.flow.open["new"].item.group.weight, c.control.flow.open["old"].item.group.weight) == (4.0, 1.0)
    assert [e.request_id for e in c.do(Woke("queue"), 5.0) if isinstance(e, Reject)] == ["new"]  # the old one was promised nothing


@pytest.mark.parametrize(("command", "why"), [
    (Commanded("scale"), "there is no command 'scale'"),
    (Commanded("drain"), "replica None is not there"),
    (Commanded("drain", {"replica": "chat-9"}), "replica 'chat-9' is not there"),
    (Commanded("drain", {"replica": ["chat-0"]}), "replica ['chat-0'] is not there"),
    (Commanded("drain", {"replica": "chat-0", "deadline_s": float("nan")}), "deadline_s"),
    (Commanded("drain", {"replica": "chat-0", "in_s": 3}), "unknown argument 'in_s'"),
    (Commanded("undrain", {"replica": "chat-0"}), "replica 'chat-0' is not draining"),
    (Commanded("reconfigure", {"tenants": {"ünïcode": -1.0}}), "tenants.ünïcode"),
    (Commanded("reconfigure", {"tenants": 3}), "tenants: expected a weight by name"),
    (Commanded("reconfigure", {"settings": {"patience_s": 3}}), "settings: expected some of"),
    (Commanded("reconfigure", {"settings": {"attempts": 0}}), "attempts"),
    (Commanded("reconfigure", {"settings": {"idle_s": 5.0}}), "this run was not asked for first_token, progress"),
    (Commanded("reconfigure", {"settings": {"attempts": 2}, "tenants": {"a": 1.0}}), "first_token"),
])
def test_a_command_that_cannot_be_carried_out_changes_nothing_and_says_why(command: Commanded, why: str) -> None:
    c = Flown(wants=frozenset({"fleet"}))
    before = (c.control.settings, c.control.flow._tenants, c.control.fleet.members)
    (note,) = c.do(command, 1.0)
    assert isinstance(note, Note)
    assert (note.kind, note.stream, note.sequence, note.ids) == ("command_refused", "fleet", 1, (command.name,))
    assert why in note.reason
    assert (c.control.settings, c.control.flow._tenants, c.control.fleet.members) == before
    assert c.control.commands_refused == 1


def test_a_refused_command_is_not_noted_where_nobody_listens() -> None:
    c = Flown()
    assert c.do(Commanded("drain", {"replica": "chat-0"}), 1.0) == [Drain("chat-0", None, "operator")]
    assert c.do(Commanded("drain", {"replica": "chat-0"}), 2.0) == []
    assert c.control.commands_refused == 1
