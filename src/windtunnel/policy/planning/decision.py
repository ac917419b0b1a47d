"""The end of a tick: the plan is bounded, held or applied, and why is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from windtunnel.effects import NOTHING, Effect, Note
from windtunnel.policy.planning.boundary import fit_plan
from windtunnel.policy.planning.contract import ObservationData, PredictionData
from windtunnel.policy.planning.diagnostics import (
    PREDICT,
    TickDiagnostics,
    decisive_reason,
    describe,
    merge_reasons,
    newly_scored,
    out_of_reach,
)
from windtunnel.policy.planning.planner_state import as_notes
from windtunnel.policy.planning.pool_events import PoolEvents
from windtunnel.policy.planning.reasons import PlanReason
from windtunnel.policy.planning.tick_outcome import TickOutcome


class Decision(PoolEvents):
    """What a planner makes of the outcome of a tick."""

    @property
    def last(self) -> TickDiagnostics | None:
        """The newest tick that ended; None before the first."""
        return self._last

    @property
    def observed(self) -> ObservationData | None:
        """What the newest tick saw."""
        return self._observed

    @property
    def predicted(self) -> PredictionData | None:
        """The newest forecast, while the time that it is for has not passed."""
        if self._predicted is None or self._last is None:
            return None
        at, ahead = self._predicted
        return ahead if self._last.tick_at - at <= (ahead.horizon_s or 0.0) else None

    def _finish(self, outcome: TickOutcome, now: float) -> Sequence[Effect]:
        assert self._running is not None
        (_, tick_at, baseline, generation), self._running = self._running, None
        for entry in self.roster.snapshot().entries:
            ended = getattr(entry.plugin, "ended", None)
            if ended is not None and entry.transport == "inline":
                ended(tick_at, outcome.action == "apply")
        made: Sequence[Effect] = NOTHING
        if generation != self.generation:
            self.journal.add("plan_superseded", plan_id=self.rollout.plans + 1, why="config_reload")
            planned: dict[str, int] = {c: n for c, n in baseline.items() if n is not None}
            reasons = {c: [PlanReason.UNCHANGED.value] for c in baseline}
        else:
            planned, reasons = self._bounded(outcome, tick_at, now)
            made = self._decided(planned, reasons, outcome, now)
            for component in out_of_reach(self.settings, self.plugins):
                reasons[component].append(PlanReason.SLO_INFEASIBLE.value)
        told = {c: tuple(why) for c, why in reasons.items()}
        diagnostics = TickDiagnostics(self.ticks, tick_at, now, outcome.action)
        self._last = describe(diagnostics, outcome, baseline, planned, told, self.plugins, self._observed)
        if outcome.chain.predictions is not None:
            self._predicted = (tick_at, outcome.chain.predictions)
        if self.journal.on:
            for field, score in newly_scored(self.plugins, self._scored):
                self.journal.add("forecast_scored", PREDICT, field=field, error=score.last_error, wape=score.wape, bias=score.bias)
            head = next((r[0] for r in reasons.values() if r), "")
            made = [*as_notes(outcome.records), *made, Note("plan", "planner", self.ticks, (), head, self._last.plain())]
        return made

    def _bounded(self, outcome: TickOutcome, tick_at: float, now: float) -> tuple[dict[str, int], dict[str, list[str]]]:
        """The plan after the boundary and the planner's own holds, and why each count is what it is."""
        pools = self._pools_now()
        if outcome.action == "skip_short_circuit":
            self.journal.add("plan_held", reasons={c: [PlanReason.REJECTED.value] for c in pools})
            return {c: p.baseline for c, p in pools.items() if p.baseline is not None}, {c: [PlanReason.REJECTED.value] for c in pools}
        targets = outcome.targets if outcome.action == "apply" else {}
        fitted = fit_plan(targets, pools, self._limits(), pending=self.pending, tick_at=tick_at)
        planned = dict(fitted.plan)
        reasons = {c: [r for r in fitted.reasons.get(c, ()) if r != PlanReason.UNCHANGED] for c in pools}
        for component, pool in pools.items():
            why = reasons[component]
            why.extend(r for r in merge_reasons(component, outcome, self.plugins) if r not in why)
            if outcome.action == "skip_tick_timeout":
                why.append(PlanReason.TICK_TIMEOUT.value)
            elif outcome.action == "skip_no_targets":
                why.append(PlanReason.NO_TARGETS.value)
            n, base = planned.get(component), pool.baseline
            if n is None or base is None:
                continue
            if n == 0 and base > 0 and not self._idle(now):
                planned[component] = min(base, 1)
                why.append(PlanReason.COOLDOWN.value)
            if n > base and now < self.pools[component].stuck_until:
                planned[component] = base
                why.append(PlanReason.SCALE_UP_STUCK.value)
        if self._unknown_since is not None:
            for component, pool in pools.items():
                reasons[component].append(PlanReason.SCALER_UNKNOWN.value)
                if pool.baseline is not None and component in planned:
                    planned[component] = pool.baseline
        wanted = {c: n for c, n in targets.items() if n is not None}
        if self.journal.on and any(planned.get(c) != n for c, n in wanted.items()):
            self.journal.add("boundary_changed", wanted=wanted, planned=dict(planned), reasons={c: list(r) for c, r in reasons.items()})
        return planned, reasons

    def _decided(self, planned: Mapping[str, int], reasons: dict[str, list[str]], outcome: TickOutcome, now: float) -> Sequence[Effect]:
        changed = {}
        for component, pool in self.pools.items():
            n = planned.get(component)
            if n is None or pool.baseline is None or n == pool.baseline:
                if not reasons[component]:
                    reasons[component].append(PlanReason.UNCHANGED.value)
                continue
            changed[component] = n
            reasons[component].append((PlanReason.ADVISORY if self.settings.advisory else PlanReason.APPLIED).value)
        if not changed or self.settings.advisory:
            self.journal.add("plan_held" if changed else "plan_unchanged", reasons={c: list(r) for c, r in reasons.items()})
            return NOTHING
        return self._emit(changed, next(iter(decisive_reason(c, reasons[c], outcome, self.plugins) for c in changed)), now)
