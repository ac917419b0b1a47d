"""Two thresholds and no look ahead, as a PROPOSE plugin to compare with: what a pair of alarms does to a pool."""

from __future__ import annotations

from windtunnel.policy.planning.contract import StageRequest, StageResponse
from windtunnel.policy.planning.reference import Metric, ReferenceHpa
from windtunnel.policy.planning.sizing import ACCEPTED, baseline_of


class ReferenceThreshold(ReferenceHpa):
    """One replica more while the mean metric per replica is at or over `up`, one fewer while it is at or under `down`, as the simple scaling
    of alarms does. It does not ask what the rest would carry, so it goes to and fro where n are under `down` and n - 1 over `up`.

    metric, kv_tokens, least, most: as of the HPA. While a replica starts or drains, or one gave no metric, it waits.
    """

    def __init__(self, component: str, metric: Metric, up: float, down: float, *, kv_tokens: int | None = None, most: int | None = None,
                 least: int = 1) -> None:
        super().__init__(component, metric, up, kv_tokens=kv_tokens, most=most, least=least)
        self.up, self.down = up, down

    def propose(self, request: StageRequest) -> StageResponse:
        seen = request.ctx.observations
        state = seen.workers.pools.get(self.component) if seen and seen.workers else None
        n, ready = baseline_of(state), state.ready if state else None
        if n is None or ready is None or state is None or state.scaling or n != ready:
            return ACCEPTED
        values = self._values(request, ready)
        known = [v for v in values or () if v is not None]
        if values is None or not known or len(known) < len(values):
            return ACCEPTED
        mean = sum(known) / len(known)
        wish = n + 1 if mean >= self.up else n - 1 if mean <= self.down else n
        within = max(self.least, wish if self.most is None else min(wish, self.most))
        return self._answered(f"{self.metric} {mean:.4g} per replica, up at {self.up:.4g}, down at {self.down:.4g}", wish, within)
