"""Deployments of a Kubernetes cluster, through kr8s (extra `k8s`): their scale, their pods as replicas, one planner at a time.

Tested against a scripted API server, not against a cluster.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from windtunnel.effects import Drain, ScaleTo
from windtunnel.errors import ExtraMissingError, ScalerRefused, ScalerUnavailable
from windtunnel.live.fleet import Endpoint
from windtunnel.live.scaling.scaler import PoolCount, Roster, ScaleReply

CONFLICT, NOT_FOUND = 409, 404
TRIES = 3
POLL_S = 2.0
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
MERGE = {"content-type": "application/merge-patch+json"}


@dataclass(frozen=True, slots=True)
class KubePool:
    """One pool's deployment. port: where its pods serve; engine, model, role, slots: as in a fleet file."""

    deployment: str
    port: int
    engine: str
    model: str = ""
    role: str = "agg"
    slots: int | None = None


class KubernetesScaler:
    """The cluster is the truth: plans compare with the scale that it has, and a scale that somebody else set is adopted.

    Only the holder of the Lease `windtunnel-<service>` moves anything; a second planner is advisory. A conflict is read again and retried,
    3 times in all. On a way down the pods with the least in flight get the lowest deletion cost. manual_edits: {pool: replicas} seen.
    Raises ExtraMissingError without kr8s; ScalerRefused and ScalerUnavailable from its calls.
    """

    def __init__(self, pools: Mapping[str, KubePool], roster: Roster, *, service: str, identity: str, namespace: str = "default",
                 api: Any = None, lease_s: float = 30.0, poll_s: float = POLL_S) -> None:
        self._pools, self._roster, self._namespace = dict(pools), roster, namespace
        self._lease, self._identity, self._lease_s, self._poll_s = f"windtunnel-{service}", identity, lease_s, poll_s
        self._api = api
        self._asked: dict[str, int] = {}
        self._pods: dict[str, str] = {}  # pod -> pool, as told to the roster
        self._last_plan = -1
        self.manual_edits: dict[str, int] = {}
        self._duty: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Announce the pods that are there, and keep looking."""
        await self.look()
        self._duty = asyncio.get_running_loop().create_task(self._keep_looking())

    async def observe(self) -> Mapping[str, PoolCount]:
        """Counts from the deployments' status; expected is None while the cluster has not seen the newest spec."""
        counts = {}
        for pool, how in self._pools.items():
            found = await self._call("GET", "apps/v1", f"deployments/{how.deployment}")
            spec, status, meta = found.get("spec", {}), found.get("status", {}), found.get("metadata", {})
            wanted, ready = int(spec.get("replicas", 1)), int(status.get("readyReplicas", 0))
            current = int(status.get("observedGeneration", 0)) >= int(meta.get("generation", 0))
            if self._asked.get(pool, wanted) != wanted:
                self.manual_edits[pool] = wanted
            self._asked[pool] = wanted
            running = int(status.get("replicas", ready))
            counts[pool] = PoolCount(ready, max(0, wanted - ready), max(0, running - max(wanted, ready)), wanted if current else None)
        return counts

    async def apply(self, plan: ScaleTo) -> ScaleReply:
        """Set the scale of each deployment that the plan names."""
        if plan.plan_id < self._last_plan:
            return ScaleReply("superseded", f"plan {self._last_plan} is newer")
        unknown = [pool for pool, _ in plan.targets if pool not in self._pools]
        if unknown:
            return ScaleReply("refused", f"no deployment for pool {unknown[0]!r}")
        holder = await self._hold_lease()
        if holder != self._identity:
            return ScaleReply("refused", f"advisory: {holder} holds the lease {self._lease}")
        self._last_plan = plan.plan_id
        changed = [await self._scale(pool, target) for pool, target in plan.targets]
        return ScaleReply("accepted" if any(changed) else "unchanged")

    async def drain(self, order: Drain) -> None:
        """The pod is the first to go when the deployment shrinks."""
        if order.replica in self._pods:
            await self._mark(order.replica, 0 if order.undo else -1000)

    async def aclose(self) -> None:
        """Stop looking; the deployments stay as they are."""
        if self._duty is not None:
            self._duty.cancel()
            await asyncio.gather(self._duty, return_exceptions=True)

    # -- the scale ------------------------------------------------------------------------------------------------------------------

    async def _scale(self, pool: str, target: int) -> bool:
        name = self._pools[pool].deployment
        for attempt in range(TRIES):
            scale = await self._call("GET", "apps/v1", f"deployments/{name}/scale")
            have = int(scale.get("spec", {}).get("replicas", 0))
            if have == target:
                self._asked[pool] = target
                return False
            if target < have:
                await self._choose_victims(pool, have - target)
            scale["spec"] = {**scale.get("spec", {}), "replicas": target}
            try:
                await self._call("PUT", "apps/v1", f"deployments/{name}/scale", json=scale)
            except ScalerRefused as error:
                if getattr(error, "status", None) == CONFLICT and attempt + 1 < TRIES:
                    continue
                raise
            self._asked[pool] = target
            return True
        return False

    async def _choose_victims(self, pool: str, n: int) -> None:
        mine = sorted((pod for pod, of in self._pods.items() if of == pool), key=lambda pod: (self._roster.serves(pod), self._roster.in_flight(pod)))
        for rank, pod in enumerate(mine[:n]):
            await self._mark(pod, rank - n)

    async def _mark(self, pod: str, cost: int) -> None:
        body = {"metadata": {"annotations": {DELETION_COST: str(cost)}}}
        await self._call("PATCH", "v1", f"pods/{pod}", json=body, headers=MERGE)

    # -- pods -------------------------------------------------------------------------------------------------------------------------

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                await self.look()
            except (ScalerRefused, ScalerUnavailable):
                continue  # what is not seen is not gone

    async def look(self) -> None:
        """Pods that run join the world, those that are deleted leave it."""
        for pool, how in self._pools.items():
            found = await self._call("GET", "apps/v1", f"deployments/{how.deployment}")
            labels = found.get("spec", {}).get("selector", {}).get("matchLabels", {})
            query = ",".join(f"{k}={v}" for k, v in sorted(labels.items()))
            pods = (await self._call("GET", "v1", "pods", params={"labelSelector": query})).get("items", [])
            alive = {p["metadata"]["name"]: p for p in pods if p.get("status", {}).get("podIP") and not p["metadata"].get("deletionTimestamp")}
            for name in [n for n, of in self._pods.items() if of == pool and n not in alive]:
                del self._pods[name]
                self._roster.remove(name, "scaled_down")
            for name, pod in alive.items():
                if name not in self._pods:
                    self._pods[name] = pool
                    url = f"http://{pod['status']['podIP']}:{how.port}"
                    self._roster.add(Endpoint(name, pool, how.engine, how.model, url, url, how.role, 1.0, how.slots))

    # -- one planner at a time -----------------------------------------------------------------------------------------------------------

    async def _hold_lease(self) -> str:
        """Take or renew the lease; who holds it now. One that ran out may be taken."""
        now = datetime.now(UTC)
        spec = {"holderIdentity": self._identity, "leaseDurationSeconds": int(self._lease_s), "renewTime": _stamp(now)}
        try:
            lease = await self._call("GET", "coordination.k8s.io/v1", f"leases/{self._lease}")
        except ScalerRefused as error:
            if getattr(error, "status", None) != NOT_FOUND:
                raise
            body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": self._lease}, "spec": spec}
            return await self._take("POST", "leases", body)
        held = lease.get("spec", {})
        holder, renewed = str(held.get("holderIdentity") or ""), _time(held.get("renewTime"))
        fresh = renewed is not None and now - renewed < timedelta(seconds=float(held.get("leaseDurationSeconds") or 0))
        if holder not in ("", self._identity) and fresh:
            return holder
        return await self._take("PUT", f"leases/{self._lease}", {**lease, "spec": {**held, **spec}})

    async def _take(self, method: str, url: str, body: dict[str, Any]) -> str:
        try:
            await self._call(method, "coordination.k8s.io/v1", url, json=body)
        except ScalerRefused as error:
            if getattr(error, "status", None) == CONFLICT:
                return "another planner"
            raise
        return self._identity

    # -- calls ----------------------------------------------------------------------------------------------------------------------------

    async def _call(self, method: str, version: str, url: str, **more: Any) -> dict[str, Any]:
        kr8s = _kr8s()
        if self._api is None:
            self._api = await kr8s.asyncio.api()
        try:
            async with self._api.call_api(method, version=version, namespace=self._namespace, url=url, **more) as response:
                return dict(response.json())
        except kr8s.ServerError as error:
            status = getattr(error.response, "status_code", 500)
            text = f"{method} {url}: {status} {error}"
            if status >= 500:
                raise ScalerUnavailable(text) from error
            refused = ScalerRefused(text)
            refused.status = status  # type: ignore[attr-defined]
            raise refused from error
        except (OSError, kr8s.APITimeoutError) as error:
            raise ScalerUnavailable(f"{method} {url}: {error}") from error
        except Exception as error:  # the client's own transport errors: nobody knows what became of the call
            raise ScalerUnavailable(f"{method} {url}: {type(error).__name__}: {error}") from error


def _kr8s() -> Any:
    try:
        import kr8s
        import kr8s.asyncio
    except ImportError as error:
        raise ExtraMissingError("the Kubernetes connector", "k8s") from error
    return kr8s


def _stamp(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _time(text: str | None) -> datetime | None:
    if not text:
        return None
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
