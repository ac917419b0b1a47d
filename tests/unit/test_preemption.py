"""Hard pre-emption in a control: who is stopped for whom, how often, what becomes of both."""

from __future__ import annotations

from typing import Any

import pytest

from windtunnel.effects import Cancel, Close, Dispatch, Effect, Reject, WakeAt
from windtunnel.errors import ConfigValueError
from windtunnel.events import Arrived, Cancelled, Commanded, Failed, Finished, ReplicaGone, ReplicaReady, Request, Scrape, Scraped, Woke
from windtunnel.policy.admission.aimd import Aimd
from windtunnel.policy.admission.limit import Fixed
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.control import Control
from windtunnel.policy.lane import Lane
from windtunnel.policy.param import BuildContext
from windtunnel.policy.queueing.bounded import BoundedQueue
from windtunnel.policy.queueing.classes import Classes
from windtunnel.policy.queueing.fair import FairTaskQueue, Queue
from windtunnel.policy.queueing.fifo import FifoQueue
from windtunnel.policy.queueing.vtc import Vtc
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.least import LeastOutstanding
from windtunnel.policy.settings import ControlSettings

CTX = BuildContext()


def strict() -> Queue:
    return Classes("strict").build(CTX)


class Bench:
    """`slots` places on as many replicas of one; ids begin with their class: i0, b1, c2."""

    def __init__(self, slots: int = 1, queue: Queue | None = None, limit: Any = None, **settings: Any) -> None:
        given = {"preemption": "hard", **settings}
        admission = RequestAdmission((limit or Fixed(slots)).build(CTX))
        self.lane = Lane("chat", queue=strict() if queue is None else queue, admission=admission, router=LeastOutstanding(), cap=slots)
        self.control, self.now, self.told = Control(lanes=(self.lane,), fleet=Fleet(), settings=ControlSettings(**given)), 0.0, list[Effect]()
        self.running: dict[str, Dispatch] = {}
        for n in range(slots):
            self.do(ReplicaReady(f"chat-{n}", "chat", slots=1))

    def do(self, event: Any, at: float | None = None) -> list[str]:
        """What it makes the control do, in words; wakes left out."""
        self.now = self.now if at is None else at
        effects = self.control.handle(event, self.now)
        self.control.check()
        self.told.extend(effects)
        words = []
        for effect in effects:
            if isinstance(effect, Dispatch):
                self.running[effect.request.id] = effect
                words.append(f"send {effect.request.id}/{effect.dispatch}")
            elif isinstance(effect, Cancel):
                words.append(f"stop {effect.request_id}/{effect.dispatch} {effect.reason}")
            elif isinstance(effect, Close):
                words.append(f"close {effect.request_id} {effect.state} {effect.reason}")
            elif isinstance(effect, Reject):
                words.append(f"reject {effect.request_id} {effect.denial.reason}")
        return words

    def arrive(self, id: str, at: float | None = None, **more: Any) -> list[str]:
        self.now = self.now if at is None else at
        return self.do(Arrived(Request(id, more.pop("tenant", "t"), "m", "ibc".index(id[0]), self.now, 10, 10, **more)))

    def lets_go(self, id: str, at: float | None = None, outcome: str = "local_cancelled", tokens: int = 3) -> list[str]:
        was = self.running.pop(id)
        return self.do(Failed(id, was.dispatch, was.replica, outcome, "preempted", None, None, tokens, self.now, self.now), at)

    def ends(self, id: str, at: float | None = None) -> list[str]:
        was = self.running.pop(id)
        return self.do(Finished(id, was.dispatch, was.replica, 5, 10, 0, self.now, self.now), at)

    @property
    def counts(self) -> Any:
        return self.control.view().counts


def test_QP_12_the_last_dispatched_of_the_least_urgent_class_is_stopped_and_starts_anew() -> None:
    bench = Bench(3)
    for n, id in enumerate(("b1", "c1", "c2")):
        assert bench.arrive(id, float(n)) == [f"send {id}/1"]
    assert bench.arrive("i1", 3.0) == ["stop c2/1 preempted"]
    assert bench.arrive("c3", 3.1) == [], "equals and less urgent ones wait"
    assert bench.lane.admission.in_flight("chat") == 3, "the lease lasts until the engine has let go"
    assert bench.lets_go("c2", 4.0) == ["send i1/1"], "its place goes to who is more urgent, not back to it"
    assert bench.arrive("b2", 4.5) == ["stop c1/1 preempted"]
    assert bench.ends("i1", 5.0) == ["send b2/1"], "a place came another way"
    assert bench.lets_go("c1", 6.0) == ["send c1/2"], "nobody more urgent waits: it goes on, before those that came later"
    assert bench.ends("b1", 7.0) == ["send c2/2"] and bench.ends("b2", 8.0) == ["send c3/1"], "in order of arrival"
    for id in ("c1", "c2", "c3"):
        assert bench.ends(id, 9.0) == []
    assert (bench.counts.arrivals, bench.counts.completed, bench.control.view().preempted) == (6, 6, 2)
    assert bench.control.open_count == bench.lane.admission.in_flight("chat") == 0


@pytest.mark.parametrize("mode", ["soft", "disabled"])
def test_QP_12_off_unless_asked_for(mode: str) -> None:
    bench = Bench(preemption=mode)
    bench.arrive("b1")
    assert bench.arrive("i1") == [] and "interruptible" not in bench.control.needs
    assert bench.ends("b1", 5.0) == ["send i1/1"]
    assert ControlSettings().preemption == "soft"


def test_QP_12_disabled_takes_no_places_in_the_queue_either() -> None:
    def bench(mode: str) -> Bench:
        return Bench(queue=BoundedQueue(FifoQueue(), 2, {}, {0: "shed_low_priority", 1: "reject"}), preemption=mode)

    for mode, told in (("soft", ["reject b2 shed_low_priority"]), ("disabled", ["reject i1 queue_full"])):
        one = bench(mode)
        for id in ("b0", "b1", "b2"):
            one.arrive(id)
        assert one.arrive("i1") == told


def test_QP_12_one_victim_for_one_request() -> None:
    bench = Bench(3)
    for id in ("b1", "b2", "b3"):
        bench.arrive(id)
    assert bench.arrive("i1") == ["stop b3/1 preempted"]
    assert bench.arrive("i2") == ["stop b2/1 preempted"]
    assert bench.do(Woke("requests")) == [], "looking again changes nothing"
    assert bench.do(Cancelled("i1")) == ["reject i1 cancellation"]
    assert bench.arrive("i3") == [], "what was stopped for somebody who left is for the next"
    assert bench.lets_go("b3") == ["send i2/1"] and bench.lets_go("b2") == ["send i3/1"], "in the queue's order, whoever it was stopped for"


def test_QP_12_twice_per_request_at_most() -> None:
    bench = Bench()
    bench.arrive("b1")
    for n in (1, 2):
        assert bench.arrive(f"i{n}") == [f"stop b1/{n} preempted"]
        assert bench.lets_go("b1") == [f"send i{n}/1"]
        assert bench.ends(f"i{n}") == [f"send b1/{n + 1}"]
    assert bench.arrive("i3") == [], "it has been stopped often enough"
    assert bench.ends("b1") == ["send i3/1"]


def test_QP_12_so_many_per_minute() -> None:
    bench = Bench(4, max_preemptions_per_min=2)
    for id in ("b1", "b2", "b3", "b4"):
        bench.arrive(id)
    assert bench.arrive("i1", 1.0) == ["stop b4/1 preempted"] and bench.arrive("i2", 11.0) == ["stop b3/1 preempted"]
    assert bench.arrive("i3", 12.0) == []
    assert WakeAt(61.0, "requests") in bench.told, "when the first is a minute ago"
    assert bench.do(Woke("requests"), 60.9) == []
    assert bench.do(Woke("requests"), 61.0) == ["stop b2/1 preempted"]
    none = Bench(max_preemptions_per_min=0)
    none.arrive("b1")
    assert none.arrive("i1") == [] and not any(isinstance(e, WakeAt) for e in none.told), "nothing will ever change that"


def test_QP_12_an_answer_that_comes_first_counts() -> None:
    bench = Bench()
    bench.arrive("b1")
    bench.arrive("i1")
    assert bench.ends("b1") == ["send i1/1"] and bench.counts.completed == 1
    late = bench.control.late_events
    assert bench.do(Failed("b1", 1, "chat-0", "local_cancelled", "preempted")) == [] and bench.control.late_events == late + 1


@pytest.mark.parametrize("outcome", ["local_cancelled", "rate_limited", "provider_failure", "provider_timeout", "unexpected_exception"])
def test_QP_12_however_a_victims_attempt_ends_it_waits_again(outcome: str) -> None:
    bench = Bench(attempts=1)
    bench.arrive("b1")
    bench.arrive("i1")
    assert bench.lets_go("b1", outcome=outcome) == ["send i1/1"] and bench.counts.active == 2
    assert bench.ends("i1") == ["send b1/2"]
    assert bench.lets_go("b1", outcome="provider_failure") == ["close b1 failed preempted"], "later failures are its own"


def test_QP_12_being_stopped_is_no_failed_attempt() -> None:
    bench = Bench(attempts=2)
    bench.arrive("b1")
    bench.arrive("i1")
    bench.lets_go("b1")
    bench.ends("i1")
    assert bench.do(Failed("b1", 2, "chat-0", "provider_failure", "crash")) == ["send b1/3"], "the one retry is left"
    assert bench.do(Failed("b1", 3, "chat-0", "provider_failure", "crash")) == ["close b1 failed crash"]


def test_QP_12_a_client_leaves_at_every_stage() -> None:
    bench = Bench()
    bench.arrive("b1")
    bench.arrive("i1")
    assert bench.do(Cancelled("b1")) == ["close b1 cancelled cancelled"], "the engine has been told already"
    assert bench.lets_go("b1") == ["send i1/1"]
    assert (bench.counts.cancelled, bench.control.open_count) == (1, 1)
    again = Bench()
    again.arrive("b1")
    again.arrive("i1")
    again.lets_go("b1")
    assert again.do(Cancelled("b1")) == ["close b1 cancelled cancellation"], "it waits, and was dispatched before"
    assert again.do(Cancelled("i1")) == ["close i1 cancelled cancelled", "stop i1/1 cancelled"]
    assert again.lets_go("i1") == [] and again.control.open_count == 0


def test_QP_12_a_replica_that_is_lost_meanwhile() -> None:
    bench = Bench(2)
    bench.arrive("b1")
    bench.arrive("b2")
    assert bench.arrive("i1") == ["stop b2/1 preempted"]
    lost = bench.running.pop("b2").replica
    assert bench.do(ReplicaGone(lost, "crash")) == ["send i1/1"], "the limit is fixed; the other replica has its place"
    assert bench.running["i1"].replica != lost and bench.counts.active == 3
    assert bench.do(ReplicaGone(bench.running["i1"].replica, "crash")) == [
        "close b1 failed crash", "close i1 failed crash", "close b2 failed no_replica"]
    assert bench.control.open_count == 0


def test_QP_12_an_engine_that_does_not_let_go_is_given_up_on_and_another_victim_found() -> None:
    bench = Bench(2, cancellation_deadline_s=1.0)
    bench.arrive("b1")
    bench.arrive("b2")
    assert bench.arrive("i1", 1.0) == ["stop b2/1 preempted"]
    assert bench.do(Woke("watch"), 2.0) == ["stop b1/1 preempted"]
    view = bench.control.view()
    assert (view.cancel_forced, view.quarantined, view.preempted) == (1, {bench.running["b2"].replica: 1}, 2)
    assert bench.lets_go("b1", 2.5) == ["send i1/1"]
    held = bench.running.pop("b2")
    assert bench.do(Scraped(held.replica, Scrape(3.0, 0, 0)), 3.0) == ["send b2/2"], "the engine shows that it is gone: who was stopped first goes on"
    assert bench.control.view().quarantined == {}


def test_QP_12_a_stop_ends_what_would_have_waited_again() -> None:
    bench = Bench()
    bench.arrive("b1")
    bench.arrive("i1")
    assert bench.do(Commanded("stop")) == ["reject i1 stopped"]
    assert bench.lets_go("b1") == ["close b1 failed stopped"] and bench.control.open_count == 0


def test_QP_12_a_victim_whose_deadline_passes_is_late() -> None:
    bench = Bench()
    bench.arrive("b1", 0.0, deadline_s=2.0)
    bench.arrive("i1", 1.0)
    assert bench.lets_go("b1", 2.0) == ["close b1 failed deadline_passed", "send i1/1"]


def test_QP_12_only_a_lane_that_is_full_stops_anything() -> None:
    bench = Bench(2, limit=Aimd(initial_limit=2, cooldown_s=4.0))
    bench.arrive("b1")
    bench.arrive("b2")
    assert bench.lets_go("b2", 1.0, outcome="rate_limited") == ["close b2 failed preempted"]
    assert bench.arrive("i1", 2.0) == [], "the limit pauses: an end would not help"
    assert WakeAt(5.0, "requests") in bench.told
    assert bench.do(Woke("requests"), 5.0) == ["stop b1/1 preempted"], "now it would: the limit is 1"
    assert bench.lets_go("b1") == ["send i1/1"]


def test_QP_12_a_request_with_a_place_of_its_own_takes_only_that() -> None:
    bench = Bench(2)
    bench.arrive("b1")
    bench.arrive("b2")
    where = bench.running["b1"].replica
    assert bench.arrive("i1", replica=where) == ["stop b1/1 preempted"], "the newest runs elsewhere"
    assert bench.lets_go("b1") == ["send i1/1"] and bench.running["i1"].replica == where


def test_QP_12_victims_run_where_others_may_go() -> None:
    bench = Bench(2)
    bench.arrive("b1")
    bench.arrive("b2")
    bench.do(Commanded("drain", {"replica": bench.running["b2"].replica}))
    assert bench.arrive("i1") == ["stop b1/1 preempted"], "a draining replica takes nobody"


@pytest.mark.parametrize("queue", [FairTaskQueue, lambda: Vtc().build(CTX), lambda: BoundedQueue(FairTaskQueue()), strict,
                                   lambda: Classes("ageing").build(CTX), lambda: Classes("weighted").build(CTX)])
def test_QP_12_the_place_goes_to_the_urgent_one_in_every_queue(queue: Any) -> None:
    bench = Bench(queue=queue())
    bench.arrive("b1", tenant="a")
    assert bench.arrive("i1", tenant="b") == ["stop b1/1 preempted"]
    assert bench.lets_go("b1") == ["send i1/1"] and bench.ends("i1") == ["send b1/2"] and bench.ends("b1") == []


def test_QP_12_nobody_is_sent_to_be_stopped_at_once() -> None:
    bench = Bench(queue=FairTaskQueue())
    for id, tenant in (("b1", "a"), ("b2", "b"), ("b3", "b"), ("i1", "c")):
        bench.arrive(id, tenant=tenant)
    assert list(bench.lets_go("b1")) == ["send i1/1"], "b2's turn would come first"
    assert bench.ends("i1") == ["send b2/1"]
    bench.arrive("c1", tenant="c")
    assert bench.ends("b2") == ["send b1/2"], "nobody is more urgent: the queue's order"


def test_QP_12_a_line_for_everybody_gives_nothing_away() -> None:
    bench = Bench(queue=FifoQueue())
    bench.arrive("b1")
    bench.arrive("b2")
    assert bench.arrive("i1") == [], "b2 stands before it"
    assert bench.ends("b1") == ["send b2/1", "stop b2/1 preempted"] and bench.lets_go("b2") == ["send i1/1"]


def test_QP_12_what_a_run_was_not_asked_for_at_its_start_cannot_be_turned_on_but_off() -> None:
    bench = Bench(preemption="soft")
    bench.do(Commanded("reconfigure", {"settings": {"preemption": "hard"}}))
    assert bench.control.commands_refused == 1 and bench.control.settings.preemption == "soft"
    hard = Bench()
    hard.arrive("b1")
    hard.do(Commanded("reconfigure", {"settings": {"preemption": "soft"}}))
    assert hard.control.commands_refused == 0 and hard.arrive("i1") == []


@pytest.mark.parametrize(("name", "value"), [("preemption", "sometimes"), ("preemption", True), ("max_preemptions_per_min", -1),
                                             ("max_preemptions_per_min", 1.5), ("max_preemptions_per_min", float("nan"))])
def test_QP_12_bad_settings_are_told(name: str, value: Any) -> None:
    with pytest.raises(ConfigValueError, match=name):
        ControlSettings(**{name: value})


def test_QP_8_who_is_urgent_and_has_waited_too_long_is_not_sent_first_when_the_wake_is_late() -> None:
    bench = Bench(queue=FairTaskQueue(), max_preemptions_per_min=0, queue_wait_timeout_s=2.0)
    assert bench.arrive("i1", 0.0, tenant="a") == ["send i1/1"]
    for id, tenant in (("i2", "a"), ("i3", "a"), ("b4", "b")):
        assert bench.arrive(id, tenant=tenant) == []
    assert bench.ends("i1", 3.0) == ["reject i2 queue_timeout", "reject i3 queue_timeout", "reject b4 queue_timeout"]
