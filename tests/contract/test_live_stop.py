"""A stop always works: whoever asks, whenever, whatever is under way."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter

import live_flights
import pytest
from live_flights import QUICK, SLOW, Door, Listed, Record, Tiny, armed, requests, until

from windtunnel.effects import Close, Dispatch, Reject
from windtunnel.errors import EngineStoppedError
from windtunnel.events import Arrived, Commanded, Finished, Request
from windtunnel.live.fake_server import FakeEngine
from windtunnel.live.stopfile import request_stop

own_state = live_flights.own_state


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


def test_a_listener_that_fails_is_told_once_and_disturbs_nobody(caplog: pytest.LogCaptureFixture):
    heard: list[object] = []

    def broken(what: object) -> None:
        heard.append(what)
        raise ValueError("not today")

    fine: list[object] = []

    def whole(what: object) -> None:
        fine.append(what)
        if sum(isinstance(w, Finished) for w in fine) == 3:
            driver.stop()

    with FakeEngine(QUICK) as engine:
        source = Door(requests(3, every_s=0.01))
        driver = armed(Tiny(), source, engine)
        driver.tap(broken)
        driver.tap(whole)
        driver.run_blocking()
    assert len(heard) == 1 and sum(isinstance(what, Finished) for what in fine) == 3
    assert [r.getMessage() for r in caplog.records if "listener" in r.getMessage()] == [
        "a listener of this run failed and hears no more: ValueError('not today')"]
    assert source.ends() == {"r0": 1, "r1": 1, "r2": 1}


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
