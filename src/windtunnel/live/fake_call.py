"""One call at the stand-in engine: its tokens in time, and the fault that it meets on the way."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from windtunnel.live.fake_replies import (
    DONE,
    WIDE_TEXT,
    Shape,
    closing_frames,
    document,
    empty_frames,
    error_body,
    frame,
    opening_frames,
    token_frame,
)
from windtunnel.live.fake_script import FakeScript, Fault

if TYPE_CHECKING:
    from windtunnel.live.fake_server import FakeEngine

_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_OVERSIZED = b'data: {"content":"' + b"x" * (1 << 20) + b'"}\n\n'
_MID_STREAM = ("die", "cut", "stall", "garbage", "error_frame", "oversized", "no_end")
_PAUSE_S = 0.005  # so that what was written leaves before the reset


class Link:
    """The client's end of a call: whole replies and pieces of a stream."""

    transport: asyncio.Transport
    call: FakeCall | None

    def reply(self, status: int, content_type: str, text: str, *, retry_after: str | None = None) -> None:
        body = text.encode()
        wait = f"retry-after: {retry_after}\r\n" if retry_after is not None else ""
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\n{wait}content-length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)

    def piece(self, data: bytes) -> None:
        self.transport.write(b"%x\r\n%s\r\n" % (len(data), data))

    def reset(self) -> None:
        """Close so that the client sees a reset, not an end."""
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


class FakeCall:
    """Sends its tokens at their due times; late ones go out together, so a busy loop slows nothing down for long."""

    __slots__ = ("_finish", "_first_at", "_frame", "_handle", "_loop", "_model", "_owner", "_streamed", "fault", "input_tokens",
                 "link", "output_tokens", "script", "sent", "shape", "started")

    def __init__(self, link: Link, shape: Shape, body: Mapping[str, Any], script: FakeScript, fault: Fault | None,
                 owner: FakeEngine) -> None:
        self.link, self.shape, self.script, self.fault, self._owner = link, shape, script, fault, owner
        what = body["messages"] if shape == "chat" else body["prompt"]
        self.input_tokens = len(what) if shape != "chat" and isinstance(what, list) else max(1, len(json.dumps(what)) // 4)
        asked = body.get("n_predict") if shape == "native" else body.get("max_tokens")
        asked = None if asked is None or asked < 0 else int(asked)
        self.output_tokens = script.answer_tokens(asked, bool(body.get("ignore_eos")))
        self._finish = "length" if self.output_tokens == asked else "stop"
        self._model = str(body.get("model") or script.model)
        self._streamed = bool(body.get("stream"))
        self._frame = token_frame(shape, self._model, 1, self.input_tokens)
        self.sent = 0
        self.started = False
        self._first_at = 0.0
        self._handle: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self.started = loop, True
        self._first_at = loop.time() + self.script.ttft_s + self.script.ttft_per_token_s * self.input_tokens
        if self._streamed:
            self.link.transport.write(_STREAM_HEAD)
            opening = opening_frames(self.shape, self._model)
            if opening and (self.fault is None or self.fault.kind != "empty"):
                self.link.piece(opening)
        self._handle = loop.call_at(self._first_at, self._tick)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()

    def _tick(self) -> None:
        fault, last = self.fault, self.output_tokens
        itl_s = self.script.itl_s
        due = last if itl_s == 0 else min(last, 1 + int((self._loop.time() - self._first_at) / itl_s + 1e-6))
        if fault is not None and fault.kind in ("empty", "replay"):
            return self._instead(fault)
        broken = fault is not None and fault.kind in _MID_STREAM
        if broken and fault is not None:
            due = min(due, fault.after_tokens)
        self._send(due)
        if broken and fault is not None and self.sent >= min(fault.after_tokens, last):
            self._break(fault)
        elif self.sent >= last:
            self._close()
        else:
            self._handle = self._loop.call_at(self._first_at + self.sent * itl_s, self._tick)

    def _send(self, due: int) -> None:
        new = due - self.sent
        if new <= 0:
            return
        if self._streamed and self.fault is not None and self.fault.kind == "half_utf8":
            self._send_halves(new)
        elif self._streamed and self.shape == "native":
            self.link.piece(b"".join(token_frame(self.shape, self._model, n, self.input_tokens) for n in range(self.sent + 1, due + 1)))
        elif self._streamed:
            self.link.piece(self._frame * new)
        self.sent = due
        self._owner.load.output_tokens += new
        self._owner.load.held_tokens += new

    def _send_halves(self, new: int) -> None:
        mark = WIDE_TEXT.encode()
        for n in range(self.sent + 1, self.sent + new + 1):
            whole = token_frame(self.shape, self._model, n, self.input_tokens, WIDE_TEXT)
            cut = whole.index(mark) + 1
            self.link.piece(whole[:cut])
            self.link.piece(whole[cut:])

    def _close(self) -> None:
        counts = (self._finish, self.input_tokens, self.sent)
        if not self._streamed:
            self.link.reply(200, "application/json", json.dumps(document(self.shape, self._model, *counts)))
            return self._over()
        done = self.fault is None or self.fault.kind != "no_done"
        self._end(closing_frames(self.shape, self._model, *counts, done=done))

    def _end(self, frames: bytes) -> None:
        if frames:
            self.link.piece(frames)
        self.link.transport.write(b"0\r\n\r\n")
        self._over()

    def _over(self) -> None:
        self.link.call = None
        self._owner.over(self)

    def _instead(self, fault: Fault) -> None:
        if fault.kind == "empty":
            return self._end(empty_frames(self.shape))
        for start in range(0, len(fault.body), fault.piece_bytes):
            self.link.piece(fault.body[start : start + fault.piece_bytes])
        self._end(b"")

    def _break(self, fault: Fault) -> None:
        if fault.kind == "no_end":
            self._end(b"")
        elif fault.kind == "garbage":
            self._end(b"data: {this is no JSON\n\n")
        elif fault.kind == "oversized":
            self._end(_OVERSIZED)
        elif fault.kind == "error_frame":
            kind = self._owner.kind
            self._end(frame(error_body(kind, fault.status, "scripted failure")) + DONE)
        elif fault.kind == "die":
            self._loop.call_later(_PAUSE_S, self.link.reset)
        elif fault.kind == "cut":
            self.link.transport.close()
