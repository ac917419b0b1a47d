"""One control, three worlds: the log of each, fed into a fresh control, must give exactly the same effects."""

from __future__ import annotations

from pathlib import Path

import pytest

from windtunnel import ArrivalSource, Caps, FakeEngine, Live, LiveFleet, Run, Scenario, default_control, replay
from windtunnel.errors import RunReplayError
from windtunnel.live.fake_script import FakeScript, Fault
from windtunnel.policy.settings import ControlSettings
from windtunnel.sources.dist import Const

SCENARIOS = ("azure-chat", "azure-chat@tuned", "tenant-flood@fair", "overload", "mooncake-conversation", "prefix-thrash@affinity_1000",
             "prefix-thrash@first_block")


@pytest.mark.parametrize("name", SCENARIOS)
def test_simulated_log_replays(name: str, tmp_path: Path) -> None:
    scenario = Scenario.load(name).fast()
    run = scenario.run(record="full", check=False)
    agreed = replay(run)
    assert agreed.events > 100 and agreed.effects > 100
    saved = run.save(tmp_path / "run")
    again = replay(saved)
    assert (again.events, again.effects) == (agreed.events, agreed.effects)


@pytest.mark.parametrize("name", SCENARIOS)
def test_conservation_holds_after_every_event(name: str) -> None:
    run = Scenario.load(name).with_({"duration_s": 8.0, "warmup_s": 0.0}).run(check=True)
    values = run.summary().to_dict()
    assert values["requests"] == sum(values[k] for k in ("completed", "rejected", "failed", "cancelled", "timed_out"))
    assert run.requests["request_id"].is_unique


def test_same_seed_same_log_and_sliced_flight_too() -> None:
    scenario = Scenario.load("overload").with_({"duration_s": 20.0, "warmup_s": 0.0})
    whole = scenario.run(record="full")
    flight = scenario.start(record="full")
    while not flight.advance(0.001).done:
        pass
    sliced = flight.result()

    def lines(run: Run) -> bytes:
        return b"\n".join(run.tables.log.splitlines()[1:-1])  # the header has the wall clock, the end line its digest

    assert lines(whole) == lines(sliced)
    assert whole.requests.equals(sliced.requests)


def test_another_policy_differs_and_the_first_difference_is_named() -> None:
    run = Scenario.load("overload").with_({"duration_s": 10.0, "warmup_s": 0.0}).run(record="full")
    with pytest.raises(RunReplayError, match="replay differs at seq") as caught:
        replay(run, lambda header: default_control(["chat"], initial_limit=1, cap=1))
    assert caught.value.seq > 0 and caught.value.exit_code == 1


def control(wants: frozenset[str] = frozenset()):  # type: ignore[no-untyped-def]
    return default_control(["chat"], settings=ControlSettings(attempts=2, first_token_s=5.0), wants=wants)


def fly(url: str, engine: str, model: str, count: int) -> Run:
    fleet = LiveFleet.of({"name": "parity", "pools": {"chat": {"engine": engine, "model": model, "urls": [url], "slots": 4}}})
    world = Live(fleet, "armed", phrase="ARM parity", caps=Caps(max_in_flight=64))
    source = ArrivalSource(60.0, input_tokens=Const(16), output_tokens=Const(8), count=count, rng=5, model=model)
    return world.run(control(world.wants), source, name="parity")


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


def test_live_log_of_a_faulty_engine_replays() -> None:
    script = FakeScript(ttft_s=0.01, itl_s=0.002, slots=4, faults=(
        Fault("refuse", every=7, status=429, retry_after="1"), Fault("cut", every=11, after_tokens=3), Fault("drop", every=13)))
    with FakeEngine(script) as engine:
        run = fly(engine.url, "openai", "fake", 60)
    assert len(run.requests) == 60 and run.requests["outcome"].notna().all()
    assert set(run.requests["outcome"]) > {"success"}
    agreed = replay(run, lambda header: control(frozenset(Live.wants)))
    assert agreed.events > 120 and agreed.effects >= 60


@pytest.mark.engine
def test_live_log_of_a_real_llamacpp_replays(tmp_path: Path) -> None:
    from windtunnel.live import llamacpp_server

    with llamacpp_server.start(parallel=4) as server:
        run = fly(server.url, "llamacpp", "tiny", 24)
    assert (run.requests["outcome"].astype(str) == "success").all()
    assert (run.requests["output_tokens"] > 0).all()
    saved = run.save(tmp_path / "live")
    agreed = replay(saved, lambda header: control(frozenset(Live.wants)))
    assert agreed.effects >= 24
