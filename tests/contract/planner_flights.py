"""For tests: a live run with one fake engine and a planner whose registry is open; its log is replayed when it lands."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from windtunnel import ArrivalSource, Caps, FakeEngine, Live, LiveFleet, Run, default_control, replay
from windtunnel.lab import codec
from windtunnel.lab.planner_build import build_pipeline_planner
from windtunnel.lab.planner_config import read_planner
from windtunnel.live.fake_script import FakeScript
from windtunnel.live.plugins import planner_pb2, planner_pb2_grpc
from windtunnel.policy.control import Control
from windtunnel.policy.planning.contract import Accept, StageResponse
from windtunnel.sources.dist import Const

pb: Any = planner_pb2
SECRET = "correct horse"
BEAT_S = 0.4


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


def block(listen: str, secrets: dict[str, str], **more: Any) -> dict[str, Any]:
    registry = {"enabled": True, "listen": listen, "auth": {"sources": [{"kind": "static_secret", "secrets": secrets}],
                                                            "admin_subjects": ["ops"]},
                "heartbeat_timeout_s": 30.0, "missed_threshold": 2, **more.pop("registry", {})}
    return {"pools": {"agg": {"component": "chat"}}, "load": {"enabled": False}, "throughput": {"enabled": False},
            "scheduling": {"scale_interval_s": 0.1}, "plugins": {"in_process": [OWN]}, "registry": registry, **more}


class Content:
    """A proposer that is happy with what there is."""

    def propose(self, request: Any) -> StageResponse:
        return StageResponse(Accept())


OWN = {"module": __name__, "class": "Content", "plugin_id": "own", "stage": "propose"}


class Flight:
    """A live run with one fake engine, until `land`."""

    def __init__(self, data: dict[str, Any], engine: FakeEngine) -> None:
        self.data = data
        name = f"door-{time.monotonic_ns()}"
        self.fleet = LiveFleet.of({"name": name, "pools": {"chat": {"engine": "openai", "model": "fake", "urls": [engine.url], "slots": 4}}})
        self.world = Live(self.fleet, "armed", phrase=f"ARM {name}", caps=Caps(max_in_flight=64))
        self.made = self.control(frozenset(Live.wants))
        source = ArrivalSource(20.0, input_tokens=Const(16), output_tokens=Const(4), count=100_000, rng=5, model="fake")
        self.flight = self.world.start(self.made, source, name=name)
        self.run: Run | None = None

    def control(self, wants: frozenset[str]) -> Control:
        built = default_control(["chat"], wants=wants)
        planner = build_pipeline_planner(read_planner(self.data), self.fleet.pool_facts(), wants=wants)
        return Control(lanes=built.lanes, fleet=built.fleet, planner=planner, settings=built.settings, wants=wants)

    @property
    def planner(self) -> Any:
        return self.made.planner

    def known(self, plugin_id: str = "floor") -> bool:
        return plugin_id in self.planner.roster.entries

    def component(self) -> dict[str, Any]:
        last = self.planner.last
        return {} if last is None else last.components["chat"]

    def land(self) -> list[dict[str, Any]]:
        """Stop, replay the log into a fresh control, and give its lines."""
        if self.run is None:
            self.flight.stop()
            self.run = self.flight.result()
            agreed = replay(self.run, lambda header: self.control(frozenset(Live.wants)))
            assert agreed.control.planner.ticks == self.planner.ticks  # type: ignore[union-attr]
        log = self.run.tables.log
        return [codec.json.loads(line) for line in (log if isinstance(log, bytes) else log.read_bytes()).splitlines()]

    def notes(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.land() if line.get("f") == "Note" and line.get("stream") == "planner" and line["kind"] == kind]


@pytest.fixture
def fly() -> Iterator[Callable[[dict[str, Any]], Flight]]:
    flights: list[Flight] = []
    with FakeEngine(FakeScript(ttft_s=0.005, itl_s=0.001, slots=4)) as engine:
        def start(data: dict[str, Any]) -> Flight:
            flights.append(Flight(data, engine))
            return flights[-1]

        yield start
        for flight in flights:
            flight.flight.stop(cut=True)
            if flight.run is None:
                flight.flight.result()


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TEAM_SECRET", SECRET)
    monkeypatch.setenv("OTHER_SECRET", "other")
    monkeypatch.setenv("OPS_SECRET", "ops secret")
    return f"unix:{tmp_path}/door.sock"


SECRETS = {"env:TEAM_SECRET": "team", "env:OTHER_SECRET": "others", "env:OPS_SECRET": "ops"}


def until(holds: Callable[[], Any], what: str, timeout_s: float = 20.0) -> Any:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := holds():
            return found
        time.sleep(0.01)
    raise AssertionError(f"not within {timeout_s:g} s: {what}")


@pytest.fixture
def stub_of() -> Iterator[Callable[..., Any]]:
    channels = []

    def make(target: str, credentials: grpc.ChannelCredentials | None = None) -> Any:
        channels.append(grpc.insecure_channel(target) if credentials is None else grpc.secure_channel(target, credentials))
        return planner_pb2_grpc.PlannerRegistryStub(channels[-1])

    yield make
    for channel in channels:
        channel.close()


def asked(**more: Any) -> Any:
    given = {"auth_token": SECRET, "plugin_id": "floor", "stage": pb.STAGE_CONSTRAIN, "endpoint": "unix:/nobody.sock", "protocol_version": "1.0"}
    return pb.RegisterRequest(**{**given, **more})


def code_of(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()
