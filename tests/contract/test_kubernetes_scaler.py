"""The Kubernetes connector against an API server that follows a script: real HTTP through kr8s, no cluster."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from windtunnel.effects import Drain, ScaleTo
from windtunnel.errors import ScalerRefused, ScalerUnavailable
from windtunnel.live.fleet import Endpoint
from windtunnel.live.scaling.kubernetes import DELETION_COST, KubePool, KubernetesScaler
from windtunnel.live.scaling.scaler import ScaleReply

kr8s = pytest.importorskip("kr8s", reason="needs the extra k8s")


class Cluster:
    """A namespace with one deployment; scaling makes or deletes pods at once."""

    def __init__(self) -> None:
        self.replicas, self.generation, self.observed, self.version = 2, 1, 1, 10
        self.ready: int | None = None
        self.pods: dict[str, dict[str, Any]] = {}
        self.lease: dict[str, Any] | None = None
        self.conflicts, self.fail = 0, 0
        self.calls: list[str] = []
        self._n = 0
        self.settle()

    def settle(self) -> None:
        def cost(name: str) -> int:
            return int(self.pods[name]["metadata"]["annotations"].get(DELETION_COST, "0"))

        while len(self.pods) > self.replicas:
            del self.pods[min(self.pods, key=lambda n: (cost(n), -int(n.split("-")[1])))]
        while len(self.pods) < self.replicas:
            name = f"chat-{self._n}"
            self._n += 1
            self.pods[name] = {"metadata": {"name": name, "annotations": {}, "labels": {"app": "chat"}}, "status": {"podIP": f"10.0.0.{self._n}"}}

    def answer(self, method: str, url: str, body: Any) -> tuple[int, Any]:
        parts = urlsplit(url)
        path = parts.path.rstrip("/")
        self.calls.append(f"{method} {path}")
        if self.fail:
            self.fail -= 1
            return 503, {"message": "try later"}
        if path.rstrip("/") == "/version":
            return 200, {"gitVersion": "v1.33.0"}
        base = "/apis/apps/v1/namespaces/default/deployments/chat"
        if path == base:
            ready = len(self.pods) if self.ready is None else self.ready
            return 200, {"metadata": {"generation": self.generation},
                         "spec": {"replicas": self.replicas, "selector": {"matchLabels": {"app": "chat"}}},
                         "status": {"replicas": len(self.pods), "readyReplicas": ready, "observedGeneration": self.observed}}
        if path == base + "/scale":
            if method == "PUT":
                if self.conflicts or body["metadata"]["resourceVersion"] != str(self.version):
                    self.conflicts = max(0, self.conflicts - 1)
                    self.version += 1
                    return 409, {"message": "the object has been modified"}
                self.replicas = body["spec"]["replicas"]
                self.generation += 1
                self.observed = self.generation
                self.version += 1
                self.settle()
            return 200, {"kind": "Scale", "metadata": {"name": "chat", "resourceVersion": str(self.version)}, "spec": {"replicas": self.replicas}}
        if path == "/api/v1/namespaces/default/pods":
            assert parse_qs(parts.query)["labelSelector"] == ["app=chat"]
            return 200, {"items": list(self.pods.values())}
        if path.startswith("/api/v1/namespaces/default/pods/") and method == "PATCH":
            self.pods[path.rpartition("/")[2]]["metadata"]["annotations"].update(body["metadata"]["annotations"])
            return 200, {}
        return self._lease(method, path, body)

    def _lease(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        assert path.startswith("/apis/coordination.k8s.io/v1/namespaces/default/leases"), path
        if method == "GET":
            return (200, self.lease) if self.lease else (404, {"message": "not found"})
        self.lease = body
        return 200, body


@pytest.fixture
def cluster() -> Iterator[tuple[Cluster, str]]:
    made = Cluster()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            size = int(self.headers.get("content-length") or 0)
            status, answer = made.answer(self.command, self.path, json.loads(self.rfile.read(size)) if size else None)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_PATCH = _serve

        def log_message(self, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield made, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


class Roll:
    def __init__(self) -> None:
        self.here: dict[str, str] = {}
        self.busy: dict[str, int] = {}

    def add(self, endpoint: Endpoint) -> None:
        self.here[endpoint.name] = endpoint.url

    def notice(self, name: str, reason: str, timeout_s: float) -> None:
        """Not used: the cluster deletes pods by itself."""

    def remove(self, name: str, reason: str) -> None:
        del self.here[name]

    def in_flight(self, name: str) -> int:
        return self.busy.get(name, 0)

    def serves(self, name: str) -> bool:
        return name in self.here


def on(url: str, work: Callable[[KubernetesScaler, Roll], Awaitable[Any]], identity: str = "me") -> Any:
    async def main() -> Any:
        api = await kr8s.asyncio.api(url=url, namespace="default")
        roll = Roll()
        scaler = KubernetesScaler({"chat": KubePool("chat", 8000, "vllm")}, roll, service="s", identity=identity, api=api, poll_s=0.05)
        try:
            return await asyncio.wait_for(work(scaler, roll), 20)
        finally:
            await scaler.aclose()

    return asyncio.run(main())


def test_PL_709_scale_up_and_down_with_the_least_busy_pods_first(cluster: tuple[Cluster, str]) -> None:
    made, url = cluster

    async def work(scaler: KubernetesScaler, roll: Roll) -> None:
        await scaler.begin()
        assert roll.here == {"chat-0": "http://10.0.0.1:8000", "chat-1": "http://10.0.0.2:8000"}
        assert await scaler.apply(ScaleTo(1, (("chat", 3),))) == ScaleReply("accepted")
        assert await scaler.apply(ScaleTo(2, (("chat", 3),))) == ScaleReply("unchanged")
        assert (await scaler.apply(ScaleTo(1, (("chat", 9),)))).status == "superseded"
        await scaler.look()
        roll.busy = {"chat-0": 5, "chat-1": 0, "chat-2": 3}
        await scaler.apply(ScaleTo(3, (("chat", 1),)))
        await scaler.look()
        assert list(roll.here) == ["chat-0"], "the pods with the least in flight went"

    on(url, work)
    assert made.lease is not None and made.lease["spec"]["holderIdentity"] == "me"


def test_PL_709_conflicts_are_read_again_three_times(cluster: tuple[Cluster, str]) -> None:
    made, url = cluster

    async def work(scaler: KubernetesScaler, roll: Roll) -> None:
        made.conflicts = 2
        assert (await scaler.apply(ScaleTo(1, (("chat", 4),)))).status == "accepted" and made.replicas == 4
        made.conflicts = 3
        with pytest.raises(ScalerRefused, match="409"):
            await scaler.apply(ScaleTo(2, (("chat", 5),)))
        assert made.replicas == 4

    on(url, work)


def test_PL_709_expected_is_unknown_until_the_cluster_has_seen_the_spec(cluster: tuple[Cluster, str]) -> None:
    made, url = cluster

    async def work(scaler: KubernetesScaler, roll: Roll) -> None:
        made.ready = 1
        count = (await scaler.observe())["chat"]
        assert (count.ready, count.starting, count.expected) == (1, 1, 2)
        made.observed = 0
        assert (await scaler.observe())["chat"].expected is None
        assert scaler.manual_edits == {}
        made.observed, made.replicas = 1, 7
        assert (await scaler.observe())["chat"].expected == 7 and scaler.manual_edits == {"chat": 7}

    on(url, work)


def test_PL_709_a_second_planner_is_advisory_until_the_lease_runs_out(cluster: tuple[Cluster, str]) -> None:
    made, url = cluster
    plan = ScaleTo(1, (("chat", 3),))

    async def apply(scaler: KubernetesScaler, roll: Roll) -> ScaleReply:
        return await scaler.apply(plan)

    assert on(url, apply, "first").status == "accepted"
    refused = on(url, apply, "second")
    assert refused.status == "refused" and "first holds the lease" in refused.reason
    made.lease["spec"]["renewTime"] = "2020-01-01T00:00:00.000000Z"  # type: ignore[index]
    assert on(url, apply, "second").status == "unchanged"
    assert made.lease["spec"]["holderIdentity"] == "second"  # type: ignore[index]


def test_PL_709_an_api_that_fails_is_unavailable_and_pods_are_not_forgotten(cluster: tuple[Cluster, str]) -> None:
    made, url = cluster

    async def work(scaler: KubernetesScaler, roll: Roll) -> None:
        await scaler.begin()
        made.fail = 3
        with pytest.raises(ScalerUnavailable, match="503"):
            await scaler.observe()
        await asyncio.sleep(0.3)
        assert set(roll.here) == {"chat-0", "chat-1"}

    on(url, work)


def test_a_drained_pod_goes_first(cluster: tuple[Cluster, str]) -> None:
    made, url = cluster

    async def work(scaler: KubernetesScaler, roll: Roll) -> None:
        await scaler.begin()
        await scaler.drain(Drain("chat-0"))
        await scaler.drain(Drain("nobody"))
        assert made.pods["chat-0"]["metadata"]["annotations"][DELETION_COST] == "-1000"
        await scaler.drain(Drain("chat-0", None, "", True))
        assert made.pods["chat-0"]["metadata"]["annotations"][DELETION_COST] == "0"

    on(url, work)
