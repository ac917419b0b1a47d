"""Request admission: may this attempt go now? One limit per resource, leases that give capacity back exactly once."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from windtunnel.effects import Note
from windtunnel.events import fact
from windtunnel.policy.admission.breaker import Breaker
from windtunnel.policy.admission.denial import Denial, make_denial
from windtunnel.policy.admission.limit import Limit, LimitFactory, Sample
from windtunnel.policy.param import check_number

RELEASED_KEPT = 8192
ReleaseReason = Literal["released", "duplicate", "wrong_controller_generation", "stale_lease", "unknown_lease"]


@fact
class RequestLease:
    """The right to run one attempt. admitted_limit, effective_max, epoch: of the limit when it was granted."""

    lease_id: str
    resource: str
    acquired_at: float
    admitted_limit: int
    effective_max: int
    epoch: int
    generation: str


@dataclass(frozen=True, slots=True)
class PressureSnapshot:
    """One resource at `captured_at` (run s). limit: in force; effective_max: its ceiling."""

    captured_at: float
    resource: str
    effective_max: int
    limit: int
    in_flight: int
    blocked_until: float | None
    cooldown_remaining_s: float
    ceiling: int | None
    consecutive_rate_limits: int
    starved: bool
    last_outcome: str | None
    breaker: str


class _Resource:
    __slots__ = ("cap", "in_flight", "last_outcome", "limit")

    def __init__(self, cap: int, limit: Limit) -> None:
        self.cap, self.limit, self.in_flight = cap, limit, 0
        self.last_outcome: str | None = None


class RequestAdmission:
    """State machine of leases. No lock, no clock, no callback; O(1) per call.

    Lease ids are `{generation}-{n}`. release never raises for unknown, repeated or foreign leases; it says what it was.
    """

    def __init__(self, limit_factory: LimitFactory, *, generation: str = "g0", breaker: Breaker | None = None,
                 wants: frozenset[str] = frozenset()) -> None:
        self.breaker = breaker
        self.generation = generation
        self._factory = limit_factory
        self._resources: dict[str, _Resource] = {}
        self._active: dict[str, RequestLease] = {}
        self._released: OrderedDict[str, RequestLease] = OrderedDict()
        self._granted = 0
        self._noting = "request" in wants
        self._notes: list[Note] = []

    def register(self, resource: str, cap: int, now: float) -> None:
        """Make a resource known; `cap` bounds its requests in flight. Again: as `set_cap`."""
        check_number("cap", cap, lo=1, whole=True)
        if resource in self._resources:
            self.set_cap(resource, cap, now)
            return
        self._resources[resource] = _Resource(cap, self._factory(cap))

    def set_cap(self, resource: str, cap: int, now: float) -> None:
        """A lowered cap lowers the limit at once; in flight may exceed it until released."""
        check_number("cap", cap, lo=1, whole=True)
        known = self._resources[resource]
        known.cap = cap
        known.limit.set_max(cap, now)

    def admissible(self, resource: str, now: float) -> bool:
        """Would `try_acquire` grant? Changes nothing."""
        r = self._resources.get(resource)
        if r is None:
            return False
        limit = r.limit
        if r.in_flight >= r.cap or r.in_flight >= limit.limit_at(now) or now < limit.blocked_until:
            return False
        return self.breaker is None or self.breaker.admissible(now)

    def why_not(self, resource: str, now: float) -> Denial:
        """The denial that `try_acquire` would give, in the order registered, breaker, cool-down, capacity."""
        r = self._resources.get(resource)
        if r is None:
            return make_denial("request", "hard_policy_denial", resource=resource)
        breaker = self.breaker
        if breaker is not None and not breaker.admissible(now):
            return make_denial("request", "breaker_open", now=now, available_at=breaker.opens_at(now), resource=resource)
        if now < r.limit.blocked_until:
            return make_denial("request", "cooldown", now=now, available_at=r.limit.blocked_until, resource=resource)
        return make_denial("request", "no_capacity", resource=resource)

    def try_acquire(self, resource: str, now: float) -> RequestLease | Denial:
        """A lease, or why not."""
        if not self.admissible(resource, now):
            return self.why_not(resource, now)
        r = self._resources[resource]
        self._granted += 1
        r.in_flight += 1
        lease = RequestLease(f"{self.generation}-{self._granted}", resource, now, r.limit.limit_at(now), r.cap, r.limit.epoch, self.generation)
        self._active[lease.lease_id] = lease
        if self.breaker is not None:
            self.breaker.took(now)
        return lease

    def release(self, lease: RequestLease, outcome: str, now: float, *, retry_after_s: float | None = None,
                rtt_s: float | None = None) -> ReleaseReason:
        """Give the capacity back and let limit and breaker learn; anything but an active lease changes nothing."""
        active = self._active.get(lease.lease_id)
        if active is None or (active is not lease and active != lease):
            return self._not_active(lease, active)
        del self._active[lease.lease_id]
        self._remember(lease)
        r = self._resources[lease.resource]
        sample = Sample(outcome, rtt_s, r.in_flight, lease.admitted_limit, lease.epoch, retry_after_s)
        r.in_flight -= 1
        r.last_outcome = outcome
        change = r.limit.on_sample(sample, now)
        if self.breaker is not None:
            self.breaker.on_outcome(outcome, now)
        if self._noting and change is not None:
            kind = {"decrease": "request_limit_decreased", "fully_recovered": "request_fully_recovered",
                    "soft_ceiling_recovered": "request_soft_ceiling_recovered"}.get(change.reason, "request_limit_increased")
            data = {"resource": lease.resource, "before": change.before, "after": change.after}
            self._notes.append(Note(kind, "request", 0, (lease.lease_id,), change.reason, data))
        return "released"

    def _remember(self, lease: RequestLease) -> None:
        self._released[lease.lease_id] = lease
        if len(self._released) > RELEASED_KEPT:
            self._released.popitem(last=False)

    def _not_active(self, lease: RequestLease, active: RequestLease | None) -> ReleaseReason:
        if lease.generation != self.generation:
            return "wrong_controller_generation"
        if active is not None:
            return "stale_lease"
        return "duplicate" if lease.lease_id in self._released else "unknown_lease"

    def next_open(self, resource: str, now: float) -> float | None:
        """When time alone could make the resource admissible: end of the pause, next ramp step, the breaker's probe; None if it cannot."""
        r = self._resources[resource]
        limit = r.limit
        waits = []
        if now < limit.blocked_until:
            waits.append(limit.blocked_until)
        if self.breaker is not None and not self.breaker.admissible(now):
            at = self.breaker.opens_at(now)
            if at is None:
                return None
            waits.append(at)
        if waits:
            return max(waits)
        if r.in_flight < r.cap and r.in_flight >= limit.limit_at(now):
            return limit.next_step(now)
        return None

    def in_flight(self, resource: str) -> int:
        return self._resources[resource].in_flight

    def snapshot(self, resource: str, now: float) -> PressureSnapshot:
        """A frozen picture of one resource."""
        r = self._resources[resource]
        limit = r.limit
        blocked = limit.blocked_until if limit.blocked_until > float("-inf") else None
        return PressureSnapshot(
            now, resource, r.cap, limit.limit_at(now), r.in_flight, blocked, max(0.0, limit.blocked_until - now), getattr(limit, "ceiling", None),
            getattr(limit, "consecutive_rate_limits", 0), getattr(limit, "starved", False), r.last_outcome,
            self.breaker.state(now) if self.breaker is not None else "none",
        )

    def drain_notes(self) -> list[Note]:
        """Notes since the last call; empty unless the request stream is wanted."""
        notes, self._notes = self._notes, []
        return notes
