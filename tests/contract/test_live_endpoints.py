"""Endpoints that come and go under a live driver."""

from __future__ import annotations

import socket

import live_flights
from live_flights import QUICK, SLOW, Door, Listed, Record, Tiny, armed, fleet_of, requests, until

from windtunnel.events import Failed, Finished, ReplicaBooting, ReplicaGone, ReplicaReady
from windtunnel.live import scraper
from windtunnel.live.driver import LiveDriver
from windtunnel.live.fake_server import FakeEngine, FakeScript, Fault

own_state, quick_looks = live_flights.own_state, live_flights.quick_looks


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
