"""Request admission: may this attempt go now? One limit per resource, leases that give capacity back exactly once."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

from windtunnel.effects import Note
from windtunnel.errors import ConfigValueError, PolicyClockError
from windtunnel.policy.admission.breaker import Breaker
from windtunnel.policy.admission.denial import Denial, make_denial
from windtunnel.policy.admission.lease import RequestLease
from windtunnel.policy.admission.limit import LimitFactory, Sample
from windtunnel.policy.admission.notes import RequestNotes
from windtunnel.policy.admission.resource import PressureSnapshot, Resource, ResourceKey
from windtunnel.policy.param import check_number

RELEASED_KEPT = 8192
ReleaseReason = Literal["released", "duplicate", "wrong_controller_generation", "stale_lease", "unknown_lease"]


class RequestAdmission:
    """State machine of leases. No lock, no clock, no callback; O(1) per call; the breaker guards all its resources together.

    Lease ids are `{generation}-{n}`. release never raises for unknown, repeated or foreign leases; it says what it was.
    A call whose `now` lies before the last change raises PolicyClockError.
    """

    def __init__(self, limit_factory: LimitFactory, *, generation: str = "g0", breaker: Breaker | None = None,
                 wants: frozenset[str] = frozenset()) -> None:
        self.breaker = breaker
        self.generation = generation
        self.sequence = 0
        self._factory = limit_factory
        self._resources: dict[ResourceKey, Resource] = {}
        self._active: dict[str, RequestLease] = {}
        self._released: deque[str] = deque(maxlen=RELEASED_KEPT)  # ids of the last leases that came back
        self._granted = 0
        self._probe: str | None = None
        self._shut = False
        self._now = float("-inf")
        self._notes = RequestNotes() if "request" in wants else None
        self._diagnostics: dict[str, int] = {}

    def register(self, resource: ResourceKey, cap: Any, now: float) -> None:
        """Make a resource known; `cap` (>= 1) bounds its requests in flight. Again: as `set_cap`.

        Raises ConfigValueError for a bad cap, and for a limit that opens the breaker of an admission that has none.
        """
        check_number("cap", cap, lo=1, whole=True)
        if resource in self._resources:
            self.set_cap(resource, cap, now)
            return
        limit = self._factory(cap)
        if self.breaker is None and getattr(getattr(limit, "config", None), "on_starved", "keep") == "open":
            raise ConfigValueError("on_starved", 'expected keep or pace, got "open": the admission has no breaker to open')
        self._resources[resource] = Resource(resource, cap, limit)
        self.sequence += 1
        self._note("request_resource_registered", resource, now)

    def set_cap(self, resource: ResourceKey, cap: Any, now: float) -> None:
        """A lowered cap lowers the limit at once; in flight may exceed it until released."""
        check_number("cap", cap, lo=1, whole=True)
        self._tick(now)
        known = self._resources[resource]
        if cap == known.cap:
            return
        known.cap = cap
        known.limit.set_max(cap, now)
        self.sequence += 1
        self._note("request_effective_cap_changed", resource, now)

    def shutdown(self, now: float) -> Sequence[Any]:
        """From now on nothing is admitted; leases that are out come back as ever. Returns whose wait ends with it: here nobody's."""
        self._tick(now)
        self._shut = True
        self.sequence += 1
        return ()

    def _tick(self, now: float) -> None:
        if now < self._now:
            raise PolicyClockError(f"admission was called with now={now!r} after {self._now!r}; time must not run backwards")
        self._now = now

    def admissible(self, resource: ResourceKey, now: float) -> bool:
        """Would `try_acquire` grant? Changes nothing."""
        r = self._resources.get(resource)
        if r is None or self._shut:
            return False
        limit = r.limit
        in_flight = r.in_flight
        if in_flight >= r.cap or in_flight >= (limit.limit if r.limit_at is None else r.limit_at(now)) or now < limit.blocked_until:
            return False
        return self.breaker is None or self.breaker.admissible(now)

    def full_from(self, resource: ResourceKey, now: float) -> float | None:
        """From when on it is shut for want of room alone, so that an end would open it: `now`, or the end of a pause. None: it has room, or
        nobody knows. Changes nothing."""
        r = self._resources.get(resource)
        if r is None or self._shut:
            return None
        at = max(now, r.limit.blocked_until)
        if self.breaker is not None and not self.breaker.admissible(at):
            opens_at = self.breaker.opens_at(now)
            if opens_at is None:
                return None
            at = max(at, opens_at)
        return at if r.in_flight >= r.bound(at) else None

    def why_not(self, resource: ResourceKey, now: float) -> Denial:
        """The denial of a resource that is not admissible, in the order shutdown, unregistered, cool-down, capacity, breaker."""
        r = self._resources.get(resource)
        if self._shut:
            return make_denial("request", "shutdown", resource=str(resource))
        if r is None:
            return make_denial("request", "hard_policy_denial", resource=str(resource))
        if now < r.limit.blocked_until:
            return make_denial("request", "cooldown", now=now, available_at=r.limit.blocked_until, resource=str(resource))
        if r.in_flight >= r.bound(now):
            rate_rps = r.rate.per_s(now)
            return make_denial("request", "no_capacity", retry_after_s=1.0 / rate_rps if rate_rps else None, resource=str(resource))
        return self.breaker_denial(resource, now)

    def breaker_denial(self, resource: ResourceKey, now: float) -> Denial:
        """The denial of an open breaker, whatever the limit says: for callers that would not even let the request wait."""
        at = None if self.breaker is None else self.breaker.opens_at(now)
        return make_denial("request", "breaker_open", now=now, available_at=at, resource=str(resource))

    def try_acquire(self, resource: ResourceKey, now: float) -> RequestLease | Denial:
        """A lease, or why not."""
        if not self.admissible(resource, now):
            if now < self._now:
                self._tick(now)
            self._now = now
            denial = self.why_not(resource, now)
            self._note("request_acquire_denied", resource, now, denial.reason)
            return denial
        return self.grant(resource, now)

    def grant(self, resource: ResourceKey, now: float) -> RequestLease:
        """A lease on a resource that `admissible` has just been true for; nothing is checked again."""
        if now < self._now:
            self._tick(now)
        self._now = now
        r = self._resources[resource]
        limit = r.limit
        if not r.used:
            r.first_use(now)
        self._granted += 1
        self.sequence += 1
        r.in_flight += 1
        lease_id = f"{self.generation}-{self._granted}"
        admitted = limit.limit if r.limit_at is None else r.limit_at(now)
        lease = RequestLease(lease_id, resource, now, admitted, r.cap, limit.epoch, self.generation)
        self._active[lease_id] = lease
        if self.breaker is not None and self.breaker.took(now):
            self._probe = lease_id
        if self._notes is not None:
            self._notes.granted(lease_id, now, str(resource), r.gauges(now))
        return lease

    def began(self, lease: RequestLease, now: float) -> None:
        """An engine has begun the attempt that the lease is for. Only said, nothing changes: for those who record the request stream."""
        if self._notes is not None and lease.lease_id in self._active:
            self._notes.began(lease.lease_id, now, str(lease.resource), self._resources[lease.resource].gauges(now))

    def release(self, lease: Any, outcome: str, now: float, *, retry_after_s: float | None = None,
                rtt_s: float | None = None) -> ReleaseReason:
        """Give the capacity back and let limit and breaker learn; anything but an active lease changes nothing."""
        if now < self._now:
            self._tick(now)
        self._now = now
        try:
            lease_id = lease.lease_id
            active = self._active.get(lease_id)
        except (AttributeError, TypeError):  # not a lease at all, or one with an id that cannot be looked up
            return self._unknown()
        if active is not lease and (active is None or active != lease):
            return self._not_active(lease, active, now)
        del self._active[lease_id]
        self._released.append(lease_id)
        r = self._resources[lease.resource]
        sample = Sample(outcome, rtt_s, r.in_flight, lease.admitted_limit, lease.epoch, retry_after_s)
        r.in_flight -= 1
        r.last_outcome = outcome
        self.sequence += 1
        if outcome == "success":
            r.rate.completed(now)
        change = r.limit.on_sample(sample, now)
        if self.breaker is not None:
            self._tell_breaker(self.breaker, r, lease_id, outcome, now)
        if self._notes is not None:
            self._notes.released(lease_id, now, str(lease.resource), outcome, change, r.gauges(now))
        return "released"

    def _tell_breaker(self, breaker: Breaker, r: Resource, lease_id: str, outcome: str, now: float) -> None:
        """Outcomes count while it is closed; later only the probe's does: what was granted before it opened says nothing new."""
        if breaker.closed or lease_id == self._probe:
            self._probe = None if lease_id == self._probe else self._probe
            breaker.on_outcome(outcome, now)
        if outcome == "rate_limited" and getattr(r.limit, "opens_breaker", False):
            breaker.trip(now)

    def _unknown(self) -> ReleaseReason:
        self._diagnostics["unknown_lease"] = self._diagnostics.get("unknown_lease", 0) + 1
        return "unknown_lease"

    def _not_active(self, lease: Any, active: Any, now: float) -> ReleaseReason:
        reason: ReleaseReason = "unknown_lease"
        if lease.generation != self.generation:
            reason = "wrong_controller_generation"
        elif active is not None:
            reason = "stale_lease"
        elif lease.lease_id in self._released:
            reason = "duplicate"
        self._diagnostics[reason] = self._diagnostics.get(reason, 0) + 1
        if self._notes is not None:
            self._notes.add("request_release_diagnostic", now, str(lease.resource), None, reason, (lease.lease_id,), lease_id=lease.lease_id)
        return reason

    def next_open(self, resource: ResourceKey, now: float) -> float | None:
        """When time alone could make the resource admissible: end of the pause, next ramp step, the breaker's probe; None if it cannot."""
        r = self._resources[resource]
        limit = r.limit
        if now >= limit.blocked_until and self.breaker is None and r.limit_at is None:
            return None  # it is full, or open already: only an end changes that
        waits = []
        if now < limit.blocked_until:
            waits.append(limit.blocked_until)
        if self.breaker is not None and not self.breaker.admissible(now):
            at = self.breaker.opens_at(now)
            if at is None:
                return None
            waits.append(at)
        if r.in_flight >= r.bound(max(waits, default=now)):
            step = r.next_step(now)
            if step is None:
                return None
            waits.append(step)
        return max(waits, default=None)

    def in_flight(self, resource: ResourceKey) -> int:
        return self._resources[resource].in_flight

    def completion_rate(self, resource: ResourceKey, now: float) -> float | None:
        """Completions per second of the resource, weighted over 10 s; None while unknown."""
        return self._resources[resource].rate.per_s(now)

    def snapshot(self, resource: ResourceKey, now: float) -> PressureSnapshot:
        """A frozen picture of one resource. Changes nothing."""
        breaker = "none" if self.breaker is None else self.breaker.state(now)
        return self._resources[resource].snapshot(now, breaker, self.sequence, self._diagnostics)

    def _note(self, kind: str, resource: ResourceKey, now: float, reason: str = "", ids: tuple[str, ...] = ()) -> None:
        if self._notes is not None:
            known = self._resources.get(resource)
            self._notes.add(kind, now, str(resource), None if known is None else known.gauges(now), reason, ids)

    def drain_notes(self) -> list[Note]:
        """Notes since the last call, in order; empty unless the request stream is wanted. At most the last 4096 are kept for it."""
        return [] if self._notes is None else self._notes.drain()
