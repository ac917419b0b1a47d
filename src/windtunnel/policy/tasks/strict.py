"""Strict sharing: a group may pass its limit only while nobody else could use the place."""

from __future__ import annotations

from dataclasses import dataclass

from windtunnel.policy.queueing.item import QueueItem, QueueView
from windtunnel.policy.tasks.decision import ALLOWED, NO_CHANGE, PolicyDecision, PolicyStateDelta, TaskAdmissionView, is_fair, ready_peers
from windtunnel.policy.tasks.resources import TaskLease


@dataclass(frozen=True, slots=True)
class Strict:
    """A group with `admitted_limit` running leases is denied (`group_cap`) iff a peer presses: another group's head that fits
    entirely and shares a fair resource with the candidate."""

    def evaluate(self, item: QueueItem, queue_view: QueueView, admission_view: TaskAdmissionView) -> PolicyDecision:
        limit = item.group.admitted_limit
        if limit is None or admission_view.running.get(item.group.key, 0) < limit:
            return ALLOWED
        fair = {name for name, _ in item.resources if is_fair(name, item)}
        for shape, _ in ready_peers(item, queue_view, admission_view.available):
            for name, _ in shape:
                if name in fair:
                    return PolicyDecision(False, "group_cap", name)
        return ALLOWED

    def on_acquire(self, lease: TaskLease, decision: PolicyDecision) -> PolicyStateDelta:
        return NO_CHANGE

    def on_release(self, lease: TaskLease) -> PolicyStateDelta:
        return NO_CHANGE
