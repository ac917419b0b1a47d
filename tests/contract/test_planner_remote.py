"""Plugins elsewhere that behave badly, asked by a live run over real sockets: every fault has its name, and the run goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import planner_flights
import pytest
from planner_flights import OWN, SECRET, SECRETS, Flight, asked, block, pb, until

from windtunnel.errors import PlannerConfigError
from windtunnel.lab.planner_config import read_planner
from windtunnel.live.scaling.exec import free_port

door, fly, own_state, stub_of = planner_flights.door, planner_flights.fly, planner_flights.own_state, planner_flights.stub_of
Answering = Callable[[bytes, Any], bytes]


def override(replicas: int, kind: int = pb.OVERRIDE_TYPE_AT_LEAST) -> bytes:
    target = pb.ComponentTarget(component="chat", replicas=replicas, type=kind)
    return bytes(pb.StageResponse(override=pb.Override(targets=[target])).SerializeToString())


class Server:
    """A plugin's server that answers with any bytes. answer may be replaced while it runs."""

    def __init__(self, listen: str, answer: Answering) -> None:
        self.answer, self.calls, self.metadata = answer, 0, []
        self.entered = threading.Event()

        def handle(data: bytes, context: Any) -> bytes:
            self.calls += 1
            self.metadata.append(dict(context.invocation_metadata()))
            self.entered.set()
            return self.answer(data, context)

        stages = {name: grpc.unary_unary_rpc_method_handler(handle) for name in ("Predict", "Propose", "Reconcile", "Constrain")}
        self.server = grpc.server(ThreadPoolExecutor(4))
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("windtunnel.planner.v1.PlannerPlugin", stages),))
        assert self.server.add_insecure_port(listen)
        self.server.start()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., tuple[Server, str]]]:
    servers: list[Server] = []

    def start(answer: Answering, where: str | None = None) -> tuple[Server, str]:
        endpoint = where or f"unix:{tmp_path}/plugin-{len(servers)}.sock"
        servers.append(Server(endpoint.removeprefix("grpc://"), answer))
        return servers[-1], endpoint

    yield start
    for server in servers:
        server.server.stop(0)


def hang(seconds: float) -> Answering:
    def answer(data: bytes, context: Any) -> bytes:
        end = time.monotonic() + seconds
        while time.monotonic() < end and context.is_active():
            time.sleep(0.005)
        return override(3)
    return answer


def failures(flight: Flight, plugin_id: str = "floor") -> set[str]:
    return {note["data"]["error"] for note in flight.notes("plugin_failed") if note["ids"][0] == plugin_id}


def abort(data: bytes, context: Any) -> bytes:
    context.abort(grpc.StatusCode.UNKNOWN, "boom")
    raise AssertionError("abort raises")


NAN = bytes(pb.PredictResponse(predictions=pb.PredictionData(predicted_num_req=float("nan"))).SerializeToString())
NEGATIVE = bytes(pb.PredictResponse(predictions=pb.PredictionData(predicted_num_req=-1.0)).SerializeToString())


@pytest.mark.parametrize(("stage", "answer", "error"), [
    (pb.STAGE_CONSTRAIN, hang(5.0), "timeout"), (pb.STAGE_CONSTRAIN, lambda d, c: b"\xff\xffgarbage", "serialization"),
    (pb.STAGE_PREDICT, lambda d, c: NAN, "serialization"), (pb.STAGE_PREDICT, lambda d, c: NEGATIVE, "serialization"),
    (pb.STAGE_PROPOSE, lambda d, c: override(3, 0), "serialization"), (pb.STAGE_PROPOSE, lambda d, c: override(3, 9), "serialization"),
    (pb.STAGE_RECONCILE, abort, "raised"),
], ids=["hang", "garbage", "nan", "negative", "unspecified", "unknown-type", "raised"])
def test_PL_409_a_bad_answer_has_its_name_and_moves_nothing(fly: Any, door: str, stub_of: Any, serve: Any, stage: int, answer: Answering,
                                                            error: str) -> None:
    flight = fly(block(door, SECRETS))
    _, endpoint = serve(answer)
    assert stub_of(door).Register(asked(stage=stage, endpoint=endpoint, timeout_s=0.05 if error == "timeout" else 10.0, failure_threshold=2,
                                        cooldown_s=60.0)).accepted
    until(lambda: flight.planner.roster.entries["floor"].breaker.last == "open", "the circuit opens")
    ticks = flight.planner.ticks
    until(lambda: flight.planner.ticks > ticks + 1, "the planner goes on")
    assert flight.component()["constrained"] == 1 and flight.planner.last.action == "apply"
    flight.land()
    assert failures(flight) == {error}
    assert flight.notes("circuit_opened")[0]["data"] == {"failures": 2, "tick": flight.notes("circuit_opened")[0]["data"]["tick"]}
    assert all(row["plan_reasons"] for plan in flight.notes("plan") for row in plan["data"]["components"].values())


def test_PL_207_negative_counts_are_zero_and_the_floor_of_the_pool_holds(fly: Any, door: str, stub_of: Any, serve: Any) -> None:
    flight = fly(block(door, SECRETS))
    _, endpoint = serve(lambda d, c: override(-2**31, pb.OVERRIDE_TYPE_AT_MOST))
    assert stub_of(door).Register(asked(endpoint=endpoint)).accepted
    until(lambda: "bounds_conflict" in flight.component().get("plan_reasons", ()), "its ceiling meets the floor of the built-in ones")
    assert flight.component()["constrained"] == flight.component()["planned"] == 1
    assert flight.notes("negative_clamped") and not failures(flight)


def test_PL_303_who_registers_during_a_tick_joins_the_next_one(fly: Any, door: str, stub_of: Any, serve: Any) -> None:
    flight = fly(block(door, SECRETS, scheduling={"scale_interval_s": 0.1, "tick_max_duration_s": 5.0}))
    stub = stub_of(door)
    slow, first = serve(hang(0.4))
    _, second = serve(lambda d, c: override(2))
    assert stub.Register(asked(plugin_id="slow", stage=pb.STAGE_PROPOSE, endpoint=first, timeout_s=2.0)).accepted
    assert slow.entered.wait(20)
    assert stub.Register(asked(plugin_id="late", endpoint=second)).accepted
    until(lambda: flight.planner.roster.entries["late"].calls, "it is asked")
    flight.land()
    [joined] = [note["data"]["tick"] for note in flight.notes("registered") if note["ids"][0] == "late"]
    called = [note["data"]["tick"] for note in flight.notes("plugin_called") if note["ids"][0] == "late"]
    assert joined >= 1 and min(called) > joined
    ended = next(i for i, line in enumerate(flight.land()) if line.get("kind") == "tick_finished" and line["data"]["tick"] == joined)
    begun = next(i for i, line in enumerate(flight.land()) if line.get("kind") == "registered" and line["ids"][0] == "late")
    assert begun < ended, "it registered while the tick was under way"
    assert flight.planner.missed > 0, "ticks do not overlap"


def test_PL_303_an_answer_of_one_that_left_meanwhile_is_dropped(fly: Any, door: str, stub_of: Any, serve: Any) -> None:
    flight = fly(block(door, SECRETS))
    stub = stub_of(door)
    slow, endpoint = serve(hang(3.0))
    assert stub.Register(asked(endpoint=endpoint, timeout_s=4.0)).accepted
    assert slow.entered.wait(20)
    begun = time.monotonic()
    assert stub.Unregister(pb.UnregisterRequest(auth_token=SECRET, plugin_id="floor", reason="bye")).removed
    ticks = flight.planner.ticks
    until(lambda: flight.planner.ticks > ticks + 1, "the tick ends when the connection does")
    assert time.monotonic() - begun < 2.5
    [dropped] = flight.notes("answer_discarded")
    assert dropped["ids"][0] == "floor" and not failures(flight)


def test_PL_303_the_same_id_anew_during_a_call_is_another_plugin(fly: Any, door: str, stub_of: Any, serve: Any) -> None:
    flight = fly(block(door, SECRETS))
    stub = stub_of(door)
    slow, endpoint = serve(hang(1.0))
    _, fresh = serve(lambda d, c: override(2))
    assert stub.Register(asked(endpoint=endpoint, timeout_s=4.0)).accepted
    assert slow.entered.wait(20)
    assert stub.Unregister(pb.UnregisterRequest(auth_token=SECRET, plugin_id="floor")).removed
    assert stub.Register(asked(endpoint=fresh)).accepted
    until(lambda: flight.component().get("constrained") == 2, "the new one's floor")
    flight.land()
    assert len(flight.notes("answer_discarded")) == 1 and 3 not in {p["data"]["components"]["chat"]["constrained"] for p in flight.notes("plan")}


def test_PL_311_one_that_vanishes_during_a_call_costs_one_failure(fly: Any, door: str, stub_of: Any, serve: Any) -> None:
    flight = fly(block(door, SECRETS))
    server, endpoint = serve(hang(20.0))
    assert stub_of(door).Register(asked(endpoint=endpoint, timeout_s=10.0, failure_threshold=2, cooldown_s=60.0)).accepted
    assert server.entered.wait(20)
    server.server.stop(0)
    until(lambda: flight.planner.roster.entries["floor"].breaker.last == "open", "the circuit opens")
    flight.land()
    assert failures(flight) == {"connection"}


def test_PL_309_a_held_floor_bridges_a_hang_until_it_is_too_old(fly: Any, door: str, stub_of: Any, serve: Any) -> None:
    flight = fly(block(door, SECRETS))
    server, endpoint = serve(lambda d, c: override(4))
    request = asked(endpoint=endpoint, timeout_s=0.05, failure_threshold=1000, hold_policy=pb.HOLD_POLICY_HOLD_LAST, hold_max_age_s=1.0)
    assert stub_of(door).Register(request).accepted
    until(lambda: flight.component().get("constrained") == 4, "the floor decides")
    server.answer = hang(5.0)
    until(lambda: "floor" in flight.planner.last.held_over, "the floor is held over")
    assert flight.component()["constrained"] == 4
    until(lambda: flight.component()["constrained"] == 1, "it expires")
    [expired] = flight.notes("hold_expired")
    assert 1.0 < expired["data"]["age_s"] < 2.0 and failures(flight) == {"timeout"}


def static(door: str, endpoint: str, secret: Path | None = None, **more: Any) -> dict[str, Any]:
    external = {"plugin_id": "floor", "stage": "constrain", "endpoint": endpoint, "timeout_s": 0.5, "failure_threshold": 1000, **more}
    if secret is not None:
        external["token"] = f"file:{secret}"
    return block(door, SECRETS, plugins={"in_process": [OWN], "external": [external]})


def test_PL_407_a_configured_plugin_is_called_with_its_token_once_it_is_there(fly: Any, door: str, serve: Any, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("letmein\n")
    endpoint = f"unix:{tmp_path}/later.sock"
    flight = fly(static(door, endpoint, secret))
    until(lambda: flight.planner.last is not None and ("floor", "connection") in flight.planner.last.failed, "nobody is there yet")
    server, _ = serve(lambda d, c: override(3), endpoint)
    until(lambda: flight.component().get("constrained") == 3, "it is found")
    assert server.metadata[-1]["authorization"] == "Bearer letmein"
    flight.planner.roster.sweep(1e9)
    assert flight.known(), "a configured plugin beats no heart and is not swept"
    assert "letmein" not in "\n".join(map(str, flight.land()))


def test_PL_407_a_configured_plugin_without_its_secret_is_not_fatal(fly: Any, door: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flight = fly(static(door, f"unix:{tmp_path}/x.sock", tmp_path / "no-such-file"))
    until(lambda: flight.planner.ticks > 3, "the run goes on")
    assert "tried again in 30 s" in caplog.text
    assert failures(flight) == {"connection"}


def test_PL_408_plaintext_over_tcp_only_if_allowed(fly: Any, door: str, serve: Any) -> None:
    endpoint = f"grpc://127.0.0.1:{free_port()}"
    serve(lambda d, c: override(3), endpoint)
    flight = fly({**static(door, endpoint)})
    until(lambda: flight.planner.ticks > 3, "the run goes on")
    assert flight.component()["constrained"] == 1 and failures(flight) == {"connection"}
    data = static(door, endpoint)
    data["registry"]["allow_insecure_grpc"] = True
    flight = fly(data)
    until(lambda: flight.component().get("constrained") == 3, "the floor decides")


@pytest.mark.parametrize(("change", "path"), [
    ({"listen": "127.0.0.1:5"}, "planner.registry.tls"), ({"listen": "127.0.0.1:0", "allow_insecure": True}, "planner.registry.listen"),
    ({"listen": "nowhere", "allow_insecure": True}, "planner.registry.listen"), ({"protocol_min": "2.0"}, "planner.registry.protocol_min"),
    ({"auth": {"sources": [{"kind": "static_secret", "secrets": {"hunter2": "me"}}]}}, "planner.registry.auth.sources.0.secrets"),
    ({"auth": {"sources": [{"kind": "magic"}]}}, "planner.registry.auth.sources.0"),
    ({"auth": {"sources": [{"kind": "mtls"}]}}, "planner.registry.auth.sources.0"),
    ({"auth": {"sources": [{"kind": "multi", "sources": []}]}}, "planner.registry.auth.sources.0.multi.sources"),
    ({"auth": {"sources": [{"kind": "allow_unauthenticated"}]}, "listen": "10.0.0.1:5", "allow_insecure": True}, "planner.registry.auth.sources.0"),
    ({"tls": {"certificate": "x"}}, "planner.registry.tls.certificate"), ({"listen": "h:5", "tls": {"cert": "x"}}, "planner.registry.tls"),
])
def test_PL_903_the_registry_block_is_refused_with_its_path(change: dict[str, Any], path: str) -> None:
    with pytest.raises(PlannerConfigError) as caught:
        read_planner(block("unix:/tmp/x.sock", SECRETS, registry=change))
    assert caught.value.message.startswith(path), caught.value.message
    assert "hunter2" not in str(caught.value)
