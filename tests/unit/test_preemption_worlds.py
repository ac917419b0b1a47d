"""Hard pre-emption in simulation and on a live engine."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from windtunnel import ArrivalSource, Caps, FakeEngine, Live, LiveFleet, Run, Scenario, replay
from windtunnel.errors import ConfigNeedsError
from windtunnel.lab.history import violations
from windtunnel.lab.recorder import Recorder
from windtunnel.live.driver import LiveDriver
from windtunnel.live.engines import make_engine
from windtunnel.live.fake_script import FakeScript
from windtunnel.policy.admission.limit import Fixed
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.control import Control
from windtunnel.policy.lane import Lane
from windtunnel.policy.param import BuildContext
from windtunnel.policy.queueing.classes import Classes
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.least import LeastOutstanding
from windtunnel.policy.settings import ControlSettings
from windtunnel.sources.dist import Const
from windtunnel.sources.mix import Mix

STATION = """
windtunnel: 1
name: two-classes
duration_s: 120
seed: 3
fleet: {pools: {chat: {model: Llama-3.1-8B, gpu: h100_sxm, replicas: 1, service: {servers: 4}}}}
source:
  kind: mix
  sources:
    - {kind: arrivals, name: chat, rate_rps: 3, priorities: {interactive: 1}, input_tokens: 16, output_tokens: 16, service_s: {kind: exp, mean: 0.2}}
    - {kind: arrivals, name: doc, rate_rps: 1, priorities: {batch: 1}, input_tokens: 16, output_tokens: 16, service_s: {kind: exp, mean: 4.0}}
control:
  queue: {kind: classes, mode: strict}
  admission: {limit: {kind: fixed, limit: 4}}
  settings: {preemption: hard, max_preemptions_per_min: 600}
"""


def test_QP_12_in_simulation_urgent_requests_do_not_wait_for_long_work(tmp_path: Path) -> None:
    hard = Scenario.load(STATION).run(record="full", check=True)
    soft = Scenario.load(STATION).with_({"control.settings.preemption": "soft"}).run()
    rows, stops = hard.requests, hard.decisions[hard.decisions.reason == "preempted"]
    assert rows.request_id.is_unique and set(rows.outcome) <= {"success", "local_cancelled"}
    assert set(rows[rows.outcome == "local_cancelled"].reason) == {"run_end"}, "what had not been served 30 s after the last arrival"
    assert len(stops) == rows.preempted.sum() == hard.summary().values["preempted"] > 30 and set(stops.effect) == {"Cancel"}
    assert rows[rows.priority == "interactive"].preempted.sum() == 0 and rows.preempted.max() == 2
    assert (rows.attempts == (rows.preempted + rows.dispatched_s.notna()).clip(1)).all()
    assert soft.requests.preempted.sum() == 0

    def wait_s(run: Run, priority: str) -> float:
        some = run.requests[run.requests.priority == priority]
        return float((some.dispatched_s - some.arrived_s).mean())

    assert wait_s(hard, "interactive") < 0.5 * wait_s(soft, "interactive") and wait_s(hard, "batch") > wait_s(soft, "batch")
    assert replay(hard).effects > 500
    assert Run.load(hard.save(tmp_path / "run")).requests.preempted.sum() == rows.preempted.sum()


def test_QP_12_an_engine_that_steps_ends_a_victim_with_its_step() -> None:
    text = STATION.replace(", service: {servers: 4}", ", engine: {max_num_seqs: 4, num_blocks: 4000}, profile: {kind: affine, c0: 0.02}")
    text = re.sub(r", service_s: \{[^}]*\}", "", text)  # the engine knows no seconds of work
    for network_s in (0.0, 0.003):
        scenario = Scenario.load(text).with_({
            "duration_s": 40, "fleet.network_s": network_s, "source.sources.1.rate_rps": 0.4, "source.sources.1.output_tokens": 400})
        run = scenario.run(record="full", check=True)
        rows = run.requests
        assert rows.preempted.sum() > 5 and (rows.outcome == "success").all() and rows.wasted_tokens.sum() > 0
        assert (rows[rows.preempted == 0].wasted_tokens == 0).all()
        replay(run)


PAIRS = """
windtunnel: 1
name: pairs
duration_s: 30
seed: 3
fleet:
  pools:
    prompts: {role: prefill, model: Llama-3.1-8B, gpu: h100_sxm, replicas: 2, engine: {max_num_seqs: 8}}
    chat: {role: decode, model: Llama-3.1-8B, gpu: h100_sxm, replicas: 2, engine: {max_num_seqs: 8, num_blocks: 1200}}
source:
  kind: mix
  sources:
    - {kind: arrivals, name: chat, rate_rps: 6, priorities: {interactive: 1}, input_tokens: 200, output_tokens: {kind: lognormal, mean: 60, cv: 0.5}}
    - {kind: arrivals, name: doc, rate_rps: 4, priorities: {batch: 1}, input_tokens: 2000, output_tokens: {kind: lognormal, mean: 400, cv: 0.5}}
control:
  queue: {kind: classes, mode: strict, bounded: {capacity: 64}}
  routing: {kind: pairs}
  settings: {preemption: hard, max_preemptions_per_min: 600, attempts: 2, cancellation_deadline_s: 1.0}
"""


@pytest.mark.parametrize("faults", [[{"kind": "pause", "at_s": 10, "for_s": 6, "pool": "chat"}], [{"kind": "crash", "at_s": 10, "pool": "chat"}]])
def test_QP_12_where_two_replicas_share_a_request_and_blocks_are_short(faults: list[dict[str, Any]]) -> None:
    """Prompts fill their blocks exactly: who comes with its KV needs one more for its next token, and waits for it."""
    run = Scenario.load(PAIRS).with_({"faults": faults, "fleet.network_s": 0.003}).run(record="full", check=True)
    assert violations(run) == [] and run.requests.outcome.notna().all() and run.requests.preempted.sum() > 3
    replay(run)


@pytest.fixture
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


def hard_control(wants: frozenset[str]) -> Control:
    ctx = BuildContext()
    admission = RequestAdmission(Fixed(2).build(ctx), wants=wants)
    lane = Lane("chat", queue=Classes("strict").build(ctx), admission=admission, router=LeastOutstanding(), cap=2)
    return Control(lanes=(lane,), fleet=Fleet(), settings=ControlSettings(preemption="hard"), wants=wants)


def classes() -> list[ArrivalSource]:
    tokens = Const(16)
    long = ArrivalSource(200.0, input_tokens=tokens, output_tokens=Const(150), count=3, rng=1, model="fake", name="long", priorities={"batch": 1})
    return [long, ArrivalSource(20.0, input_tokens=tokens, output_tokens=Const(4), count=10, rng=2, model="fake", name="urgent")]


@pytest.mark.usefixtures("own_state")
def test_QP_12_on_a_live_engine_a_victim_leaves_its_stream_and_starts_anew() -> None:
    with FakeEngine(FakeScript(slots=2, itl_s=0.004)) as engine:
        fleet = LiveFleet.of({"name": "preempt", "pools": {"chat": {"engine": "vllm", "model": "fake", "urls": [engine.url], "slots": 2}}})
        world = Live(fleet, "armed", phrase="ARM preempt", caps=Caps(max_in_flight=8))
        run = world.run(hard_control(world.wants), Mix(classes()), name="preempt")
    rows, stopped = run.requests, int(run.requests.preempted.sum())
    assert len(rows) == 13 and (rows.outcome == "success").all() and stopped >= 1
    assert rows[rows.priority == "interactive"].preempted.sum() == 0
    assert 1 <= engine.left <= stopped and engine.ended == 13, "victims left their streams, unless they had none yet"
    assert (rows.attempts == 1 + rows.preempted).all() and rows.wasted_tokens.sum() > 0
    assert replay(run, lambda header: hard_control(frozenset(Live.wants))).effects >= 13 + 2 * stopped


@pytest.mark.usefixtures("own_state")
def test_QP_12_an_engine_that_cannot_stop_a_request_is_refused_before_anything_is_sent() -> None:
    def stubborn(*args: Any, **options: Any) -> Any:
        engine = make_engine(*args, **options)
        engine.facts = replace(engine.facts, abort="none")
        return engine

    with FakeEngine(FakeScript(slots=2)) as engine:
        fleet = LiveFleet.of({"name": "stubborn", "pools": {"chat": {"engine": "vllm", "model": "fake", "urls": [engine.url], "slots": 2}}})
        driver = LiveDriver(hard_control(frozenset()), classes(), fleet, Recorder("full"), mode="dry_run", name="stubborn", engines=stubborn)
        with pytest.raises(ConfigNeedsError, match='hard pre-emption needs "interruptible"') as caught:
            driver.start()
        assert "cannot stop a running request" in str(caught.value.hint) and not engine.requests["POST /v1/chat/completions"]
