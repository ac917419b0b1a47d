"""CONSTRAIN: each pool's share of the GPU budget as bounds, so that clamps are seen in the merge. The boundary is what guarantees them."""

from __future__ import annotations

from windtunnel.policy.planning.contract import ComponentTarget, OverrideType, PoolState, StageRequest, StageResponse
from windtunnel.policy.planning.settings import PlannerSettings
from windtunnel.policy.planning.sizing import Sizing, answer, baseline_of


class BudgetConstrain:
    """Floor: min_replicas, while replicas are on their way at most what is expected. Ceiling: what the other pool's minimum leaves, and
    max_replicas. If not even the minimum fits: ceiling 0 and no floor."""

    def __init__(self, settings: PlannerSettings, sizing: Sizing) -> None:
        self.settings, self.sizing = settings, sizing
        self.reasons: dict[str, str] = {}

    def constrain(self, request: StageRequest) -> StageResponse:
        targets, states = [], self.sizing.states(request.ctx)
        self.reasons = {}
        for role in self.settings.roles:
            component = self.settings.component(role)
            floor, ceiling = self._floor(role, states[role]), self.ceiling(role)
            if ceiling is None or floor <= ceiling:
                targets += [ComponentTarget(component, floor, OverrideType.AT_LEAST)] if floor else []
            else:
                ceiling = 0
            if ceiling is not None:
                targets.append(ComponentTarget(component, ceiling, OverrideType.AT_MOST))
        return answer(targets, self.reasons)

    def _floor(self, role: str, state: PoolState | None) -> int:
        least, baseline = self.settings.pools[role].min_replicas, baseline_of(state)
        stable = state is not None and not state.scaling and not state.starting
        return least if stable or baseline is None else min(least, baseline)

    def ceiling(self, role: str) -> int | None:
        """Most replicas of the role; None: no bound."""
        pools, most = self.settings.pools, self.settings.budget.max_gpus
        pool = pools[role]
        if most < 0 or pool.gpus <= 0:
            return pool.max_replicas
        others = sum(pools[other].min_replicas * pools[other].gpus for other in self.settings.roles if other != role)
        fits = max(0, (most - others) // pool.gpus)
        return fits if pool.max_replicas is None else min(fits, pool.max_replicas)
