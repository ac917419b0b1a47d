"""What a real engine looks like to a driver: a stream of events per call, health, capabilities, and what its metrics say.

A stream gives exactly one `Ended` or `Failed`, as its last event. Events carry no times: the caller stamps them as they come.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Protocol

from windtunnel.errors import ConfigValueError
from windtunnel.events import Scrape, fact

ErrorCode = Literal["INVALID_PARAMS", "REPLICA_EXHAUSTED", "WORKER_RESET", "DECODE_TIMEOUT", "INTERNAL"]
DeltaKind = Literal["text", "reasoning", "tool"]


@fact
class EngineCall:
    """One attempt at one engine. call_id: `request/dispatch`, sent as X-Request-Id.

    Exactly one of `prompt` (text or token ids) and `messages` (chat) is given. priority: 0 interactive, larger = less urgent.
    progress: ask for `Prefill` events. options: further sampling fields, sent as they are.
    """

    call_id: str
    prompt: str | Sequence[int] | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    ignore_eos: bool = False
    priority: int = 0
    model: str = ""
    progress: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@fact
class Opened:
    """The engine took the call: its reply has begun."""


@fact
class Prefill:
    """Prompt tokens processed so far, of `total`, of which `cached` were found in a cache."""

    processed: int
    total: int | None = None
    cached: int | None = None


@fact
class Delta:
    """New content, never empty. n: tokens in it by the engine's own count, None if it does not say (a chunk may hold several)."""

    text: str
    token_ids: tuple[int, ...] | None = None
    n: int | None = None
    kind: DeltaKind = "text"


@fact
class Usage:
    """The engine's own token counts for the call."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None


@fact
class Ended:
    """A complete answer. finish_reason: `stop`, `length`, `tool_calls`, ...; timings: the engine's own figures, if it gives any."""

    finish_reason: str = "stop"
    timings: Mapping[str, Any] | None = None


@fact
class Failed:
    """The call ended otherwise. outcome: the lease outcome; status: HTTP status; message: the engine's words for a client's
    mistake, else ours."""

    code: ErrorCode
    outcome: str
    reason: str
    status: int | None = None
    retry_after_s: float | None = None
    message: str = ""


EngineEvent = Opened | Prefill | Delta | Usage | Ended | Failed


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What is known of a kind of engine without asking it.

    priority: which number is more urgent there, None = no priorities; abort: how a running call is stopped;
    seed_bits: width of a seed; params: call fields that the engine understands.
    """

    name: str
    kind: str
    priority: Literal["low_first", "high_first"] | None = None
    abort: Literal["id", "disconnect", "none"] = "disconnect"
    token_sessions: bool = False
    max_tail: int | None = None
    seed_bits: int = 64
    params: frozenset[str] = frozenset({"max_tokens", "temperature", "seed"})


@dataclass(frozen=True, slots=True)
class Health:
    """ok: it can serve; status: `ok`, `loading`, `error`, `unreachable`; message: one sentence when not ok."""

    ok: bool
    status: str = "ok"
    message: str = ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the running engine says of itself. slots: calls it runs at once; ctx_tokens: prompt + output of one call;
    kv_tokens: KV capacity; metrics, metrics_missing: canonical names found and not found in its exposition."""

    version: str | None = None
    model: str | None = None
    slots: int | None = None
    ctx_tokens: int | None = None
    kv_tokens: int | None = None
    metrics: tuple[str, ...] = ()
    metrics_missing: tuple[str, ...] = ()


class EngineStream:
    """The context of one call: entering starts nothing yet, iterating sends it, leaving early stops the engine.

    Iterate to the end after the last event, so that the connection can be used again.
    """

    __slots__ = ("_events",)

    def __init__(self, events: AsyncGenerator[EngineEvent, None]) -> None:
        self._events = events

    async def __aenter__(self) -> AsyncIterator[EngineEvent]:
        return self._events

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._events.aclose()


class Engine(Protocol):
    """One replica behind one address. facts: what is known of engines of its kind."""

    facts: EngineFacts

    async def health(self) -> Health:
        """Does it serve now? Never raises."""

    async def capabilities(self) -> Capabilities:
        """What it says it can; raises EngineUnavailableError."""

    def stream(self, call: EngineCall) -> EngineStream:
        """One call. Never raises for what the engine does: the stream then ends with `Failed`."""

    async def scrape(self, sampled_s: float = 0.0) -> Scrape:
        """Its metrics, stamped with `sampled_s`; raises EngineUnavailableError."""

    async def abort(self, call_id: str) -> bool:
        """Stop a call by its id; False if the engine has no way to, or does not know it."""

    async def close(self) -> None:
        """Give back its connections."""


def check_call(call: EngineCall) -> None:
    """Raises ConfigValueError unless there is exactly one of prompt and messages."""
    if (call.prompt is None) == (call.messages is None):
        raise ConfigValueError("call", f"{call.call_id} needs exactly one of prompt and messages")
