"""One tick of planning: PREDICT, PROPOSE, RECONCILE, CONSTRAIN. A generator that yields what it asks and is sent the answers.

It knows no clock and calls nobody: a driver answers inline, after a modelled delay, or with real calls.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from windtunnel.errors import PluginCallError
from windtunnel.policy.planning.audit import Journal, Record
from windtunnel.policy.planning.cadence import Gate, gate
from windtunnel.policy.planning.calls import Answer, Answers, Call, CallError, Gather
from windtunnel.policy.planning.chain import EMPTY, Chain, ChainOutcome
from windtunnel.policy.planning.contract import (
    Accept,
    ObservationData,
    Override,
    OverrideType,
    PipelineContext,
    PredictResponse,
    ScalingProposal,
    Stage,
    StageRequest,
    StageResponse,
    StageResult,
    TrafficMetrics,
)
from windtunnel.policy.planning.merge import Ballot, MergeOutcome, TieBreak, type_aware_merge
from windtunnel.policy.planning.roster import Entry, Roster, Snapshot

Action = Literal["apply", "skip_no_targets", "skip_short_circuit", "skip_tick_timeout"]
Baseline = Mapping[str, int | None]
Ticking = Generator[Gather, Answers, "TickOutcome"]
TYPE_NAMES = {kind: kind.name.lower() for kind in OverrideType}
# names of the types of an override's targets, by the set of them as bits: members of an enum are slow to hash
_TYPES = tuple(tuple(name for kind, name in TYPE_NAMES.items() if bits >> kind & 1) or ("accept",) for bits in range(16))


@dataclass(slots=True)
class Diagnostics:
    """Who was held over, skipped (id, why, path), failed (id, error), and whose answer came too late to count.

    said: every answer that counted, (id, stage, response, held over), as it came in.
    """

    held_over: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)
    said: list[tuple[str, Stage, PredictResponse | StageResponse, bool]] = field(default_factory=list)


@dataclass(slots=True)
class TickOutcome:
    """How a tick ended. targets: component -> replicas (None: count unknown), what the boundary gets; None stages had no say."""

    action: Action
    targets: Mapping[str, int | None]
    short_circuit_reason: str | None = None
    chain: ChainOutcome = EMPTY
    propose: MergeOutcome | None = None
    reconcile: MergeOutcome | None = None
    constrain: MergeOutcome | None = None
    diagnostics: Diagnostics = field(default_factory=Diagnostics)
    records: tuple[Record, ...] = ()


class Pipeline:
    """Owns the order of stages, cadence, caches and deadlines; keeps nothing of a tick but what the roster's entries hold.

    scale_s: the grid's step; tick_max_s: a tick that takes longer ends without a plan.
    """

    def __init__(self, roster: Roster, *, tick_max_s: float = 30.0, tie_break: TieBreak = "registration",
                 journal: Journal | None = None) -> None:
        self.roster, self.tick_max_s, self.tie_break = roster, tick_max_s, tie_break
        self.scale_s = roster.settings.scale_interval_s
        self.journal = journal or Journal()
        self.gathers = 0

    def tick(self, ctx: PipelineContext, baseline: Baseline, *, tick_at: float, now: float,
             windows: Mapping[float, TrafficMetrics | None] | None = None) -> Ticking:
        """Plan for grid time `tick_at`, started at `now`. windows: traffic by length of window; absent: everyone sees ctx's.

        Raises nothing that a plugin does: failures are answers.
        """
        return _Tick(self, ctx, baseline, tick_at, now, windows or {}).run()

    def invalidate(self, reason: str) -> None:
        """Forget all held answers and make everyone due at the next tick."""
        for entry in self.roster.snapshot().entries:
            if entry.clear():
                self.journal.add("cache_cleared", entry.plugin_id, why=reason)
            entry.anchor = float("-inf")


class _TimedOut(Exception):
    pass


class _Tick:
    """The run of one tick."""

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

    def run(self) -> Ticking:
        self.journal.now = self.now
        try:
            if self.snapshot.predict:
                yield from self._predict()
            current = self.baseline
            results: tuple[StageResult, ...] = ()
            for i, stage in enumerate((Stage.PROPOSE, Stage.RECONCILE, Stage.CONSTRAIN)):
                entries = (self.snapshot.propose, self.snapshot.reconcile, self.snapshot.constrain)[i]
                ballots: list[Ballot] = []
                if entries:
                    ballots = yield from self._stage(stage, entries, results)
                if stage is Stage.PROPOSE:
                    results = self._results(ballots) if self.snapshot.reconcile else ()
                elif not ballots:
                    continue
                merged = self.merges[i] = self._merge(stage, ballots, current)
                proposal = merged.proposal
                if proposal is None:
                    return self._end("skip_short_circuit", {}, merged.short_circuit_reason)
                base = self.baseline
                current = {t.component: base.get(t.component) if t.replicas is None else t.replicas for t in proposal.targets}
                self._remember(stage, proposal)
        except _TimedOut:
            elapsed = self.now - self.started
            self.journal.count("tick_timeout_total")
            self.journal.add("tick_timeout", elapsed_s=elapsed)
            return self._end("skip_tick_timeout", dict(self.baseline), f"tick_max_duration_seconds={elapsed:.2f}")
        return self._end("apply" if current else "skip_no_targets", current)

    # -- stages -------------------------------------------------------------------------------------------------------------------

    def _predict(self) -> Generator[Gather, Answers, None]:
        """One after another, the most authoritative first; a final answer ends it."""
        chain, requests, noting = Chain(), {}, self.journal.on  # type: ignore[var-annotated]
        for entry in self.snapshot.predict:
            if self._gate(entry) is not Gate.CALL:
                continue
            [(_, response)] = yield from self._ask(Stage.PREDICT, (entry,), (), requests)
            if response is not None and response.predictions is None and not response.final:
                self.journal.count("plugin_evaluations_total", entry.plugin_id, "predict", "empty")
            elif response is not None:
                self.journal.count("plugin_evaluations_total", entry.plugin_id, "predict", "accept")
            if not chain.add(entry.plugin_id, entry.priority, response):
                self.journal.add("chain_final", entry.plugin_id)
                break
        self.chain = chain.outcome()
        if noting:
            for name, owner in self.chain.owner.items():
                self.journal.add("chain_field_taken", owner, field=name)
            for kind, plugin_id, component, data in self.chain.records:
                self.journal.add(kind, plugin_id, component, **data)
        if self.chain.predictions is not None:
            ctx = self.ctx
            self.ctx = PipelineContext(ctx.tick_id, ctx.decision_id, ctx.observations, self.chain.predictions, ctx.proposal, ctx.constrained)

    def _stage(self, stage: Stage, entries: Sequence[Entry], results: tuple[StageResult, ...]) -> Generator[Gather, Answers, list[Ballot]]:
        """All due plugins at once. Ballots: fresh ones in order of registration, then those held over."""
        due, held = [], []
        for entry in entries:
            passed = self._gate(entry)
            if passed is Gate.CALL:
                due.append(entry)
            elif passed is Gate.HOLD and entry.cache is not None:
                held.append((entry, "backing_off" if entry.fails else "not_due"))
        ballots = []
        if due:
            answers = yield from self._ask(stage, due, results, {})
            for entry, response in answers:
                if response is None or response.answer is None:
                    if entry.cache is not None:
                        held.append((entry, "failed" if response is None else "empty"))
                else:
                    ballots.append(Ballot(entry.plugin_id, entry.priority, response))
        if held:
            for entry, why in sorted(held, key=lambda pair: pair[0].order):
                ballot = self._held_over(entry, stage, why)
                if ballot is not None:
                    ballots.append(ballot)
        return ballots

    def _held_over(self, entry: Entry, stage: Stage, why: str) -> Ballot | None:
        age_s = self.tick_at - entry.cached_at
        if not entry.hold_last or entry.cache is None:
            return None
        if age_s > entry.hold_max_age_s + 1e-9:
            entry.clear()
            self.journal.add("hold_expired", entry.plugin_id, stage=stage.value, age_s=age_s)
            return None
        self.diagnostics.held_over.append(entry.plugin_id)
        self.journal.count("plugin_held_over_total", entry.plugin_id)
        self.journal.count("plugin_evaluations_total", entry.plugin_id, stage.value, "held_over")
        self.journal.add("held_over", entry.plugin_id, stage=stage.value, age_s=age_s, why=why)
        response = StageResponse(entry.cache)
        self.diagnostics.said.append((entry.plugin_id, stage, response, True))
        return Ballot(entry.plugin_id, entry.priority, response, True, age_s)

    def _gate(self, entry: Entry) -> Gate:
        breaker = entry.breaker
        if not (breaker.failures or entry.interval_s or entry.requires) and entry.enabled:  # closed, and due at every tick
            entry.gated_on = ""
            return Gate.CALL
        opened = breaker.poll(self.now)
        if opened is not None:
            self.journal.add("circuit_half_opened", entry.plugin_id)
        passed = gate(entry, self.ctx, self.tick_at, self.now, self.pipeline.scale_s)
        if passed is not Gate.CALL and (passed is not Gate.HOLD or self.journal.on):
            why = "back_off" if passed is Gate.HOLD and entry.fails else _WHY[passed]
            if passed is not Gate.HOLD:
                self.diagnostics.skipped.append((entry.plugin_id, why, entry.gated_on))
            if passed is Gate.REQUIRES:
                self.journal.count("requires_unsatisfied_total", entry.plugin_id, entry.gated_on)
            self.journal.add("plugin_skipped", entry.plugin_id, why=why, field=entry.gated_on)
        return passed

    # -- asking -------------------------------------------------------------------------------------------------------------------

    def _ask(self, stage: Stage, entries: Sequence[Entry], results: tuple[StageResult, ...],
             requests: dict[tuple[tuple[bool, ...], float], StageRequest]) -> Generator[Gather, Answers, list[tuple[Entry, Any]]]:
        """One Gather; (entry, response or None) in the order asked. Raises _TimedOut once the tick has no time left."""
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
            raise _TimedOut
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

    # -- what they see ------------------------------------------------------------------------------------------------------------

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

    def _results(self, ballots: Sequence[Ballot]) -> tuple[StageResult, ...]:
        """Every PROPOSE answer, for RECONCILE."""
        return tuple(
            StageResult(b.plugin_id, b.response.kind, b.response.answer if type(b.response.answer) is Override else None, b.priority, b.held_over)
            for b in ballots)

    def _merge(self, stage: Stage, ballots: Sequence[Ballot], baseline: Baseline) -> MergeOutcome:
        journal = self.journal
        merged = type_aware_merge(ballots, baseline, set_allowed=stage is not Stage.CONSTRAIN, tie_break=self.pipeline.tie_break,
                                  records=journal.on)
        for kind, plugin_id, component, data in merged.records:
            journal.add(kind, plugin_id, component, stage=stage.value, **data)
        for clamp in merged.clamped:
            journal.count("clamped_total", stage.value, clamp.component, clamp.bound, clamp.plugin_id)
        for conflict in merged.conflicts:
            journal.count("bounds_conflict_total", conflict.component)
        for dropped in merged.set_dropped:
            journal.count("set_dropped_total", dropped.plugin_id)
        for plugin_id in merged.rejected_by:
            journal.count("rejected_total", plugin_id)
        return merged

    def _remember(self, stage: Stage, proposal: ScalingProposal) -> None:
        ctx = self.ctx
        if stage is Stage.CONSTRAIN:
            self.ctx = PipelineContext(ctx.tick_id, ctx.decision_id, ctx.observations, ctx.predictions, ctx.proposal, proposal)
        else:
            self.ctx = PipelineContext(ctx.tick_id, ctx.decision_id, ctx.observations, ctx.predictions, proposal, ctx.constrained)

    def _end(self, action: Action, targets: Mapping[str, int | None], reason: str | None = None) -> TickOutcome:
        if action != "skip_tick_timeout":
            for entry in self.answered:
                entry.anchor = self.tick_at
        journal = self.journal
        journal.count("ticks_total", action)
        journal.observe("tick_duration_seconds", self.now - self.started)
        if journal.on:
            journal.add("tick_finished", action=action, reason=reason or "", targets=dict(targets))
        propose, reconcile, constrain = self.merges
        return TickOutcome(action, targets, reason, self.chain, propose, reconcile, constrain, self.diagnostics, journal.take())


_WHY = {Gate.HOLD: "not_due", Gate.DISABLED: "disabled", Gate.OPEN: "circuit_open", Gate.REQUIRES: "requires"}


def answer_inline(call: Call) -> Answer:
    """Ask an in-process plugin here and now; whatever it raises becomes a CallError."""
    try:
        ask = getattr(call.target, call.stage._value_, None)  # a plain str: found in the type's own cache
        if ask is None:
            return Answer(call.plugin_id, None, CallError("unknown_method", f"no method {call.stage.value}"))
        return Answer(call.plugin_id, ask(call.request))
    except PluginCallError as error:
        return Answer(call.plugin_id, None, CallError(error.kind, str(error)))  # type: ignore[arg-type]
    except NotImplementedError as error:
        return Answer(call.plugin_id, None, CallError("unknown_method", str(error)))
    except Exception as error:
        return Answer(call.plugin_id, None, CallError("raised", f"{type(error).__name__}: {error}"))


def run_inline(ticking: Ticking) -> TickOutcome:
    """Answer every call in this thread, in no time."""
    try:
        gather = next(ticking)
        while True:
            items = tuple([answer_inline(call) for call in gather.calls])
            gather = ticking.send(Answers(gather.gather_id, items, gather.calls[0].request.now))
    except StopIteration as done:
        outcome: TickOutcome = done.value
        return outcome
