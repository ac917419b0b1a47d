"""Planner plugins over real sockets: the same answers as in process, the same errors, and no plaintext unless asked for."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from windtunnel.errors import (
    PlannerConfigError,
    PluginCallError,
    PluginConnectionError,
    PluginRaisedError,
    PluginSerializationError,
    PluginTimeoutError,
    PluginUnknownMethodError,
)
from windtunnel.live.plugins.auth import AnyOf, PeerCertificate, StaticSecrets, Unauthenticated, secret_of
from windtunnel.live.plugins.endpoint import Tls, check_endpoint
from windtunnel.live.plugins.grpc_client import GrpcPlugin
from windtunnel.live.plugins.plugin_server import start
from windtunnel.live.scaling.exec import free_port
from windtunnel.policy.planning.contract import (
    Accept,
    ComponentTarget,
    ObservationData,
    Override,
    OverrideType,
    PipelineContext,
    PredictionData,
    PredictResponse,
    Reject,
    ScalingProposal,
    Stage,
    StageRequest,
    StageResponse,
    TrafficMetrics,
)

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "sims" / "plugins"))

from scheduled_floor import ScheduledFloor, Window, window_of


def asked(tick_at: float = 5.0, replicas: int = 3) -> StageRequest:
    traffic = TrafficMetrics(5.0, 12.0, isl=0.1 + 0.2, osl=None)
    context = PipelineContext("t1", "d1", ObservationData(traffic), PredictionData(predicted_num_req=0.0),
                              ScalingProposal((ComponentTarget("chat", replicas),), "", "merged"))
    return StageRequest(context, Stage.CONSTRAIN, tick_at, tick_at + 0.25)


class Odd:
    """A plugin with every way to answer."""

    def predict(self, request: StageRequest) -> PredictResponse:
        traffic = request.ctx.observations.traffic  # type: ignore[union-attr]
        return PredictResponse(PredictionData(predicted_num_req=traffic.isl * 3, window_s=-0.0, source="odd"), "because", True)  # type: ignore[union-attr, operator]

    def propose(self, request: StageRequest) -> StageResponse:
        raise ValueError("boom")

    async def reconcile(self, request: StageRequest) -> StageResponse:
        await asyncio.sleep(30)
        return StageResponse()

    def constrain(self, request: StageRequest) -> Any:
        n = request.ctx.proposal.targets[0].replicas  # type: ignore[union-attr]
        return {1: StageResponse(), 2: StageResponse(Reject("veto")), 3: StageResponse(Accept(), True), 4: "nonsense"}[n]  # type: ignore[index]


def talk(plugin: Any, work: Callable[[GrpcPlugin], Awaitable[Any]], listen: str, endpoint: str, *, server: dict[str, Any] | None = None,
         client: dict[str, Any] | None = None) -> Any:
    async def main() -> Any:
        running = await start(plugin, listen, **(server or {}))
        caller = GrpcPlugin(endpoint, **(client or {}))
        try:
            return await asyncio.wait_for(work(caller), 20)
        finally:
            await caller.aclose()
            await running.stop(0.1)

    return asyncio.run(main())


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_PL_409_the_same_answers_in_process_and_over_grpc(transport: str, tmp_path: Path) -> None:
    port = free_port()
    listen, endpoint = (f"unix:{tmp_path}/p.sock",) * 2 if transport == "unix" else (f"127.0.0.1:{port}", f"grpc://127.0.0.1:{port}")
    how = {"allow_insecure": transport == "tcp"}
    plugin = ScheduledFloor([Window("chat", 4, 0.0, 10.0), Window("chat", 2, 0.0, 10.0), Window("other", 1, 20.0, 30.0)])

    async def work(remote: GrpcPlugin) -> list[Any]:
        return [await remote.call(Stage.CONSTRAIN, asked(t), 5.0) for t in (0.0, 9.999, 10.0, 25.0)]

    remote = talk(plugin, work, listen, endpoint, server=how, client=how)
    assert remote == [plugin.constrain(asked(t)) for t in (0.0, 9.999, 10.0, 25.0)]
    assert remote[0] == StageResponse(Override((ComponentTarget("chat", 4, OverrideType.AT_LEAST),), "scheduled_floor"))
    assert remote[2] == StageResponse(Accept())


def test_PL_409_floats_and_payloads_survive(tmp_path: Path) -> None:
    async def work(remote: GrpcPlugin) -> None:
        predicted = await remote.call(Stage.PREDICT, asked(), 5.0)
        assert predicted == Odd().predict(asked())
        assert isinstance(predicted, PredictResponse) and str(predicted.predictions.window_s) == "-0.0"  # type: ignore[union-attr]
        for n in (1, 2, 3):
            assert await remote.call(Stage.CONSTRAIN, asked(replicas=n), 5.0) == Odd().constrain(asked(replicas=n))

    talk(Odd(), work, f"unix:{tmp_path}/p.sock", f"unix:{tmp_path}/p.sock")


@pytest.mark.parametrize(("stage", "replicas", "error"), [
    (Stage.PROPOSE, 3, PluginRaisedError), (Stage.RECONCILE, 3, PluginTimeoutError), (Stage.CONSTRAIN, 4, PluginSerializationError),
])
def test_PL_409_error_classes(stage: Stage, replicas: int, error: type[PluginCallError], tmp_path: Path) -> None:
    async def work(remote: GrpcPlugin) -> None:
        with pytest.raises(error) as caught:
            await remote.call(stage, asked(replicas=replicas), 0.3)
        assert caught.value.kind == error.kind

    talk(Odd(), work, f"unix:{tmp_path}/p.sock", f"unix:{tmp_path}/p.sock")


def test_PL_409_a_stage_that_is_not_there_and_a_plugin_that_is_gone(tmp_path: Path) -> None:
    async def work(remote: GrpcPlugin) -> None:
        with pytest.raises(PluginUnknownMethodError):
            await remote.call(Stage.PROPOSE, asked(), 5.0)
        gone = GrpcPlugin(f"unix:{tmp_path}/nobody.sock")
        with pytest.raises(PluginConnectionError):
            await gone.call(Stage.CONSTRAIN, asked(), 2.0)
        await gone.aclose()

    talk(ScheduledFloor([]), work, f"unix:{tmp_path}/p.sock", f"unix:{tmp_path}/p.sock")


def test_PL_107_bootstrap_and_reset(tmp_path: Path) -> None:
    heard: list[Any] = []

    class Learns(ScheduledFloor):
        def bootstrap(self, history: Any, window_s: float, hints: Any) -> None:
            heard.append((list(history), window_s, hints))

        def reset(self, reason: str) -> None:
            raise RuntimeError("cannot")

    async def work(remote: GrpcPlugin) -> None:
        history = [TrafficMetrics(5.0, 1.0), TrafficMetrics(5.0, 2.0, isl=7.0)]
        assert await remote.bootstrap(history, 5.0, {"model": "é"})
        assert heard == [(history, 5.0, {"model": "é"})]
        assert not await remote.reset("config")

    talk(Learns([]), work, f"unix:{tmp_path}/p.sock", f"unix:{tmp_path}/p.sock")


def test_PL_408_a_unix_socket_is_for_its_owner_alone(tmp_path: Path) -> None:
    async def work(remote: GrpcPlugin) -> int:
        await remote.call(Stage.CONSTRAIN, asked(), 5.0)
        return stat.S_IMODE((tmp_path / "p.sock").stat().st_mode)

    assert talk(ScheduledFloor([]), work, f"unix:{tmp_path}/p.sock", f"unix:{tmp_path}/p.sock") == 0o600


def test_PL_404_a_token_is_asked_for(tmp_path: Path) -> None:
    async def with_token(remote: GrpcPlugin) -> Any:
        return await remote.call(Stage.CONSTRAIN, asked(), 5.0)

    where = f"unix:{tmp_path}/p.sock"
    assert talk(ScheduledFloor([]), with_token, where, where, server={"token": "s3"}, client={"token": "s3"}) == StageResponse(Accept())
    with pytest.raises(PluginCallError, match="auth_failed"):
        talk(ScheduledFloor([]), with_token, where, where, server={"token": "s3"}, client={"token": "wrong"})


def test_PL_408_tls_and_mutual_tls(tmp_path: Path) -> None:
    ca, other = trustme.CA(), trustme.CA()
    paths = {}
    for name, made in (("server", ca.issue_cert("localhost")), ("client", ca.issue_cert("planner@example")), ("stranger", other.issue_cert("x"))):
        made.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
        made.cert_chain_pems[0].write_to_path(str(tmp_path / f"{name}.pem"))
        paths[name] = (str(tmp_path / f"{name}.pem"), str(tmp_path / f"{name}.key"))
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    root, port = str(tmp_path / "ca.pem"), free_port()

    async def work(remote: GrpcPlugin) -> Any:
        return await remote.call(Stage.CONSTRAIN, asked(), 5.0)

    def call(client: Tls | None, server: Tls) -> Any:
        return talk(ScheduledFloor([]), work, f"localhost:{port}", f"grpcs://localhost:{port}", server={"tls": server}, client={"tls": client})

    assert call(Tls(root), Tls(None, *paths["server"])) == StageResponse(Accept())
    assert call(Tls(root, *paths["client"]), Tls(root, *paths["server"])) == StageResponse(Accept())
    for bad in (Tls(root), Tls(root, *paths["stranger"])):
        with pytest.raises(PluginConnectionError):
            call(bad, Tls(root, *paths["server"]))
    with pytest.raises(PluginConnectionError):
        call(None, Tls(None, *paths["server"]))


@pytest.mark.parametrize("endpoint", ["grpc://127.0.0.1:5", "http://x", "127.0.0.1:5", ""])
def test_PL_408_plaintext_and_strange_schemes_are_refused(endpoint: str) -> None:
    with pytest.raises(PlannerConfigError):
        check_endpoint(endpoint, allow_insecure=False)
    with pytest.raises(PlannerConfigError):
        GrpcPlugin(endpoint)


@pytest.mark.parametrize(("listen", "how"), [
    ("127.0.0.1:0", {"allow_insecure": True}), ("127.0.0.1:7654", {}), ("127.0.0.1:7654", {"tls": Tls()}),
    ("127.0.0.1:7654", {"tls": Tls(None, "/no/such.pem", "/no/such.key")}), ("unix:/no/such/folder/p.sock", {}),
])
def test_PL_408_bad_listeners_are_fatal(listen: str, how: dict[str, Any]) -> None:
    with pytest.raises(PlannerConfigError):
        asyncio.run(start(ScheduledFloor([]), listen, **how))


def test_PL_410_the_reference_plugin_as_a_process_of_its_own(tmp_path: Path) -> None:
    socket = tmp_path / "floor.sock"
    command = [sys.executable, str(ROOT / "sims/plugins/scheduled_floor.py"), "--listen", f"unix:{socket}", "--floor", "chat=4@10-20"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    try:
        assert process.stdout is not None and "ScheduledFloor at unix:" in process.stdout.readline()

        async def main() -> list[Any]:
            remote = GrpcPlugin(f"unix:{socket}")
            try:
                answers = [await remote.call(Stage.CONSTRAIN, asked(t), 5.0) for t in (5.0, 15.0)]
                process.send_signal(signal.SIGKILL)
                process.wait(5)
                with pytest.raises(PluginConnectionError):
                    await remote.call(Stage.CONSTRAIN, asked(15.0), 2.0)
                return answers
            finally:
                await remote.aclose()

        plugin = ScheduledFloor([window_of("chat=4@10-20")])
        assert asyncio.run(main()) == [plugin.constrain(asked(5.0)), plugin.constrain(asked(15.0))]
    finally:
        process.kill()
        process.wait(5)


def test_PL_410_windows_come_back_and_bad_ones_are_refused() -> None:
    daily = window_of("chat=2@3600-7200/86400")
    assert [daily.holds(t) for t in (0.0, 3600.0, 7200.0, 86400.0 + 3601)] == [False, True, False, True]
    with pytest.raises(ValueError, match="start_s"):
        Window("chat", 1, 5.0, 5.0)
    with pytest.raises(Exception, match="expected NAME"):
        window_of("chat:4")


def test_PL_404_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = StaticSecrets({"abc": "team-a", "abcd": "team-b"})
    assert [secrets.subject(t, ()) for t in ("abc", "abcd", "ab", "", "Abc")] == ["team-a", "team-b", None, None, None]
    assert "abc" not in repr(secrets)
    for bad in ({}, {"": "x"}, {"s3cret": ""}):
        with pytest.raises(PlannerConfigError) as caught:
            StaticSecrets(bad)
        assert "s3cret" not in str(caught.value)
    monkeypatch.setenv("A_SECRET", "v")
    (tmp_path / "s").write_text("w\n")
    assert secret_of("env:A_SECRET") == "v" and secret_of(f"file:{tmp_path / 's'}") == "w"
    for where in ("plain", "env:NOT_SET", "file:/no/such"):
        with pytest.raises(PlannerConfigError):
            secret_of(where)


def test_PL_404_several_sources_and_nothing_falls_back() -> None:
    both = AnyOf([StaticSecrets({"abc": "a"}), PeerCertificate(["planner@example"])])
    assert both.subject("abc", ()) == "a" and both.subject("", ("planner@example",)) == "planner@example"
    assert both.subject("", ("other",)) is None
    with pytest.raises(PlannerConfigError):
        AnyOf([])
    for listen in ("0.0.0.0:5", "10.0.0.1:5"):
        with pytest.raises(PlannerConfigError):
            Unauthenticated(listen)
    assert Unauthenticated("unix:/tmp/x").subject("", ()) == "anonymous"
    assert Unauthenticated("127.0.0.1:5").subject("", ()) == "anonymous"


def test_a_call_over_a_unix_socket_is_quick(tmp_path: Path) -> None:
    async def work(remote: GrpcPlugin) -> float:
        await remote.call(Stage.CONSTRAIN, asked(), 5.0)
        begun = time.perf_counter()
        for _ in range(50):
            await remote.call(Stage.CONSTRAIN, asked(), 5.0)
        return (time.perf_counter() - begun) / 50

    where = f"unix:{tmp_path}/p.sock"
    assert talk(ScheduledFloor([]), work, where, where) < 0.05, "something waits that should not"
