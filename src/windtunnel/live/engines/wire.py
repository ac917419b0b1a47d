"""One streamed call over HTTP: bytes to frames to events, with exactly one end, whatever the engine does."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any, Protocol

from windtunnel.live.engines.engine import Ended, EngineEvent, Failed, Opened
from windtunnel.live.engines.failures import broken, empty_success, from_error_object, from_status, from_transport
from windtunnel.live.http import HttpClient, StreamReply, TransportError
from windtunnel.live.sse import Frame, SseDecoder


class GarbageError(Exception):
    """A frame that means nothing. reason: `garbage` or `non_monotone`."""

    def __init__(self, reason: str = "garbage") -> None:
        self.reason = reason
        super().__init__(reason)


class Reader(Protocol):
    """Makes events of one dialect's frames. `read` may raise GarbageError; `end` is asked when the stream is over without its mark."""

    kind: str
    seen: bool  # content or usage came

    def read(self, frame: Mapping[str, Any]) -> Sequence[EngineEvent]: ...
    def done(self) -> EngineEvent: ...
    def end(self) -> EngineEvent | None: ...


async def stream_call(http: HttpClient, path: str, body: Mapping[str, Any], headers: Mapping[str, str],
                      reader: Reader) -> AsyncGenerator[EngineEvent, None]:
    """The events of one call, exactly one Ended or Failed last. Never raises for what the engine does."""
    try:
        async with http.stream_post(path, body, headers) as reply:
            content_type = reply.headers.get("content-type", "")
            if reply.status != 200 or content_type.startswith("application/json"):
                yield await _refusal(reply, reader.kind)
                return
            yield Opened()
            decoder = SseDecoder()
            broke: TransportError | None = None
            while True:
                try:
                    chunk = await reply.chunk()
                except TransportError as error:
                    chunk, broke = None, error
                over = chunk is None
                for event in events_of(decoder.end() if chunk is None else decoder.feed(chunk), reader, cut=over):
                    yield event
                    if type(event) is Ended or type(event) is Failed:
                        await reply.drain()
                        return
                if decoder.overflowed:
                    yield broken("frame_too_long", "one frame of the stream was larger than 1 MiB")
                    return
                if over:
                    yield _at_end(reader, broke)
                    return
    except TransportError as error:
        yield from_transport(error)


def events_of(frames: Iterable[Frame], reader: Reader, *, cut: bool = False) -> Iterable[EngineEvent]:
    """Events of these frames up to and including the last one of the stream. cut: a frame that was cut off is no garbage."""
    for data, name in frames:
        try:
            if data == "[DONE]":
                yield _checked(reader.done(), reader)
                return
            for event in _read(data, name, reader):
                yield _checked(event, reader)
        except GarbageError as error:
            if not cut:
                yield broken(error.reason, "the engine sent a frame that means nothing")
            return


def _read(data: str, name: str, reader: Reader) -> Sequence[EngineEvent]:
    try:
        frame = json.loads(data)
    except (ValueError, RecursionError):
        raise GarbageError from None
    if not isinstance(frame, dict):
        raise GarbageError
    if name == "error" or frame.get("error"):
        return (from_error_object(frame.get("error") or frame, reader.kind),)
    try:
        return reader.read(frame)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError):
        raise GarbageError from None  # right JSON, wrong shape


def _checked(event: EngineEvent, reader: Reader) -> EngineEvent:
    return empty_success() if type(event) is Ended and not reader.seen else event


def _at_end(reader: Reader, broke: TransportError | None) -> EngineEvent:
    end = reader.end()
    if end is not None:
        return _checked(end, reader)
    return broken("eof_without_end", "the stream ended without its end") if broke is None else from_transport(broke)


async def _refusal(reply: StreamReply, kind: str) -> Failed:
    raw = await reply.body()
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    if reply.status != 200:
        return from_status(reply.status, body if isinstance(body, dict) else None, reply.headers, kind)
    if isinstance(body, dict) and body.get("error"):
        return from_error_object(body["error"], kind)
    return broken("garbage", "the engine answered with one document, not with a stream")
