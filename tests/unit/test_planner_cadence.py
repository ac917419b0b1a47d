"""Who is called at which grid time: intervals, lateness, stalls, back-off, holding, breaker, requires, windows, pull."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from windtunnel.policy.planning.audit import Journal
from windtunnel.policy.planning.breaker import Breaker, Circuit
from windtunnel.policy.planning.cadence import Pull, pull
from windtunnel.policy.planning.calls import Answer, Answers, CallError
from windtunnel.policy.planning.contract import (
    Accept,
    ComponentTarget,
    FpmData,
    HoldPolicy,
    ObservationData,
    Override,
    OverrideType,
    PipelineContext,
    PoolState,
    PredictionData,
    PredictResponse,
    Reject,
    Stage,
    StageRequest,
    StageResponse,
    TrafficMetrics,
    WorkerState,
)
from windtunnel.policy.planning.pipeline import Pipeline, answer_inline, run_inline
from windtunnel.policy.planning.plugin import Registration
from windtunnel.policy.planning.roster import Roster, RosterSettings
from windtunnel.policy.planning.tick_outcome import TickOutcome

ACCEPT = StageResponse(Accept())
FLOOR = StageResponse(Override((ComponentTarget("p", 6, OverrideType.AT_LEAST),)))
Script = Callable[[float], Any]


class Scripted:
    """Answers by grid time; an exception is raised."""

    def __init__(self, script: Script | None = None) -> None:
        self.script, self.calls, self.seen = script or (lambda at: ACCEPT), [], []

    def propose(self, request: StageRequest) -> Any:
        self.calls.append(request.tick_at)
        self.seen.append(request.ctx)
        said = self.script(request.tick_at)
        if isinstance(said, Exception):
            raise said
        return said

    predict = reconcile = constrain = propose


class Bench:
    """A pipeline of scripted plugins on a grid of 5 s."""

    def __init__(self, **settings: Any) -> None:
        self.roster = Roster(RosterSettings(5.0, **settings))
        self.journal = Journal(True)
        self.pipeline = Pipeline(self.roster, journal=self.journal)
        self.kinds: list[tuple[float, str, str]] = []

    def add(self, plugin_id: str = "a", script: Script | None = None, *, at: float = 0.0, stage: Stage = Stage.PROPOSE, **reg: Any) -> Scripted:
        plugin = Scripted(script)
        self.roster.register(Registration(plugin_id, stage, execution_interval_s=reg.pop("interval", 0.0), **reg), at, plugin=plugin)
        return plugin

    def tick(self, at: float, now: float | None = None, base: dict[str, int | None] | None = None, ctx: PipelineContext | None = None,
             **more: Any) -> TickOutcome:
        made = self.pipeline.tick(ctx or PipelineContext("t", "d", ObservationData()), {"p": 3} if base is None else base,
                                  tick_at=at, now=at if now is None else now, **more)
        outcome = run_inline(made)
        self.kinds.extend((at, r.kind, r.plugin_id) for r in outcome.records)
        return outcome

    def ticks(self, until: float) -> list[int | None]:
        """Replicas planned at 5, 10, ..."""
        return [self.tick(5.0 * k).targets.get("p") for k in range(1, int(until / 5) + 1)]

    def at(self, kind: str) -> list[float]:
        return [at for at, k, _ in self.kinds if k == kind]


@pytest.mark.parametrize(("interval", "registered", "expected"), [
    (0.0, 0.0, [5, 10, 15, 20, 25, 30, 35]), (10.0, 0.0, [10, 20, 30]), (7.0, 0.0, [10, 20, 30]), (10.0, 7.0, [15, 25, 35]),
])
def test_PL_305_intervals_on_the_grid(interval, registered, expected):
    bench = Bench()
    plugin = bench.add(interval=interval, at=registered)
    bench.ticks(35)
    assert [c for c in plugin.calls if c > registered] == expected


def test_PL_304_lateness_does_not_shift_later_calls():
    bench = Bench()
    plugin = bench.add(interval=10.0)
    for at, now in ((5, 5), (10, 10), (15, 16.2), (20, 20), (25, 25)):
        bench.tick(at, now)
    assert plugin.calls == [10, 20]


def test_PL_308_back_off_then_its_own_grid():
    bench = Bench()
    plugin = bench.add(script=lambda at: RuntimeError("x") if at < 20 else ACCEPT, interval=10.0)
    bench.ticks(40)
    assert plugin.calls == [10, 15, 25, 35]


def test_PL_308_back_off_grows_to_the_interval():
    bench = Bench()
    plugin = bench.add(script=lambda at: RuntimeError("x"), interval=60.0, failure_threshold=99)
    bench.ticks(300)
    assert plugin.calls == [60, 65, 75, 95, 135, 195, 255]


def test_PL_307_a_timed_out_tick_uses_no_slot():
    bench = Bench()
    plugin = bench.add(interval=180.0)
    for k in range(1, 74):
        at = 5.0 * k
        ticking = bench.pipeline.tick(PipelineContext("t", "d"), {"p": 3}, tick_at=at, now=at)
        try:
            gather = next(ticking)
            items = tuple(answer_inline(c) for c in gather.calls)
            outcome = ticking.send(Answers(gather.gather_id, items, at + (31 if at == 180 else 0)))
        except StopIteration as done:
            outcome = done.value
            assert (outcome.action == "skip_tick_timeout") == (at == 180)
            if at == 180:
                assert outcome.short_circuit_reason == "tick_max_duration_seconds=31.00" and outcome.targets == {"p": 3}
    assert plugin.calls == [180, 185, 365]


def test_PL_309_a_live_accept_clears_the_held_floor():
    bench = Bench()
    bench.add(script=lambda at: FLOOR if at == 10 else ACCEPT, interval=10.0, hold_policy=HoldPolicy.HOLD_LAST)
    assert bench.ticks(25) == [3, 6, 6, 3, 3]


def test_PL_309_a_floor_survives_timeouts_until_it_is_too_old():
    bench = Bench()
    bench.add(script=lambda at: FLOOR if at == 5 else RuntimeError("x"), interval=5.0, hold_policy=HoldPolicy.HOLD_LAST, hold_max_age_s=12.0,
              failure_threshold=99)
    assert bench.ticks(25) == [6, 6, 6, 3, 3] and bench.at("hold_expired") == [20]


def test_PL_309_accept_when_idle_holds_nothing():
    bench = Bench()
    bench.add(script=lambda at: FLOOR, interval=10.0)
    assert bench.ticks(20) == [3, 6, 3, 6]


def test_PL_309_held_over_ballots_are_not_final_and_carry_their_age():
    bench = Bench()
    bench.add(script=lambda at: StageResponse(FLOOR.answer, True), interval=10.0, hold_policy=HoldPolicy.HOLD_LAST)
    bench.add("b", script=lambda at: StageResponse(Override((ComponentTarget("p", 9),))))
    assert bench.tick(10.0).propose.used_final_from == "a"
    later = bench.tick(15.0)
    assert later.targets == {"p": 9} and later.propose.used_final_from == "" and later.diagnostics.held_over == ["a"]


def test_PL_310_empty_is_not_merged_and_the_cache_is_held():
    bench = Bench()
    plugin = bench.add(script=lambda at: FLOOR if at == 5 else StageResponse(), interval=5.0, hold_policy=HoldPolicy.HOLD_LAST)
    assert bench.ticks(15) == [6, 6, 6] and plugin.calls == [5, 10, 15] and bench.at("empty_response") == [10, 15]
    assert bench.journal.counts["plugin_evaluations_total", "a", "propose", "empty"] == 2


def test_PL_312_breaker_table():
    bench = Bench()
    plugin = bench.add(script=lambda at: RuntimeError("x"))
    bench.ticks(55)
    assert plugin.calls == [5, 10, 15, 20, 25, 55] and bench.at("circuit_opened") == [25, 55] and bench.at("circuit_half_opened") == [55]


def test_PL_312_opening_drops_the_held_answer():
    bench = Bench()
    bench.add(script=lambda at: FLOOR if at == 5 else RuntimeError("x"), hold_policy=HoldPolicy.HOLD_LAST, failure_threshold=2)
    assert bench.ticks(20) == [6, 6, 3, 3]


def test_PL_312_half_open_success_closes():
    bench = Bench()
    plugin = bench.add(script=lambda at: RuntimeError("x") if at < 30 else ACCEPT, failure_threshold=1, cooldown_s=20.0, interval=10.0)
    bench.ticks(60)
    assert plugin.calls == [10, 30, 40, 50, 60] and bench.at("circuit_closed") == [30]


def test_PL_306_requires_gates_without_using_a_slot():
    bench = Bench()
    plugin = bench.add(interval=10.0, requires=("observations.workers.p.ready",))
    seen = ObservationData(workers=WorkerState({"p": PoolState(ready=0)}))
    for at in (5.0, 10.0, 15.0):
        bench.tick(at)
    assert plugin.calls == [] and bench.tick(20.0).diagnostics.skipped == [("a", "requires", "observations.workers.p.ready")]
    bench.tick(25.0, ctx=PipelineContext("t", "d", seen))
    bench.tick(30.0, ctx=PipelineContext("t", "d", seen))
    bench.tick(35.0, ctx=PipelineContext("t", "d", seen))
    assert plugin.calls == [25, 35]
    assert bench.journal.counts["requires_unsatisfied_total", "a", "observations.workers.p.ready"] == 3


def test_PL_302_stages_see_what_went_before():
    bench = Bench()
    bench.add("f", lambda at: PredictResponse(PredictionData(predicted_num_req=7.0)), stage=Stage.PREDICT)
    propose = bench.add("a", lambda at: FLOOR)
    reconcile = bench.add("r", lambda at: StageResponse(Override((ComponentTarget("p", 5, OverrideType.AT_MOST),))), stage=Stage.RECONCILE)
    constrain = bench.add("c", lambda at: StageResponse(Override((ComponentTarget("p", 4, OverrideType.AT_MOST),))), stage=Stage.CONSTRAIN)
    outcome = bench.tick(5.0)
    assert propose.seen[0].predictions.predicted_num_req == 7.0 and propose.seen[0].proposal is None
    assert reconcile.seen[0].proposal.targets == (ComponentTarget("p", 6),) and constrain.seen[0].proposal.targets == (ComponentTarget("p", 5),)
    assert outcome.targets == {"p": 4}


def test_PL_302_unknown_counts_fall_back_to_the_first_baseline():
    bench = Bench()
    bench.add("c", lambda at: StageResponse(Override((ComponentTarget("p", 4, OverrideType.AT_MOST),))), stage=Stage.CONSTRAIN)
    outcome = bench.tick(5.0, base={"p": None})
    assert outcome.targets == {"p": None} and outcome.action == "apply"
    assert bench.tick(10.0, base={}).action == "apply"
    empty = Bench()
    assert empty.tick(5.0, base={}).action == "skip_no_targets"


def test_PL_202_a_rejection_ends_the_tick_and_uses_the_slot():
    bench = Bench()
    plugin = bench.add("a", lambda at: StageResponse(Reject("freeze")), interval=10.0)
    later = bench.add("c", stage=Stage.CONSTRAIN)
    outcome = bench.tick(10.0)
    assert (outcome.action, outcome.short_circuit_reason, outcome.targets) == ("skip_short_circuit", "a: freeze", {})
    bench.tick(15.0)
    bench.tick(20.0)
    assert plugin.calls == [10, 20] and later.calls == [15]


def test_PL_303_snapshot_and_discarded_answers():
    bench = Bench()
    bench.add("a", lambda at: FLOOR)
    ticking = bench.pipeline.tick(PipelineContext("t", "d"), {"p": 3}, tick_at=5.0, now=5.0)
    gather = next(ticking)
    bench.roster.unregister("a")
    again = bench.add("a", lambda at: FLOOR)
    late = bench.add("b")
    with pytest.raises(StopIteration) as done:
        ticking.send(Answers(gather.gather_id, (Answer("a", FLOOR),), 5.0))
    outcome = done.value.value
    assert outcome.targets == {"p": 3} and outcome.diagnostics.discarded == ["a"]
    assert again.calls == late.calls == [] and "answer_discarded" in [r.kind for r in outcome.records]


def test_PL_311_cut_calls_leave_the_breaker_alone_and_missing_ones_are_timeouts():
    bench = Bench()
    bench.add("a", timeout_s=5.0, failure_threshold=1)
    for now, kind, opened in ((36.0, "cut", False), (6.0, "timeout", True)):
        ticking = bench.pipeline.tick(PipelineContext("t", "d"), {"p": 3}, tick_at=5.0, now=5.0)
        gather = next(ticking)
        assert gather.deadline_at == 35.0 and gather.calls[0].timeout_s == 5.0
        with pytest.raises(StopIteration) as done:
            ticking.send(Answers(gather.gather_id, (), now))
        assert done.value.value.diagnostics.failed == [("a", kind)]
        assert (bench.roster.entries["a"].breaker.last is Circuit.OPEN) == opened


def test_PL_311_call_time_is_cut_to_what_is_left():
    bench = Bench()
    bench.add("f", stage=Stage.PREDICT, timeout_s=28.0)
    bench.add("a", timeout_s=5.0)
    ticking = bench.pipeline.tick(PipelineContext("t", "d"), {"p": 3}, tick_at=5.0, now=5.0)
    first = next(ticking)
    second = ticking.send(Answers(first.gather_id, (Answer("f", PredictResponse()),), 32.0))
    assert second.calls[0].timeout_s == 3.0
    with pytest.raises(StopIteration) as done:
        ticking.send(Answers(second.gather_id, (Answer("a", None, CallError("timeout")),), 35.0))
    assert done.value.value.action == "skip_tick_timeout" and done.value.value.diagnostics.failed == [("a", "cut")]


def test_PL_209_final_prediction_stops_the_calls():
    bench = Bench()
    bench.add("a", lambda at: PredictResponse(PredictionData(predicted_num_req=1.0), final=True), stage=Stage.PREDICT, priority=5)
    after = bench.add("b", lambda at: PredictResponse(), stage=Stage.PREDICT, priority=50)
    assert bench.tick(5.0).chain.final_from == "a" and after.calls == []


@pytest.mark.parametrize(("answer", "kind"), [
    (lambda at: None, "contract"), (lambda at: PredictResponse(), "contract"), (lambda at: ValueError("x"), "raised"),
    (lambda at: NotImplementedError(), "unknown_method"),
])
def test_PL_409_bad_answers_in_process(answer, kind):
    bench = Bench()
    bench.add("a", answer)
    assert bench.tick(5.0).diagnostics.failed == [("a", kind)]


def test_PL_313_trimming_hands_over_what_is_needed():
    bench = Bench()
    nothing = bench.add("none", needs=("predictions",))
    workers = bench.add("workers", needs=("observations.workers.p.ready",))
    whole = bench.add("all")
    observed = ObservationData(TrafficMetrics(5.0, 1.0), FpmData({}), WorkerState({"p": PoolState(ready=2)}))
    bench.tick(5.0, ctx=PipelineContext("t", "d", observed))
    assert nothing.seen[0].observations is None and whole.seen[0].observations == observed
    assert workers.seen[0].observations == ObservationData(workers=observed.workers)


def test_PL_315_each_plugin_sees_traffic_over_its_own_window():
    bench = Bench()
    short, long = bench.add("short"), bench.add("long", observation_window_s=20.0)
    windows = {5.0: TrafficMetrics(5.0, 1.0), 20.0: TrafficMetrics(20.0, 9.0)}
    bench.tick(5.0, ctx=PipelineContext("t", "d", ObservationData(windows[5.0])), windows=windows)
    assert short.seen[0].observations.traffic.num_req == 1.0 and long.seen[0].observations.traffic.num_req == 9.0


def test_PL_314_pull_is_the_union_of_who_is_due():
    bench = Bench()
    bench.add("a", interval=10.0, needs=("observations.traffic",), observation_window_s=15.0)
    bench.add("b", interval=15.0, needs=("observations.fpm.p",))
    bench.add("c", needs=("observations.workers",))
    snapshot = bench.roster.snapshot()
    assert pull(snapshot, 5.0, 5.0) == Pull()
    assert pull(snapshot, 10.0, 5.0) == Pull(True, False, (15.0,))
    assert pull(snapshot, 30.0, 5.0) == Pull(True, True, (15.0,))
    bench.roster.entries["b"].enabled = False
    assert pull(snapshot, 30.0, 5.0) == Pull(True, False, (15.0,))


def test_PL_314_waiting_for_a_prediction_pulls_only_if_one_may_come():
    bench = Bench()
    bench.add("a", needs=("observations.traffic",), requires=("predictions.predicted_num_req",))
    bench.tick(5.0)
    assert pull(bench.roster.snapshot(), 10.0, 5.0) == Pull()
    bench.add("f", stage=Stage.PREDICT, interval=10.0, needs=("observations.fpm",))
    assert pull(bench.roster.snapshot(), 10.0, 5.0) == Pull(True, True, (5.0,))


def test_PL_305_float_grids_do_not_lose_a_slot():
    roster = Roster(RosterSettings(0.1))
    entry = roster.register(Registration("a", Stage.PROPOSE, execution_interval_s=0.3), 0.0, plugin=Scripted())
    due = []
    for k in range(1, 40):
        if entry.due(k * 0.1):
            due.append(k)
            entry.anchor = k * 0.1
    assert due == list(range(3, 40, 3))


def test_PL_312_breaker_reading_ends_the_cooldown():
    breaker = Breaker(2, 30.0)
    assert breaker.failed(0.0) is None and breaker.failed(1.0) is Circuit.OPEN and not breaker.callable(30.9)
    assert breaker.state(31.0) is Circuit.HALF_OPEN and breaker.failed(40.0) is Circuit.OPEN and not breaker.callable(69.0)
    assert breaker.callable(70.0) and breaker.succeeded(70.0) is Circuit.CLOSED and breaker.failures == 0
    assert breaker.succeeded(71.0) is None and math.isfinite(breaker.cooldown_s)
