"""The last word on every plan, external ones included: replica limits, GPU and power budgets, what is still starting. Pure but for the wait."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from windtunnel.errors import PlannerConfigError
from windtunnel.policy.planning.budget import HOLD, RECONCILE, Pair, guard_pair, guard_single
from windtunnel.policy.planning.reasons import PlanReason as Why


@dataclass(frozen=True, slots=True)
class PoolNow:
    """A pool as the boundary sees it. baseline: replicas that were accepted, else ready; None: unknown. gpus, watts: per replica.

    starting, draining, scaling: what is under way; None: unknown.
    """

    baseline: int | None
    gpus: int = 1
    min_replicas: int = 1
    max_replicas: int | None = None
    watts: float | None = None
    starting: int | None = 0
    draining: int | None = 0
    scaling: bool | None = False

    @property
    def rolling(self) -> bool:
        return bool(self.scaling or self.starting or self.draining)


@dataclass(frozen=True, slots=True)
class Limits:
    """Of all pools together; < 0, or None for power: off."""

    max_gpus: int = -1
    min_gpus: int = -1
    power_w: float | None = None


@dataclass(frozen=True, slots=True)
class Fitted:
    """plan: component -> replicas, pools of unknown count left out; reasons: component -> why it is not what was asked, in order."""

    plan: Mapping[str, int]
    reasons: Mapping[str, tuple[str, ...]]

    def changed(self, pools: Mapping[str, PoolNow]) -> dict[str, int]:
        """What a ScaleTo has to say."""
        return {c: n for c, n in self.plan.items() if n != pools[c].baseline}


class PendingGuard:
    """A plan below the baseline while replicas are starting passes only if two ticks, at least `interval_s` apart, both wanted so few."""

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s
        self._first: dict[str, tuple[float, int]] = {}

    def admit(self, component: str, wanted: int, pool: PoolNow, tick_at: float) -> tuple[int, str]:
        """(replicas, reason); asking twice in one tick is harmless."""
        baseline = pool.baseline
        if baseline is None or wanted >= baseline or not pool.starting:
            self._first.pop(component, None)
            return wanted, ""
        at, most = self._first.setdefault(component, (tick_at, wanted))
        self._first[component] = (at, max(most, wanted))
        if tick_at - at < self.interval_s - 1e-9:
            return baseline, Why.STARTUP_CANCEL_WAIT
        return max(most, wanted), Why.STARTUP_CANCELLED


def fit_plan(plan: Mapping[str, int | None], pools: Mapping[str, PoolNow], limits: Limits, *, pending: PendingGuard | None = None,
             tick_at: float = 0.0) -> Fitted:
    """`plan` (component -> replicas; None or absent: no opinion) made safe. At most two pools, the first is prefill.

    Raises PlannerConfigError if power is limited and a pool's watts are unknown.
    """
    fit = _Fit(plan, pools, limits)
    fit.bound_each()
    held = fit.gpus() and fit.power()
    if held and pending is not None:
        fit.wait_for_starting(pending, tick_at)
    return fit.result()


class _Fit:
    def __init__(self, plan: Mapping[str, int | None], pools: Mapping[str, PoolNow], limits: Limits) -> None:
        self.pools, self.limits = pools, limits
        self.known = {c: p for c, p in pools.items() if p.baseline is not None}
        self.base = {c: p.baseline for c, p in pools.items() if p.baseline is not None}
        self.why: dict[str, list[str]] = {c: [] for c in pools}
        self.plan: dict[str, int] = {}
        for component, pool in pools.items():
            asked = plan.get(component)
            n = pool.baseline if asked is None else asked
            if n is None:
                self.note(component, Why.COUNT_UNKNOWN)
            else:
                self.plan[component] = max(0, n)

    def note(self, component: str, why: str) -> None:
        if why not in self.why[component]:
            self.why[component].append(why)

    def bound_each(self) -> None:
        """Floors for pools that are not moving by themselves, ceilings for all."""
        for component, n in self.plan.items():
            pool = self.pools[component]
            if n < pool.min_replicas and not (pool.rolling and n == pool.baseline):
                self.plan[component] = pool.min_replicas
                self.note(component, Why.REPLICA_FLOOR)
            if pool.max_replicas is not None and n > pool.max_replicas:
                self.plan[component] = pool.max_replicas
                self.note(component, Why.MERGE_CEILING)

    def hold(self, why: str) -> bool:
        """Every pool keeps what it has."""
        for component in self.pools:
            if component in self.base:
                self.plan[component] = self.base[component]
            else:
                self.plan.pop(component, None)
                self.note(component, Why.COUNT_UNKNOWN)
            self.note(component, why)
        return False

    def gpus(self) -> bool:
        """The shared GPU budget; False if everything is held."""
        low, high = self.limits.min_gpus, self.limits.max_gpus
        if low < 0 and high < 0:
            return True
        if 0 <= high < sum(p.min_replicas * p.gpus for p in self.pools.values()):
            return self.hold(Why.BUDGET_INFEASIBLE)
        if len(self.known) < len(self.pools):
            return self.hold(Why.COUNT_UNKNOWN)
        fitted, why = self.guarded({c: float(p.gpus) for c, p in self.pools.items()}, low, high)
        if fitted != self.plan:
            self.take(fitted, why or HOLD, reconciled=why == RECONCILE)
        elif why:
            for component in self.plan:
                self.note(component, why)
        return True

    def guarded(self, units: Mapping[str, float], low: float, high: float) -> tuple[dict[str, int], str]:
        names = list(self.pools)
        least = [self.pools[c].min_replicas for c in names]
        if len(names) == 1:
            (c,) = names
            n, why = guard_single(self.base[c], self.plan[c], units[c], low, high, least[0])
            return {c: n}, why
        p, d = names
        now: Pair = (self.base[p], self.base[d])
        pair, why = guard_pair(now, (self.plan[p], self.plan[d]), (units[p], units[d]), low, high, (least[0], least[1]))
        return {p: pair[0], d: pair[1]}, why

    def take(self, fitted: Mapping[str, int], why: str, *, reconciled: bool = False) -> None:
        for component, n in fitted.items():
            if n != self.plan[component] or reconciled:
                self.note(component, why)
            self.plan[component] = n

    def power(self) -> bool:
        """The power budget: a ceiling only; it may go below the GPU floor, never above the GPU ceiling. False if everything is held."""
        limit = self.limits.power_w
        if limit is None:
            return True
        watts = {}
        for component, pool in self.pools.items():
            if pool.watts is None:
                raise PlannerConfigError(f"planner.pools.{component}.watts_per_replica: missing, budget.power_w needs it")
            watts[component] = pool.watts
        if len(self.known) < len(self.pools):
            return self.hold(Why.COUNT_UNKNOWN)
        if sum(p.min_replicas * watts[c] for c, p in self.pools.items()) > limit + 1e-9:
            return self.hold(Why.BUDGET_INFEASIBLE)
        before = dict(self.plan)
        fitted, why = self.guarded(watts, -1, limit)
        if why == RECONCILE:  # too much runs now: shrink, and no pool grows on the way
            fitted = {c: min(n, self.base[c], before[c]) for c, n in fitted.items()}
        elif self.over_gpus(fitted):
            fitted = {c: min(n, before[c]) for c, n in fitted.items()} if self.over_gpus(self.base) else dict(self.base)
        for component, n in fitted.items():
            if n != before[component]:
                up = before[component] > self.base[component] >= n
                self.note(component, Why.POWER_BUDGET_SCALE_UP_SUPPRESSED if up else Why.POWER_BUDGET_CLAMPED)
        self.plan = dict(fitted)
        self.stage_power(watts, limit)
        return True

    def over_gpus(self, plan: Mapping[str, int]) -> bool:
        high = self.limits.max_gpus
        return high >= 0 and sum(n * self.pools[c].gpus for c, n in plan.items()) > high

    def stage_power(self, watts: Mapping[str, float], limit: float) -> None:
        """What starts and what still drains draw power together: then only the downs go first; nothing grows while a role is moving."""
        ups = [c for c, n in self.plan.items() if n > self.base[c]]
        downs = [c for c, n in self.plan.items() if n < self.base[c]]
        peak = sum(max(self.base[c], n) * watts[c] for c, n in self.plan.items())
        staged = bool(ups and downs) and peak > limit + 1e-9
        if staged or any(p.rolling for p in self.pools.values()):
            for component in ups:
                self.plan[component] = self.base[component]
                self.note(component, Why.POWER_REBALANCE_STAGED if staged else Why.POWER_BUDGET_SCALE_UP_SUPPRESSED)

    def wait_for_starting(self, pending: PendingGuard, tick_at: float) -> None:
        """A held down-step must not leave its opposite: the ups of this plan were paid by it."""
        waits = False
        for component, wanted in list(self.plan.items()):
            if RECONCILE in self.why[component]:
                continue  # over budget now: the budget does not wait
            self.plan[component], why = pending.admit(component, wanted, self.pools[component], tick_at)
            if why:
                self.note(component, why)
                waits = waits or why == Why.STARTUP_CANCEL_WAIT
        if waits and self.over_gpus(self.plan):
            for component, n in self.plan.items():
                if n > self.base[component]:
                    self.note(component, HOLD)
                    self.plan[component] = self.base[component]

    def result(self) -> Fitted:
        for component, n in self.plan.items():
            if n == self.base.get(component) and not self.why[component]:
                self.note(component, Why.UNCHANGED)
        return Fitted(self.plan, {c: tuple(why) for c, why in self.why.items()})
