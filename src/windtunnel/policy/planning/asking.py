"""Asking plugins within a tick: what each is shown, and how its answer is judged - breaker, cache, records."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from windtunnel.policy.planning.calls import Answer, Answers, Call, CallError, Gather
from windtunnel.policy.planning.chain import EMPTY
from windtunnel.policy.planning.contract import (
    Accept,
    ObservationData,
    Override,
    OverrideType,
    PipelineContext,
    PredictResponse,
    Stage,
    StageRequest,
    StageResponse,
    StageResult,
    TrafficMetrics,
)
from windtunnel.policy.planning.merge import MergeOutcome
from windtunnel.policy.planning.roster import Entry, Snapshot
from windtunnel.policy.planning.tick_outcome import Baseline, Diagnostics

if TYPE_CHECKING:
    from windtunnel.policy.planning.pipeline import Pipeline

TYPE_NAMES = {kind: kind.name.lower() for kind in OverrideType}
# names of the types of an override's targets, by the set of them as bits: members of an enum are slow to hash
_TYPES = tuple(tuple(name for kind, name in TYPE_NAMES.items() if bits >> kind & 1) or ("accept",) for bits in range(16))


class TimedOut(Exception):
    """The tick has no time left."""


class Asking:
    """The running tick as far as it asks: one gather after another."""

    __slots__ = (
        "answered",
        "baseline",
        "blocks",
        "chain",
        "ctx",
        "diagnostics",
        "journal",
        "merges",
        "now",
        "pipeline",
        "snapshot",
        "started",
        "tick_at",
        "told",
        "windows",
    )

    def __init__(self, pipeline: Pipeline, ctx: PipelineContext, baseline: Baseline, tick_at: float, now: float,
                 windows: Mapping[float, TrafficMetrics | None]) -> None:
        self.pipeline, self.ctx, self.baseline, self.tick_at, self.now, self.windows = pipeline, ctx, baseline, tick_at, now, windows
        self.started, self.journal = now, pipeline.journal
        self.snapshot: Snapshot = pipeline.roster.snapshot()
        self.answered: list[Entry] = []  # their slots are used up if the tick ends well
        self.diagnostics = Diagnostics()
        self.merges: list[MergeOutcome | None] = [None, None, None]
        self.chain = EMPTY

    def _ask(self, stage: Stage, entries: Sequence[Entry], results: tuple[StageResult, ...],
             requests: dict[tuple[tuple[bool, ...], float], StageRequest]) -> Generator[Gather, Answers, list[tuple[Entry, Any]]]:
        """One Gather; (entry, response or None) in the order asked. Raises TimedOut once the tick has no time left."""
        pipeline, journal = self.pipeline, self.journal
        left_s = pipeline.tick_max_s - (self.now - self.started)
        calls, request, window_s, now, noting = [], None, 0.0, self.now, journal.on
        blocks: tuple[bool, ...] = ()
        for entry in entries:
            if request is None or entry.window_s != window_s or entry.blocks != blocks:
                blocks, window_s = entry.blocks, entry.window_s
                request = requests.get((blocks, window_s))
                if request is None:
                    request = requests[blocks, window_s] = StageRequest(self._trimmed(entry), stage, self.tick_at, now, results)
            entry.calls += 1
            entry.last_call_at = now
            timeout_s = entry.timeout_s
            calls.append(Call(entry.plugin_id, entry.order, stage, request, timeout_s if timeout_s < left_s else left_s, entry.transport,
                              entry.plugin))
            if noting:
                journal.add("plugin_called", entry.plugin_id, stage=stage.value)
        pipeline.gathers += 1
        answers = yield Gather(pipeline.gathers, tuple(calls), self.started + pipeline.tick_max_s)
        self.now = journal.now = max(self.now, answers.now)
        late = self.now - self.started >= pipeline.tick_max_s
        items = answers.items
        by_id = {a.plugin_id: a for a in items}
        got = [(entry, self._settle(entry, stage, by_id.get(entry.plugin_id), late, left_s < entry.timeout_s)) for entry in entries]
        if late:
            raise TimedOut
        return got

    def _settle(self, entry: Entry, stage: Stage, answer: Answer | None, late: bool, shortened: bool) -> Any:
        """Judge one answer: breaker, cache, records. The response, or None if there is none that counts."""
        journal = self.journal
        if self.pipeline.roster.entries.get(entry.plugin_id) is not entry:
            self.diagnostics.discarded.append(entry.plugin_id)
            journal.add("answer_discarded", entry.plugin_id, stage=stage.value, why="no longer registered")
            return None
        if answer is not None and answer.started_at is not None and answer.finished_at is not None:
            journal.observe("plugin_latency_seconds", answer.finished_at - answer.started_at, entry.plugin_id, stage.value)
        error = CallError("cut" if late else "timeout", "no answer") if answer is None else answer.error
        response = None if answer is None else answer.response
        expected = PredictResponse if stage is Stage.PREDICT else StageResponse
        if error is None and type(response) is not expected:
            error = CallError("contract", f"expected a {'Predict' if stage is Stage.PREDICT else 'Stage'}Response, got {type(response).__name__}")
        if error is not None:
            if error.kind == "timeout" and late and shortened:
                error = CallError("cut", error.message)
            self._failed(entry, stage, error)
            return None
        entry.fails = 0
        self.answered.append(entry)
        self.diagnostics.said.append((entry.plugin_id, stage, response, False))  # type: ignore[arg-type]
        breaker = entry.breaker
        if breaker.failures and breaker.succeeded(self.now) is not None:  # without failures it is closed
            journal.add("circuit_closed", entry.plugin_id)
        if stage is not Stage.PREDICT:
            self._note_answer(entry, stage, response)  # type: ignore[arg-type]
        elif journal.on:
            result = "empty" if response.predictions is None else "accept"  # type: ignore[union-attr]
            journal.add("plugin_answered", entry.plugin_id, stage=stage.value, result=result, final=response.final)  # type: ignore[union-attr]
            if result == "empty":
                journal.add("empty_response", entry.plugin_id, stage=stage.value)
        return response

    def _note_answer(self, entry: Entry, stage: Stage, response: StageResponse) -> None:
        answer, journal, counts = response.answer, self.journal, self.journal.counts
        kind = type(answer)
        if kind is Override:
            bits = 0
            for target in answer.targets:  # type: ignore[union-attr]
                if target.replicas is not None:
                    bits |= 1 << target.type
            results = _TYPES[bits]
            if entry.hold_last:
                entry.cache, entry.cached_at = answer, self.tick_at  # type: ignore[assignment]
        else:
            results = ("accept",) if kind is Accept else ("reject",) if answer is not None else ("empty",)
            if answer is not None and entry.clear():
                journal.add("cache_cleared", entry.plugin_id, why=response.kind)
        for result in results:
            key = ("plugin_evaluations_total", entry.plugin_id, stage._value_, result)
            counts[key] = counts.get(key, 0) + 1
        if journal.on:
            journal.add("plugin_answered", entry.plugin_id, stage=stage.value, result=response.kind, final=response.final)
            if answer is None:
                journal.add("empty_response", entry.plugin_id, stage=stage.value)

    def _failed(self, entry: Entry, stage: Stage, error: CallError) -> None:
        journal = self.journal
        self.diagnostics.failed.append((entry.plugin_id, error.kind))
        journal.add("plugin_failed", entry.plugin_id, stage=stage.value, error=error.kind, message=error.message)
        if error.kind == "cut":
            return
        journal.count("plugin_evaluations_total", entry.plugin_id, stage.value, "timeout" if error.kind == "timeout" else "error")
        entry.fails += 1
        entry.failed_at = self.tick_at
        if entry.breaker.failed(self.now) is not None:
            journal.add("circuit_opened", entry.plugin_id, failures=entry.breaker.failures)
            if entry.clear():
                journal.add("cache_cleared", entry.plugin_id, why="circuit_opened")

    def _trimmed(self, entry: Entry) -> PipelineContext:
        """The blocks that the plugin needs, with traffic over its own window."""
        ctx, blocks = self.ctx, entry.blocks
        observed = ctx.observations
        if observed is not None:
            traffic = self.windows.get(entry.window_s, observed.traffic) if blocks[0] else None
            fpm, workers = observed.fpm if blocks[1] else None, observed.workers if blocks[2] else None
            if traffic is not observed.traffic or fpm is not observed.fpm or workers is not observed.workers:
                observed = None if traffic is None and fpm is None and workers is None else ObservationData(traffic, fpm, workers)
        predictions, proposal = ctx.predictions if blocks[3] else None, ctx.proposal if blocks[4] else None
        if observed is ctx.observations and predictions is ctx.predictions and proposal is ctx.proposal:
            return ctx
        return PipelineContext(ctx.tick_id, ctx.decision_id, observed, predictions, proposal, ctx.constrained)
