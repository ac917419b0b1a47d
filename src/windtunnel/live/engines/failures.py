"""From what an engine or a connection answered to `Failed`: error code, lease outcome, reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from windtunnel.live.engines.engine import Failed
from windtunnel.live.http import TransportError, retry_after_s

MESSAGE_CHARS = 500
# Words by which an engine says "not now" under a status that could mean anything (lower case).
OVERLOAD_WORDS: Mapping[str, tuple[str, ...]] = {
    "vllm": ("cannot accept new requests",),
    "llamacpp": ("no slot available",),
    "openai": ("cannot accept new requests", "queue is full", "no slot available", "overloaded"),
}
_TRANSPORT = {
    "refused": "connection_refused",
    "connect_timeout": "connect_timeout",
    "timeout": "timeout",
    "reset": "connection_reset",
    "eof": "eof_without_end",
    "protocol": "garbage",
}


def broken(reason: str, message: str = "", status: int | None = None) -> Failed:
    """The engine or its stream broke: a failure of the provider."""
    return Failed("WORKER_RESET", "provider_failure", reason, status, None, message)


def empty_success() -> Failed:
    """A stream that ended well without usage and without content is a defect, never a success with zeros."""
    return Failed("INTERNAL", "unexpected_exception", "empty_success", None, None, "the stream ended without usage or content")


def from_transport(error: TransportError) -> Failed:
    """A connection that failed: a timeout of ours is the provider's, all else is a broken provider."""
    if error.kind == "timeout":
        return Failed("DECODE_TIMEOUT", "provider_timeout", "timeout", None, None, error.message)
    return broken(_TRANSPORT[error.kind], error.message)


def from_status(status: int, body: Mapping[str, Any] | None, headers: Mapping[str, str], kind: str) -> Failed:
    """An answer other than 200, or an error object inside a stream with its own code. kind: whose words for overload count."""
    words = message_of(body)
    wait_s = retry_after_s(headers)
    if status == 429 or (status == 503 and wait_s is not None):
        return Failed("REPLICA_EXHAUSTED", "rate_limited", f"http_{status}", status, wait_s, "the engine refused: too much work")
    if is_overload(words, kind):
        return Failed("REPLICA_EXHAUSTED", "rate_limited", "engine_queue_full", status, wait_s, "the engine refused: its queue is full")
    if status in (401, 403):
        return Failed("INTERNAL", "unexpected_exception", "unauthorized", status, None, "the engine refused our credentials")
    if status == 408:
        return Failed("DECODE_TIMEOUT", "provider_timeout", "http_408", status, None, "the engine timed out")
    if 400 <= status < 500:
        return Failed("INVALID_PARAMS", "local_cancelled", "invalid_request", status, None, words[:MESSAGE_CHARS])
    return broken(f"http_{status}", f"the engine answered {status}", status)


def from_error_object(error: Any, kind: str) -> Failed:
    """An error that came inside a 200 stream."""
    body = {"error": error}
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, str) and code.isdecimal():
        code = int(code)
    if isinstance(code, int) and 400 <= code <= 599:
        return from_status(code, body, {}, kind)
    if is_overload(message_of(body), kind):
        return Failed("REPLICA_EXHAUSTED", "rate_limited", "engine_queue_full", None, None, "the engine refused: its queue is full")
    return broken("engine_error", "the engine reported an error in its stream")


def message_of(body: Any) -> str:
    """The engine's words: `{error: {message}}`, `{error: text}`, `{message}` or `{detail}`; "" if there are none."""
    if not isinstance(body, dict):
        return ""
    error = body.get("error", body)
    words = error if isinstance(error, str) else None
    if isinstance(error, dict):
        words = error.get("message") or error.get("detail")
    return str(words) if words else ""


def is_overload(words: str, kind: str) -> bool:
    """Do these words of an engine of that kind mean "not now"?"""
    low = words.lower()
    return any(marker in low for marker in OVERLOAD_WORDS.get(kind, OVERLOAD_WORDS["openai"]))


