"""Ticks that ask a plugin in a process of its own, beside bare calls that carry as many bytes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from planning.asked import BASELINE, SCALE_S, Echo, observed
from planning.rows import Row, percentiles
from windtunnel.policy.planning.calls import Answers
from windtunnel.policy.planning.contract import PipelineContext, Stage, StageRequest
from windtunnel.policy.planning.pipeline import Pipeline, run_inline
from windtunnel.policy.planning.plugin import Registration
from windtunnel.policy.planning.roster import Roster, RosterSettings

BAR_GRPC_MS, BAR_GRPC_P99_MS, BAR_BYTES = 5.0, 25.0, 256 * 1024
RATIO_GRPC = 4.0  # to bare calls of the same run

SERVE = """
import sys
sys.path.insert(0, {folder!r})
from planning.asked import Echo
from windtunnel.live.plugins.plugin_server import serve
serve(Echo(), {listen!r}, allow_insecure=True)
"""


@contextmanager
def echo_at(listen: str, code: str = SERVE) -> Iterator[None]:
    code = code.format(folder=str(Path(__file__).resolve().parents[1]), listen=listen)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.terminate()
            process.communicate()


def four(endpoint: str, plugin: Any = None) -> Pipeline:
    """One plugin a stage."""
    roster = Roster(RosterSettings(SCALE_S))
    for stage in Stage:
        roster.register(Registration(f"echo-{stage}", stage, endpoint=endpoint), 0.0, plugin=plugin, transport="inline" if plugin else "unix")
    return Pipeline(roster)


def echo_ticks(ticks: int, engines: int) -> list[float]:
    """Seconds of each tick of four echo plugins in process."""
    pipeline, seen = four("", Echo()), observed(engines)
    took = []
    for k in range(1, ticks + 1):
        context = PipelineContext(f"tick-{k}", f"decision-{k}", seen)
        start = time.perf_counter()
        run_inline(pipeline.tick(context, BASELINE, tick_at=k * SCALE_S, now=k * SCALE_S))
        took.append(time.perf_counter() - start)
    return took


SERVE_BARE = """
import asyncio
import grpc
async def answer(data, context):
    return b""
async def main():
    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler("bare", {{"Echo": grpc.unary_unary_rpc_method_handler(answer)}})
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port({listen!r})
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()
asyncio.run(main())
"""


async def bare_ticks(listen: str, ticks: int, engines: int) -> list[float]:
    """Seconds of four calls one after another that carry as many bytes as a tick's, and mean nothing: gRPC's own part."""
    import grpc

    payload = b"x" * context_bytes(engines)
    took = []
    async with grpc.aio.insecure_channel(listen) as channel:
        call = channel.unary_unary("/bare/Echo")
        for _ in range(ticks + 10):
            start = time.perf_counter()
            for _ in Stage:
                await call(payload, timeout=5.0)
            took.append(time.perf_counter() - start)
    return took[10:]


async def grpc_ticks(endpoint: str, ticks: int, engines: int) -> list[float]:
    """Seconds of each tick of four echo plugins at an endpoint; every call sends the whole context."""
    from windtunnel.effects import Ask
    from windtunnel.live.asking import Asking
    from windtunnel.live.plugins.grpc_client import GrpcPlugin

    client, pipeline, seen = GrpcPlugin(endpoint, allow_insecure=True), four(endpoint), observed(engines)
    asking = Asking(time.perf_counter, {(e.plugin_id, e.order): client for e in pipeline.roster.entries.values()})
    took = []
    for k in range(1, ticks + 11):
        context = PipelineContext(f"tick-{k}", f"decision-{k}", seen)
        now = k * SCALE_S
        start = time.perf_counter()
        running = pipeline.tick(context, BASELINE, tick_at=now, now=now)
        try:
            gather = next(running)
            while True:
                answered = await asking.ask(Ask(gather.gather_id, gather.calls, gather.deadline_at))
                failed = [item.error for item in answered.items if item.error is not None]
                if failed:
                    raise RuntimeError(f"the echo plugin did not answer: {failed[0]}")
                gather = running.send(Answers(gather.gather_id, answered.items, now))
        except StopIteration:
            took.append(time.perf_counter() - start)
    await client.aclose()
    return took[10:]  # the first ones connect


def over_grpc(*, quick: bool) -> list[Row]:
    from windtunnel.live.scaling.exec import free_port

    ticks, engines = 100 if quick else 1_000, 64
    here = percentiles(echo_ticks(ticks, engines))
    rows = [Row(f"in-process tick, 4 calls, {engines} engines", "ms", here[0] * 1e3, here[1] * 1e3)]
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        for name, listen, endpoint in (("unix socket", f"unix:{folder}/echo.sock", f"unix:{folder}/echo.sock"),
                                       ("loopback TCP", f"127.0.0.1:{port}", f"grpc://127.0.0.1:{port}")):
            with echo_at(listen):
                p50, p99 = percentiles(asyncio.run(grpc_ticks(endpoint, ticks, engines)))
            with echo_at(f"{listen}.bare" if listen.startswith("unix:") else listen, SERVE_BARE):
                bare = percentiles(asyncio.run(bare_ticks(f"{listen}.bare" if listen.startswith("unix:") else listen, ticks, engines)))
            rows.append(Row(f"bare calls, {name}", "ms", bare[0] * 1e3, bare[1] * 1e3))
            rows.append(Row(f"gRPC tick, {name}", "ms", p50 * 1e3, p99 * 1e3, BAR_GRPC_MS, BAR_GRPC_P99_MS, p50 / bare[0]))
    return [*rows, Row("context of 200 engines", "KiB", context_bytes(200) / 1024, bar=BAR_BYTES / 1024)]


def context_bytes(engines: int) -> int:
    """Bytes of a request with reports of so many engines."""
    from windtunnel.live.plugins.bridge import to_proto

    context = PipelineContext("tick-17280", "decision-17280", observed(engines))
    return int(to_proto(StageRequest(context, Stage.PROPOSE, 86_400.0, 86_400.01)).ByteSize())
