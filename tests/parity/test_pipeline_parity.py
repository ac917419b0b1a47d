"""A pipeline in both worlds: the recorded log replays to equal effects of the control, and so do the calls of the task stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from windtunnel import Caps, FakeEngine, Live, LiveFleet, Run, Scenario, replay
from windtunnel.effects import Note
from windtunnel.errors import RunReplayError
from windtunnel.lab.build import pool_facts
from windtunnel.live.fake_script import FakeScript, Fault
from windtunnel.policy.control import Control
from windtunnel.policy.tasks.messages import RunEnded, StartTask
from windtunnel.policy.tasks.scheduler import TaskScheduler
from windtunnel.sources.pipeline import PipelineSource

LARGE, SMALL = "Llama-3.1-70B", "Llama-3.1-8B"
TINY = {"source.sources.1.rows": 24, "source.sources.1.buffer_size": 8, "source.sources.0.count": 30, "source.sources.0.rate_rps": 40,
        "source.sources.1.columns.seed.local_s": 0.01, "source.sources.1.columns.answer.output_tokens": 20,
        "source.sources.1.columns.question.output_tokens": 12, "source.sources.1.columns.question.input_tokens": 30,
        "source.sources.1.columns.answer.input_tokens": 40, "source.sources.1.columns.labels.input_tokens": 20,
        "source.sources.1.columns.check.input_tokens": 60, "source.sources.1.columns.check.output_tokens": 8,
        "source.sources.0.input_tokens": 20, "source.sources.0.output_tokens": 10}
FAULTS = [{"kind": "crash", "pool": "large", "at_s": 0.5}, {"kind": "errors", "pool": "small", "at_s": 0.2, "for_s": 0.4, "status": 429, "p": 0.5}]


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


def pipeline_of(source: Any) -> PipelineSource:
    return next(one for one in source.sources if isinstance(one, PipelineSource))


def overheard(scheduler: TaskScheduler) -> list[tuple[Any, float, list[Any]]]:
    """Every call of the task stage with its answer, as it goes on."""
    calls: list[tuple[Any, float, list[Any]]] = []
    handle = scheduler.handle

    def heard(event: Any, now: float) -> list[Any]:
        effects = handle(event, now)
        calls.append((event, now, effects))
        return effects

    scheduler.handle = heard  # type: ignore[method-assign]
    return calls


def assert_task_stage_replays(calls: list[tuple[Any, float, list[Any]]], source: PipelineSource) -> None:
    fresh = source.scheduler
    again = TaskScheduler(fresh.tracker.graph, fresh.tracker.row_groups, fresh.resolver, fresh.config, run_id=source.name, notes=True, timeline=True)
    for n, (event, now, effects) in enumerate(calls):
        assert again.handle(event, now) == effects, (n, event, now)
    assert (again.timeline, again.snapshot(), again.result) == (fresh.timeline, fresh.snapshot(), fresh.result)
    made = [e for _, _, effects in calls for e in effects]
    notes = [e for e in made if isinstance(e, Note)]
    assert isinstance(made[-1], RunEnded) and [n.sequence for n in notes] == list(range(1, len(notes) + 1))
    assert sum(isinstance(e, StartTask) for e in made) == len(fresh.timeline or ())


def simulated(scenario: Scenario) -> tuple[Run, PipelineSource, list[tuple[Any, float, list[Any]]]]:
    world, control, mix = scenario.build(check=True, record="full")
    source = pipeline_of(mix)
    calls = overheard(source.scheduler)
    flight = world.start(control, mix, name=scenario.name, scenario=scenario, **scenario.meta(pool_facts(world.fleet)))
    return flight.result(), source, calls


@pytest.mark.parametrize("name", ["data-pipeline", "data-pipeline@strict", "data-pipeline@reserved"])
def test_INV_9_a_simulated_pipeline_replays(name: str, tmp_path: Path) -> None:
    run, source, calls = simulated(Scenario.load(name).with_({"source.sources.1.rows": 64, "source.sources.0.count": 40}))
    assert source.result is not None and source.result.status == "completed"
    agreed = replay(run)
    assert agreed.events > 700 and agreed.effects > 300 and agreed.complete and agreed.same_code
    again = replay(run.save(tmp_path / "run"))
    assert (again.events, again.effects) == (agreed.events, agreed.effects)
    assert_task_stage_replays(calls, source)


def test_INV_9_a_pipeline_with_a_crash_and_refusals_replays() -> None:
    run, source, calls = simulated(Scenario.load("data-pipeline").with_({**TINY, "faults": FAULTS}))
    assert source.result is not None and source.result.status == "completed" and source.result.retries > 0
    assert sum(len(ids) for ids in source.request_ids.values()) > len(run.requests) - 30, "some requests were sent again"
    assert replay(run).complete
    assert_task_stage_replays(calls, source)


def test_INV_9_a_control_that_limits_otherwise_is_told_apart() -> None:
    scenario = Scenario.load("data-pipeline").with_(TINY)
    run, _, _ = simulated(scenario)

    def narrow(header: Any) -> Control:
        return scenario.with_({"control.admission.limit.limit": 1}).build_control(pools=pool_facts(scenario.build_fleet()), wants=wants_of(run))

    with pytest.raises(RunReplayError, match="replay differs at seq"):
        replay(run, narrow)


def wants_of(run: Run) -> frozenset[str]:
    from windtunnel.lab.recorder import Recorder

    return Recorder(run.tables.level).wants


def test_INV_9_a_live_pipeline_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against engines that answer in real time, one of them with refusals and broken connections: the log and the task stage replay."""
    monkeypatch.setattr("windtunnel.sources.transport.BASE_S", 0.02)
    scenario = Scenario.load("data-pipeline").with_(TINY)
    faults = (Fault("refuse", every=9, status=429, retry_after="0"), Fault("refuse", every=13, status=502))
    scripts = [FakeScript(ttft_s=0.002, itl_s=0.0003, slots=8, model=name, faults=faults if name == LARGE else ()) for name in (LARGE, SMALL)]
    with FakeEngine(scripts[0]) as large, FakeEngine(scripts[1]) as small:
        pools = {"large": {"engine": "vllm", "model": LARGE, "urls": [large.url], "slots": 8},
                 "small": {"engine": "vllm", "model": SMALL, "urls": [small.url], "slots": 8}}
        fleet = LiveFleet.of({"name": "pipe", "pools": pools})

        def control() -> Control:
            return scenario.build_control(pools=fleet.pool_facts(), wants=Live.wants)

        mix = scenario.build_source(live=True)
        source = pipeline_of(mix)
        calls = overheard(source.scheduler)
        run = Live(fleet, "armed", phrase="ARM pipe", caps=Caps(max_in_flight=64)).run(control(), mix, name="pipe-parity")
    assert source.result is not None and source.result.status == "completed" and source.result.rows_dropped == 0
    assert source.result.retries > 0 and run.requests.attempts.max() > 1
    agreed = replay(run, lambda header: control())
    assert agreed.events > 300 and agreed.effects > 300
    assert_task_stage_replays(calls, source)
    simulated_source = simulated(scenario)[1]
    assert source.output_hashes() == simulated_source.output_hashes(), "the same rows in both worlds"
