"""Frozen snapshots of a `Control`, for figures, panels and metrics. They never hold live objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from windtunnel.policy.admission.request import PressureSnapshot
    from windtunnel.policy.routing.replica import ReplicaView


class Tally:
    """Counts of requests of one tenant and class. At every instant

    arrivals = admitted + rejected + timed_out + abandoned + waiting, and admitted = completed + failed + cancelled + active.
    """

    __slots__ = ("abandoned", "active", "admitted_tokens", "arrivals", "cancelled", "completed", "deadlines", "deadlines_met", "evicted",
                 "failed", "rejected", "timed_out", "waiting")

    def __init__(self) -> None:
        self.arrivals = self.waiting = self.active = 0
        self.completed = self.failed = self.cancelled = 0
        self.rejected = self.timed_out = self.abandoned = self.evicted = 0
        self.deadlines = self.deadlines_met = self.admitted_tokens = 0

    def counts(self) -> Counts:
        """A frozen copy."""
        return Counts(*(getattr(self, name) for name in Counts.__dataclass_fields__))


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests by state. `evicted` is a part of `rejected`."""

    arrivals: int = 0
    waiting: int = 0
    active: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    rejected: int = 0
    timed_out: int = 0
    abandoned: int = 0
    evicted: int = 0

    @property
    def admitted(self) -> int:
        return self.completed + self.failed + self.cancelled + self.active

    @property
    def balanced(self) -> bool:
        """The conservation law of requests."""
        return self.arrivals == self.admitted + self.rejected + self.timed_out + self.abandoned + self.waiting

    @property
    def plausible(self) -> bool:
        """None is negative, and what was evicted was rejected."""
        return all(getattr(self, n) >= 0 for n in Counts.__dataclass_fields__) and self.evicted <= self.rejected

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, n) + getattr(other, n) for n in Counts.__dataclass_fields__))


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Requests with a deadline that have ended, and those of them that were completed by then."""

    ended: int = 0
    met: int = 0

    @property
    def met_ratio(self) -> float | None:
        """None before the first has ended."""
        return self.met / self.ended if self.ended else None


@dataclass(frozen=True, slots=True)
class LaneView:
    """One lane: who waits and since when (s), and the state of its limit."""

    name: str
    waiting: int
    waiting_by_tenant: Mapping[str, int]
    waiting_by_class: Mapping[int, int]
    oldest_s: float | None
    limit: PressureSnapshot


@dataclass(frozen=True, slots=True)
class View:
    """What a `Control` knew at `now` (run seconds), after `seq` events. by_class, deadlines: by priority class.

    cancel_forced: cancelled attempts that did not end in time, ever; quarantined: those that still hold a slot, by replica; preempted:
    running attempts that were stopped for more urgent requests, ever.
    """

    now: float
    seq: int
    counts: Counts
    by_class: Mapping[int, Counts]
    by_tenant: Mapping[str, Counts]
    lanes: tuple[LaneView, ...]
    replicas: tuple[ReplicaView, ...]
    planner: Mapping[str, Any] | None = None
    wakes: Mapping[str, float] = field(default_factory=dict)
    late_events: int = 0
    deadlines: Mapping[int, Deadlines] = field(default_factory=dict)
    cancel_forced: int = 0
    quarantined: Mapping[str, int] = field(default_factory=dict)
    preempted: int = 0
