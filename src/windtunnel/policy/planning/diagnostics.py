"""Why each tick did what it did, flat enough for a table. Every hold has a reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from windtunnel.policy.planning.budget import HOLD, RECONCILE
from windtunnel.policy.planning.contract import ObservationData, PredictionData, PredictResponse, Stage, StageResponse
from windtunnel.policy.planning.forecast import Score
from windtunnel.policy.planning.merge import MergeOutcome
from windtunnel.policy.planning.reasons import LoadReason, PlanReason, ThroughputReason
from windtunnel.policy.planning.said import observed_plain, said_plain
from windtunnel.policy.planning.settings import PlannerSettings
from windtunnel.policy.planning.tick_outcome import TickOutcome

LOAD, THROUGHPUT, PREDICT = "builtin_load_propose", "builtin_throughput_propose", "builtin_load_predict"
GUARDS = {HOLD, RECONCILE}


@dataclass(slots=True)
class TickDiagnostics:
    """One tick. components: by name: baseline, proposed, reconciled, constrained, planned, winner, proposer, told (by that), clamps,
    ready, starting, draining, expected and the three kinds of reasons.
    forecast: errors of past ones by field; reason: why a tick that ended early did.

    observed, predictions, answers: what was seen, predicted and said, as it was; `plain` writes them flat.
    """

    tick: int
    tick_at: float
    now: float
    action: str
    components: dict[str, dict[str, Any]] = field(default_factory=dict)
    forecast: dict[str, Any] = field(default_factory=dict)
    capacity: dict[str, Any] = field(default_factory=dict)
    queue: dict[str, Any] = field(default_factory=dict)
    held_over: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    reason: str = ""
    observed: ObservationData | None = None
    predictions: PredictionData | None = None
    answers: list[tuple[str, Stage, PredictResponse | StageResponse, bool]] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """As a dict of plain values; predictions are part of `forecast`: rps, isl, osl, window_s, horizon_s, source, errors."""
        out = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("observed", "predictions", "answers")}
        out["forecast"] = {**_forecast(self.predictions), "errors": self.forecast}
        out["observed"] = observed_plain(self.observed)
        out["answers"] = [said_plain(*answer) for answer in self.answers]
        return out


def _forecast(ahead: PredictionData | None) -> dict[str, Any]:
    if ahead is None:
        return {}
    rps = ahead.predicted_num_req / ahead.window_s if ahead.predicted_num_req is not None and ahead.window_s else None
    return {"rps": rps, "isl": ahead.predicted_isl, "osl": ahead.predicted_osl, "window_s": ahead.window_s, "horizon_s": ahead.horizon_s,
            "source": ahead.source}


def describe(diagnostics: TickDiagnostics, outcome: TickOutcome, baseline: Mapping[str, int | None], planned: Mapping[str, int],
             reasons: Mapping[str, tuple[str, ...]], plugins: Mapping[str, Any], observed: ObservationData | None = None) -> TickDiagnostics:
    """Fill in a tick: who decided, what was clamped, why. plugins: the in-process ones by id, for what they say of themselves."""
    d = outcome.diagnostics
    diagnostics.held_over, diagnostics.skipped, diagnostics.failed = d.held_over, d.skipped, d.failed
    diagnostics.observed, diagnostics.answers, diagnostics.predictions = observed, d.said, outcome.chain.predictions
    diagnostics.reason = outcome.short_circuit_reason or ""
    stages = [("proposed", outcome.propose), ("reconciled", outcome.reconcile), ("constrained", outcome.constrain)]
    for _, merged in stages:
        if merged is not None:
            diagnostics.ignored.extend(merged.ignored)
            diagnostics.conflicts.extend(c.component for c in merged.conflicts)
    numbers = {name: _numbers(merged) for name, merged in stages}
    pools = observed.workers.pools if observed is not None and observed.workers is not None else {}
    for component, base in baseline.items():
        row: dict[str, Any] = {"baseline": base}
        known: int | None = base
        for name, _ in stages:
            known = row[name] = numbers[name].get(component, known)
        row["planned"] = planned.get(component, base)
        row["winner"] = _winner(component, outcome)
        row["proposer"] = proposer = _proposer(component, outcome)
        row["told"] = _told(component, proposer, plugins)
        row["clamps"] = [f"{c.bound} {c.plugin_id}" for _, m in stages if m for c in m.clamped if c.component == component]
        row["plan_reasons"] = list(reasons.get(component, ())) or [PlanReason.UNCHANGED.value]
        guarded = next((r for r in row["plan_reasons"] if r in GUARDS), None)
        row["load_reason"] = _loop_reason(component, outcome, LOAD, plugins, guarded, LoadReason)
        row["throughput_reason"] = _loop_reason(component, outcome, THROUGHPUT, plugins, guarded, ThroughputReason)
        if component in pools:
            row |= {name: getattr(pools[component], name) for name in ("ready", "starting", "draining", "expected")}
        diagnostics.components[component] = row
    _say_plugins(diagnostics, plugins)
    return diagnostics


def merge_reasons(component: str, outcome: TickOutcome, plugins: Mapping[str, Any]) -> list[str]:
    """Reasons of the plan that come from the bounds of RECONCILE and CONSTRAIN."""
    out: list[str] = []
    for merged in (outcome.reconcile, outcome.constrain):
        if merged is None:
            continue
        for clamp in merged.clamped:
            if clamp.component == component:
                said = getattr(plugins.get(clamp.plugin_id), "reasons", {}).get(component)
                if said in _PLAN and said not in out:
                    out.append(said)
                out.append(PlanReason.MERGE_FLOOR.value if clamp.bound == "floor" else PlanReason.MERGE_CEILING.value)
    if any(c.component == component for m in (outcome.propose, outcome.reconcile, outcome.constrain) if m for c in m.conflicts):
        out.append(PlanReason.BOUNDS_CONFLICT.value)
    return out


def decisive_reason(component: str, reasons: Sequence[str], outcome: TickOutcome, plugins: Mapping[str, Any]) -> str:
    """Why a count changes: what bounded the plan, in a word, else what the plugin said that decided; both if that is more than a word."""
    proposer = _proposer(component, outcome)
    if reasons[0] != PlanReason.APPLIED:
        told = _told(component, proposer, plugins)
        return f"{reasons[0]}; {told}" if told else reasons[0]
    said: str = getattr(plugins.get(proposer), "reasons", {}).get(component, "")
    return said or reasons[0]


def out_of_reach(settings: PlannerSettings, plugins: Mapping[str, Any]) -> list[str]:
    """Components of which not even a replica with a single request meets the SLO: more of them would not either."""
    eligible: Mapping[str, bool] = getattr(plugins.get(THROUGHPUT), "eligible", {}) if settings.throughput_on else {}
    return [settings.component(role) for role in settings.roles if eligible.get(role) is False]


_PLAN = frozenset(r.value for r in PlanReason)


def _numbers(merged: MergeOutcome | None) -> dict[str, int | None]:
    return {t.component: t.replicas for t in merged.proposal.targets} if merged is not None and merged.proposal is not None else {}


def _winner(component: str, outcome: TickOutcome) -> str:
    """The last stage in which somebody decided this component."""
    for merged in (outcome.constrain, outcome.reconcile, outcome.propose):
        who = merged.winners.get(component) if merged is not None else None
        if who:
            return who
    return ""


def _proposer(component: str, outcome: TickOutcome) -> str:
    """Who decided what was proposed, before later stages bounded it."""
    return outcome.propose.winners.get(component, "") if outcome.propose is not None else ""


def _told(component: str, proposer: str, plugins: Mapping[str, Any]) -> str:
    """Why, in its own words, if it is no built-in loop: those have reasons of their own columns."""
    said = "" if proposer in (LOAD, THROUGHPUT) else getattr(plugins.get(proposer), "reasons", {}).get(component, "")
    return said if isinstance(said, str) else ""


def _loop_reason(component: str, outcome: TickOutcome, plugin_id: str, plugins: Mapping[str, Any], guarded: str | None,
                 kind: type[LoadReason] | type[ThroughputReason]) -> str:
    """What the built-in loop said, unless something else decided for it."""
    plugin = plugins.get(plugin_id)
    if plugin is None:
        return kind.DISABLED.value
    if outcome.action == "skip_short_circuit":
        return kind.REJECTED_BY_PLUGIN.value
    if kind is ThroughputReason and any(p in (plugin_id, PREDICT) and why == "circuit_open" for p, why, _ in outcome.diagnostics.skipped):
        return ThroughputReason.CIRCUIT_OPEN.value
    if plugin_id in outcome.diagnostics.held_over:
        return kind.HELD_OVER.value
    said: str = plugin.reasons.get(component) or kind.UNSET.value
    if said not in _MOVES:
        return said
    if guarded is not None:
        return guarded
    decided = _proposer(component, outcome)
    if decided in ("", plugin_id) or said == ThroughputReason.SET_LOWER_BOUND:
        return said
    if said == LoadReason.SCALE_DOWN and decided == THROUGHPUT:
        return LoadReason.SCALE_DOWN_CAPPED_BY_THROUGHPUT.value
    return kind.OVERRIDDEN.value


_MOVES = frozenset({LoadReason.SCALE_UP, LoadReason.SCALE_DOWN, ThroughputReason.SCALE, ThroughputReason.STEP_CAPPED,
                    ThroughputReason.SET_LOWER_BOUND})


def _say_plugins(diagnostics: TickDiagnostics, plugins: Mapping[str, Any]) -> None:
    throughput, predict = plugins.get(THROUGHPUT), plugins.get(PREDICT)
    if throughput is not None:
        diagnostics.capacity = {role: {"rps": rps, "eligible": throughput.eligible.get(role), "planned_rps": throughput.rates.get(role),
                                       "needed": throughput.needed.get(role)} for role, rps in throughput.capacity_rps.items()}
        diagnostics.queue = {role: {"waiting": pair[0], "fits": pair[1]} for role, pair in throughput.queue.items()}
    if predict is not None:
        for name, score in predict.scores().items():
            diagnostics.forecast[name] = None if score is None else {key: getattr(score, key, None) for key in ("last_error", "bias", "wape")}


def newly_scored(plugins: Mapping[str, Any], told: dict[str, int]) -> Iterator[tuple[str, Score]]:
    """(field, score) of the built-in predictor for every field with a window that has closed since the last call; told: closed so far."""
    predict = plugins.get(PREDICT)
    if predict is None:
        return
    for name, forecaster in predict.forecasters.items():
        closed, score = forecaster.scored, forecaster.score
        if score is not None and closed > told.get(name, 0):
            yield name, score
        told[name] = closed
