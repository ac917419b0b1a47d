"""What the live driver adds: time to first token beyond what a scripted engine takes, with hundreds of streams at once.

    python sims/bench/live.py [--streams 330] [--every-ms 10] [--repeats 3]

The engine is the shipped fake one in a process of its own. The same load is driven by a bare socket client first, in the same run: what it
adds is the machine's and the engine's own; the difference is windtunnel's (control, gate, log, HTTP client, token feed).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TTFT_S, ITL_S, TOKENS = 0.2, 0.05, 60
BAR_MS, BAR_STREAMS = 10.0, 300
SERVE = f"""
import sys
from windtunnel import FakeEngine
from windtunnel.live.fake_script import FakeScript
with FakeEngine(FakeScript(ttft_s={TTFT_S}, itl_s={ITL_S}, slots=None)) as engine:
    print(engine.url, flush=True)
    sys.stdin.read()
"""


@contextmanager
def engine() -> Iterator[str]:
    with subprocess.Popen([sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None and server.stdout is not None
        yield server.stdout.readline().strip()
        server.stdin.close()


def percentiles(added_s: list[float]) -> tuple[float, float]:
    """p50 and p95, ms."""
    cuts = statistics.quantiles(added_s, n=20)
    return statistics.median(added_s) * 1e3, cuts[18] * 1e3


def bare(url: str, streams: int, every_s: float) -> tuple[float, float]:
    """The same requests from a client that does nothing else: added TTFT p50 and p95, ms."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"model": "fake", "prompt": "a", "max_tokens": TOKENS, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    added: list[float] = []

    async def one(at: float) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(at - loop.time())
        start = loop.time()
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head + body)
        first = None
        while b"[DONE]" not in (piece := await reader.read(65536)):
            if first is None and b'"text"' in piece:
                first = loop.time()
            if not piece:
                break
        writer.close()
        added.append((first or loop.time()) - start - TTFT_S)

    async def all_of_them() -> None:
        begin = asyncio.get_running_loop().time() + 0.1
        await asyncio.gather(*(one(begin + i * every_s) for i in range(streams)))

    asyncio.run(all_of_them())
    return percentiles(added)


def ours(url: str, streams: int, every_s: float) -> tuple[float, float, int, float]:
    """Through the live world, armed: added TTFT p50 and p95 (ms), most streams at once, CPU share of one core."""
    from windtunnel import ArrivalSource, Caps, Live, LiveFleet, default_control
    from windtunnel.sources.dist import Const

    fleet = LiveFleet.of({"name": "bench", "pools": {"chat": {"engine": "openai", "model": "fake", "urls": [url], "slots": 2 * streams}}})
    world = Live(fleet, "armed", phrase="ARM bench", caps=Caps(max_in_flight=2 * streams))
    source = ArrivalSource(1 / every_s, pattern="constant", input_tokens=Const(8), output_tokens=Const(TOKENS), count=streams, rng=1, model="fake")
    cpu, wall, peak = time.process_time(), time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        flight = world.start(default_control(["chat"], wants=world.wants), source, name="bench", log=Path(folder) / "log.jsonl")
        while not flight.progress.done:
            peak = max(peak, flight.progress.in_flight)
            time.sleep(0.05)
        run = flight.result()
    share = (time.process_time() - cpu) / (time.perf_counter() - wall)
    assert (run.requests["outcome"].astype(str) == "success").all() and len(run.requests) == streams
    p50, p95 = percentiles([t - TTFT_S for t in run.requests["ttft_s"]])
    return p50, p95, peak, share


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=330)
    parser.add_argument("--every-ms", type=float, default=8.0)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    every_s = args.every_ms / 1e3
    rows = []
    for _ in range(args.repeats):
        with engine() as url:
            rows.append((bare(url, args.streams, every_s), ours(url, args.streams, every_s)))
    (b50, b95), (o50, o95) = ([statistics.median(r[side][i] for r in rows) for i in (0, 1)] for side in (0, 1))
    peak, share = max(r[1][2] for r in rows), statistics.median(r[1][3] for r in rows)
    print(f"bare socket client   added TTFT p50 {b50:6.1f} ms   p95 {b95:6.1f} ms")
    print(f"windtunnel, armed    added TTFT p50 {o50:6.1f} ms   p95 {o95:6.1f} ms   (bar p95 {BAR_MS:g} ms)")
    print(f"difference           p50 {o50 - b50:6.1f} ms   p95 {o95 - b95:6.1f} ms")
    print(f"streams at once      {peak} (bar {BAR_STREAMS}), {peak / ITL_S:,.0f} tokens/s, {share:.2f} of a core")
    return 0 if o95 <= BAR_MS and peak >= BAR_STREAMS else 1


if __name__ == "__main__":
    sys.exit(main())
