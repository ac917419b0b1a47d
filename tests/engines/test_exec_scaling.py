"""Real llama.cpp replicas come and go under load, 1 -> 2 -> 1, and no stream is broken."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from windtunnel.effects import Effect, ScaleTo, WakeAt
from windtunnel.events import Arrived, Event, PoolsObserved, ReplicaReady, ScaleAnswered, Woke
from windtunnel.lab.world_live import Live
from windtunnel.live.fleet import LiveFleet
from windtunnel.live.gate import Caps
from windtunnel.live.tiny_gguf import tiny_model
from windtunnel.policy.admission.limit import Fixed
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.control import Control
from windtunnel.policy.lane import Lane
from windtunnel.policy.param import BuildContext
from windtunnel.policy.queueing.fifo import FifoQueue
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.least import LeastOutstanding
from windtunnel.sources.arrivals import ArrivalSource
from windtunnel.sources.dist import Const

if os.environ.get("REQUIRE_REAL_LLAMA") != "1":
    pytest.importorskip("xllamacpp", reason="needs the extra engine-llamacpp")
    pytest.importorskip("gguf", reason="needs the extra engine-llamacpp")
pytestmark = pytest.mark.engine


class UpAndDown:
    """One replica; two once the first serves; one again a few seconds after both did."""

    events = frozenset({Arrived, Woke, ReplicaReady, ScaleAnswered, PoolsObserved})

    needs: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.ready: list[str] = []
        self.answers: list[tuple[str, str]] = []
        self.seen: list[dict[str, Any]] = []

    def start(self, now: float) -> Sequence[Effect]:
        return ()

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        if isinstance(event, ReplicaReady):
            self.ready.append(event.replica)
            if len(self.ready) == 1:
                return [ScaleTo(1, (("chat", 2),))]
            return [WakeAt(now + 3.0, "planner")]
        if isinstance(event, Woke) and event.key == "planner":
            return [ScaleTo(2, (("chat", 1),))]
        if isinstance(event, ScaleAnswered):
            self.answers.append((event.status, event.reason))
        if isinstance(event, PoolsObserved):
            self.seen.append(dict(event.pools["chat"]))
        return ()

    def waiting(self) -> int:
        return 0

    def view(self) -> Mapping[str, Any]:
        return {}


def test_PL_709_one_two_one_real_replicas_under_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = (sys.executable, "-m", "windtunnel.live.llamacpp_server", "--serve", "--port", "{port}", "--parallel", "2", "--ctx", "4096",
               "--threads", "1", "--model", str(tiny_model()), "--alias", "tiny", "--owned")
    fleet = LiveFleet.of({"name": "local", "pools": {"chat": {
        "engine": "llamacpp", "model": "tiny", "slots": 2,
        "scaling": {"kind": "exec", "command": list(command), "replicas": 1, "logs": str(tmp_path / "logs")}}}})
    planner = UpAndDown()
    admission = RequestAdmission(Fixed(8).build(BuildContext()))
    lane = Lane("chat", queue=FifoQueue(), admission=admission, router=LeastOutstanding(), cap=None)
    control = Control(lanes=(lane,), fleet=Fleet(), planner=planner)
    source = ArrivalSource(4.0, input_tokens=Const(32), output_tokens=Const(48), duration_s=12.0, rng=np.random.default_rng(3))
    world = Live(fleet, mode="armed", phrase="ARM local SCALING", scaling=True, caps=Caps(max_in_flight=16, max_replicas=2))
    run = world.run(control, source)
    requests, replicas = run.requests, run.replicas
    assert len(requests) > 25 and (requests.outcome == "success").all(), requests.groupby(["outcome", "reason"], observed=True).size()
    assert set(requests.replica) == {"chat-0", "chat-1"}
    assert planner.answers[:2] == [("accepted", ""), ("accepted", "")]
    assert planner.seen[-1]["expected"] == 1
    assert sorted(replicas.gone_reason.dropna()) == ["scaled_down"]
