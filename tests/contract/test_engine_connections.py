"""Connections to engines: kept, tried once more when dead; and how long a refusal says to wait."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from adapter_calls import FAST, KINDS, call, collect, flown, on

from windtunnel.live.engines.engine import Ended, Engine, EngineEvent, Failed
from windtunnel.live.fake_server import FakeEngine, FakeScript, Fault
from windtunnel.live.http import HttpClient, retry_after_s

# -- connections ------------------------------------------------------------------------------------------------------------------


def test_AD_3_a_reused_connection_that_is_dead_is_tried_once_more() -> None:
    """The server drops the second request, which comes on a kept connection, without a byte."""
    async def work(engine: Engine) -> list[EngineEvent]:
        await collect(engine, call())
        return await collect(engine, call())

    with FakeEngine(FakeScript(**FAST, faults=(Fault("drop", at=(2,)),)), kind="llamacpp") as server:
        assert isinstance(on("llamacpp", server, work)[-1], Ended)
        assert server.count("POST") == 3


def test_AD_3_a_new_connection_or_a_second_death_is_not_retried() -> None:
    for fault, posts in ((Fault("drop"), 1), (Fault("drop", at=(2, 3)), 3)):
        with FakeEngine(FakeScript(**FAST, faults=(fault,))) as server:
            async def work(engine: Engine) -> EngineEvent:
                first = await collect(engine, call())
                return first[-1] if isinstance(first[-1], Failed) else (await collect(engine, call()))[-1]

            assert isinstance(on("vllm", server, work), Failed)
            assert server.count("POST") == posts


def test_AD_3_nothing_is_sent_again_after_the_first_byte() -> None:
    async def work(engine: Engine) -> EngineEvent:
        await collect(engine, call())
        return (await collect(engine, call()))[-1]

    with FakeEngine(FakeScript(**FAST, faults=(Fault("die", at=(2,), after_tokens=0),))) as server:
        end = on("vllm", server, work)
    assert isinstance(end, Failed) and end.reason == "connection_reset" and server.count("POST") == 2


def test_AD_3_connections_are_kept() -> None:
    async def main() -> int:
        opened = 0
        http = HttpClient(server.url)
        for _ in range(5):
            async with http.stream_post("/v1/completions", {"prompt": "a", "stream": True, "max_tokens": 2}) as reply:
                while await reply.chunk() is not None:
                    pass
            opened = max(opened, len(server._links))
        await http.aclose()
        return opened

    with FakeEngine(FakeScript(**FAST)) as server:
        assert asyncio.run(main()) == 1


@pytest.mark.parametrize("ends", [True, False])
def test_a_refusal_whose_words_break_off_or_never_come_is_that_refusal(ends: bool) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 429 Too Many\r\nretry-after: 3\r\ncontent-length: 100\r\n\r\n{"error"')
        await writer.drain()
        if not ends:
            await asyncio.sleep(30)
        writer.close()

    async def main() -> tuple[int, bytes]:
        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        http = HttpClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        try:
            async with http.stream_post("/x", {}) as reply:
                return reply.status, await reply.body(limit_s=0.1)
        finally:
            await http.aclose()
            server.close()

    assert asyncio.run(main()) == (429, b'{"error"')


# -- retry-after ------------------------------------------------------------------------------------------------------------------


def test_retry_after_as_seconds_and_as_a_date() -> None:
    now = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
    date = format_datetime(now + timedelta(seconds=90), usegmt=True)
    assert retry_after_s({"retry-after": "7"}) == 7
    assert retry_after_s({"retry-after": "1.5"}) == 1.5
    assert retry_after_s({"retry-after": date}, now.timestamp) == 90
    assert retry_after_s({"retry-after": date, "date": format_datetime(now + timedelta(seconds=30), usegmt=True)}) == 60
    assert retry_after_s({"retry-after": format_datetime(now - timedelta(days=1), usegmt=True)}, now.timestamp) == 0
    for nothing in ({}, {"retry-after": ""}, {"retry-after": "soon"}, {"retry-after": "-3"}, {"retry-after": "nan"}, {"retry-after": "9" * 400}):
        assert retry_after_s(nothing) is None


@pytest.mark.parametrize("kind", KINDS)
def test_retry_after_reaches_the_failure(kind: str) -> None:
    seconds = flown(kind, "prompt", Fault("refuse", status=429, retry_after="3"))[-1]
    assert isinstance(seconds, Failed) and seconds.retry_after_s == 3
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    dated = flown(kind, "prompt", Fault("refuse", status=503, retry_after=at))[-1]
    assert isinstance(dated, Failed) and dated.outcome == "rate_limited" and dated.retry_after_s == pytest.approx(60, abs=3)
