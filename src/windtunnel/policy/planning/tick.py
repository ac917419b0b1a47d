"""The run of one tick: PREDICT, PROPOSE, RECONCILE, CONSTRAIN, each with its gates, held answers and merge."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

from windtunnel.policy.planning.asking import Asking, TimedOut
from windtunnel.policy.planning.cadence import Gate, gate
from windtunnel.policy.planning.calls import Answers, Gather
from windtunnel.policy.planning.chain import Chain
from windtunnel.policy.planning.contract import Override, PipelineContext, ScalingProposal, Stage, StageResponse, StageResult
from windtunnel.policy.planning.merge import Ballot, MergeOutcome, type_aware_merge
from windtunnel.policy.planning.roster import Entry
from windtunnel.policy.planning.tick_outcome import Action, Baseline, Ticking, TickOutcome

WHY_SKIPPED = {Gate.HOLD: "not_due", Gate.DISABLED: "disabled", Gate.OPEN: "circuit_open", Gate.REQUIRES: "requires"}


class Tick(Asking):
    """The stages of a tick, on top of its asking."""

    __slots__ = ()

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
        except TimedOut:
            elapsed = self.now - self.started
            self.journal.count("tick_timeout_total")
            self.journal.add("tick_timeout", elapsed_s=elapsed)
            return self._end("skip_tick_timeout", dict(self.baseline), f"tick_max_duration_seconds={elapsed:.2f}")
        return self._end("apply" if current else "skip_no_targets", current)

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
            why = "back_off" if passed is Gate.HOLD and entry.fails else WHY_SKIPPED[passed]
            if passed is not Gate.HOLD:
                self.diagnostics.skipped.append((entry.plugin_id, why, entry.gated_on))
            if passed is Gate.REQUIRES:
                self.journal.count("requires_unsatisfied_total", entry.plugin_id, entry.gated_on)
            self.journal.add("plugin_skipped", entry.plugin_id, why=why, field=entry.gated_on)
        return passed

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
