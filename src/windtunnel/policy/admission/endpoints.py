"""Request admission over endpoints: several domains under one cap, known by several names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from windtunnel.errors import ConfigValueError
from windtunnel.policy.admission.aimd import Aimd
from windtunnel.policy.admission.breaker import Breaker
from windtunnel.policy.admission.denial import Denial, make_denial
from windtunnel.policy.admission.lease import RequestLease
from windtunnel.policy.admission.request import ReleaseReason, RequestAdmission
from windtunnel.policy.admission.resource import RequestResourceKey, Resource, ResourceKey
from windtunnel.policy.param import BuildContext, check_number


class Endpoint:
    """raw_caps: by alias; no alias, no admission. resources: its domains, in the order of first use."""

    __slots__ = ("in_flight", "raw_caps", "resources")

    def __init__(self) -> None:
        self.raw_caps: dict[str, int] = {}
        self.resources: list[Resource] = []
        self.in_flight = 0

    @property
    def cap(self) -> int:
        """The smallest cap of its aliases; 0 without any."""
        return min(self.raw_caps.values(), default=0)


@dataclass(frozen=True, slots=True)
class EndpointSnapshot:
    """One endpoint at `captured_at` (run s). raw_caps: by alias; limits: in force, by domain."""

    captured_at: float
    provider: str
    model: str
    static_cap: int
    aggregate_in_flight: int
    aliases: tuple[str, ...]
    raw_caps: Mapping[str, int]
    limits: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class RequestAdmissionConfig:
    """limit: config of each resource's limit; initial_limits: where it starts, by resource; max_limit_clamps: ceilings below the
    endpoint's cap, by resource; default_queue_wait_timeout_s: longest wait, None = no end."""

    limit: Any = field(default_factory=Aimd)
    initial_limits: Mapping[ResourceKey, int] = field(default_factory=dict)
    max_limit_clamps: Mapping[ResourceKey, int] = field(default_factory=dict)
    default_queue_wait_timeout_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("initial_limits", "max_limit_clamps"):
            for key, value in getattr(self, name).items():
                check_number(f"{name}.{key}", value, lo=1, whole=True)
        if self.initial_limits and not hasattr(self.limit, "initial_limit"):
            raise ConfigValueError("initial_limits", f"{type(self.limit).__name__} has no initial limit to set")
        if self.default_queue_wait_timeout_s is not None:
            check_number("default_queue_wait_timeout_s", self.default_queue_wait_timeout_s, lo=0.0)


class EndpointAdmission(RequestAdmission):
    """RequestAdmission in which an endpoint's cap bounds what is in flight over all its domains."""

    def __init__(self, config: RequestAdmissionConfig | None = None, *, generation: str = "g0", breaker: Breaker | None = None,
                 wants: frozenset[str] = frozenset(), context: BuildContext | None = None) -> None:
        self.config = config or RequestAdmissionConfig()
        self._context = context or BuildContext()
        super().__init__(self.config.limit.build(self._context), generation=generation, breaker=breaker, wants=wants)
        self.endpoints: dict[Any, Endpoint] = {}
        self._endpoint_of: dict[ResourceKey, Endpoint] = {}

    def register(self, resource: ResourceKey, cap: Any, now: float) -> None:
        """A resource that is an endpoint of its own. Again: as `set_cap`."""
        if resource in self.endpoints:
            self.set_cap(resource, cap, now)
            return
        check_number("cap", cap, lo=1, whole=True)
        self._tick(now)
        endpoint = self.endpoints[resource] = Endpoint()
        endpoint.raw_caps[""] = cap
        self._make(resource, endpoint, now)

    def register_alias(self, provider: str, model: str, alias: str, cap: Any, now: float) -> None:
        """One more name of an endpoint; the smallest cap of all its names bounds the sum over its domains, which come to be on first use.

        Raises ConfigValueError for a cap below 1.
        """
        check_number("cap", cap, lo=1, whole=True)
        self._tick(now)
        endpoint = self.endpoints.setdefault((provider, model), Endpoint())
        endpoint.raw_caps[alias] = cap
        self._follow(endpoint, now)

    def unregister_alias(self, provider: str, model: str, alias: str, now: float) -> Sequence[Any]:
        """Forget a name; with its last one the endpoint is gone and nobody is admitted. Returns whose wait ends with it: here nobody's."""
        self._tick(now)
        endpoint = self.endpoints.get((provider, model))
        if endpoint is not None and endpoint.raw_caps.pop(alias, None) is not None and endpoint.raw_caps:
            self._follow(endpoint, now)
        return ()

    def _follow(self, endpoint: Endpoint, now: float) -> None:
        """The endpoint's cap changed: the ceilings of its domains follow."""
        for r in endpoint.resources:
            super().set_cap(r.name, self._ceiling(r.name, endpoint), now)

    def _ceiling(self, resource: ResourceKey, endpoint: Endpoint) -> int:
        return max(1, min(endpoint.cap, self.config.max_limit_clamps.get(resource, endpoint.cap)))

    def _make(self, resource: ResourceKey, endpoint: Endpoint, now: float) -> None:
        factory = self._factory
        initial = self.config.initial_limits.get(resource)
        if initial is not None:
            self._factory = replace(self.config.limit, initial_limit=initial).build(self._context)
        try:
            super().register(resource, self._ceiling(resource, endpoint), now)
        finally:
            self._factory = factory
        self._endpoint_of[resource] = endpoint
        endpoint.resources.append(self._resources[resource])

    def _known(self, resource: ResourceKey, now: float) -> Resource | None:
        """The resource, made on first use of its endpoint; None if its endpoint is not registered."""
        if resource not in self._resources and isinstance(resource, RequestResourceKey):
            endpoint = self.endpoints.get((resource.provider, resource.model))
            if endpoint is not None and endpoint.raw_caps:
                self._make(resource, endpoint, now)
        r = self._resources.get(resource)
        return r if r is not None and self._endpoint_of[resource].raw_caps else None

    def set_cap(self, resource: ResourceKey, cap: Any, now: float) -> None:
        """A lowered cap lowers the limit at once; in flight may exceed it until released. For resources that are their own endpoint."""
        endpoint = self.endpoints.get(resource)
        if endpoint is None:
            raise ConfigValueError("cap", f"the caps of {resource} are those of its endpoint's aliases")
        check_number("cap", cap, lo=1, whole=True)
        endpoint.raw_caps[""] = cap
        super().set_cap(resource, self._ceiling(resource, endpoint), now)

    def admissible(self, resource: ResourceKey, now: float) -> bool:
        """Is there room, whoever waits? Changes nothing."""
        endpoint = self._endpoint_of.get(resource)
        if endpoint is None or endpoint.in_flight >= endpoint.cap:
            return False
        return super().admissible(resource, now)

    def why_not(self, resource: ResourceKey, now: float) -> Denial:
        """The denial of what is not admissible; the order is shutdown, unregistered, cool-down, capacity, breaker."""
        endpoint = self._endpoint_of.get(resource)
        if self._shut or endpoint is None or not endpoint.raw_caps:
            return make_denial("request", "shutdown" if self._shut else "hard_policy_denial", resource=str(resource))
        r = self._resources[resource]
        if endpoint.in_flight >= endpoint.cap and now >= r.limit.blocked_until:
            return self._busy("no_capacity", r, now)
        return super().why_not(resource, now)

    def _busy(self, reason: str, r: Resource, now: float) -> Denial:
        rate_rps = r.rate.per_s(now)
        return make_denial("request", reason, retry_after_s=1.0 / rate_rps if rate_rps else None, resource=str(r.name))

    def try_acquire(self, resource: ResourceKey, now: float) -> RequestLease | Denial:
        """A lease, or why not."""
        self._known(resource, now)
        return super().try_acquire(resource, now)

    def grant(self, resource: ResourceKey, now: float) -> RequestLease:
        lease = super().grant(resource, now)
        self._endpoint_of[resource].in_flight += 1
        return lease

    def release(self, lease: Any, outcome: str, now: float, *, retry_after_s: float | None = None,
                rtt_s: float | None = None) -> ReleaseReason:
        """Give the capacity back, also to the endpoint; anything but an active lease changes nothing."""
        said = super().release(lease, outcome, now, retry_after_s=retry_after_s, rtt_s=rtt_s)
        if said == "released":
            self._endpoint_of[lease.resource].in_flight -= 1
        return said

    def endpoint(self, provider: str, model: str, now: float) -> EndpointSnapshot:
        """A frozen picture of an endpoint; KeyError if it was never registered."""
        endpoint = self.endpoints[(provider, model)]
        return EndpointSnapshot(
            now, provider, model, endpoint.cap if endpoint.raw_caps else 0, endpoint.in_flight, tuple(endpoint.raw_caps),
            dict(endpoint.raw_caps), {str(getattr(r.name, "domain", r.name)): r.bound(now) for r in endpoint.resources},
        )
