"""Plugins that register themselves with a live run, over real sockets: accepted, refused, called, forgotten; and all of it replays."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import planner_flights
import pytest
import trustme
from planner_flights import BEAT_S, SECRET, SECRETS, asked, block, code_of, pb, until

from windtunnel.errors import PlannerConfigError
from windtunnel.live.scaling.exec import free_port

door, fly, own_state, stub_of = planner_flights.door, planner_flights.fly, planner_flights.own_state, planner_flights.stub_of
ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "sims/plugins/scheduled_floor.py"


class Plugin:
    """The reference plugin as a process of its own."""

    def __init__(self, door: str, *options: str, name: str = "floor", floor: str = "chat=3@0-1000", listen: str | None = None) -> None:
        listen = listen or f"unix:{door.removeprefix('unix:')}.{name}"
        self.process = subprocess.Popen(
            [sys.executable, str(PLUGIN), "--listen", listen, "--floor", floor, "--register", door, "--token", "env:TEAM_SECRET", "--id", name,
             *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        if self.process.poll() is None:
            self.process.send_signal(number)
        out, error = self.process.communicate(timeout=20)
        return self.process.returncode, out + error


@pytest.fixture
def plugin() -> Iterator[Callable[..., Plugin]]:
    made: list[Plugin] = []

    def start(*args: Any, **more: Any) -> Plugin:
        made.append(Plugin(*args, **more))
        return made[-1]

    yield start
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate(timeout=20)


def test_PL_410_the_reference_plugin_registers_decides_and_takes_its_leave(fly: Any, door: str, plugin: Any) -> None:
    flight = fly(block(door, SECRETS, registry={"heartbeat_timeout_s": 3.0}))
    process = plugin(door)
    until(lambda: flight.component().get("constrained") == 3, "the plugin's floor decides")
    entry = flight.planner.roster.entries["floor"]
    assert (entry.subject, entry.self_registered, entry.transport) == ("team", True, "unix")
    beats = entry.last_heartbeat
    until(lambda: entry.last_heartbeat > beats, "a heartbeat")
    code, said = process.end()
    assert code == 0 and "stopped" in said
    until(lambda: not flight.known() and flight.component()["constrained"] == 1, "the floor is gone with the plugin")
    [left] = flight.notes("unregistered")
    assert left["data"]["reason"] == "stopped" and not flight.notes("evicted")
    names = [line["name"] for line in flight.land() if line.get("e") == "Commanded"]
    assert names[0] == "planner.register" and "planner.heartbeat" in names and "planner.unregister" in names
    text = "\n".join(map(str, flight.land()))
    assert SECRET not in text and ".sock" not in text, "neither secrets nor addresses are in the record"


def test_PL_406_a_killed_plugin_is_evicted_and_every_hold_has_a_reason(fly: Any, door: str, plugin: Any) -> None:
    flight = fly(block(door, SECRETS, registry={"heartbeat_timeout_s": BEAT_S}))
    process = plugin(door, "--hold-last")
    until(lambda: flight.component().get("constrained") == 3, "the plugin's floor decides")
    process.end(signal.SIGKILL)
    until(lambda: not flight.known(), "eviction")
    until(lambda: flight.component()["constrained"] == 1, "the held floor goes with it")
    evicted = flight.notes("evicted")[-1]  # a busy machine may have made it miss its beats before, too
    assert BEAT_S * 2 < evicted["data"]["silent_s"] < BEAT_S * 2 + 5.0
    failed = flight.notes("plugin_failed")
    assert failed and {f["data"]["error"] for f in failed} == {"connection"}
    assert all(row["plan_reasons"] for plan in flight.notes("plan") for row in plan["data"]["components"].values())


def test_PL_403_a_restarted_plugin_replaces_itself_and_a_second_one_does_not(fly: Any, door: str, plugin: Any, tmp_path: Path) -> None:
    flight = fly(block(door, SECRETS))
    first = plugin(door)
    until(flight.known, "registration")
    order = flight.planner.roster.entries["floor"].order
    code, said = plugin(door, listen=f"unix:{tmp_path}/second.sock").process.wait(20), ""
    assert code == 2 and flight.planner.roster.entries["floor"].order == order
    first.end(signal.SIGKILL)
    plugin(door, "--replace", floor="chat=2@0-1000")
    until(lambda: flight.component().get("constrained") == 2, "the new one decides")
    assert flight.planner.roster.entries["floor"].order == order + 1 and said == ""


def test_PL_402_refusals_come_in_order_and_change_nothing(fly: Any, door: str, stub_of: Any) -> None:
    flight = fly(block(door, SECRETS, registry={"protocol_max": "1.2"}))
    stub = stub_of(door)
    assert stub.Register(asked(plugin_id="taken")).accepted
    wrong = {"auth_token": "nobody", "protocol_version": "1", "plugin_id": "-", "observation_window_s": 0.15, "endpoint": "inproc://x"}
    reasons = []
    right = {"auth_token": SECRET, "protocol_version": "1.2", "plugin_id": "taken", "observation_window_s": 0.2, "endpoint": "unix:/x"}
    for name in wrong:
        reasons.append(stub.Register(asked(**wrong)).reason)
        wrong[name] = right[name]
    assert reasons[:4] == [
        "auth_failed", "protocol_version_malformed: 1", "invalid_field: plugin_id: expected [A-Za-z0-9][A-Za-z0-9_.-]{0,127}",
        "observation_window_misaligned: window=0.15 scale_interval=0.1"]
    assert reasons[4] == "duplicate_plugin_id: must Unregister before re-Register"
    for reg, start in (
        ({"endpoint": "inproc://x"}, "endpoint_rejected: "), ({"endpoint": "grpc://127.0.0.1:5"}, "endpoint_rejected: "),
        ({"endpoint": ""}, "endpoint_rejected: "), ({"endpoint": "unix:"}, "endpoint_rejected: "),
        ({"stage": 0}, "invalid_field: stage"), ({"stage": 9}, "invalid_field: stage"), ({"hold_policy": 7}, "invalid_field: hold_policy"),
        ({"timeout_s": float("nan")}, "invalid_field: timeout_s"), ({"plugin_id": "é"}, "invalid_field: plugin_id"),
        ({"plugin_id": "builtin_load_propose"}, "invalid_field: plugin_id"), ({"requires": ["no.path"]}, "invalid_field: requires"),
        ({"protocol_version": "1.10"}, "protocol_version_unsupported: requested=1.10, supported=[1.0,1.2]"), ({"auth_token": ""}, "auth_failed"),
    ):
        reply = stub.Register(asked(**reg))
        assert not reply.accepted and reply.reason.startswith(start), (reg, reply.reason)
    assert [e for e, found in flight.planner.roster.entries.items() if found.self_registered] == ["taken"]


def test_PL_405_strangers_learn_nothing_and_only_admins_list(fly: Any, door: str, stub_of: Any) -> None:
    fly(block(door, SECRETS))
    stub = stub_of(door)
    assert stub.Register(asked(execution_interval_s=0.2, priority=0)).accepted
    for method, request in ((stub.Heartbeat, pb.HeartbeatRequest), (stub.Unregister, pb.UnregisterRequest)):
        assert code_of(lambda m=method, r=request: m(r(auth_token="wrong", plugin_id="floor"))) == (grpc.StatusCode.UNAUTHENTICATED, "auth_failed")
        denied = [code_of(lambda m=method, r=request, t=token, i=plugin_id: m(r(auth_token=t, plugin_id=i)))
                  for token, plugin_id in ((SECRET, "nobody"), ("other", "floor"), (SECRET, "own"))]
        assert set(denied) == {(grpc.StatusCode.PERMISSION_DENIED, "permission_denied")}
    assert code_of(lambda: stub.ListPlugins(pb.ListRequest(auth_token=SECRET)))[0] is grpc.StatusCode.PERMISSION_DENIED
    assert code_of(lambda: stub.ListPlugins(pb.ListRequest()))[0] is grpc.StatusCode.UNAUTHENTICATED
    lines = {line.plugin_id: line for line in stub.ListPlugins(pb.ListRequest(auth_token="ops secret")).plugins}
    assert lines["floor"].transport == "unix" and lines["floor"].priority == 0 and lines["floor"].circuit == "closed"
    assert "own" in lines and not lines["floor"].HasField("cache_age_s")
    assert stub.Unregister(pb.UnregisterRequest(auth_token=SECRET, plugin_id="floor")).removed
    twice = code_of(lambda: stub.Unregister(pb.UnregisterRequest(auth_token=SECRET, plugin_id="floor")))
    assert twice == (grpc.StatusCode.PERMISSION_DENIED, "permission_denied")


def test_PL_403_a_malformed_message_is_an_invalid_argument(fly: Any, door: str) -> None:
    flight = fly(block(door, SECRETS))
    with grpc.insecure_channel(door) as channel:
        call = channel.unary_unary("/windtunnel.planner.v1.PlannerRegistry/Register")
        assert code_of(lambda: call(b"\xff\xff\xff"))[0] is grpc.StatusCode.INVALID_ARGUMENT
        unknown = channel.unary_unary("/windtunnel.planner.v1.PlannerRegistry/Nothing")
        assert code_of(lambda: unknown(b""))[0] is grpc.StatusCode.UNIMPLEMENTED
    flight.land()
    assert not [note for note in flight.notes("registered") if note["data"]["subject"]]


def test_PL_408_a_message_above_the_limit_is_refused(fly: Any, door: str, stub_of: Any) -> None:
    flight = fly(block(door, SECRETS, registry={"max_message_bytes": 2048}))
    assert code_of(lambda: stub_of(door).Register(asked(version="v" * 4096)))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert stub_of(door).Register(asked()).accepted and flight.known()


def test_PL_404_a_secret_that_was_replaced_is_good_no_more(fly: Any, door: str, stub_of: Any, tmp_path: Path) -> None:
    where = tmp_path / "secret"
    where.write_text("monday")
    flight = fly(block(door, {f"file:{where}": "team"}))
    stub = stub_of(door)
    assert stub.Register(asked(auth_token="monday")).accepted
    where.write_text("tuesday")
    assert code_of(lambda: stub.Heartbeat(pb.HeartbeatRequest(auth_token="monday", plugin_id="floor")))[0] is grpc.StatusCode.UNAUTHENTICATED
    assert stub.Heartbeat(pb.HeartbeatRequest(auth_token="tuesday", plugin_id="floor")).known
    where.unlink()
    assert stub.Register(asked(auth_token="tuesday", plugin_id="b")).reason == "auth_failed"
    assert flight.known()


def test_PL_404_wrong_secret_ends_the_plugin_with_the_reason(fly: Any, door: str, plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    flight = fly(block(door, SECRETS))
    monkeypatch.setenv("WRONG", "x")
    bad = plugin(door, "--token", "env:WRONG")
    old = plugin(door, "--protocol-version", "2.0", name="newer")
    for process, why in ((bad, "refused: auth_failed"), (old, "refused: protocol_version_unsupported: requested=2.0, supported=[1.0,1.0]")):
        assert process.process.wait(20) == 2 and why in process.end()[1]
    assert not flight.known() and not flight.known("newer")


def test_PL_407_the_door_opens_and_closes_with_the_run(fly: Any, door: str, stub_of: Any) -> None:
    flight = fly(block(door, SECRETS))
    assert stub_of(door).Register(asked()).accepted
    flight.land()
    assert code_of(lambda: stub_of(door).Heartbeat(pb.HeartbeatRequest(auth_token=SECRET, plugin_id="floor"), timeout=2))[0] \
        is grpc.StatusCode.UNAVAILABLE


def test_PL_408_an_address_that_is_taken_is_fatal(fly: Any, door: str) -> None:
    port = free_port()
    for data in (block(f"127.0.0.1:{port}", SECRETS, registry={"allow_insecure": True}), block(door, SECRETS)):
        first = fly(data)
        with pytest.raises(PlannerConfigError, match="cannot listen"):
            fly(data)
        assert not first.flight.progress.done


def test_PL_404_a_secret_that_is_not_set_is_fatal(fly: Any, door: str) -> None:
    with pytest.raises(PlannerConfigError, match="NOT_THERE"):
        fly(block(door, {"env:NOT_THERE": "team"}))


def test_PL_408_mutual_tls_names_the_subject(fly: Any, door: str, stub_of: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ca, port = trustme.CA(), free_port()
    made = {"server": ca.issue_cert("localhost"), "client": ca.issue_cert("plugin.example")}
    for name, cert in made.items():
        cert.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
        cert.cert_chain_pems[0].write_to_path(str(tmp_path / f"{name}.pem"))
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = {"ca": str(tmp_path / "ca.pem"), "cert": str(tmp_path / "server.pem"), "key": str(tmp_path / "server.key")}
    sources = [{"kind": "multi", "sources": [{"kind": "static_secret", "secrets": SECRETS}, {"kind": "mtls", "subjects": ["plugin.example"]}]}]
    flight = fly(block(f"localhost:{port}", SECRETS, registry={"tls": tls, "auth": {"sources": sources}}))
    root = (tmp_path / "ca.pem").read_bytes()
    own = grpc.ssl_channel_credentials(root, (tmp_path / "client.key").read_bytes(), (tmp_path / "client.pem").read_bytes())
    stub = stub_of(f"localhost:{port}", own)
    assert stub.Register(asked(auth_token="", endpoint="grpcs://localhost:5")).accepted
    assert flight.planner.roster.entries["floor"].subject == "plugin.example"
    assert flight.planner.roster.entries["floor"].transport == "grpcs"
    bare = stub_of(f"localhost:{port}", grpc.ssl_channel_credentials(root))
    assert code_of(lambda: bare.Register(asked(), timeout=5))[0] is grpc.StatusCode.UNAVAILABLE


def test_PL_404_anybody_on_this_machine_only_if_said_so_and_with_a_warning(fly: Any, door: str, stub_of: Any, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        flight = fly(block(door, SECRETS, registry={"auth": {"sources": [{"kind": "allow_unauthenticated"}]}}))
    assert "without authentication" in caplog.text
    assert stub_of(door).Register(asked(auth_token="")).accepted
    assert flight.planner.roster.entries["floor"].subject == "anonymous"


def test_PL_303_flapping_leaves_one_registration_and_a_log_that_replays(fly: Any, door: str, stub_of: Any) -> None:
    flight = fly(block(door, SECRETS, registry={"heartbeat_timeout_s": 1.0}))
    stub = stub_of(door)
    for i in range(40):
        assert stub.Register(asked(version=str(i))).accepted
        if i % 7 == 0:
            time.sleep(0.12)
        assert i == 39 or stub.Unregister(pb.UnregisterRequest(auth_token=SECRET, plugin_id="floor", reason="flap")).removed
    until(lambda: not flight.known(), "the silent one is evicted")
    assert len(flight.notes("registered")) >= 40 and len(flight.notes("unregistered")) == 39
