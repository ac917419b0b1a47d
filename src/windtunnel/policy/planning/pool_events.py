"""What happens to the pools of a planner: replicas come and go, scalings are answered, and somebody arrives where nobody serves."""

from __future__ import annotations

from collections.abc import Sequence

from windtunnel.effects import NOTHING, Effect
from windtunnel.events import Arrived, PoolsObserved, ReplicaBooting, ReplicaGone, ReplicaReady, ScaleAnswered, StepReported
from windtunnel.policy.planning.boundary import fit_plan
from windtunnel.policy.planning.membership import Membership
from windtunnel.policy.planning.reasons import PlanReason

LOST_ANSWER_S = 60.0  # a ScaleTo without an answer for so long is of unknown outcome


class PoolEvents(Membership):
    """The pools' events of a planner, and its look after pools that are stuck or whose answer is lost."""

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
