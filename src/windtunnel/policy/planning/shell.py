"""The planner: ticks on a grid, observes, runs the pipeline, bounds the plan, and rolls it out. `handle(event, now) -> effects`.

Plugins of this process are answered at once; the others are asked of the driver (`Ask`), and `Answered` goes on with the tick.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import iscoroutinefunction
from typing import Any

from windtunnel.effects import NOTHING, Ask, Effect, Note, WakeAt
from windtunnel.errors import PlannerConfigError, PluginRefusedError
from windtunnel.events import (
    Answered,
    Arrived,
    Commanded,
    Event,
    PoolsObserved,
    ReplicaBooting,
    ReplicaGone,
    ReplicaReady,
    Request,
    ScaleAnswered,
    StepReported,
    Woke,
)
from windtunnel.policy.planning.audit import Journal, Record
from windtunnel.policy.planning.boundary import Limits, PendingGuard, PoolNow, fit_plan
from windtunnel.policy.planning.cadence import needs_of, pull
from windtunnel.policy.planning.calls import Answer, Answers, Gather
from windtunnel.policy.planning.contract import ObservationData, PipelineContext, PredictionData, WorkerState
from windtunnel.policy.planning.demand import grid_index
from windtunnel.policy.planning.diagnostics import PREDICT, TickDiagnostics, decisive_reason, describe, merge_reasons, newly_scored
from windtunnel.policy.planning.observer import FleetObserver, Observer
from windtunnel.policy.planning.outside import Outside
from windtunnel.policy.planning.pipeline import Pipeline, Ticking, TickOutcome, answer_inline
from windtunnel.policy.planning.plain import answer_of, registration_of
from windtunnel.policy.planning.plugin import Attached, Registration
from windtunnel.policy.planning.pool_states import Pool, PoolFrame
from windtunnel.policy.planning.reasons import PlanReason
from windtunnel.policy.planning.rollout import Rollout
from windtunnel.policy.planning.roster import Entry, Roster, RosterSettings
from windtunnel.policy.planning.settings import PlannerSettings, check_reconfigurable

KEY, DEADLINE = "planner", "planner.deadline"
_POOL_EVENTS = frozenset({ReplicaBooting, ReplicaReady, ReplicaGone, PoolsObserved, ScaleAnswered})
LOST_ANSWER_S = 60.0  # a ScaleTo without an answer for so long is of unknown outcome


class PipelinePlanner:
    """Sizes the pools of one model service. Raises PlannerConfigError for plugins that cannot register.

    frames: the pools by role, default the roles' names; mine: which requests are for these pools, None: all. wants: note streams that
    are recorded. Two that get the same events give the same effects, whatever world they came from.
    """

    def __init__(self, settings: PlannerSettings, plugins: Sequence[Attached] = (), frames: Mapping[str, PoolFrame] | None = None, *,
                 observer: Observer | None = None, mine: Callable[[Request], bool] | None = None, wants: frozenset[str] = frozenset(),
                 roster: RosterSettings | None = None) -> None:
        self.settings, self._mine = settings, mine
        self.scale_s = settings.scale_interval_s
        self.journal = Journal("planner" in wants)
        defaults = settings.defaults
        self.roster = Roster(roster or RosterSettings(self.scale_s, defaults.timeout_s, defaults.failure_threshold, defaults.cooldown_s))
        self.pipeline = Pipeline(self.roster, tick_max_s=settings.scheduling.tick_max_duration_s, tie_break=settings.scheduling.tie_break,
                                 journal=self.journal)
        self.observer: Observer = observer or FleetObserver(mine=mine, min_coverage=settings.scheduling.min_coverage,
                                                            fpm_max_age_s=settings.scheduling.fpm_max_age_s)
        self.pools: dict[str, Pool] = {}
        for role in settings.roles:
            pool, component = settings.pools[role], settings.component(role)
            frame = (frames or {}).get(role) or PoolFrame(component, component, role, pool.gpus, pool.boot_s)
            self.pools[component] = Pool(frame, settings.scaler.scale_up_timeout_s)
        self._by_name = {pool.frame.name: pool for pool in self.pools.values()}
        self._of_replica: dict[str, Pool] = {}
        self.rollout = Rollout(self.pools, max_gpus=settings.budget.max_gpus, drain_timeout_s=settings.scaler.drain_timeout_s,
                               journal=self.journal)
        self.pending = PendingGuard(settings.load.interval_s)
        self.plugins: dict[str, Any] = {}  # in-process ones, by id
        self.call_models: dict[str, Any] = {}
        self.outside: Outside | None = None  # for a live driver
        self.generation = 0
        self._waiting: Callable[[], int] = lambda: 0
        self._t0, self._last_k, self.ticks, self.missed = 0.0, 0, 0, 0
        self._running: tuple[Ticking, float, dict[str, int | None], int] | None = None
        self._open: tuple[Gather, dict[str, Answer]] | None = None
        self._unknown_since: float | None = None  # the outcome of a plan is not known
        self._last_arrival_s: float | None = None
        self._activated_s = float("-inf")
        self._last: TickDiagnostics | None = None
        self._observed: ObservationData | None = None  # of the newest tick
        self._predicted: tuple[float, PredictionData] | None = None  # when, what
        self._scored: dict[str, int] = {}
        self._retell = False  # the settings, with the next notes
        self._on: dict[type, Callable[[Any, float], Sequence[Effect]]] = {
            Arrived: self._arrived, ReplicaBooting: self._booting, ReplicaReady: self._ready, ReplicaGone: self._gone,
            PoolsObserved: self._pools_observed, ScaleAnswered: self._scaled, Answered: self._answered, Woke: self._woke,
            Commanded: self._commanded, StepReported: self._reported,
        }
        self._observes = self.observer.events
        self.events: frozenset[type] = frozenset(self._on) | self._observes
        for attached in plugins:
            self._attach(attached)

    # -- the slot in Control --------------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> Callable[[], int]:
        """Requests that wait in the control."""
        return self._waiting

    @waiting.setter
    def waiting(self, count: Callable[[], int]) -> None:
        self._waiting = count
        for plugin in self.plugins.values():
            if hasattr(plugin, "waiting"):
                plugin.waiting = count

    @property
    def in_flight(self) -> Callable[[str], int]:
        """Own requests on a replica."""
        return self.rollout.in_flight

    @in_flight.setter
    def in_flight(self, count: Callable[[str], int]) -> None:
        self.rollout.in_flight = count

    def _running_in(self, component: str) -> int:
        """Own requests on the replicas of a pool."""
        pool = self.pools[component]
        return sum(map(self.rollout.in_flight, (*pool.ready, *pool.draining)))

    @property
    def needs(self) -> frozenset[str]:
        """What the world must give."""
        return needs_of(self.roster.snapshot())

    def start(self, now: float) -> list[Effect]:
        """The grid of ticks begins here."""
        self._t0 = now
        self.roster.begin(now)
        longest_s = max((e.window_s for e in self.roster.snapshot().entries), default=self.scale_s)
        self.observer.start(now, self.scale_s, longest_s)
        for pool in self.pools.values():
            pool.progress_s = now
        self._meter(now)
        return [*self._told(), *self._notes(), WakeAt(now + self.scale_s, KEY)]

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Take one event."""
        kind = type(event)
        if kind in self._observes:
            self.observer.handle(event, now)
        act = self._on.get(kind)
        if act is None:
            return NOTHING
        self.journal.now = now
        if kind in _POOL_EVENTS:
            self._meter(now)
        made = act(event, now)
        return [*made, *self._notes()] if self.journal.on else made

    def view(self) -> Mapping[str, Any]:
        """The last tick, and where the pools stand."""
        out = {"reason": "not_started"} if self._last is None else self._last.plain()
        states = {c: p.state() for c, p in self.pools.items()}
        return {**out, "missed": self.missed, "ticks": self.ticks,
                "pools": {c: {"ready": s.ready, "starting": s.starting, "draining": s.draining, "expected": s.expected} for c, s in states.items()}}

    # -- plugins --------------------------------------------------------------------------------------------------------------------

    def _attach(self, attached: Attached) -> None:
        reg = attached.registration
        try:
            self.register(reg, 0.0, plugin=attached.plugin)
        except PluginRefusedError as refused:
            raise PlannerConfigError(f"planner.plugins.{reg.plugin_id}: {refused.message}") from None
        if attached.call is not None:
            self.call_models[reg.plugin_id] = attached.call

    def register(self, reg: Registration, now: float, subject: str = "", *, plugin: Any = None, external: bool = False) -> Entry:
        """From the next tick on. Raises PluginRefusedError."""
        asked = getattr(plugin, reg.stage, None) if plugin is not None else None
        if reg.endpoint:
            transport = reg.endpoint.partition(":")[0]
        elif external or plugin is None or reg.offload or iscoroutinefunction(asked):
            transport = "async"
        else:
            transport = "inline"
        try:
            entry = self.roster.register(reg, now, subject, plugin, external=external, transport=transport)
        except PluginRefusedError as refused:
            self.journal.count("registrations_total", "refused")
            self.journal.add("registration_refused", str(reg.plugin_id), reason=refused.message)
            raise
        self.observer.remember(entry.window_s, now)
        if transport == "inline":
            self.plugins[reg.plugin_id] = plugin
            if hasattr(plugin, "waiting"):
                plugin.waiting = self._waiting
            if hasattr(plugin, "running"):
                plugin.running = self._running_in
        self.journal.count("registrations_total", "accepted")
        self.journal.add("registered", reg.plugin_id, stage=entry.stage.value, priority=reg.priority, subject=subject)
        return entry

    def unregister(self, plugin_id: str, reason: str = "unregistered") -> bool:
        """Out from now on; an answer that is still to come is dropped."""
        entry = self.roster.unregister(plugin_id, reason)
        self.plugins.pop(plugin_id, None)
        if entry is not None:
            self.journal.add("unregistered", plugin_id, reason=reason)
        return entry is not None

    def reconfigure(self, settings: PlannerSettings, now: float) -> None:
        """Between ticks: new minima, budgets, SLO, stabilising or predictor. Raises PlannerConfigError for anything else.

        A plan that is being computed is discarded; held answers are forgotten, every plugin is due at the next tick.
        """
        check_reconfigurable(self.settings, settings)
        self.settings, self.generation, self.journal.now = settings, self.generation + 1, now
        self.rollout.max_gpus = settings.budget.max_gpus
        for plugin in self.plugins.values():
            hook = getattr(plugin, "reconfigured", None)
            if hook is not None:
                hook(settings)
            elif hasattr(plugin, "settings"):
                plugin.settings = settings
        self.pipeline.invalidate("config_reload")
        self.journal.add("config_reloaded", generation=self.generation)
        self._retell = self.journal.on

    def _commanded(self, event: Commanded, now: float) -> Sequence[Effect]:
        """Registrations travel as commands, so that a log holds them."""
        args = event.args or {}
        if event.name == "planner.register":
            try:
                self.register(registration_of(args["registration"]), now, args.get("subject", ""), external=True)
            except PluginRefusedError:
                return NOTHING  # it is in the record; whoever asked has asked `roster.refusal` before
        elif event.name == "planner.unregister":
            self.unregister(args["plugin_id"], args.get("reason", "unregistered"))
        elif event.name == "planner.heartbeat":
            self.roster.heartbeat(args["plugin_id"], now)
        return NOTHING

    # -- what happened --------------------------------------------------------------------------------------------------------------

    def _arrived(self, event: Arrived, now: float) -> Sequence[Effect]:
        if self._mine is not None and not self._mine(event.request):
            return NOTHING
        self._last_arrival_s = now
        for pool in self.pools.values():
            if pool.expected == 0 and not pool.ready:
                return self._from_zero(now)
        return NOTHING

    def _from_zero(self, now: float) -> Sequence[Effect]:
        """Somebody came and nobody is there: one replica at once, at most once per scale interval."""
        if now < self._activated_s + self.scale_s or self._unknown_since is not None:
            return NOTHING
        self._activated_s = now
        plan = {c: 1 if p.expected == 0 and not p.ready else None for c, p in self.pools.items()}
        fitted = fit_plan(plan, self._pools_now(), self._limits(), pending=self.pending, tick_at=now)
        up = {c: n for c, n in fitted.changed(self._pools_now()).items() if n > 0 and plan[c]}
        if not up or self.settings.advisory:
            return NOTHING
        return self._emit(up, PlanReason.ACTIVATED_FROM_ZERO.value, now)

    def _booting(self, event: ReplicaBooting, now: float) -> Sequence[Effect]:
        pool = self._by_name.get(event.pool)
        if pool is not None:
            self._of_replica[event.replica] = pool
            pool.booting(event.replica, now)
        return NOTHING

    def _ready(self, event: ReplicaReady, now: float) -> Sequence[Effect]:
        pool = self._by_name.get(event.pool)
        if pool is None:
            return NOTHING
        self._of_replica[event.replica] = pool
        pool.serves(event.replica, event.boot_s, now)
        return self.rollout.step(now)

    def _gone(self, event: ReplicaGone, now: float) -> Sequence[Effect]:
        pool = self._of_replica.get(event.replica)
        if pool is None:
            return NOTHING
        leaving = event.effective_at is not None and event.effective_at > now
        lost = pool.leaves(event.replica, now) if leaving else pool.gone(event.replica)
        if not leaving:
            del self._of_replica[event.replica]
        if lost:
            self.journal.add("replica_lost", "", pool.frame.component, replica=event.replica, reason=event.reason)
        return self.rollout.step(now)

    def _reported(self, event: StepReported, now: float) -> Sequence[Effect]:
        pool = self._of_replica.get(event.replica)
        if pool is not None:
            self.observer.report(pool.frame.component, event.report)
        return NOTHING

    def _pools_observed(self, event: PoolsObserved, now: float) -> Sequence[Effect]:
        for name, seen in event.pools.items():
            pool = self._by_name.get(name)
            if pool is None:
                continue
            former = pool.observed(seen)
            if former is not None:
                self.rollout.drop(pool.frame.component)
                self.journal.add("manual_edit_seen", "", pool.frame.component, expected=former, seen=pool.expected)
        self._unknown_since = None
        return self.rollout.step(now)

    def _scaled(self, event: ScaleAnswered, now: float) -> Sequence[Effect]:
        done = self.rollout.answered(event.plan_id)
        self.journal.count("plans_total", event.status)
        if done and event.status not in ("accepted", "unchanged"):
            if event.status == "failed":
                self._unknown_since = now
            else:
                self.journal.add("plan_superseded", plan_id=event.plan_id, why=event.reason or event.status)
            for pool in done:  # what was asked for will not come: plan from what is there
                pool.expected, pool.asked = None, 0
                self.rollout.drop(pool.frame.component)
        return self.rollout.step(now)

    # -- ticks ------------------------------------------------------------------------------------------------------------------------

    def _woke(self, event: Woke, now: float) -> Sequence[Effect]:
        """A tick at the newest grid time; ticks that were passed over are counted, not caught up."""
        if event.key == DEADLINE:
            return self._deadline(now)
        if event.key != KEY:
            return NOTHING
        k = grid_index(now, self._t0, self.scale_s)
        wake = WakeAt(self._t0 + (k + 1) * self.scale_s, KEY)
        if k <= self._last_k:
            return [wake]
        passed = k - self._last_k - 1 + (self._running is not None)
        if passed:
            self.missed += passed
            self.journal.counts[("ticks_missed_total",)] = self.missed
            self.journal.add("tick_missed", count=passed, first_at=self._t0 + (self._last_k + 1) * self.scale_s)
        self._last_k = k
        return [wake] if self._running is not None else [*self._tick(now, self._t0 + k * self.scale_s), wake]

    def _tick(self, now: float, tick_at: float) -> Sequence[Effect]:
        journal = self.journal
        self.ticks += 1
        journal.tick = self.ticks
        if journal.on:
            journal.add("tick_started", tick_at=tick_at, lag_s=now - tick_at)
        for entry in self.roster.sweep(now):
            self.plugins.pop(entry.plugin_id, None)
            journal.count("evictions_total")
            journal.add("evicted", entry.plugin_id, silent_s=now - entry.last_heartbeat)
        self._meter(now)
        self._look_after_pools(now)
        wanted = pull(self.roster.snapshot(), tick_at, self.scale_s)
        if journal.on:
            journal.add("pulled", traffic=wanted.traffic, fpm=wanted.fpm, windows=list(wanted.windows))
        seen = self.observer.observe(tick_at, wanted, {c: p.ready for c, p in self.pools.items()})
        workers = WorkerState({c: p.state() for c, p in self.pools.items()})
        observed = self._observed = ObservationData(next(iter(seen.windows.values()), None), seen.fpm, workers)
        baseline = {c: p.baseline for c, p in self.pools.items()}
        ctx = PipelineContext(f"tick-{self.ticks}", f"decision-{self.ticks}", observed)
        ticking = self.pipeline.tick(ctx, baseline, tick_at=tick_at, now=now, windows=seen.windows)
        self._running = (ticking, tick_at, baseline, self.generation)
        try:
            return self._ask(next(ticking), now)
        except StopIteration as done:
            return self._finish(done.value, now)

    def _ask(self, gather: Gather, now: float) -> Sequence[Effect]:
        """Answer what can be answered here; ask the driver for the rest. Raises StopIteration when the tick is over."""
        assert self._running is not None
        ticking = self._running[0]
        while True:
            inline = {call.plugin_id: answer_inline(call) for call in gather.calls if call.transport == "inline"}
            if len(inline) < len(gather.calls):
                self._open = (gather, inline)
                remote = tuple(call for call in gather.calls if call.transport != "inline")
                return [Ask(gather.gather_id, remote, gather.deadline_at), WakeAt(gather.deadline_at, DEADLINE)]
            gather = ticking.send(Answers(gather.gather_id, tuple(inline.values()), now))

    def _answered(self, event: Answered, now: float) -> Sequence[Effect]:
        """Answers to another gather than the open one are stale."""
        if self._open is None or self._open[0].gather_id != event.gather_id:
            return NOTHING
        items = [item if isinstance(item, Answer) else answer_of(item) for item in event.items]
        return self._resume({item.plugin_id: item for item in items}, now)

    def _deadline(self, now: float) -> Sequence[Effect]:
        if self._open is None:
            return NOTHING
        deadline_at = self._open[0].deadline_at
        return [WakeAt(deadline_at, DEADLINE)] if now < deadline_at else self._resume({}, now)

    def _resume(self, answers: Mapping[str, Answer], now: float) -> Sequence[Effect]:
        assert self._open is not None and self._running is not None
        (gather, inline), self._open = self._open, None
        got = {**answers, **inline}
        items = tuple(got[call.plugin_id] for call in gather.calls if call.plugin_id in got)
        try:
            return self._ask(self._running[0].send(Answers(gather.gather_id, items, now)), now)
        except StopIteration as done:
            return self._finish(done.value, now)

    # -- the end of a tick --------------------------------------------------------------------------------------------------------------

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
        told = {c: tuple(why) for c, why in reasons.items()}
        diagnostics = TickDiagnostics(self.ticks, tick_at, now, outcome.action)
        self._last = describe(diagnostics, outcome, baseline, planned, told, self.plugins, self._observed)
        if outcome.chain.predictions is not None:
            self._predicted = (tick_at, outcome.chain.predictions)
        if self.journal.on:
            for field, score in newly_scored(self.plugins, self._scored):
                self.journal.add("forecast_scored", PREDICT, field=field, error=score.last_error, wape=score.wape, bias=score.bias)
            head = next((r[0] for r in reasons.values() if r), "")
            made = [*_as_notes(outcome.records), *made, Note("plan", "planner", self.ticks, (), head, self._last.plain())]
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

    def _emit(self, changed: Mapping[str, int], reason: str, now: float) -> Sequence[Effect]:
        decision_id = f"decision-{self.ticks}"
        self._meter(now)
        made = self.rollout.submit(changed, decision_id, reason, now)
        self.journal.count("plans_total", "emitted")
        self.journal.add("plan_emitted", plan_id=self.rollout.plans, decision_id=decision_id, targets=dict(changed), reason=reason)
        return made

    def _meter(self, now: float) -> None:
        for pool in self.pools.values():
            pool.meter(now)

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

    def _look_after_pools(self, now: float) -> None:
        scaler = self.settings.scaler
        for component, pool in self.pools.items():
            expected = pool.expected
            if pool.stuck(now, scaler.stuck_retry_s):
                self.rollout.drop(component)
                self.journal.count("scale_up_stuck_total", component)
                self.journal.add("scale_up_stuck", "", component, expected=expected, ready=pool.expected)
            if pool.outstanding is not None and now - pool.outstanding[1] > LOST_ANSWER_S:
                self._unknown_since = pool.outstanding[1] if self._unknown_since is None else self._unknown_since
                pool.outstanding, pool.expected, pool.asked = None, None, 0
                self.rollout.drop(component)
        if self._unknown_since is not None and now - self._unknown_since > scaler.stuck_retry_s:
            self._unknown_since = None  # nobody will tell: a frozen planner is worse than a plan from what is there

    def _idle(self, now: float) -> bool:
        """Known to have had no demand for long, and nothing waits."""
        since = self._t0 if self._last_arrival_s is None else self._last_arrival_s
        return now - since >= self.settings.scaler.scale_to_zero_idle_s and not self._waiting()

    def _limits(self) -> Limits:
        budget = self.settings.budget
        return Limits(budget.max_gpus, budget.min_gpus, budget.power_w)

    def _pools_now(self) -> dict[str, PoolNow]:
        out = {}
        for role in self.settings.roles:
            component, fixed = self.settings.component(role), self.settings.pools[role]
            pool = self.pools[component]
            state = pool.state()
            out[component] = PoolNow(pool.baseline, fixed.gpus, fixed.min_replicas, fixed.max_replicas, fixed.watts_per_replica,
                                     state.starting, state.draining, state.scaling)
        return out

    def _told(self) -> list[Effect]:
        """The settings, for whoever reads the record."""
        self._retell = False
        data = {"planner": "pipeline", "fleet": {c: p.frame.name for c, p in self.pools.items()}, "settings": self.settings.as_plain()}
        return [Note("settings", "planner", 0, (), "", data)] if self.journal.on else []

    def _notes(self) -> list[Effect]:
        return [*(self._told() if self._retell else ()), *_as_notes(self.journal.take())]


def _as_notes(records: Sequence[Record]) -> list[Effect]:
    return [Note(r.kind, "planner", r.seq, (r.plugin_id, r.component), "", {**r.data, "tick": r.tick}) for r in records]
