"""Carries out one plan, step by step: what goes first frees the GPUs of what comes, so the ceiling holds at every instant. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from windtunnel.effects import Drain, Effect, ScaleTo
from windtunnel.policy.planning.audit import Journal
from windtunnel.policy.planning.pool_states import Pool, victims


class Rollout:
    """pools: component -> Pool, shared with the planner, which tells them of events; max_gpus < 0: no ceiling.

    A newer plan takes over at the next step; per pool at most one ScaleTo waits for its answer. in_flight: own requests on a replica.
    """

    def __init__(self, pools: Mapping[str, Pool], *, max_gpus: int = -1, drain_timeout_s: float = 120.0, journal: Journal | None = None) -> None:
        self.pools, self.max_gpus, self.drain_timeout_s = pools, max_gpus, drain_timeout_s
        self.in_flight: Callable[[str], int] = lambda replica: 0
        self.journal = journal or Journal()
        self.plans = 0
        self.plan: dict[str, int] = {}  # component -> target still to be reached by a ScaleTo
        self._why = ("", "")

    def submit(self, targets: Mapping[str, int], decision_id: str, reason: str, now: float) -> list[Effect]:
        """A new plan for these components; the same targets again do nothing."""
        for component, target in targets.items():
            self.pools[component].ordered(target, now)
            self.plan[component] = target
        self._why = (decision_id, reason)
        return self.step(now)

    def step(self, now: float) -> list[Effect]:
        """What can be done now: all downs, and the ups that fit beside everything that still holds GPUs."""
        if not self.plan:
            return []
        for component, target in self.plan.items():  # what was lost since the plan is the next plan's to replace
            left = self.pools[component].expected
            self.plan[component] = target if left is None else min(target, left)
        made: list[Effect] = []
        asked: list[tuple[str, int]] = []
        for component, target in sorted(self.plan.items(), key=lambda item: item[1] >= self.pools[item[0]].live):
            pool = self.pools[component]
            if pool.outstanding is not None:
                continue
            if target <= pool.live:
                made.extend(self._down(pool, target, now))
                asked.append((component, target))
                del self.plan[component]
                continue
            made.extend(self._back(pool, target - pool.coming, now))
            n = pool.coming + min(max(0, target - pool.coming), self._room(pool, asked))
            if n > pool.coming or n >= target:
                asked.append((component, n))
            if n >= target:
                del self.plan[component]
        if asked:
            made.append(self._order(asked, now))
        return made

    def answered(self, plan_id: int) -> list[Pool]:
        """The pools whose ScaleTo this answers; they are free for the next step."""
        done = [pool for pool in self.pools.values() if pool.outstanding is not None and pool.outstanding[0] == plan_id]
        for pool in done:
            pool.outstanding = None
        return done

    def drop(self, component: str) -> None:
        """What was still to come for this pool will not be ordered."""
        self.plan.pop(component, None)

    def _down(self, pool: Pool, target: int, now: float) -> Sequence[Effect]:
        leaving = victims(pool, pool.live - target, self.in_flight)
        for replica in leaving:
            pool.drain(replica, now)
        return [Drain(replica, now + self.drain_timeout_s, "drained") for replica in leaving]

    def _back(self, pool: Pool, wanted: int, now: float) -> Sequence[Effect]:
        """Replicas that we drain and that have not gone yet come back before new ones are ordered."""
        back = [r for r in reversed(pool.draining) if r in pool.ours][:wanted]
        for replica in back:
            pool.undrain(replica, now)
        return [Drain(replica, None, "wanted_again", True) for replica in back]

    def _room(self, pool: Pool, asked: Sequence[tuple[str, int]]) -> int:
        """How many more replicas of this pool fit, counting what drains and what was ordered in this step."""
        if self.max_gpus < 0 or pool.frame.gpus <= 0:
            return 2**31
        used = sum(p.occupied * p.frame.gpus for p in self.pools.values())
        for component, n in asked:
            other = self.pools[component]
            used += max(0, n - other.coming) * other.frame.gpus
        return max(0, (self.max_gpus - used) // pool.frame.gpus)

    def _order(self, asked: Sequence[tuple[str, int]], now: float) -> ScaleTo:
        self.plans += 1
        for component, n in asked:
            pool = self.pools[component]
            pool.outstanding, pool.asked = (self.plans, now), n
        targets = tuple((self.pools[c].frame.name, n) for c, n in sorted(asked))
        decision_id, reason = self._why
        self.journal.add("rollout_step", plan_id=self.plans, step="last" if not self.plan else "first", targets=dict(targets))
        return ScaleTo(self.plans, targets, decision_id, reason)
