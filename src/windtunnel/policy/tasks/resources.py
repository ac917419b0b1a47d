"""Leases of the task stage, what a release says, and why nothing could start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from windtunnel.events import fact
from windtunnel.policy.queueing.item import QueueItem, ResourceVector

ReleaseReason = Literal["released", "duplicate", "wrong_controller_generation", "stale_lease", "unknown_lease"]


@fact
class TaskLease:
    """The right to run one task. acquired_at: run s; generation: of the controller that gave it."""

    lease_id: str
    item: QueueItem
    resources: ResourceVector
    acquired_at: float
    generation: str


@fact
class ReleaseResult:
    """What became of a release; every reason but `released` changed nothing."""

    reason: ReleaseReason
    lease_id: str = ""

    @property
    def released(self) -> bool:
        return self.reason == "released"


@dataclass(frozen=True, slots=True)
class BlockSummary:
    """Why no head of the queue may start: groups by reason; available_after: earliest run s at which time alone helps, or None."""

    queued_count: int
    denial_reasons: Mapping[str, int]
    available_after: float | None
    snapshot: Mapping[str, Any]

    @property
    def signature(self) -> tuple[tuple[str, int], ...]:
        """Equal for summaries that say the same."""
        return tuple(sorted(self.denial_reasons.items()))


def fits(shape: ResourceVector, available: Mapping[str, int]) -> bool:
    """Is there enough of everything right now? A resource that nobody knows has nothing left."""
    for name, amount in shape:  # noqa: SIM110 (a generator costs three times as much, and this runs per head shape and decision)
        if amount > available.get(name, 0):
            return False
    return True
