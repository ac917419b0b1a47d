"""A stand-in engine over real HTTP: scripted timing, slots and faults, for tests and for trying a control without a GPU.

>>> from windtunnel.live.fake_server import FakeEngine, FakeScript
>>> with FakeEngine(FakeScript(ttft_s=0.02, itl_s=0.005, slots=4), kind="llamacpp") as engine:
...     engine.url.startswith("http://127.0.0.1:")
True
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter, deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from windtunnel.errors import ConfigValueError, EngineUnavailableError
from windtunnel.live.fake_call import FakeCall, Link
from windtunnel.live.fake_replies import SHAPES, Kind, Load, error_body, page, too_long_body
from windtunnel.live.fake_script import FakeScript, Fault

__all__ = ["FakeEngine", "FakeScript", "Fault"]
_MAX_HEAD_BYTES = 65536


class FakeEngine:
    """A sync context manager: the engine runs in its own thread until the block is left.

    Entering raises EngineUnavailableError if the port is taken.

    kind: `openai` speaks as vLLM does, `llamacpp` as llama.cpp (native route and chat). requests: counts by `"POST /completion"`;
    bodies: the newest 1024 JSON bodies of generating requests; headers: theirs, names in lower case.
    ended, left: calls that ran to their end, and calls whose client went away before.
    """

    def __init__(self, script: FakeScript | None = None, *, kind: Kind = "openai", host: str = "127.0.0.1", port: int = 0) -> None:
        if kind not in ("openai", "llamacpp"):
            raise ConfigValueError("kind", f"expected openai or llamacpp, got {kind!r}")
        self.script, self.kind, self.host, self.port = script or FakeScript(), kind, host, port
        self.requests: Counter[str] = Counter()
        self.bodies: deque[Mapping[str, Any]] = deque(maxlen=1024)
        self.headers: deque[Mapping[str, str]] = deque(maxlen=1024)
        self.ended = self.left = self.peak = 0
        self.load = Load()
        self._number = 0
        self._waiting: deque[FakeCall] = deque()
        self._links: set[Connection] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None

    @property
    def url(self) -> str:
        """Its address, once it is started."""
        return f"http://{self.host}:{self.port}"

    @property
    def in_flight(self) -> int:
        """Calls that run or wait."""
        return self.load.running + self.load.waiting

    def count(self, method: str) -> int:
        """Requests with this method, on any path."""
        return sum(n for key, n in self.requests.items() if key.startswith(method + " "))

    # --- life

    def __enter__(self) -> Self:
        up = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(up,), name="fake-engine", daemon=True)
        self._thread.start()
        up.wait()
        if self._error is not None:
            raise EngineUnavailableError(f"cannot listen on {self.host}:{self.port}: {self._error.strerror}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Close every connection and the port; idempotent."""
        loop, thread = self._loop, self._thread
        if loop is not None and thread is not None and thread.is_alive():
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
        self._loop = self._thread = None

    def _run(self, up: threading.Event) -> None:
        loop = asyncio.new_event_loop()
        try:
            server = loop.run_until_complete(loop.create_server(lambda: Connection(self), self.host, self.port, backlog=1024))
        except OSError as error:
            self._error = error
            up.set()
            loop.close()
            return
        self.port = server.sockets[0].getsockname()[1]
        self._loop = loop
        up.set()
        loop.run_forever()
        server.close()
        for link in tuple(self._links):
            link.transport.abort()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    # --- requests (all on the loop's thread)

    def answer(self, link: Connection, method: str, path: str, headers: Mapping[str, str], body: bytes) -> None:
        """One request, whole."""
        self.requests[f"{method} {path}"] += 1
        if method == "GET":
            found = page(self.kind, path, self.script, self.load)
            link.reply(*((200, *found) if found else (404, "application/json", '{"error":{"code":404,"message":"File Not Found"}}')))
        elif method == "POST" and path in SHAPES and (self.kind == "llamacpp" or path != "/completion"):
            self._generate(link, path, headers, body)
        else:
            link.reply(404, "application/json", '{"error":{"code":404,"message":"File Not Found"}}')

    def _generate(self, link: Connection, path: str, headers: Mapping[str, str], body: bytes) -> None:
        self._number += 1
        try:
            asked = json.loads(body)
            call = FakeCall(link, SHAPES[path], asked, self.script, self.script.fault_for(self._number), self)
        except (ValueError, TypeError, AttributeError, KeyError):
            return link.reply(400, "application/json", json.dumps(error_body(self.kind, 400, "the body cannot be understood")))
        self.bodies.append(asked)
        self.headers.append(headers)
        fault = call.fault
        if fault is not None and fault.kind == "refuse":
            return self._refuse(link, fault.status, fault.retry_after)
        if fault is not None and fault.kind in ("drop", "hang"):
            return link.transport.close() if fault.kind == "drop" else None
        if call.input_tokens > self.script.ctx_tokens:
            long = too_long_body(self.kind, call.input_tokens, self.script.ctx_tokens)
            return link.reply(400, "application/json", json.dumps(long))
        if self.script.slots is not None and self.load.running >= self.script.slots:
            if self.script.queue_limit is not None and len(self._waiting) >= self.script.queue_limit:
                return self._refuse(link, 503, None)
            self._waiting.append(call)
            self.load.waiting = len(self._waiting)
        else:
            self._start(call)
        link.call = call

    def _refuse(self, link: Connection, status: int, retry_after: str | None) -> None:
        self.load.refused += 1
        link.reply(status, "application/json", json.dumps(error_body(self.kind, status)), retry_after=retry_after)

    def _start(self, call: FakeCall) -> None:
        self.load.running += 1
        self.peak = max(self.peak, self.load.running)
        self.load.held_tokens += call.input_tokens
        self.load.prompt_tokens += call.input_tokens
        call.start(asyncio.get_event_loop())

    def over(self, call: FakeCall, *, left: bool = False) -> None:
        """A call gives its slot back: it ended, or its client left."""
        self.left += left
        self.ended += not left
        if call.started:
            self.load.running -= 1
            self.load.held_tokens -= call.input_tokens + call.sent
            if self._waiting:
                self._start(self._waiting.popleft())
        else:
            self._waiting.remove(call)
        self.load.waiting = len(self._waiting)


class Connection(asyncio.Protocol, Link):
    """One client connection: HTTP/1.1 with keep-alive, one request at a time."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._got = bytearray()
        self.call: FakeCall | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._engine._links.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._engine._links.discard(self)
        call, self.call = self.call, None
        if call is not None:
            call.stop()
            self._engine.over(call, left=True)

    def data_received(self, data: bytes) -> None:
        self._got += data
        end = self._got.find(b"\r\n\r\n")
        if end < 0:
            if len(self._got) > _MAX_HEAD_BYTES:
                self.transport.abort()
            return
        first, *lines = self._got[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        try:
            method, target, _ = first.split(" ")
            total = end + 4 + int(headers.get("content-length", "0"))
        except ValueError:
            self.transport.abort()
            return
        if len(self._got) < total:
            return
        body = bytes(self._got[end + 4 : total])
        del self._got[:total]
        self._engine.answer(self, method, target.partition("?")[0], headers, body)
