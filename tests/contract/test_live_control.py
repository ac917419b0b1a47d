"""The control that flies, live against stand-in engines: its books, its log, and that nothing stays behind or stalls."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import threading
import time
from collections import Counter

import live_flights
import pytest
from live_flights import QUICK, SLOW, Door, Listed, Record, Tiny, armed, fleet_of, requests, until

from windtunnel.effects import Reject
from windtunnel.errors import ArmRefusedError
from windtunnel.events import Failed, Finished
from windtunnel.lab.recorder import Recorder
from windtunnel.live.driver import LiveDriver
from windtunnel.live.fake_server import FakeEngine, FakeScript, Fault
from windtunnel.live.fleet import LiveFleet
from windtunnel.live.gate import Caps
from windtunnel.policy.presets import default_control
from windtunnel.policy.settings import ControlSettings

own_state, quick_looks = live_flights.own_state, live_flights.quick_looks


# -- the same, with the control that flies ----------------------------------------------------------------------------------------


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
