"""Bounded borrowing: a group may take more than its share while nobody waits for it, and owes what it took until it has given it back.

Modelled on DataDesigner 0.9.7's task admission; weights are real numbers here, and shares are rounded safely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, floor
from typing import Literal

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import check_number
from windtunnel.policy.queueing.item import Group, QueueItem, QueueView, ResourceVector
from windtunnel.policy.tasks.decision import (
    ALLOWED,
    NO_AMOUNTS,
    NO_CHANGE,
    PolicyDecision,
    PolicyStateDelta,
    TaskAdmissionView,
    is_fair,
    ready_peers,
)
from windtunnel.policy.tasks.resources import TaskLease

EPSILON = 1e-9  # binary floats must not move a rounded share
Peers = Sequence[tuple[ResourceVector, Mapping[float, int]]]


@dataclass(frozen=True, slots=True)
class BoundedBorrow:
    """Config and policy in one: it has no state of its own.

    borrow_ceiling_by_group_resource: debt allowed to (group, resource); default_borrow_ceiling: to all others; None: what is left of
    the limit above the share, less a reserve of `dynamic_borrow_reserve_fraction` of it (at most `dynamic_borrow_max_reserved_slots`).
    Raises ConfigValueError.
    """

    borrow_ceiling_by_group_resource: Mapping[tuple[str, str], int] = field(default_factory=dict)
    default_borrow_ceiling: int | None = None
    dynamic_borrow_reserve_fraction: float = 0.0
    dynamic_borrow_max_reserved_slots: int = 8
    strict_share_rounding: Literal["ceil", "floor"] = "ceil"
    repay_on_release: bool = True

    def __post_init__(self) -> None:
        for key, ceiling in self.borrow_ceiling_by_group_resource.items():
            check_number(f"borrow_ceiling_by_group_resource.{key}", ceiling, lo=0, whole=True)
        if self.default_borrow_ceiling is not None:
            check_number("default_borrow_ceiling", self.default_borrow_ceiling, lo=0, whole=True)
        check_number("dynamic_borrow_reserve_fraction", self.dynamic_borrow_reserve_fraction, lo=0, hi=1)
        check_number("dynamic_borrow_max_reserved_slots", self.dynamic_borrow_max_reserved_slots, lo=1, whole=True)
        if self.strict_share_rounding not in ("ceil", "floor"):
            raise ConfigValueError("strict_share_rounding", f"expected ceil or floor, got {self.strict_share_rounding!r}")
        if not isinstance(self.repay_on_release, bool):
            raise ConfigValueError("repay_on_release", f"expected true or false, got {self.repay_on_release!r}")

    def evaluate(self, item: QueueItem, queue_view: QueueView, admission_view: TaskAdmissionView) -> PolicyDecision:
        """Resource by resource in the order asked for; the first denial decides. O(distinct head shapes and weights)."""
        group = item.group
        if group.admitted_limit is None:
            return ALLOWED
        peers = ready_peers(item, queue_view, admission_view.available)
        leased = admission_view.leased.get(group.key, NO_AMOUNTS)
        debts = admission_view.debt.get(group.key, NO_AMOUNTS)
        borrowed: tuple[tuple[str, int], ...] = ()
        for name, amount in item.resources:
            limit = admission_view.limits.get(name, 0)
            rivals = _weight_of(name, peers)
            share = self.share(group, limit, rivals)
            over, debt = leased.get(name, 0) + amount - share, debts.get(name, 0)
            if rivals and is_fair(name, item):
                if debt > 0:
                    return PolicyDecision(False, "borrow_debt", name)
                if over > 0:
                    return PolicyDecision(False, "group_cap", name)
            elif over > 0:
                new = min(amount, over)
                if debt + new > self._ceiling(group.key, name, limit, share):
                    return PolicyDecision(False, "borrow_debt", name)
                borrowed += ((name, new),)
        return PolicyDecision(True, "", "", borrowed) if borrowed else ALLOWED

    def share(self, group: Group, limit: int, rivals: float) -> int:
        """The group's share of `limit` beside competitors of summed weight `rivals`; alone, it shares with an equal."""
        if limit <= 1:
            return max(0, limit)
        exact = limit * group.weight / (group.weight + (rivals or group.weight))
        rounded = ceil(exact - EPSILON) if self.strict_share_rounding == "ceil" else floor(exact + EPSILON)
        share = min(limit, max(1, rounded))
        return share if group.admitted_limit is None else min(share, group.admitted_limit)

    def _ceiling(self, key: str, name: str, limit: int, share: int) -> int:
        explicit = self.borrow_ceiling_by_group_resource.get((key, name), self.default_borrow_ceiling)
        if explicit is not None:
            return explicit
        reserved = min(self.dynamic_borrow_max_reserved_slots, ceil(limit * self.dynamic_borrow_reserve_fraction - EPSILON))
        return max(0, limit - reserved - share)

    def on_acquire(self, lease: TaskLease, decision: PolicyDecision) -> PolicyStateDelta:
        return PolicyStateDelta(decision.borrowed) if decision.borrowed else NO_CHANGE

    def on_release(self, lease: TaskLease) -> PolicyStateDelta:
        """The whole lease is repaid; the controller stops at zero, and at what the group still holds."""
        if not self.repay_on_release or lease.item.group.admitted_limit is None:
            return NO_CHANGE
        return PolicyStateDelta(tuple((name, -amount) for name, amount in lease.resources))


def _weight_of(name: str, peers: Peers) -> float:
    """Summed weight of the groups whose head wants a resource."""
    total = 0.0
    for shape, weights in peers:
        for wanted, _ in shape:
            if wanted == name:
                for weight, groups in weights.items():
                    total += weight * groups
                break
    return total
