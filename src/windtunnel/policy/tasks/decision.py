"""What a task admission policy sees, says and is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from windtunnel.events import fact
from windtunnel.policy.queueing.item import QueueItem, QueueView, ResourceVector
from windtunnel.policy.tasks.resources import TaskLease, fits
from windtunnel.policy.tasks.task import SUBMISSION

Amounts = dict[str, int]
Borrowed = tuple[tuple[str, int], ...]
NO_AMOUNTS: Mapping[str, int] = {}


class TaskAdmissionView:
    """A read-only handle on a controller: limits, what is left, what each group holds and owes. `freeze()` for plain data."""

    __slots__ = ("available", "debt", "leased", "limits", "running")

    def __init__(self, limits: Mapping[str, int]) -> None:
        self.limits = limits
        self.available: Amounts = dict(limits)
        self.leased: dict[str, Amounts] = {}  # by group, then resource
        self.running: dict[str, int] = {}  # leases by group
        self.debt: dict[str, Amounts] = {}  # by group, then resource

    def freeze(self) -> dict[str, Any]:
        """Plain copies: limits, available, leased and debt by group, running leases by group."""
        return {
            "limits": dict(self.limits), "available": dict(self.available), "running": dict(self.running),
            "leased": {key: dict(amounts) for key, amounts in self.leased.items()},
            "debt": {key: dict(amounts) for key, amounts in self.debt.items()},
        }


@fact
class PolicyDecision:
    """borrowed: amounts to book as debt of the item's group; reason, resource: of a denial; available_at: when time alone helps."""

    allowed: bool
    reason: str = ""
    resource: str = ""
    borrowed: Borrowed = ()
    available_at: float | None = None


@dataclass(frozen=True, slots=True)
class PolicyStateDelta:
    """By how much the debt of the lease's group moves per resource."""

    debt: Borrowed = ()


ALLOWED = PolicyDecision(True)
NO_CHANGE = PolicyStateDelta()


class TaskAdmissionPolicy(Protocol):
    """Who may start when capacity is there. All three are pure: the controller keeps the state and applies the deltas."""

    def evaluate(self, item: QueueItem, queue_view: QueueView, admission_view: TaskAdmissionView) -> PolicyDecision: ...
    def on_acquire(self, lease: TaskLease, decision: PolicyDecision) -> PolicyStateDelta: ...
    def on_release(self, lease: TaskLease) -> PolicyStateDelta: ...


def is_fair(resource: str, item: QueueItem) -> bool:
    """`submission` is what every task asks for: groups compete for it only if the candidate asks for nothing else."""
    return resource != SUBMISSION or len(item.resources) == 1


def ready_peers(item: QueueItem, queue_view: QueueView, available: Mapping[str, int]) -> list[tuple[ResourceVector, Mapping[float, int]]]:
    """Other groups whose head fits entirely right now, by shape: counts per weight. O(distinct shapes and weights)."""
    counts = queue_view.head_counts
    peers = [(shape, weights) for shape, weights in counts.items() if fits(shape, available)]
    own = queue_view.head_share(item.group.key)
    if own is None:
        return peers
    shape, weight = own
    for i, (other, weights) in enumerate(peers):
        if other == shape:
            rest = _without(weights, weight)
            peers[i : i + 1] = [(shape, rest)] if rest else []
            break
    return peers


def _without(weights: Mapping[float, int], weight: float) -> Mapping[float, int]:
    rest = dict(weights)
    rest[weight] -= 1
    if not rest[weight]:
        del rest[weight]
    return rest
