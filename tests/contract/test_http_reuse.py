"""Kept connections that the server closes just as they are used again: the request goes out once more; a fresh one's failure is final."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from windtunnel.live.http import HttpClient, TransportError

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Fickle:
    """Answers the first `kept` requests of a connection, then closes it on the next one without a byte."""

    def __init__(self, kept: int) -> None:
        self.kept, self.connections, self.answered, self.url = kept, 0, 0, ""
        self.together = asyncio.Barrier(1)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        for _ in range(self.kept):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), 0)
            await reader.readexactly(length)
            await self.together.wait()
            writer.write(OK)
            self.answered += 1
        await reader.read(1)
        writer.close()


async def post(http: HttpClient) -> bytes:
    async with http.stream_post("/x", {"a": 1}) as reply:
        got = b""
        while (chunk := await reply.chunk()) is not None:
            got += chunk
        return got


async def get(http: HttpClient) -> bytes:
    return (await http.get("/x")).body


def against(kept: int, work: Callable[[HttpClient, Fickle], Awaitable[None]]) -> None:
    async def go() -> None:
        fickle = Fickle(kept)
        server = await asyncio.start_server(fickle.serve, "127.0.0.1", 0)
        http = HttpClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        try:
            await work(http, fickle)
        finally:
            await http.aclose()
            server.close()

    asyncio.run(go())


@pytest.mark.parametrize("ask", [get, post])
def test_a_kept_connection_that_dies_silently_costs_nothing(ask: Callable[[HttpClient], Awaitable[bytes]]) -> None:
    async def work(http: HttpClient, fickle: Fickle) -> None:
        assert [await ask(http) for _ in range(5)] == [b"ok"] * 5
        assert (fickle.connections, fickle.answered, http.reconnects) == (5, 5, 4)

    against(1, work)


def test_many_dead_connections_in_the_pool_at_once() -> None:
    async def work(http: HttpClient, fickle: Fickle) -> None:
        fickle.together = asyncio.Barrier(4)
        assert await asyncio.gather(*(get(http) for _ in range(4))) == [b"ok"] * 4
        fickle.together = asyncio.Barrier(1)
        assert await get(http) == b"ok"
        assert (fickle.connections, http.reconnects) == (5, 4)

    against(1, work)


@pytest.mark.parametrize("ask", [get, post])
def test_a_fresh_connection_that_dies_is_told(ask: Callable[[HttpClient], Awaitable[bytes]]) -> None:
    async def work(http: HttpClient, fickle: Fickle) -> None:
        with pytest.raises(TransportError) as caught:
            await ask(http)
        assert caught.value.kind in ("eof", "reset") and (fickle.connections, http.reconnects) == (1, 0)

    against(0, work)
