"""Connectors that own their replicas: plans, drains, deaths; real child processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from windtunnel.effects import Drain, ScaleTo
from windtunnel.errors import ArmRefusedError, ConfigValueError
from windtunnel.lab.recorder import Recorder
from windtunnel.live.driver import LiveDriver
from windtunnel.live.fleet import Endpoint, LiveFleet
from windtunnel.live.gate import Caps
from windtunnel.live.scaling import managed
from windtunnel.live.scaling.exec import ExecLauncher
from windtunnel.live.scaling.managed import ManagedScaler
from windtunnel.live.scaling.scaler import NoScaler, ScaleReply
from windtunnel.live.scaling.virtual import VirtualLauncher
from windtunnel.policy.presets import default_control
from windtunnel.sources.arrivals import ArrivalSource
from windtunnel.sources.dist import Const

SLEEPER = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_DFL); time.sleep(600)", "{port}"]
DEAF = [sys.executable, "-c", "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); "
        "time.sleep(600)", "{port}"]


class Roll:
    """What a live world keeps of replicas, without a world."""

    def __init__(self) -> None:
        self.here: list[str] = []
        self.busy: dict[str, int] = {}
        self.told: list[tuple[str, str]] = []
        self.unready: set[str] = set()

    def add(self, endpoint: Endpoint) -> None:
        self.here.append(endpoint.name)
        self.told.append(("add", endpoint.name))

    def notice(self, name: str, reason: str, timeout_s: float) -> None:
        self.told.append((f"notice {reason}", name))

    def remove(self, name: str, reason: str) -> None:
        self.here.remove(name)
        self.told.append((f"remove {reason}", name))

    def in_flight(self, name: str) -> int:
        return self.busy.get(name, 0)

    def serves(self, name: str) -> bool:
        return name in self.here and name not in self.unready


def on_loop(work: Callable[[ManagedScaler, Roll, VirtualLauncher], Awaitable[None]], drain_timeout_s: float = 120.0) -> Roll:
    async def main() -> Roll:
        roll, launcher = Roll(), VirtualLauncher("chat")
        scaler = ManagedScaler({"chat": launcher}, roll, drain_timeout_s=drain_timeout_s)
        await asyncio.wait_for(work(scaler, roll, launcher), 20)
        await scaler.aclose()
        assert await NoScaler().observe() == {}
        return roll

    return asyncio.run(main())


async def until(true: Callable[[], bool], within_s: float = 5.0) -> None:
    limit = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < limit, "it did not come true in time"
        await asyncio.sleep(0.02)


def test_PL_709_plans_are_absolute_idempotent_and_superseded() -> None:
    async def work(scaler: ManagedScaler, roll: Roll, launcher: VirtualLauncher) -> None:
        assert await scaler.apply(ScaleTo(3, (("chat", 2),))) == ScaleReply("accepted")
        assert await scaler.apply(ScaleTo(4, (("chat", 2),))) == ScaleReply("unchanged")
        assert (await scaler.apply(ScaleTo(2, (("chat", 9),)))).status == "superseded"
        assert (await scaler.apply(ScaleTo(5, (("other", 1),)))).status == "refused"
        count = (await scaler.observe())["chat"]
        assert (count.ready, count.starting, count.draining, count.expected) == (2, 0, 0, 2)
        assert roll.here == ["chat-0", "chat-1"]

    on_loop(work)


def test_PL_708_starting_first_then_least_busy_and_only_when_empty() -> None:
    async def work(scaler: ManagedScaler, roll: Roll, launcher: VirtualLauncher) -> None:
        await scaler.apply(ScaleTo(1, (("chat", 3),)))
        roll.unready.add("chat-1")
        roll.busy.update({"chat-0": 2, "chat-2": 1})
        await scaler.apply(ScaleTo(2, (("chat", 2),)))
        await until(lambda: "chat-1" not in roll.here)
        await scaler.apply(ScaleTo(3, (("chat", 1),)))
        assert roll.told[-1] == ("notice scaled_down", "chat-2")
        await asyncio.sleep(0.3)
        assert "chat-2" in roll.here and (await scaler.observe())["chat"].draining == 1
        roll.busy["chat-2"] = 0
        await until(lambda: roll.here == ["chat-0"])
        assert roll.told[-1] == ("remove scaled_down", "chat-2")

    on_loop(work)


def test_PL_708_what_remains_after_the_drain_time_is_cut() -> None:
    async def work(scaler: ManagedScaler, roll: Roll, launcher: VirtualLauncher) -> None:
        await scaler.apply(ScaleTo(1, (("chat", 1),)))
        roll.busy["chat-0"] = 5
        await scaler.apply(ScaleTo(2, (("chat", 0),)))
        await until(lambda: not roll.here)
        assert roll.told[-1] == ("remove drain_timeout", "chat-0")

    on_loop(work, drain_timeout_s=0.2)


def test_one_replica_can_be_drained_and_brought_back() -> None:
    async def work(scaler: ManagedScaler, roll: Roll, launcher: VirtualLauncher) -> None:
        await scaler.apply(ScaleTo(1, (("chat", 2),)))
        roll.busy["chat-1"] = 1
        await scaler.drain(Drain("chat-1", None, "maintenance"))
        await scaler.drain(Drain("chat-1", None, "", True))
        await scaler.drain(Drain("nobody"))
        roll.busy["chat-1"] = 0
        await asyncio.sleep(0.3)
        assert "chat-1" in roll.here

    on_loop(work)


def test_a_replica_that_dies_is_replaced_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(managed, "RETRY_S", 0.3)

    async def work(scaler: ManagedScaler, roll: Roll, launcher: VirtualLauncher) -> None:
        scaler._pause_s["chat"] = 0.3
        await scaler.apply(ScaleTo(1, (("chat", 1),)))
        launcher.kill("chat-0")
        await until(lambda: ("remove crash", "chat-0") in roll.told)
        assert roll.here == []
        await until(lambda: roll.here == ["chat-1"])

    on_loop(work)


@pytest.mark.parametrize(("command", "sign"), [(SLEEPER, signal.SIGTERM), (DEAF, signal.SIGKILL)])
def test_PL_709_exec_ends_its_children_gently_then_not(command: list[str], sign: int, tmp_path: Path) -> None:
    async def main() -> None:
        launcher = ExecLauncher("chat", command, engine="llamacpp", kill_grace_s=0.5, logs=tmp_path)
        endpoint = launcher.launch("chat-0", 0)
        assert endpoint.url.startswith("http://127.0.0.1:") and "{" not in endpoint.url
        child = launcher._children["chat-0"]
        if sign == signal.SIGKILL:
            await until(lambda: "deaf" in launcher.log_tail("chat-0"))
        assert launcher.alive("chat-0") and os.getpgid(child.pid) == child.pid
        await launcher.end("chat-0")
        await launcher.end("chat-0")
        assert child.returncode == -sign and not launcher.alive("chat-0")

    asyncio.run(main())


@pytest.mark.parametrize("bad", [[], "engine --port 80", ["engine"]])
def test_exec_refuses_a_command_without_a_port(bad: object) -> None:
    with pytest.raises(ConfigValueError, match="port"):
        ExecLauncher("chat", bad, engine="llamacpp")  # type: ignore[arg-type]


def fleet(**scaling: object) -> LiveFleet:
    return LiveFleet.of({"name": "f", "pools": {"chat": {"engine": "llamacpp", "scaling": scaling}}})


def test_a_pool_has_addresses_or_a_connector() -> None:
    with pytest.raises(ConfigValueError, match="either"):
        LiveFleet.of({"name": "f", "pools": {"chat": {"engine": "mock", "urls": ["mock://a"], "scaling": {"kind": "virtual"}}}})
    with pytest.raises(ConfigValueError, match="port"):
        fleet(kind="exec", command="engine")


def test_engines_are_started_only_when_armed_with_scaling() -> None:
    engines = fleet(kind="exec", command="engine --port {port}")
    with pytest.raises(ArmRefusedError, match="connector"):
        LiveDriver(default_control(["chat"]), (), engines, Recorder(), mode="armed", phrase="ARM f", caps=Caps(1))
    source = ArrivalSource(20.0, input_tokens=Const(8), output_tokens=Const(2), count=3, rng=np.random.default_rng(1))
    recorder = Recorder()
    driver = LiveDriver(default_control(["chat"]), source, engines, recorder, name="dry-exec")
    driver.run_blocking()
    assert driver.progress().finished == 3, "a dry run stands in for engines that it may not start"
