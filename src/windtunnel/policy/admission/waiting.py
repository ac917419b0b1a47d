"""Request admission with a waiting room of its own, for callers without a queue in front."""

from __future__ import annotations

from typing import Any

from windtunnel.policy.admission.breaker import Breaker
from windtunnel.policy.admission.denial import Denial, make_denial
from windtunnel.policy.admission.endpoints import Endpoint, EndpointAdmission, RequestAdmissionConfig
from windtunnel.policy.admission.lease import RequestLease
from windtunnel.policy.admission.request import ReleaseReason
from windtunnel.policy.admission.resource import Resource, ResourceKey
from windtunnel.policy.admission.waiters import (
    AlreadyGranted,
    Expired,
    Granted,
    RequestItem,
    UnknownWaiter,
    Waiter,
    WaiterCancelled,
    Waiters,
    Waiting,
)
from windtunnel.policy.param import BuildContext
from windtunnel.policy.queueing.item import QueueItem, QueueView


class WaitingAdmission(EndpointAdmission):
    """EndpointAdmission whose callers may wait. Only `drain` grants to waiters: call it at the same `now` after release, register,
    cancel and set_cap, and at `next_deadline()`.

    Waiter ids are `{generation}-w{n}`.
    """

    def __init__(self, config: RequestAdmissionConfig | None = None, *, generation: str = "g0", breaker: Breaker | None = None,
                 wants: frozenset[str] = frozenset(), context: BuildContext | None = None) -> None:
        super().__init__(config, generation=generation, breaker=breaker, wants=wants, context=context)
        self._waiters = Waiters()
        self._queued = 0
        self._given: dict[str, RequestLease] = {}  # waiter id -> its lease, until that is released
        self._waiter_of: dict[str, str] = {}  # lease id -> waiter id

    # -- leases -------------------------------------------------------------------------------------------------------------------

    def why_not(self, resource: ResourceKey, now: float) -> Denial:
        """The denial of what cannot be granted now; the order is shutdown, unregistered, waiters ahead, cool-down, capacity, breaker."""
        endpoint = self._endpoint_of.get(resource)
        if not self._shut and endpoint is not None and self._ahead(endpoint, now):
            return self._busy("queued_waiters_ahead", self._resources[resource], now)
        return super().why_not(resource, now)

    def _ahead(self, endpoint: Endpoint, now: float) -> bool:
        """Could someone who waits at this endpoint be granted now? Then no newcomer passes."""
        return any(r.waiting and self._waiters.any_live(r, now) and self.admissible(r.name, now) for r in endpoint.resources)

    def try_acquire(self, resource: ResourceKey, now: float) -> RequestLease | Denial:
        """A lease, or why not; never past somebody who waits for the same resource or endpoint and could be granted."""
        self._tick(now)
        known = self._known(resource, now)
        if known is not None and self.admissible(resource, now) and not self._ahead(self._endpoint_of[resource], now):
            return self.grant(resource, now)
        denial = self.why_not(resource, now)
        self._note("request_acquire_denied", resource, now, denial.reason)
        return denial

    def release(self, lease: Any, outcome: str, now: float, *, retry_after_s: float | None = None,
                rtt_s: float | None = None) -> ReleaseReason:
        """Give the capacity back; anything but an active lease changes nothing. `drain` grants what became free."""
        said = super().release(lease, outcome, now, retry_after_s=retry_after_s, rtt_s=rtt_s)
        if said == "released":
            waiter_id = self._waiter_of.pop(lease.lease_id, None)
            if waiter_id is not None:
                del self._given[waiter_id]
        return said

    # -- waiters ------------------------------------------------------------------------------------------------------------------

    def enqueue(self, item: RequestItem, now: float) -> RequestLease | Waiting | Denial:
        """A lease at once, a place in line, or a denial: where waiting cannot help, or when the item would not wait at all."""
        self._tick(now)
        resource = self._known(item.resource, now)
        if self._shut or resource is None:
            denial = self.why_not(item.resource, now)
            self._note("request_acquire_denied", item.resource, now, denial.reason)
            return denial
        if self.admissible(item.resource, now) and not self._ahead(self._endpoint_of[item.resource], now):
            self._note("request_wait_started", item.resource, now)  # no wait is a wait of no time
            self._note("request_wait_completed", item.resource, now)
            return self.grant(item.resource, now)
        timeout_s = self.config.default_queue_wait_timeout_s if item.queue_wait_timeout_s is None else item.queue_wait_timeout_s
        if timeout_s == 0.0:
            self._note("request_acquire_denied", item.resource, now, "queue_timeout")
            return self._timeout(resource, resource.waiting, now)
        return self._wait(item, resource, None if timeout_s is None else now + timeout_s, now)

    def _wait(self, item: RequestItem, resource: Resource, deadline: float | None, now: float) -> Waiting:
        self._queued += 1
        waiter_id = f"{self.generation}-w{self._queued}"
        if not resource.waiting:
            self._note("request_queue_formed", item.resource, now)
        self._waiters.add(waiter_id, item, resource, deadline, now)
        self.sequence += 1
        self._note("request_wait_started", item.resource, now, ids=(waiter_id,))
        return Waiting(waiter_id, deadline)

    def cancel(self, waiter_id: Any, now: float) -> WaiterCancelled | AlreadyGranted | UnknownWaiter:
        """The caller no longer wants it. Never raises for ids that are over or were never there."""
        self._tick(now)
        if not isinstance(waiter_id, str):
            return UnknownWaiter(waiter_id)
        waiter = self._waiters.remove(waiter_id, now)
        if waiter is not None:
            self._over(waiter, "request_wait_cancelled", "cancellation", now)
            return WaiterCancelled(waiter_id)
        lease = self._given.get(waiter_id)
        return UnknownWaiter(waiter_id) if lease is None else AlreadyGranted(waiter_id, lease)

    def drain(self, now: float) -> list[Granted | Expired]:
        """End the waits whose time is up, then grant in fair order while somebody can be granted."""
        self._tick(now)
        if not self._waiters:
            return []
        out: list[Granted | Expired] = [self._expire(w, "queue_timeout", now) for w in self._waiters.expired(now)]
        by_id = self._waiters.by_id

        def eligible(queued: QueueItem, view: QueueView) -> bool:
            return self.admissible(by_id[queued.id].resource.name, now)

        while self._waiters and (waiter := self._waiters.next(eligible, now)) is not None:
            self._over(waiter, "request_wait_completed", "", now)
            lease = self.grant(waiter.resource.name, now)
            self._given[waiter.id] = lease
            self._waiter_of[lease.lease_id] = waiter.id
            out.append(Granted(waiter.id, lease, now - waiter.since, waiter.item.context))
        return out

    def _expire(self, waiter: Waiter, reason: str, now: float) -> Expired:
        """A wait ends without a lease; the waiter is out of its line already."""
        self._over(waiter, "request_wait_timeout", reason, now)
        denial = self._timeout(waiter.resource, waiter.resource.waiting, now) if reason == "queue_timeout" else make_denial(
            "request", reason, resource=str(waiter.resource.name))
        return Expired(waiter.id, denial, now - waiter.since, waiter.item.context)

    def _over(self, waiter: Waiter, kind: str, reason: str, now: float) -> None:
        self.sequence += 1
        self._note(kind, waiter.resource.name, now, reason, (waiter.id,))
        if not waiter.resource.waiting:
            self._note("request_queue_drained", waiter.resource.name, now)

    def _timeout(self, resource: Resource, ahead: int, now: float) -> Denial:
        rate_rps = resource.rate.per_s(now)
        return make_denial("request", "queue_timeout", retry_after_s=(ahead + 1) / rate_rps if rate_rps else None, resource=str(resource.name))

    def shutdown(self, now: float) -> list[Expired]:
        """Nothing is admitted any more; all who wait are sent away, in the order in which they came."""
        super().shutdown(now)
        return [self._expire(w, "shutdown", now) for w in list(self._waiters.by_id.values()) if self._waiters.remove(w.id, now)]

    def unregister_alias(self, provider: str, model: str, alias: str, now: float) -> list[Expired]:
        """Forget a name; with its last one the endpoint is gone: nobody is admitted and those who wait are sent away."""
        super().unregister_alias(provider, model, alias, now)
        endpoint = self.endpoints.get((provider, model))
        if endpoint is None or endpoint.raw_caps:
            return []
        gone = [w for w in list(self._waiters.by_id.values()) if self._endpoint_of[w.resource.name] is endpoint]
        return [self._expire(w, "hard_policy_denial", now) for w in gone if self._waiters.remove(w.id, now)]

    # -- time and pictures --------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """The run second at which `drain` has something to do although nothing else happens; None if time alone helps nobody.

        O(resources that are waited for).
        """
        now, times = self._now, [self._waiters.next_deadline()]
        for r in self._waiters.lines.values():
            endpoint = self._endpoint_of[r.name]
            if endpoint.in_flight < endpoint.cap:
                times.append(now if self.admissible(r.name, now) else self.next_open(r.name, now))
        return min((t for t in times if t is not None), default=None)

    @property
    def waiting(self) -> int:
        """Everyone who waits."""
        return len(self._waiters)
