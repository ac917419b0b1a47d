"""Shadow, dry run and armed, against stand-in engines over real HTTP: what leaves, and what is refused."""

from __future__ import annotations

import socket

import live_flights
import pytest
from live_flights import QUICK, SLOW, Door, Listed, Record, Tiny, armed, fleet_of, requests, settled, until

from windtunnel.effects import Dispatch, ScaleTo, WakeAt
from windtunnel.errors import ArmRefusedError, ConfigValueError
from windtunnel.events import Commanded, Failed, Finished, ScaleAnswered
from windtunnel.live import scraper
from windtunnel.live.driver import LiveDriver
from windtunnel.live.fake_server import FakeEngine
from windtunnel.live.fleet import LiveFleet
from windtunnel.live.gate import Caps

own_state = live_flights.own_state


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
