"""HTTP towards engines: the only module that knows httpx. Keep-alive, streamed replies, errors by kind, no total time limit on a stream."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cache
from math import isfinite
from typing import Any, Literal

import httpx

from windtunnel.errors import EngineUnavailableError

CONNECT_S = 5.0
KEPT_CONNECTIONS = 128
POOLS = 8  # for every request a pool walks all of its connections, so several small pools cost less than one large one
BODY_S = 5.0  # for the words of a refusal
KEPT_S = 4.0  # uvicorn and llama.cpp close an idle connection after 5 s; reusing it just then would fail
TransportKind = Literal["refused", "connect_timeout", "timeout", "reset", "eof", "protocol"]
_BEFORE_ANY_BYTE = "without sending a response"
logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it writes every address, and addresses may hold credentials


class TransportError(EngineUnavailableError):
    """The connection, not the engine, said no. kind: refused (also DNS and TLS), connect_timeout, timeout, reset, eof, protocol."""

    def __init__(self, kind: TransportKind, message: str) -> None:
        self.kind: TransportKind = kind
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class HttpReply:
    """A whole reply; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as UTF-8; what is none is replaced."""
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body as JSON, or None if it is not."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


class StreamReply:
    """A reply whose body is still coming."""

    __slots__ = ("_chunks", "headers", "status")

    def __init__(self, response: httpx.Response) -> None:
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = response.headers  # case-insensitive
        self._chunks = response.aiter_bytes()

    async def chunk(self) -> bytes | None:
        """The next bytes of the body, or None at its end; raises TransportError (`eof`, `reset`)."""
        with _translated():
            return await anext(self._chunks, None)

    async def body(self, limit_bytes: int = 65536, limit_s: float = BODY_S) -> bytes:
        """The body up to a limit, for a reply whose status says it all: one that breaks off or stands still is given as far as it came.

        A refusal stays that refusal however its connection ends; only the engine's words may be cut.
        """
        got = bytearray()
        with suppress(TransportError, TimeoutError):
            async with asyncio.timeout(limit_s):
                while len(got) < limit_bytes and (chunk := await self.chunk()) is not None:
                    got += chunk
        return bytes(got[:limit_bytes])

    async def drain(self, limit_s: float = 0.25) -> None:
        """Read what little follows the last event, so that the connection can be used again; gives up quietly."""
        try:
            async with asyncio.timeout(limit_s):
                while await self.chunk() is not None:
                    pass
        except (TransportError, TimeoutError):
            return


class HttpClient:
    """Pooled connections to one address. headers go with every request and are never logged.

    trust_env: let proxy variables of the environment count (off: engines are reached directly). reconnects: how often a request was
    sent again because a reused connection was already dead.
    """

    def __init__(self, url: str, *, headers: Mapping[str, str] | None = None, connect_s: float = CONNECT_S,
                 trust_env: bool = False) -> None:
        self.url = url.rstrip("/")
        self.reconnects = 0
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=KEPT_CONNECTIONS // POOLS, keepalive_expiry=KEPT_S)
        self._clients = [
            httpx.AsyncClient(
                headers={"accept-encoding": "identity", "user-agent": "windtunnel", **(headers or {})},
                verify=_tls() if url.startswith("https") else False,  # without TLS nothing is verified; loading certificates is slow
                timeout=httpx.Timeout(None, connect=connect_s),
                limits=limits,
                trust_env=trust_env,
            )
            for _ in range(POOLS)
        ]
        self._streams = [0] * POOLS

    @asynccontextmanager
    async def stream_post(self, path: str, body: Mapping[str, Any],
                          headers: Mapping[str, str] | None = None) -> AsyncIterator[StreamReply]:
        """POST JSON and stream the reply; leaving early closes the socket, which the engine sees. Raises TransportError."""
        content = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
        wanted = {"content-type": "application/json", "accept": "text/event-stream", **(headers or {})}
        pool = min(range(POOLS), key=self._streams.__getitem__)  # the least busy; the first of equals, so that connections are reused
        self._streams[pool] += 1
        try:
            response = await self._send(self._clients[pool], "POST", path, wanted, content=content, stream=True)
            try:
                yield StreamReply(response)
            finally:
                await response.aclose()
        finally:
            self._streams[pool] -= 1

    async def get(self, path: str, *, timeout_s: float = 10.0, headers: Mapping[str, str] | None = None) -> HttpReply:
        """A whole reply within `timeout_s` in total; raises TransportError."""
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._send(self._clients[0], "GET", path, headers, stream=False)
        except TimeoutError:
            raise TransportError("timeout", f"no answer to GET {path} within {timeout_s:g} s") from None
        return HttpReply(response.status_code, response.headers, response.content)

    async def _send(self, client: httpx.AsyncClient, method: str, path: str, headers: Mapping[str, str] | None, *,
                    content: bytes | None = None, stream: bool) -> httpx.Response:
        while True:
            trace = _Trace()
            request = client.build_request(method, self.url + path, content=content, headers=headers, extensions={"trace": trace})
            try:
                with _translated():
                    return await client.send(request, stream=stream)
            except TransportError as error:
                # Some servers close a kept connection just as it is used again: nothing was computed, so sending once more is safe. The
                # next one may be dead as well; each failure removes one from the pool, and a fresh connection's failure is final.
                if not (trace.reused and not trace.answered and _died_silently(error)):
                    raise
                self.reconnects += 1

    async def aclose(self) -> None:
        """Close all connections."""
        for client in self._clients:
            await client.aclose()


class _Trace:
    """What the connection pool did for one request."""

    __slots__ = ("answered", "reused")

    def __init__(self) -> None:
        self.reused, self.answered = True, False

    async def __call__(self, name: str, info: Mapping[str, Any]) -> None:
        if name.startswith("connection.connect_"):
            self.reused = False
        elif name == "http11.receive_response_headers.complete":
            self.answered = True


def _died_silently(error: TransportError) -> bool:
    return error.kind == "reset" or (error.kind == "eof" and _BEFORE_ANY_BYTE in error.message)


_KINDS: tuple[tuple[type[Exception], TransportKind], ...] = (
    (httpx.ConnectTimeout, "connect_timeout"),
    (httpx.TimeoutException, "timeout"),
    (httpx.ConnectError, "refused"),
    (httpx.NetworkError, "reset"),
)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except httpx.RemoteProtocolError as error:
        text = str(error)
        ended = _BEFORE_ANY_BYTE in text or "peer closed connection" in text
        raise TransportError("eof" if ended else "protocol", text) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        kind: TransportKind = next((kind for cls, kind in _KINDS if isinstance(error, cls)), "protocol")
        raise TransportError(kind, str(error) or type(error).__name__) from error


@cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def retry_after_s(headers: Mapping[str, str], wall_s: Callable[[], float] = time.time) -> float | None:
    """Seconds to wait by `Retry-After`, given as seconds or as an HTTP date (then against the reply's own Date, if it has one).

    None if the header is absent or means nothing; a date in the past is 0.
    """
    text = (headers.get("retry-after") or "").strip()
    if not text:
        return None
    if text.replace(".", "", 1).isdecimal() and text.isascii():
        return seconds if isfinite(seconds := float(text)) else None
    at = _http_date_s(text)
    if at is None:
        return None
    sent = _http_date_s(headers.get("date") or "")
    return max(0.0, at - (wall_s() if sent is None else sent))


def _http_date_s(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
