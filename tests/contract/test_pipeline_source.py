"""Pipelines in both worlds: the same rows, the same outputs, everything given back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from windtunnel.effects import Close, Reject, WakeAt
from windtunnel.errors import ConfigError, ConfigPipelineError, ConfigValueError
from windtunnel.events import Arrived, Cancelled, Finished, Truth, Woke
from windtunnel.lab.artifact import Artifact, artifact_of, root_over_admission, stats
from windtunnel.lab.scenario import Scenario
from windtunnel.lab.world_live import Live
from windtunnel.live.fake_script import Fault
from windtunnel.live.fake_server import FakeEngine, FakeScript
from windtunnel.live.fleet import LiveFleet
from windtunnel.live.gate import Caps
from windtunnel.policy.admission.denial import make_denial
from windtunnel.policy.tasks.config import TaskSchedulerConfig
from windtunnel.policy.tasks.graph import Column
from windtunnel.policy.tasks.record import TIMELINE
from windtunnel.sources.pipeline import PipelineSource
from windtunnel.sources.program import Program
from windtunnel.sources.transport import TransportRetry

SIM = Path(__file__).parents[2] / "sims" / "data-pipeline.yaml"
SMALL = """
windtunnel: 1
name: tiny-pipeline
seed: 4
fleet:
  pools:
    large: {model: Llama-3.1-70B, gpu: h100_sxm, tp: 4}
    small: {model: Llama-3.1-8B, gpu: h100_sxm}
source:
  kind: mix
  sources:
    - {kind: arrivals, name: chat, model: Llama-3.1-8B, rate_rps: 20, count: 10, input_tokens: 30, output_tokens: 5}
    - kind: pipeline
      rows: 9
      buffer_size: 4
      max_in_flight_tasks: 4
      max_parallel_requests: {Llama-3.1-70B: 3}
      columns:
        seed: {strategy: full_column, local_s: 0.02}
        question: {needs: [seed], model: Llama-3.1-70B, input_tokens: 20, output_tokens: {kind: uniform, lo: 3, hi: 9}}
        labels: {needs: [question], model: Llama-3.1-8B, requests: 3, parallel: true, input_tokens: 15, output_tokens: 2}
        judge: {needs: [question, labels], model: Llama-3.1-70B, requests: 2, input_tokens: 25, output_tokens: 3, local_s: 0.001}
        check: {needs: [judge], strategy: full_column, model: Llama-3.1-8B, requests: 0}
control:
  queue: {kind: fair}
  admission: {limit: {kind: fixed, limit: 8}}
compare:
  strict: {source.sources.1.sharing: {kind: strict}}
"""


def simulated(scenario: Scenario) -> tuple[PipelineSource, Any]:
    world, control, source = scenario.build(check=True)
    run = world.run(control, source)
    return source.sources[1], run  # type: ignore[attr-defined]


def assert_given_back(source: PipelineSource) -> None:
    s = source.scheduler
    assert (len(s.admission.active), len(s.queue), len(s.deferred), len(s.running)) == (0, 0, 0, 0)
    assert not source._work and not source._owner and source.done()


def flown(scenario: Scenario, faults: tuple[Fault, ...] = ()) -> tuple[PipelineSource, Any]:
    """faults: of the engine that serves the large model."""
    names = ("Llama-3.1-70B", "Llama-3.1-8B")
    scripts = [FakeScript(ttft_s=0.002, itl_s=0.0005, slots=8, model=name, faults=faults if name == names[0] else ()) for name in names]
    with FakeEngine(scripts[0]) as large, FakeEngine(scripts[1]) as small:
        pools = {"large": {"engine": "vllm", "model": names[0], "urls": [large.url], "slots": 8},
                 "small": {"engine": "vllm", "model": names[1], "urls": [small.url], "slots": 8}}
        fleet = LiveFleet.of({"name": "pipe", "pools": pools})
        control = scenario.build_control(pools=fleet.pool_facts(), wants=Live.wants)
        source = scenario.build_source(live=True)
        run = Live(fleet, "armed", phrase="ARM pipe", caps=Caps(max_in_flight=64)).run(control, source, name="pipe-test")
    return source.sources[1], run  # type: ignore[attr-defined]


@pytest.mark.parametrize("variant", [None, "strict"])
def test_TS_6_equal_outputs_in_simulation_and_against_engines(variant: str | None) -> None:
    scenario = Scenario.load(SMALL, variant=variant)
    in_sim, run = simulated(scenario)
    live, live_run = flown(scenario)
    for source in (in_sim, live):
        assert source.result is not None and source.result.status == "completed"
        assert source.result.tasks_completed == 3 * 2 + 9 * 3 and source.result.rows_dropped == 0
        assert_given_back(source)
    assert in_sim.output_hashes() == live.output_hashes() and len(set(in_sim.output_hashes().values())) == 5
    assert len(run.requests) == len(live_run.requests) == 10 + 9 * (1 + 3 + 2)
    assert set(run.requests.outcome) == set(live_run.requests.outcome) == {"success"}
    assert run.meta.complete and live_run.meta.complete
    notes = live_run.notes[live_run.notes["stream"] == "scheduler"]  # a live run is recorded in full, what sources tell included
    assert notes["sequence"].tolist() == list(range(1, len(notes) + 1)) and (notes["kind"] == "task_lease_released").sum() == 33


def test_a_run_ends_with_local_work_that_no_request_follows() -> None:
    text = SMALL.replace("rate_rps: 20, count: 10", "rate_rps: 1000, count: 10").replace("requests: 0}", "requests: 0, local_s: 0.2}")
    source, run = flown(Scenario.load(text))
    assert source.result is not None and source.result.status == "completed" and run.meta.complete


def test_BM_dynamic_requests_no_one_and_many_calls_and_no_hidden_waiters() -> None:
    source, run = simulated(Scenario.load(SMALL))
    by_column: dict[str, set[int]] = {}
    timeline = source.scheduler.timeline or []
    for row in timeline:
        by_column.setdefault(row["column"], set()).add(len(source.request_ids[row["task_lease_id"]]))
        assert row["task_lease_acquired_at"] <= row["worker_spawned_at"]
    assert by_column == {"seed": {0}, "question": {1}, "labels": {3}, "judge": {2}, "check": {0}}
    assert sum(len(ids) for ids in source.request_ids.values()) == len(run.requests) - 10


def test_the_bundled_scenario_runs_and_borrowing_gives_labels_their_turn() -> None:
    waits = {}
    for variant in (None, "strict"):
        source, run = simulated(Scenario.load(SIM, variant=variant))
        assert source.result is not None and source.result.tasks_completed == 774 and run.meta.complete
        assert_given_back(source)
        rows = [r for r in source.scheduler.timeline or () if r["column"] == "labels"]
        waits[variant] = sum(r["selected_at"] - r["ready_enqueued_at"] for r in rows) / len(rows)
    assert waits[None] < 0.1 * waits["strict"]


def test_TS_15_the_end_of_the_planned_time_gives_everything_back() -> None:
    source, run = simulated(Scenario.load(SIM, overrides=["duration_s=20"]))
    assert source.result is not None and source.result.status == "shutdown"
    assert 0 < source.result.tasks_completed < 774
    assert_given_back(source)
    assert set(run.requests.outcome) <= {"success", "local_cancelled"}


@pytest.mark.parametrize(("line", "with_", "what"), [
    ("needs: [seed]", "needs: [nobody]", "nobody"), ("needs: [seed]", "needs: [judge]", "circle"),
    ("{Llama-3.1-70B: 3}", "{gpt: 3}", "gpt"), ("rows: 9", "rows: 0", "rows"), ("buffer_size: 4", "sharing: {kind: half}", "sharing"),
])
def test_bad_pipelines_are_refused(line: str, with_: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        Scenario.load(SMALL.replace(line, with_, 1))


def one(requests: int = 1, rows: int = 1, parallel: bool = False, weights: Any = None, retries: int = 3) -> PipelineSource:
    return PipelineSource([Program(Column("a"), "m", requests, parallel, 10, 5)], rows, TaskSchedulerConfig(),
                          parallel=weights, transport_retries=retries)


def sent(asks: Any) -> list[str]:
    return [a.request.id for a in asks if isinstance(a, Arrived)]


def done(request_id: str) -> Finished:
    return Finished(request_id, 1, "r0", 5)


def test_sequential_and_parallel_programs() -> None:
    source = one(requests=3)
    assert sent(source.start(0.0)) == ["pipeline-1"] and sent(source.handle(done("pipeline-1"), 1.0)) == ["pipeline-2"]
    assert sent(source.handle(done("pipeline-2"), 2.0)) == ["pipeline-3"] and not source.done()
    assert source.handle(done("pipeline-3"), 3.0) == [] and source.done()
    both = one(requests=3, parallel=True)
    assert len(sent(both.start(0.0))) == 3
    for n in (3, 1, 2):
        both.handle(done(f"pipeline-{n}"), float(n == 2))
    assert both.output_hashes() == source.output_hashes(), "values do not depend on the order of ends"


def test_a_refused_request_defers_its_task_for_the_time_it_was_told() -> None:
    source = one(requests=2, parallel=True)
    source.start(0.0)
    asks = source.handle(Close("pipeline-1", "failed", "rate_limited", "http_429", 3.0), 1.0)
    assert asks == [Cancelled("pipeline-2", None, "sibling_failed")]
    asks = source.handle(Close("pipeline-2", "cancelled", "local_cancelled", "cancelled"), 1.5)
    assert asks == [WakeAt(4.5, "tasks")]
    assert sent(source.handle(Woke("tasks"), 4.5)) == ["pipeline-3", "pipeline-4"]
    for n in (3, 4):
        source.handle(done(f"pipeline-{n}"), 5.0)
    assert source.result is not None and (source.result.retries, source.result.rows_dropped) == (1, 0)
    assert_given_back(source)


@pytest.mark.parametrize(("end", "retried"), [
    (Reject("pipeline-1", make_denial("queue", "queue_timeout"), "timed_out", "rate_limited"), True),
    (Reject("pipeline-1", make_denial("queue", "queue_full"), "rejected", "rate_limited"), True),
    (Close("pipeline-1", "failed", "provider_failure", "http_500"), True),
    (Close("pipeline-1", "failed", "unexpected_exception", "invalid_request"), False),
])
def test_TS_12_ends_of_requests(end: Any, retried: bool) -> None:
    source = one()
    source.start(0.0)
    source.handle(end, 1.0)
    assert source.done() != retried
    assert len(source.scheduler.deferred) == retried


def broken(request_id: str, reason: str = "http_503") -> Close:
    return Close(request_id, "failed", "provider_failure", reason)


def test_TS_16_a_broken_connection_is_tried_again_three_times_while_the_task_keeps_its_lease() -> None:
    """Waits 2, 4 and 8 s; then it is the task's own failure."""
    source = one()
    source.start(0.0)
    now, last = 0.0, "pipeline-1"
    for wait_s in (2.0, 4.0, 8.0):
        asks = source.handle(broken(last), now)
        assert asks == [WakeAt(now + wait_s, "again")] and len(source.scheduler.running) == 1
        assert source.handle(Woke("again"), now + wait_s / 2) == [WakeAt(now + wait_s, "again")], "too early"
        now += wait_s
        (sent_again,) = source.handle(Woke("again"), now)
        assert isinstance(sent_again, Arrived)
        request = sent_again.request
        assert (request.origin, request.arrived_s, request.input_tokens, request.truth) == ("pipeline-1", now, 10, Truth(5))
        assert request.id != last
        last = request.id
    assert request.attempt == 4
    assert source.handle(broken(last), now) == [WakeAt(now + 0.05, "tasks")]
    assert (len(source.scheduler.running), len(source.scheduler.deferred), source.scheduler.snapshot()["retries"]) == (0, 1, 1)
    assert sent(source.handle(Woke("tasks"), now + 1.0)) != [] and len(source.scheduler.running) == 1


@pytest.mark.parametrize("reason", ["http_502", "http_503", "http_504", "connection_refused", "connect_timeout", "connection_reset", "crash"])
def test_TS_16_what_counts_as_a_broken_connection(reason: str) -> None:
    source = one()
    source.start(0.0)
    assert source.handle(broken("pipeline-1", reason), 1.0) == [WakeAt(3.0, "again")]
    source.handle(done(sent(source.handle(Woke("again"), 3.0))[0]), 4.0)
    assert source.result is not None and (source.result.retries, source.result.tasks_completed) == (0, 1)
    assert_given_back(source)


@pytest.mark.parametrize("end", [
    Close("pipeline-1", "failed", "rate_limited", "http_429", 1.0), Close("pipeline-1", "failed", "rate_limited", "http_503", 1.0),
    broken("pipeline-1", "http_500"), broken("pipeline-1", "garbage"), Close("pipeline-1", "failed", "provider_timeout", "first_token"),
    Reject("pipeline-1", make_denial("route", "no_replica"), "rejected", "rate_limited"),
])
def test_TS_16_never_a_429_nor_what_another_connection_would_not_heal(end: Any) -> None:
    source = one()
    source.start(0.0)
    source.handle(end, 1.0)
    assert len(source.scheduler.running) == 0 and len(source.scheduler.deferred) == 1


def test_TS_16_backoff_is_at_most_a_minute() -> None:
    transport = TransportRetry(99)
    assert [transport.wait_s(broken("x"), n) for n in (1, 2, 5, 6, 7, 99)] == [2.0, 4.0, 32.0, 60.0, 60.0, 60.0]
    assert transport.wait_s(broken("x"), 100) is None and TransportRetry(0).wait_s(broken("x"), 1) is None
    for bad in (-1, 1.5, True, float("nan")):
        with pytest.raises(ConfigValueError):
            TransportRetry(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("parallel", [False, True])
def test_TS_16_other_requests_of_the_program_wait_or_go_on(parallel: bool) -> None:
    source = one(requests=2, parallel=parallel)
    source.start(0.0)
    source.handle(broken("pipeline-1"), 0.0)
    if parallel:
        assert source.handle(done("pipeline-2"), 1.0) == [] and not source.done(), "the other one is still to come"
    (again,) = sent(source.handle(Woke("again"), 2.0))
    following = sent(source.handle(done(again), 3.0))
    assert len(following) == (0 if parallel else 1)
    for request_id in following:
        source.handle(done(request_id), 4.0)
    assert source.done() and source.output_hashes() == finished(requests=2).output_hashes()
    assert_given_back(source)


def finished(requests: int) -> PipelineSource:
    source = one(requests=requests)
    request_ids = sent(source.start(0.0))
    while request_ids:
        request_ids = sent(source.handle(done(request_ids.pop()), 0.0))
    return source


def test_TS_16_a_cancelled_task_does_not_try_again() -> None:
    source = PipelineSource([Program(Column("a"), "m", 2, True, 10, 5)], 1, stop_at_s=1.0)
    source.start(0.0)
    source.handle(broken("pipeline-1"), 0.0)
    source.handle(broken("pipeline-2"), 0.5)
    source.handle(Woke("stop"), 1.0)
    assert source.result is not None and source.result.status == "shutdown"
    assert source.handle(Woke("again"), 9.0) == [] and not source._again
    assert_given_back(source)


def test_TS_16_a_sibling_that_failed_for_good_ends_the_waiting() -> None:
    source = one(requests=2, parallel=True)
    source.start(0.0)
    source.handle(broken("pipeline-1"), 0.0)
    source.handle(Close("pipeline-2", "failed", "rate_limited", "http_429", 5.0), 1.0)
    assert len(source.scheduler.deferred) == 1 and sent(source.handle(Woke("again"), 2.0)) == []


def test_TS_16_in_a_fleet_that_loses_its_replica_no_row_is_lost() -> None:
    """The engine crashes under the pipeline; another one boots. Each original is one row, however often it was sent."""
    faults = "faults: [{kind: crash, pool: large, at_s: 0.3}]\ncontrol:"
    source, run = simulated(Scenario.load(SMALL.replace("control:", faults)))
    assert source.result is not None and source.result.status == "completed" and source.result.rows_dropped == 0
    submissions = sum(len(ids) for ids in source.request_ids.values())
    assert submissions > 9 * 6 and len(run.requests) < submissions + 10
    assert source.output_hashes() == simulated(Scenario.load(SMALL))[0].output_hashes()


def test_TS_16_live_transport_retries_against_an_engine_that_breaks_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("windtunnel.sources.transport.BASE_S", 0.01)
    faults = (Fault("refuse", at=(2,), status=502), Fault("refuse", at=(5,), status=504), Fault("die", at=(8,), after_tokens=1))
    scenario = Scenario.load(SMALL)
    source, run = flown(scenario, faults)
    assert source.result is not None and source.result.status == "completed"
    assert (source.result.rows_dropped, source.result.retries) == (0, 0), "no task has noticed"
    assert sum(len(ids) for ids in source.request_ids.values()) == 9 * 6 + 3
    assert len(run.requests) == 10 + 9 * 6 and set(run.requests.outcome) == {"success"} and run.requests.attempts.sum() == 64 + 3
    assert source.output_hashes() == simulated(scenario)[0].output_hashes()


def test_late_ends_and_unknown_ones_are_harmless() -> None:
    source = one()
    source.start(0.0)
    assert source.handle(done("somebody-else"), 0.5) == []
    source.handle(done("pipeline-1"), 1.0)
    assert source.handle(done("pipeline-1"), 2.0) == [] and source.done()


def test_bad_arguments() -> None:
    with pytest.raises(ConfigValueError):
        one(rows=0)
    with pytest.raises(ConfigValueError):
        Program(Column("a"), "m", -1)
    with pytest.raises(ConfigPipelineError):
        one(weights={"other": 3})


# -- the benchmark artifact -------------------------------------------------------------------------------------------------------


def flight(text: Any, **load: Any) -> tuple[Any, PipelineSource]:
    source, run = simulated(Scenario.load(text, **load))
    return run, source


def test_BM_1_artifact_round_trip(tmp_path: Path) -> None:
    made = artifact_of("tiny-pipeline", [flight(SMALL), flight(SMALL, variant="strict")], candidate_sha="abc")
    path = made.write(tmp_path / "tiny.json")
    assert Artifact.read(path) == made and made.artifact_schema_version == "1"
    assert made.iterations[0].output_hashes == made.iterations[1].output_hashes
    assert path.with_suffix(".csv").read_text().count("\n") == 1 + sum(len(i.timeline) for i in made.iterations)
    assert "ready_queue_wait" in path.with_suffix(".md").read_text()
    assert made.iterations[0].final_request_snapshot == {"requests": 54, "open": 0, "outcomes": {"success": 54}}
    assert made.capacity_plan["observed_maxima"]["task_leases_by_resource"]["value"]["submission"] == 4
    for change in ({"extra": 1}, {"iterations": []}, {"artifact_schema_version": "2"}):
        with pytest.raises(ValidationError):
            Artifact.model_validate({**made.model_dump(mode="json"), **change})


def test_BM_2_derived_numbers_and_EV_4_timelines() -> None:
    run, source = flight(SMALL)
    made = artifact_of("tiny-pipeline", [(run, source)])
    numbers, timeline = made.derived_metrics, made.iterations[0].timeline
    assert numbers["ready_idle_gap"].max == 0 and numbers["hidden_scheduler_resource_waiters"].max == 0
    assert numbers["task_admission_wait"].max == 0
    assert numbers["ready_queue_wait"] == numbers["ready_to_lease_gap"] and numbers["ready_queue_wait"].max > 0
    busy = sum(r["task_lease_released_at"] - r["task_lease_acquired_at"] for r in timeline)
    assert numbers["active_capacity_integral"].mean == pytest.approx(busy / 4)
    for row in timeline:
        times = [row[key] for key in TIMELINE if row[key] is not None]
        assert times == sorted(times)
        assert len(times) == (13 if source.request_ids[row["task_lease_id"]] else 7), row


def test_BM_2_percentiles() -> None:
    assert stats([3.0, 1.0, 2.0]).model_dump() == pytest.approx({"mean": 2, "p50": 2, "p95": 3, "min": 1, "max": 3, "std": (2 / 3) ** 0.5})
    assert stats([5.0]).std == 0


def test_BM_2_root_over_admission_counts_what_came_after_the_first_downstream() -> None:
    """Four places, the root's strict share of them is one; before the first downstream is ready at 0.4 s nothing counts."""
    source = flight(SMALL)[1]

    def row(column: str, start: float, end: float, ready: float) -> dict[str, Any]:
        return {"column": column, "task_lease_acquired_at": start, "task_lease_released_at": end, "dependency_ready_at": ready}

    seeds = [row("seed", start, end, 0.0) for start, end in ((0.0, 1.0), (0.0, 1.0), (0.5, 2.0), (1.0, 3.0), (3.0, 4.0))]
    assert root_over_admission(seeds, source) == 0
    assert root_over_admission([*seeds, row("question", 0.6, 0.7, 0.4)], source) == 2
