"""The live driver against stand-in engines over real HTTP: what leaves, what is recorded, and that everything ends, always."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from types import SimpleNamespace

import pytest

from windtunnel.effects import Cancel, Close, Dispatch, Reject, ScaleTo, WakeAt
from windtunnel.errors import ArmRefusedError, ConfigNeedsError, ConfigValueError, EngineStoppedError, PolicyError
from windtunnel.events import (
    Arrived,
    Cancelled,
    Commanded,
    Failed,
    Finished,
    Progressed,
    ReplicaBooting,
    ReplicaGone,
    ReplicaReady,
    Request,
    ScaleAnswered,
    Scraped,
    Woke,
)
from windtunnel.lab.recorder import Recorder
from windtunnel.live import scraper
from windtunnel.live.driver import LiveDriver
from windtunnel.live.fake_server import FakeEngine, FakeScript, Fault
from windtunnel.live.fleet import LiveFleet
from windtunnel.live.gate import Caps
from windtunnel.live.stopfile import request_stop
from windtunnel.policy.presets import default_control
from windtunnel.policy.settings import ControlSettings

ENDS = (Reject, Close)


class Tiny:
    """The least that a driver needs of a control: first come, first served, onto the emptiest replica, `per` at a time each."""

    def __init__(self, per: int = 8, needs: frozenset[str] = frozenset()) -> None:
        self.per, self.needs, self.raise_on, self.balanced = per, needs, (), True
        self.waiting: deque[Request] = deque()
        self.running: dict[str, tuple[str, int]] = {}
        self.replicas: dict[str, int] = {}
        self.stopped, self.threads = False, set()
        self.nows: list[float] = []

    def handle(self, event, now):
        self.threads.add(threading.get_ident())
        self.nows.append(now)
        out = []
        if type(event) in self.raise_on:
            raise ValueError("a broken policy")
        if isinstance(event, ReplicaReady):
            self.replicas[event.replica] = 0
        elif isinstance(event, ReplicaGone):
            self.replicas.pop(event.replica, None)
            for rid in [r for r, (name, _) in self.running.items() if name == event.replica]:
                del self.running[rid]
                out.append(Close(rid, "failed", "provider_failure", event.reason))
        elif isinstance(event, Arrived):
            if self.stopped:
                out.append(self._reject(event.request.id, "shutdown"))
            else:
                self.waiting.append(event.request)
        elif isinstance(event, (Finished, Failed)) and self.running.get(event.request_id, ("", 0))[1] == event.dispatch:
            self.replicas[self.running.pop(event.request_id)[0]] -= 1
            if isinstance(event, Failed):
                out.append(Close(event.request_id, "failed", event.outcome, event.reason))
        elif isinstance(event, Cancelled) and event.request_id in self.running:
            name, dispatch = self.running[event.request_id]
            out += [Cancel(event.request_id, dispatch, name, event.reason)]
        elif isinstance(event, Cancelled):
            gone = [r for r in self.waiting if r.id == event.request_id]
            self.waiting = deque(r for r in self.waiting if r.id != event.request_id)
            out += [self._reject(r.id, "cancellation") for r in gone]
        elif isinstance(event, Commanded):
            self.stopped = event.name == "stop" or self.stopped
            out += [self._reject(r.id, "stopped") for r in self.waiting]
            self.waiting.clear()
            out += [ScaleTo(1, (("chat", 3),))] if event.name == "scale" else []
        while self.waiting and self.replicas and min(self.replicas.values()) < self.per:
            name = min(self.replicas, key=self.replicas.get)
            request = self.waiting.popleft()
            self.replicas[name] += 1
            self.running[request.id] = (name, 1)
            out.append(Dispatch(request, 1, name, "lease", "least"))
        return out

    @staticmethod
    def _reject(rid, reason):
        return Reject(rid, SimpleNamespace(reason=reason), "rejected", "rate_limited")

    def check(self):
        if not self.balanced:
            raise PolicyError("the books do not balance")

    def view(self):
        return SimpleNamespace(lanes=(), waiting=len(self.waiting), running=len(self.running), at=time.monotonic())


class Listed:
    """An open-loop source that keeps what it is told."""

    loop, needs = "open", frozenset()

    def __init__(self, requests, name="listed", needs=frozenset()):
        self.requests, self.name, self.needs, self.told = list(requests), name, needs, []

    def stream(self):
        return iter(self.requests)

    def start(self, now):
        return ()

    def handle(self, what, now):
        self.told.append(what)
        return ()

    def done(self):
        return True

    def ends(self):
        return Counter(w.request_id for w in self.told if isinstance(w, (Finished, Reject, Close)))


class Door(Listed):
    """A source that never ends by itself: only a stop ends its run."""

    def done(self):
        return False


class Record:
    """Keeps every step; may be told to break."""

    def __init__(self):
        self.steps, self.errors, self.samples, self.rows, self.breaks_at = [], [], [], [], None

    def step(self, seq, now, event, effects, verdicts=None):
        if seq == self.breaks_at:
            raise OSError("disk full")
        self.steps.append((seq, now, event, tuple(effects), verdicts))

    def error(self, seq, now, event, error):
        self.errors.append((seq, event, error))

    def sample(self, now, name, key, value):
        self.samples.append((now, name, key, value))

    def replica_row(self, row, /):
        self.rows.append(row)

    def events(self, kind):
        return [e for _, _, e, _, _ in self.steps if isinstance(e, kind)]


def requests(n, *, every_s=0.0, out=4, first_s=0.0, prefix="r", **more):
    return [Request(f"{prefix}{i}", "t", "m", 0, first_s + i * every_s, input_tokens=16, max_tokens=out, **more) for i in range(n)]


def fleet_of(*engines, name="test", kind="openai"):
    return LiveFleet.of({"name": name, "pools": {"chat": {"engine": kind, "urls": [getattr(e, "url", e) for e in engines]}}})


def armed(control, source, *engines, record=None, caps=None, **more):
    fleet = fleet_of(*engines)
    return LiveDriver(control, source, fleet, record or Record(), mode="armed", phrase="ARM test", caps=caps or Caps(1000), **more)


def until(condition, timeout_s=30.0):
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    assert condition()


def settled(count, for_s=0.3):
    """Does a count stay as it is for a while?"""
    before = count()
    time.sleep(for_s)
    return count() == before


@pytest.fixture(autouse=True)
def _state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@pytest.fixture
def quick_looks(monkeypatch):
    """Looks at engines at a tenth of their usual distance."""
    monkeypatch.setattr(scraper, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(scraper, "LOOK_TIMEOUT_S", 0.2)
    monkeypatch.setattr(scraper, "SCRAPE_EVERY_S", 0.05)


QUICK = FakeScript(ttft_s=0.01, itl_s=0.002, slots=64)
SLOW = FakeScript(ttft_s=0.01, itl_s=0.05, slots=64)


# -- the way of an event ----------------------------------------------------------------------------------------------------------


def test_DV_1_an_armed_run_ends_by_itself_with_every_request_told_once():
    record, source, control = Record(), Listed(requests(20, every_s=0.005)), Tiny()
    with FakeEngine(QUICK) as a, FakeEngine(QUICK) as b:
        driver = armed(control, source, a, b, record=record)
        driver.run_blocking()
        assert a.count("POST") + b.count("POST") == 20 and min(a.count("POST"), b.count("POST")) >= 5
    progress = driver.progress()
    assert driver.complete and progress.done and progress.why == "done"
    assert (progress.arrived, progress.finished, progress.ended, progress.open, progress.in_flight) == (20, 20, 20, 0, 0)
    assert source.ends() == {f"r{i}": 1 for i in range(20)}
    assert [s[0] for s in record.steps] == list(range(1, len(record.steps) + 1))
    nows = [s[1] for s in record.steps]
    assert nows == sorted(nows) and nows[0] >= 0.0
    assert len(control.threads) == 1 and threading.get_ident() not in control.threads
    assert {row["replica"]: row["requests"] for row in record.rows} == {"chat-0": a.count("POST"), "chat-1": b.count("POST")}
    assert driver.view().running == 0


def test_DV_1_recorded_before_it_is_carried_out():
    record = Record()
    seen = []
    with FakeEngine(QUICK) as engine:
        original = record.step

        def step(seq, now, event, effects, verdicts=None):
            seen.append((engine.count("POST"), sum(isinstance(e, Dispatch) for e in effects)))
            original(seq, now, event, effects, verdicts)

        record.step = step
        armed(Tiny(per=1), Listed(requests(3)), engine, record=record).run_blocking()
    sent = 0
    for posts, dispatched in seen:
        assert posts <= sent
        sent += dispatched
    assert sent == 3


def test_DV_3_times_are_taken_by_the_driver():
    record = Record()
    script = FakeScript(ttft_s=0.1, itl_s=0.02, slots=8)
    with FakeEngine(script) as engine:
        armed(Tiny(), Listed(requests(3, out=6)), engine, record=record).run_blocking()
    for done in record.events(Finished):
        arrived = next(e.request.arrived_s for e in record.events(Arrived) if e.request.id == done.request_id)
        ended = next(now for _, now, e, _, _ in record.steps if e is done)
        assert 0.1 <= done.first_token_s - arrived < 0.2
        assert ended - done.first_token_s == pytest.approx(0.1, abs=0.05)
        assert done.output_tokens == 6 and done.input_tokens > 0 and done.finish_reason == "length"


def test_KC_31_arrivals_carry_the_true_time_and_keep_their_schedule():
    record = Record()
    with FakeEngine(QUICK) as engine:
        driver = armed(Tiny(), Listed(requests(10, every_s=0.02)), engine, record=record)
        driver.run_blocking()
    for i, arrived in enumerate(record.events(Arrived)):
        assert arrived.request.intended_s == pytest.approx(i * 0.02)
        assert 0.0 <= arrived.request.arrived_s - arrived.request.intended_s < 0.05
    assert 0.0 <= driver.progress().lag_p99_s < 0.05


def test_KC_30_sources_hear_of_their_own_requests_only_and_own_wakes_are_apart():
    class Chained(Listed):
        """A request per wake; both sources use the wake key `queue`."""

        loop = "closed"

        def __init__(self, name):
            super().__init__((), name)
            self.left = 3

        def stream(self):
            return None

        def start(self, now):
            return [WakeAt(0.01, "queue")]

        def handle(self, what, now):
            super().handle(what, now)
            if isinstance(what, Woke) and self.left:
                self.left -= 1
                return [Arrived(Request(f"{self.name}-{self.left}", "t", "m", 0, now, input_tokens=4, max_tokens=2))]
            return [WakeAt(now + 0.01, "queue")] if self.left else []

        def done(self):
            return not self.left

    a, b = Chained("a"), Chained("b")
    with FakeEngine(QUICK) as engine:
        armed(Tiny(), [a, b], engine).run_blocking()
    assert a.ends() == {"a-0": 1, "a-1": 1, "a-2": 1} and b.ends() == {"b-0": 1, "b-1": 1, "b-2": 1}


def test_EE_observations_only_for_those_who_need_them():
    record, source = Record(), Listed(requests(2, out=40), needs=frozenset({"first_token"}))
    with FakeEngine(FakeScript(ttft_s=0.01, itl_s=0.02)) as engine:
        armed(Tiny(needs=frozenset({"started", "progress"})), source, engine, record=record).run_blocking()
    kinds = Counter(type(e).__name__ for _, _, e, _, _ in record.steps)
    assert kinds["Started"] == 2 and kinds["FirstToken"] == 0 and kinds["Progressed"] >= 3
    assert Counter(type(w).__name__ for w in source.told) == {"FirstToken": 2, "Finished": 2}


def test_VT_4_fast_streams_are_told_every_32_tokens_not_only_by_the_clock():
    record = Record()
    with FakeEngine(FakeScript(ttft_s=0.001, itl_s=0.0005)) as engine:
        armed(Tiny(needs=frozenset({"progress"})), Listed(requests(2, out=200)), engine, record=record).run_blocking()
    told = Counter()
    for event in record.events(Progressed):
        for name, tokens in event.counts:
            assert told[name] < tokens <= told[name] + 32
            told[name] = tokens
    ends = {e.request_id: e.output_tokens for e in record.events(Finished)}
    assert dict(told) == ends and set(ends.values()) == {200}, "and how far it came, right before its end"


def test_KC_18_needs_that_no_engine_gives_are_refused():
    with pytest.raises(ConfigNeedsError, match="kv_events"):
        LiveDriver(Tiny(needs=frozenset({"kv_events"})), [], fleet_of("http://127.0.0.1:9"), Record())


def test_scrapes_come_only_if_needed(quick_looks):
    for needs, some in ((frozenset({"scrape"}), True), (frozenset(), False)):
        record = Record()
        with FakeEngine(FakeScript(ttft_s=0.01, itl_s=0.02)) as engine:
            armed(Tiny(needs=needs), Listed(requests(2, out=20)), engine, record=record).run_blocking()
            assert bool(record.events(Scraped)) == some
    running = [e.scrape.running for e in record.events(Scraped)]
    assert all(n is not None for n in running)


def test_engine_failures_become_one_failed_each():
    record, source = Record(), Listed(requests(6, every_s=0.02))
    script = FakeScript(ttft_s=0.01, itl_s=0.002, slots=64, faults=(
        Fault("refuse", at=(1,), status=429, retry_after="2"), Fault("die", at=(2,)), Fault("error_frame", at=(3,), status=500),
        Fault("refuse", at=(4,), status=400), Fault("empty", at=(5,)),
    ))
    with FakeEngine(script) as engine:
        armed(Tiny(), source, engine, record=record).run_blocking()
    failed = {e.request_id: e for e in record.events(Failed)}
    assert [failed[f"r{i}"].outcome for i in range(5)] == [
        "rate_limited", "provider_failure", "provider_failure", "local_cancelled", "unexpected_exception"]
    assert failed["r0"].retry_after_s == 2.0 and failed["r0"].status == 429 and failed["r3"].reason == "invalid_request"
    assert failed["r1"].output_tokens >= 1 and failed["r1"].first_token_s is not None
    assert [e.request_id for e in record.events(Finished)] == ["r5"]
    assert source.ends() == {f"r{i}": 1 for i in range(6)}


# -- modes ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["openai", "llamacpp"])
def test_CD_1_a_dry_run_sends_nothing_but_get(kind):
    record, source = Record(), Listed(requests(10, every_s=0.01))
    with FakeEngine(QUICK, kind=kind) as engine:
        driver = LiveDriver(Tiny(needs=frozenset({"scrape"})), source, fleet_of(engine, kind=kind), record)
        driver.run_blocking()
        assert engine.count("GET") > 0
        assert {key.split()[0] for key in engine.requests} <= {"GET", "HEAD"}
    assert driver.complete and len(record.events(Finished)) == 10 and source.ends().total() == 10


def test_CD_1_scaling_in_a_dry_run_is_recorded_and_refused():
    record = Record()
    with FakeEngine(QUICK) as engine:
        driver = LiveDriver(Tiny(), Door(()), fleet_of(engine), record)
        driver.start()
        driver.post(Commanded("scale"))
        until(lambda: record.events(ScaleAnswered))
        driver.stop()
        assert driver.wait(5)
    answer = record.events(ScaleAnswered)[0]
    assert (answer.status, answer.reason) == ("refused", "dry_run")
    assert next(v for *_, fx, v in record.steps if any(isinstance(e, ScaleTo) for e in fx)) == ("dry_run",)


def test_CD_4_armed_needs_phrase_and_caps():
    fleet = fleet_of("http://127.0.0.1:9")
    for more in ({}, {"caps": Caps(1)}, {"phrase": "ARM test"}, {"phrase": "ARM prod", "caps": Caps(1)}):
        with pytest.raises(ArmRefusedError):
            LiveDriver(Tiny(), [], fleet, Record(), mode="armed", **more)
    with pytest.raises(ConfigValueError):
        LiveDriver(Tiny(), [], fleet, Record(), mode="yolo")


def test_CD_5_preflight_says_which_endpoint_is_what(monkeypatch):
    monkeypatch.setattr(scraper, "LOOK_TIMEOUT_S", 0.3)
    silent = socket.create_server(("127.0.0.1", 0))
    with FakeEngine(QUICK) as good, FakeEngine(QUICK, kind="llamacpp") as other, socket.create_server(("127.0.0.1", 0)) as closed:
        free_port = closed.getsockname()[1]
        closed.close()
        urls = [good.url, f"http://127.0.0.1:{free_port}", f"http://127.0.0.1:{silent.getsockname()[1]}"]
        fleet = LiveFleet.of({"name": "test", "pools": {
            "chat": {"engine": "openai", "urls": urls}, "wrong": {"engine": "openai", "urls": other.url, "model": "llama-70b"}}})
        driver = LiveDriver(Tiny(), Door(()), fleet, Record(), mode="armed", phrase="ARM test", caps=Caps(1))
        with pytest.raises(ArmRefusedError) as caught:
            driver.start()
        assert good.count("POST") == 0
    text = str(caught.value)
    assert f"chat-1 (http://127.0.0.1:{free_port}) is down" in text
    assert "chat-2" in text and "hangs" in text
    assert "wrong-0" in text and 'not "llama-70b"' in text
    assert "chat-0" not in text
    assert [c.ok for c in driver.checks] == [True, False, False, False]
    assert driver.progress().done and driver.wait(1)
    silent.close()


def test_CD_7_arm_and_disarm_while_it_runs():
    record, source = Record(), Door(requests(400, every_s=0.01))
    with FakeEngine(QUICK) as engine:
        driver = LiveDriver(Tiny(), source, fleet_of(engine), record)
        with pytest.raises(ArmRefusedError, match="nothing is running"):
            driver.arm("ARM test", Caps(10))
        driver.start()
        until(lambda: driver.progress().finished > 3)
        with pytest.raises(ArmRefusedError, match="needs the phrase"):
            driver.arm("ARM tset", Caps(10))
        assert engine.count("POST") == 0 and driver.mode == "dry_run"
        checks = driver.arm("ARM test", Caps(10))
        assert all(c.ok for c in checks) and driver.mode == "armed"
        until(lambda: engine.count("POST") > 3)
        driver.disarm()
        until(lambda: settled(lambda: engine.count("POST")))  # what was on its way may still arrive
        posts = engine.count("POST")
        before = driver.progress().finished
        until(lambda: driver.progress().finished > before + 5)
        assert engine.count("POST") == posts and driver.mode == "dry_run"
        driver.stop()
        assert driver.wait(5)
        with pytest.raises(ArmRefusedError, match="stopped"):
            driver.arm("ARM test", Caps(10))


def test_CD_5_the_second_armed_world_is_refused():
    with FakeEngine(QUICK) as engine:
        first = armed(Tiny(), Door(()), engine, name="one")
        first.start()
        second = armed(Tiny(), Door(()), engine, name="two")
        with pytest.raises(ArmRefusedError, match="already armed by run 'one'"):
            second.start()
        first.stop()
        assert first.wait(5)
        third = armed(Tiny(), Listed(()), engine, name="three")
        third.run_blocking()
        assert third.complete


def test_CD_6_what_is_over_a_cap_is_answered_not_sent():
    record, source = Record(), Listed(requests(10))
    with FakeEngine(SLOW) as engine:
        driver = armed(Tiny(), source, engine, record=record, caps=Caps(max_in_flight=3))
        driver.run_blocking()
        assert engine.count("POST") == 3 and engine.peak <= 3
    assert driver.progress().refused == {"cap_max_in_flight": 7}
    assert [(e.outcome, e.reason) for e in record.events(Failed)] == [("local_cancelled", "cap_max_in_flight")] * 7
    assert source.ends() == {f"r{i}": 1 for i in range(10)}


def test_DV_6_a_shadow_decides_and_sends_nothing():
    main_record, shadow_record = Record(), Record()
    source = Listed(requests(12, every_s=0.01))
    with FakeEngine(QUICK) as engine:
        main = armed(Tiny(), source, engine, record=main_record, name="main")
        shadow_control = Tiny(per=1)
        shadow = LiveDriver(shadow_control, [], fleet_of(engine), shadow_record, mode="shadow", name="shadow")
        shadow.start()
        main.tap(shadow.post)
        main.run_blocking()
        until(lambda: shadow.progress().open == 0 and shadow.progress().arrived == 12)
        shadow.stop()
        assert shadow.wait(5) and shadow.mode == "shadow"
        assert engine.count("POST") == 12
    decided = [(e, v[i]) for *_, fx, v in shadow_record.steps for i, e in enumerate(fx)]
    assert sum(isinstance(e, Dispatch) for e, _ in decided) > 0
    assert all(why == "shadow" for e, why in decided if not isinstance(e, WakeAt))
    assert shadow_control.running == {} and not shadow_control.waiting
    with pytest.raises(ConfigValueError, match="a shadow has none"):
        LiveDriver(Tiny(), source, fleet_of(engine), Record(), mode="shadow")


# -- stop -------------------------------------------------------------------------------------------------------------------------


def test_CD_8_stop_refuses_the_waiting_and_lets_streams_finish():
    record, source = Record(), Listed(requests(10, out=10))
    with FakeEngine(SLOW) as engine:
        driver = armed(Tiny(per=4), source, engine, record=record)
        driver.start()
        until(lambda: engine.count("POST") == 4)
        asked = time.monotonic()
        driver.stop()
        assert driver.mode == "stopped"
        assert driver.wait(5) and time.monotonic() - asked < 2.0
        assert engine.count("POST") == 4 and engine.left == 0
    kinds = Counter(type(w).__name__ for w in source.told)
    assert kinds == {"Finished": 4, "Reject": 6} and source.ends() == {f"r{i}": 1 for i in range(10)}
    assert not driver.complete and driver.progress().why == "stopped"


@pytest.mark.parametrize("how", ["cut", "twice", "grace"])
def test_CD_8_streams_can_be_cut(how):
    source = Listed(requests(4, out=1000))
    with FakeEngine(SLOW) as engine:
        driver = armed(Tiny(), source, engine, stop_grace_s=0.1 if how == "grace" else 30.0)
        driver.start()
        until(lambda: engine.in_flight == 4)
        asked = time.monotonic()
        driver.stop(cut=how == "cut")
        if how == "twice":
            driver.stop()
        assert driver.wait(3) and time.monotonic() - asked < 1.0
        until(lambda: engine.in_flight == 0)
        assert engine.left == 4
    assert {type(w) for w in source.told} == {Close} and source.ends().total() == 4
    for _ in range(3):
        driver.stop()
        driver.stop(cut=True)


def test_CD_8_nothing_leaves_after_a_stop_under_load():
    record = Record()
    with FakeEngine(QUICK) as engine:
        driver = armed(Tiny(per=64), Door(requests(5000, every_s=0.005, out=2)), engine, record=record)
        driver.start()
        until(lambda: engine.count("POST") > 50)
        driver.stop()
        steps = len(record.steps)
        assert driver.wait(5)
        after = [v for *_, fx, v in record.steps[steps + 1:] if any(isinstance(e, Dispatch) for e in fx)]
        assert all(v is not None and "stopped" in v for v in after)
        applied = [e for *_, fx, v in record.steps for i, e in enumerate(fx) if isinstance(e, Dispatch) and (v is None or v[i] is None)]
        posts = engine.count("POST")
        assert posts <= len(applied)
        time.sleep(0.1)
        assert engine.count("POST") == posts


def test_CD_9_the_stop_file_stops():
    with FakeEngine(SLOW) as engine:
        driver = armed(Tiny(), Door(requests(2, out=1000)), engine, name="from-a-terminal")
        driver.start()
        until(lambda: engine.in_flight == 2)
        assert request_stop("from-a-terminal") == ["from-a-terminal"]
        until(lambda: driver.progress().state == "stopping", 0.5)
        assert driver.mode == "stopped"
        request_stop("from-a-terminal", cut=True)
        assert driver.wait(1.0)
    assert driver.progress().why == "stop file" and request_stop() == []


def test_CD_9_ctrl_c_in_a_blocking_run_stops():
    source = Door(requests(2, out=20))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background is started with the signal ignored
    with FakeEngine(SLOW) as engine:
        driver = armed(Tiny(), source, engine)

        def press() -> None:
            until(lambda: engine.in_flight == 2)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=press)
        thread.start()
        try:
            driver.run_blocking()
        finally:
            signal.signal(signal.SIGINT, before)
        thread.join()
    assert driver.progress().why == "interrupted" and source.ends() == {"r0": 1, "r1": 1}


def test_CD_8_stop_before_and_during_the_start_and_from_a_tap():
    with FakeEngine(QUICK) as engine:
        before = armed(Tiny(), Door(()), engine)
        before.stop()
        assert before.wait(0.1)
        with pytest.raises(EngineStoppedError):
            before.start()
        inside = armed(Tiny(), Door(requests(3, every_s=0.01)), engine)
        inside.tap(lambda what: inside.stop() if isinstance(what, Finished) else None)
        inside.run_blocking()
        assert inside.progress().why == "stopped"
        racing = armed(Tiny(), Door(()), engine, name="racing")
        thread = threading.Thread(target=racing.run_blocking)
        thread.start()
        racing.stop()
        thread.join(5)
        assert not thread.is_alive() and racing.wait(1)


def test_DV_7_a_run_that_is_over_takes_nothing():
    with FakeEngine(QUICK) as engine:
        driver = armed(Tiny(), Listed(()), engine)
        with pytest.raises(EngineStoppedError, match="has not begun"):
            driver.post(Commanded("scale"))
        driver.run_blocking()
        with pytest.raises(EngineStoppedError, match="is over"):
            driver.post(Commanded("scale"))
        with pytest.raises(EngineStoppedError):
            driver.start()


def test_CD_8_a_source_that_retries_for_ever_cannot_hold_up_a_stop():
    class Stubborn(Door):
        def handle(self, what, now):
            super().handle(what, now)
            again = Request(f"again{len(self.told)}", "t", "m", 0, now, input_tokens=4, max_tokens=4)
            return [Arrived(again)] if isinstance(what, Reject) else []

    with FakeEngine(SLOW) as engine:
        driver = armed(Tiny(per=1), Stubborn(requests(5, out=5)), engine)
        driver.start()
        until(lambda: engine.in_flight == 1)
        driver.stop()
        assert driver.wait(3)


# -- endpoints that come and go ---------------------------------------------------------------------------------------------------


def test_a_lost_replica_is_one_event_and_comes_back_under_a_new_id(quick_looks):
    record, source = Record(), Door(requests(3, out=2000))
    control = Tiny()
    engine = FakeEngine(SLOW)
    with engine:
        port = engine.port
        driver = armed(control, source, engine, record=record)
        driver.start()
        until(lambda: engine.in_flight == 3)
    until(lambda: record.events(ReplicaGone))
    with FakeEngine(SLOW, port=port):
        until(lambda: len(record.events(ReplicaReady)) == 2)
        driver.stop(cut=True)
        assert driver.wait(5)
    assert [e.replica for e in record.events(ReplicaReady)] == ["chat-0", "chat-0~2"]
    assert [(e.replica, e.reason) for e in record.events(ReplicaGone)] == [("chat-0", "down")]
    assert source.ends() == {"r0": 1, "r1": 1, "r2": 1}
    assert [(r["replica"], r["gone_reason"]) for r in record.rows] == [("chat-0", "down"), ("chat-0~2", None)]


def test_DV_8_attempts_on_a_lost_replica_say_nothing_of_their_own(quick_looks, monkeypatch):
    monkeypatch.setattr(scraper, "QUIET_S", 0.3)
    record, source = Record(), Door(requests(2, out=2000))
    script = FakeScript(ttft_s=0.01, itl_s=0.01, faults=(Fault("stall", after_tokens=1),))
    with FakeEngine(script) as engine:
        driver = armed(Tiny(), source, engine, record=record)
        driver.start()
        until(lambda: engine.count("POST") == 2)
        silent = _hang(driver)
        until(lambda: record.events(ReplicaGone), 3.0)
        silent()
        driver.stop()
        assert driver.wait(5)
    assert record.events(ReplicaGone)[0].reason == "hangs"
    assert record.events(Failed) == [] and source.ends() == {"r0": 1, "r1": 1}


def test_a_busy_engine_with_a_slow_health_page_is_not_evicted(quick_looks):
    record, source = Record(), Door(requests(2, out=40))
    with FakeEngine(SLOW) as engine:
        driver = armed(Tiny(), source, engine, record=record)
        driver.start()
        until(lambda: engine.in_flight == 2)
        speak = _hang(driver)
        until(lambda: len(record.events(Finished)) == 2, 6.0)
        speak()
        assert record.events(ReplicaGone) == []
        driver.stop()
        assert driver.wait(5)


def _hang(driver):
    """Make every look at the first endpoint hang; returns the way back."""
    engine = driver._rig.core.watch.replicas[0].engine
    health = engine.health

    async def hanging():
        import asyncio
        await asyncio.sleep(60)

    engine.health = hanging
    return lambda: setattr(engine, "health", health)


def test_a_replica_that_is_not_there_yet_is_booting(quick_looks):
    record = Record()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    source = Listed(requests(2))
    driver = LiveDriver(Tiny(), source, fleet_of(f"http://127.0.0.1:{port}"), record)
    driver.start()
    assert driver.progress().state == "running"
    with FakeEngine(QUICK, port=port):
        assert driver.wait(5)
    assert isinstance(record.steps[0][2], ReplicaBooting)
    assert len(record.events(Finished)) == 2


# -- when something raises --------------------------------------------------------------------------------------------------------


def test_DV_3_an_exception_in_the_control_ends_one_request_and_the_third_stops_an_armed_world():
    control, record, source = Tiny(), Record(), Door(requests(8, every_s=0.05))
    control.raise_on = (Finished,)
    with FakeEngine(QUICK) as engine:
        driver = armed(control, source, engine, record=record)
        driver.start()
        assert driver.wait(5)
    assert len(record.errors) == driver.progress().policy_errors >= 3  # streams that end while it stops raise, too
    assert "raised 3 times" in driver.progress().why and isinstance(driver.last_policy_error, ValueError)
    ended = {w.request_id: w for w in source.told}
    assert sum(w.reason == "policy_error" for w in ended.values() if isinstance(w, Close)) >= 3
    assert all(n == 1 for n in source.ends().values())


def test_DV_3_a_dry_run_goes_on():
    control, record, source = Tiny(), Record(), Listed(requests(6, every_s=0.01))
    control.raise_on = (Finished,)
    with FakeEngine(QUICK) as engine:
        driver = LiveDriver(control, source, fleet_of(engine), record)
        driver.run_blocking()
    assert driver.complete and driver.progress().policy_errors >= 6 and source.ends().total() == 6


def test_DV_4_books_that_do_not_balance_stop_the_run():
    control, source = Tiny(), Door(requests(6, every_s=0.05))
    control.raise_on, control.balanced = (Finished,), False
    with FakeEngine(QUICK) as engine:
        driver = armed(control, source, engine)
        with pytest.raises(PolicyError, match="do not balance"):
            driver.run_blocking()
    assert "the control raised PolicyError" in driver.progress().why and all(n == 1 for n in source.ends().values())


def test_CD_7_a_record_that_is_lost_stops_and_nothing_more_leaves():
    record, source = Record(), Door(requests(500, every_s=0.005))
    record.breaks_at = 30
    with FakeEngine(QUICK) as engine:
        driver = armed(Tiny(), source, engine, record=record)
        with pytest.raises(OSError, match="disk full"):
            driver.run_blocking()
        recorded = sum(isinstance(e, Dispatch) for *_, fx, _ in record.steps for e in fx)
        assert 0 < engine.count("POST") <= recorded  # the last ones may have been cut before they were sent
    assert "the recorder raised OSError: disk full" in driver.progress().why
    assert all(n == 1 for n in source.ends().values())


def test_a_source_that_raises_stops_the_run():
    class Broken(Door):
        def handle(self, what, now):
            super().handle(what, now)
            raise KeyError("oops")

    with FakeEngine(QUICK) as engine:
        driver = armed(Tiny(), Broken(requests(3, every_s=0.05)), engine)
        with pytest.raises(KeyError):
            driver.run_blocking()
    assert "the source 'listed' raised KeyError" in driver.progress().why


# -- the same, with the control that flies -----------------------------------------------------------------------------------------


def replayed(record, control):
    """Effects per recorded event of a fresh control."""
    return [tuple(control.handle(event, now)) for _, now, event, *_ in record.steps]


@pytest.mark.parametrize("kind", ["openai", "llamacpp"])
def test_control_armed_to_the_end_and_its_log_replays(kind):
    record, source, control = Record(), Listed(requests(60, every_s=0.004)), default_control(["chat"])
    script = FakeScript(ttft_s=0.02, itl_s=0.003, slots=4)
    with FakeEngine(script, kind=kind) as a, FakeEngine(script, kind=kind) as b:
        fleet = LiveFleet.of({"name": "test", "pools": {"chat": {"engine": kind, "urls": [a.url, b.url], "slots": 4}}})
        driver = LiveDriver(control, source, fleet, record, mode="armed", phrase="ARM test", caps=Caps(100))
        driver.run_blocking()
        assert a.ended + b.ended == 60 and a.ended > 10 and b.ended > 10
        assert a.peak + b.peak <= 9  # the limit follows the slots of the ready replicas
    control.check()
    counts = driver.view().counts
    assert driver.complete and control.open_count == 0 and (counts.arrivals, counts.completed) == (60, 60) and counts.balanced
    assert source.ends() == {f"r{i}": 1 for i in range(60)}
    assert replayed(record, default_control(["chat"])) == [fx for *_, fx, _ in record.steps]
    assert {name for _, name, _, _ in record.samples} == {"waiting", "in_flight", "limit", "replicas_ready"}


def test_the_real_recorder_takes_a_live_run():
    recorder, control = Recorder("full"), default_control(["chat"])
    with FakeEngine(FakeScript(ttft_s=0.05, itl_s=0.01, slots=8)) as engine:
        driver = armed(control, Listed(requests(10, out=5)), engine, record=recorder, caps=Caps(6))
        driver.run_blocking()
    tables = recorder.close(driver.now, complete=driver.complete)
    table = tables.frame("requests")
    done = table[table.outcome == "success"]
    assert len(table) == 10 and len(done) == 6 and set(table[table.outcome != "success"].reason) == {"cap_max_in_flight"}
    assert done.ttft_s.between(0.05, 0.3).all() and done.tpot_s.between(0.005, 0.05).all() and (done.output_tokens == 5).all()
    assert (tables.frame("decisions").applied == False).sum() == 4  # noqa: E712
    assert list(tables.frame("replicas").replica) == ["chat-0"]


def test_control_stopped_under_overload_ends_every_request_once():
    record, source, control = Record(), Door(requests(400, every_s=0.0002, out=20)), default_control(["chat"])
    with FakeEngine(FakeScript(ttft_s=0.02, itl_s=0.02, slots=8)) as engine:
        driver = armed(control, source, engine, record=record)
        driver.start()
        until(lambda: driver.progress().arrived == 400)
        driver.stop()
        assert driver.wait(5)
    control.check()
    counts, ended = driver.view().counts, source.ends()
    assert len(ended) == 400 and set(ended.values()) == {1}
    assert counts.balanced and counts.waiting == counts.active == 0 and counts.completed > 0
    reasons = Counter(str(w.denial.reason) for w in source.told if isinstance(w, Reject))
    assert reasons["stopped"] > 0 and reasons.total() + counts.completed == 400
    assert replayed(record, default_control(["chat"])) == [fx for *_, fx, _ in record.steps]


def test_control_cut_closes_its_books():
    source, control = Door(requests(20, out=1000)), default_control(["chat"])
    with FakeEngine(SLOW) as engine:
        driver = armed(control, source, engine)
        driver.start()
        until(lambda: engine.in_flight == 20)
        driver.stop(cut=True)
        assert driver.wait(3)
    control.check()
    assert control.open_count == 0 and source.ends().total() == 20
    assert {(w.state, w.outcome, w.reason) for w in source.told} == {("cancelled", "local_cancelled", "stopped")}


def test_control_redispatches_what_a_dying_engine_dropped(quick_looks):
    record, source = Record(), Listed(requests(12))
    control = default_control(["chat"], settings=ControlSettings(attempts=2))
    bad = FakeScript(ttft_s=0.01, itl_s=0.002, slots=64, faults=(Fault("drop"),))
    with FakeEngine(bad) as a, FakeEngine(QUICK) as b:
        driver = armed(control, source, a, b, record=record)
        driver.run_blocking()
        assert b.ended == 12
    control.check()
    assert driver.view().counts.completed == 12 and source.ends() == {f"r{i}": 1 for i in range(12)}
    assert {e.outcome for e in record.events(Failed)} == {"provider_failure"}


def test_control_watchdog_cancels_a_stalled_stream():
    record, source = Record(), Listed(requests(2))
    control = default_control(["chat"], settings=ControlSettings(first_token_s=0.2))
    script = FakeScript(ttft_s=0.01, itl_s=0.002, faults=(Fault("hang", at=(1,)),))
    with FakeEngine(script) as engine:
        driver = armed(control, source, engine, record=record)
        driver.run_blocking()
    control.check()
    assert [(e.outcome, e.reason) for e in record.events(Failed)] == [("local_cancelled", "first_token_timeout")]
    assert driver.view().counts.completed == 1 and driver.view().counts.failed == 1


# -- nothing stays behind, nothing stalls -----------------------------------------------------------------------------------------


def test_nothing_is_left_behind():
    def opened():
        gc.collect()
        return sorted(os.listdir("/proc/self/fd"), key=int)

    with FakeEngine(SLOW) as engine:
        armed(Tiny(), Listed(requests(2)), engine).run_blocking()  # what the first run imports and opens stays
        threads, files = set(threading.enumerate()), opened()
        for how in ("done", "stop", "cut", "dry", "refused"):
            if how == "refused":
                driver = armed(Tiny(), Door(()), engine, "http://127.0.0.1:9")
                with pytest.raises(ArmRefusedError):
                    driver.start()
            elif how == "dry":
                driver = LiveDriver(Tiny(), Door(requests(4, out=50)), fleet_of(engine), Record())
                driver.start()
                until(lambda d=driver: d.progress().in_flight == 4)
                driver.stop(cut=True)
            else:
                source = Listed(requests(4, out=4)) if how == "done" else Door(requests(4, out=8))
                driver = armed(Tiny(), source, engine)
                driver.start()
                if how != "done":
                    until(lambda: engine.in_flight == 4)
                    driver.stop(cut=how == "cut")
            assert driver.wait(5), how
            assert driver._rig.core.tasks == set() and driver._rig.core.attempts.alive == {} and len(driver._rig.core._timers) == 0
            until(lambda: engine.in_flight == 0 and len(engine._links) == 0)
            assert set(threading.enumerate()) == threads, how
            until(lambda: opened() == files, 2.0)


def test_CD_11_a_busy_caller_does_not_stall_the_run():
    control = Tiny(per=4)
    fleet = LiveFleet.of({"name": "test", "pools": {"chat": {"engine": "mock", "options": {"ttft_s": 0.01, "itl_s": 0.001}}}})
    driver = LiveDriver(control, Door(requests(400, every_s=0.01, out=2)), fleet, Record())
    driver.start()
    until(lambda: driver.progress().seq > 20)
    began, end = len(control.nows), time.monotonic() + 1.5
    while time.monotonic() < end:
        sum(range(1000))
    nows, view = control.nows[began:], driver.view()
    driver.stop()
    assert driver.wait(5)
    assert max(b - a for a, b in itertools.pairwise(nows)) < 0.5 and len(nows) > 50  # it calls for 1.5 s
    assert time.monotonic() - view.at < 1.0


SERVE = """
import sys
from windtunnel.live.fake_server import FakeEngine, FakeScript
with FakeEngine(FakeScript(ttft_s=0.2, itl_s=0.1, slots=None)) as engine:
    print(engine.url, flush=True)
    sys.stdin.read()
"""


def test_300_streams_at_once_all_end_well():
    with subprocess.Popen([sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        url = server.stdout.readline().strip()
        record, source, peak = Record(), Listed(requests(330, every_s=0.008, out=30)), 0
        driver = armed(Tiny(per=1000), source, url, record=record)
        driver.start()
        while not driver.wait(0.05):
            peak = max(peak, driver.progress().in_flight)
        server.stdin.close()
    ended = [e.request_id for e in record.events(Finished)]
    assert peak >= 300 and len(ended) == len(set(ended)) == 330  # how much later they are is measured in sims/bench/live.py
