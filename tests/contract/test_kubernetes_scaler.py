"""The Kubernetes connector against an API server that follows a script: real HTTP through kr8s, no cluster."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from windtunnel import ArrivalSource, Caps, Control, FakeEngine, Live, LiveFleet, default_control
from windtunnel.effects import Drain, ScaleTo
from windtunnel.errors import ConfigError, ScalerRefused, ScalerUnavailable
from windtunnel.lab.planner_build import build_pipeline_planner
from windtunnel.lab.planner_config import read_planner
from windtunnel.live.fake_script import FakeScript
from windtunnel.live.fleet import Endpoint
from windtunnel.live.scaling.kubernetes import DELETION_COST, KubePool, KubernetesScaler
from windtunnel.live.scaling.scaler import ScaleReply
from windtunnel.sources.dist import Const

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


KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: here
contexts: [{{name: here, context: {{cluster: here, user: me, namespace: default}}}}]
clusters: [{{name: here, cluster: {{server: "{url}"}}}}]
users: [{{name: me, user: {{token: secret}}}}]
"""


def test_PL_709_a_fleet_file_names_a_deployment_and_an_armed_run_scales_it(cluster: tuple[Cluster, str], tmp_path: Path,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    made, url = cluster
    (tmp_path / "config").write_text(KUBECONFIG.format(url=url), "utf-8")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    made.replicas = 1
    made.settle()
    made.pods["chat-0"]["status"]["podIP"] = "127.0.0.1"
    with FakeEngine(FakeScript(ttft_s=0.002, itl_s=0.0005, slots=8)) as engine:
        fleet = LiveFleet.of({"name": "kube", "pools": {"chat": {"engine": "openai", "model": "fake", "slots": 8, "scaling": {
            "kind": "kubernetes", "deployment": "chat", "port": urlsplit(engine.url).port}}}})
        wants = frozenset(Live.wants)
        block = {"pools": {"agg": {"component": "chat", "capacity_rps": 5.0, "max_replicas": 3}}, "load": {"enabled": False},
                 "throughput": {"enabled": True, "interval_s": 0.5}, "predictor": {"model": "constant"}}
        built = default_control(["chat"], wants=wants)
        planner = build_pipeline_planner(read_planner(block), fleet.pool_facts(), wants=wants)
        control = Control(lanes=built.lanes, fleet=built.fleet, planner=planner, settings=built.settings, wants=wants)
        source = ArrivalSource(20.0, input_tokens=Const(16), output_tokens=Const(4), count=60, rng=1, model="fake")
        world = Live(fleet, "armed", phrase="ARM kube SCALING", scaling=True, caps=Caps(max_in_flight=64, max_replicas=3))
        run = world.run(control, source)
    assert (run.requests.outcome == "success").all() and set(run.requests.replica) == {"chat-0"}
    assert made.replicas == 3, "20 requests a second at 5 per replica: as many as it may have"
    assert made.lease is not None and made.lease["spec"]["holderIdentity"]


@pytest.mark.parametrize(("pools", "what"), [
    ({"a": {"kind": "kubernetes"}}, r"pools.a.scaling.deployment: expected the name"),
    ({"a": {"kind": "kubernetes", "deployment": "a"}, "b": {"kind": "virtual"}}, r"pools.b.scaling.kind: expected kubernetes"),
    ({"a": {"kind": "kubernetes", "deployment": "a"}, "b": {"kind": "kubernetes", "deployment": "b", "namespace": "x"}}, "the same namespace"),
])
def test_PL_709_deployments_that_make_no_sense_are_refused(pools: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        LiveFleet.of({"name": "kube", "pools": {name: {"engine": "vllm", "scaling": how} for name, how in pools.items()}})
