"""CONSTRAIN: bounds against flapping: largest step, cool-downs, stabilisation windows, tolerance, and panic, which only looks up.

The rules of the Kubernetes HPA's behaviour block (autoscaling/v2) and of Knative's panic mode, as bounds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import floor

from windtunnel.policy.planning.contract import ComponentTarget, OverrideType, StageRequest, StageResponse
from windtunnel.policy.planning.reasons import PlanReason as Why
from windtunnel.policy.planning.settings import PlannerSettings
from windtunnel.policy.planning.settings_blocks import StabiliseSettings
from windtunnel.policy.planning.sizing import Sizing, answer, baseline_of

Rule = tuple[int, Why]
EPSILON = 1e-9
NEVER = float("-inf")


class PoolHistory:
    """One pool's past: (grid time, replicas, wanted). `bounds` asks and remembers."""

    def __init__(self, settings: StabiliseSettings) -> None:
        self.settings = settings
        self._keep_s = max(settings.period_s, settings.down_window_s, settings.up_window_s)
        self._past: deque[tuple[float, int, int]] = deque()
        self._last: int | None = None
        self._first = (NEVER, 0)  # when this began, and how many there were: that counts as wanted, for nobody shrinks on one look
        self.last_up_s = self.last_down_s = self._over_s = NEVER
        self.panic = False

    def bounds(self, at: float, c: int, r: int, ready: int | None) -> tuple[Rule | None, Rule | None]:
        """The tightest (floor, ceiling) in force at grid time `at`; c: replicas now, r: wanted, ready: that serve."""
        self._remember(at, c, r)
        self._judge_panic(at, r, c if ready is None else ready)
        floors = [rule for rule in self._floors(at, c, r) if rule[0] > 0]
        ceilings = [] if self.panic else list(self._ceilings(at, c, r))
        return max(floors, key=lambda rule: rule[0], default=None), min(ceilings, key=lambda rule: rule[0], default=None)

    def forget(self, at: float) -> None:
        """The tick at `at` decided nothing: what was wanted in it does not count."""
        while self._past and self._past[-1][0] >= at:
            self._past.pop()

    def _remember(self, at: float, c: int, r: int) -> None:
        if self._last is not None and c > self._last:
            self.last_up_s = at
        elif self._last is not None and c < self._last:
            self.last_down_s = at
        if self._last is None:
            self._first = (at, c)
        self._last = c
        if self._past and self._past[-1][0] >= at:
            self._past.pop()  # the same tick again
        self._past.append((at, c, r))
        while self._past[0][0] <= at - self._keep_s - EPSILON:
            self._past.popleft()

    def _judge_panic(self, at: float, r: int, ready: int) -> None:
        if r / max(1, ready) >= self.settings.panic_factor - EPSILON and r > 1:
            self.panic, self._over_s = True, at
        elif at - self._over_s >= self.settings.panic_window_s - EPSILON:
            self.panic = False

    def _since(self, at: float, seconds: float) -> Iterable[tuple[float, int, int]]:
        return (entry for entry in self._past if entry[0] > at - seconds + EPSILON or entry[0] == at)

    def _floors(self, at: float, c: int, r: int) -> Iterable[Rule]:
        s = self.settings
        if self.panic:
            yield c, Why.PANIC
        most = max(n for _, n, _ in self._since(at, s.period_s))
        yield min(c, max(0, min(most - s.down_replicas, floor(most / s.down_factor + EPSILON)))), Why.STEP_LIMIT
        for since, seconds in ((self.last_down_s, s.down_cooldown_s), (self.last_up_s, s.down_after_up_s)):
            if seconds and at < since + seconds - EPSILON:
                yield c, Why.COOLDOWN
        if s.down_window_s:
            began, there = self._first
            wanted = max(w for *_, w in self._since(at, s.down_window_s))
            yield min(c, max(wanted, there) if at < began + s.down_window_s - EPSILON else wanted), Why.STABILISATION_WINDOW
        if c * (1 - s.down_tolerance) - EPSILON <= r < c:
            yield c, Why.TOLERANCE

    def _ceilings(self, at: float, c: int, r: int) -> Iterable[Rule]:
        s = self.settings
        least = min(n for _, n, _ in self._since(at, s.period_s))
        yield max(c, least + s.up_replicas, floor(least * s.up_factor + EPSILON)), Why.STEP_LIMIT
        if s.up_cooldown_s and at < self.last_up_s + s.up_cooldown_s - EPSILON:
            yield c, Why.COOLDOWN
        if s.up_window_s:
            yield max(c, min(w for *_, w in self._since(at, s.up_window_s))), Why.STABILISATION_WINDOW
        if c < r <= c * (1 + s.up_tolerance) + EPSILON:
            yield c, Why.TOLERANCE


class Stabilise:
    """One floor and one ceiling per pool, those in force even if they do not bite. reasons: component -> the rule that bites."""

    def __init__(self, settings: PlannerSettings, sizing: Sizing) -> None:
        self.settings, self.sizing = settings, sizing
        self.reasons: dict[str, str] = {}
        self.pools = {role: PoolHistory(settings.stabilise) for role in settings.roles}

    def constrain(self, request: StageRequest) -> StageResponse:
        self.reasons = {}
        proposal, states = request.ctx.proposal, self.sizing.states(request.ctx)
        wanted = {t.component: t.replicas for t in proposal.targets} if proposal else {}
        targets, said = [], {}
        for role, history in self.pools.items():
            component, state = self.settings.component(role), states[role]
            c = baseline_of(state)
            if c is None:
                continue
            r = wanted.get(component)
            r = c if r is None else r
            low, high = history.bounds(request.tick_at, c, r, state.ready if state else None)
            for rule, kind, bites in ((low, OverrideType.AT_LEAST, low is not None and r < low[0]),
                                      (high, OverrideType.AT_MOST, high is not None and r > high[0])):
                if rule is not None:
                    targets.append(ComponentTarget(component, rule[0], kind))
                    said[component] = str(rule[1])
                    if bites:
                        self.reasons[component] = str(rule[1])
        return answer(targets, {**said, **self.reasons})

    def ended(self, tick_at: float, applied: bool) -> None:
        """How the tick ended; one that was not applied leaves no history."""
        if not applied:
            for history in self.pools.values():
                history.forget(tick_at)
