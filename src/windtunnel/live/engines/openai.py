"""Engines that speak OpenAI's completions and chat completions: vLLM with its own extras, and any other with documented fields only."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from windtunnel.errors import ConfigValueError, EngineUnavailableError
from windtunnel.events import Scrape
from windtunnel.live.engines.engine import (
    Capabilities,
    Delta,
    Ended,
    EngineCall,
    EngineEvent,
    EngineFacts,
    EngineStream,
    Health,
    Usage,
    check_call,
)
from windtunnel.live.engines.failures import broken, message_of
from windtunnel.live.engines.metrics import MetricsTable
from windtunnel.live.engines.wire import GarbageError, stream_call
from windtunnel.live.http import HttpClient, HttpReply, TransportError

ASK_S = 10.0  # a healthy engine under full load has been seen to take 7 s to say so
_BROKEN_FINISH = ("abort", "error")


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one OpenAI-compatible server differs. ignores_eos: it takes `ignore_eos`; table: its metrics, "" = none."""

    kind: str
    table: str = ""
    priority: bool = False
    ignores_eos: bool = False
    health: str = "/v1/models"


OPENAI = Dialect("openai")
VLLM = Dialect("vllm", table="vllm", priority=True, ignores_eos=True, health="/health")
LLAMACPP_CHAT = Dialect("llamacpp", table="llamacpp", ignores_eos=True, health="/health")


class OpenAIReader:
    """Chunks of completions and chat completions."""

    def __init__(self, kind: str = "openai") -> None:
        self.kind = kind
        self.seen = False
        self._finish: str | None = None
        self._timings: Mapping[str, Any] | None = None

    def read(self, frame: Mapping[str, Any]) -> Sequence[EngineEvent]:
        events: list[EngineEvent] = []
        for choice in frame.get("choices") or ():
            if choice.get("index"):
                raise GarbageError  # one answer was asked for
            events += self._content(choice)
            finish = choice.get("finish_reason")
            if finish in _BROKEN_FINISH:
                return (*events, broken(f"finish_{finish}", f"the engine ended the call by {finish!r}"))
            if finish:
                self._finish = "stop" if finish == "repetition" else str(finish)
        if frame.get("timings"):
            self._timings = dict(frame["timings"])
        if frame.get("usage"):
            self.seen = True
            events.append(_usage(frame["usage"]))
        return events

    def done(self) -> EngineEvent:
        return Ended(self._finish or "stop", self._timings)

    def end(self) -> EngineEvent | None:
        """Some servers send no `[DONE]`: a finish reason is an end, too."""
        return self.done() if self._finish is not None else None

    def _content(self, choice: Mapping[str, Any]) -> Iterator[Delta]:
        ids = choice.get("token_ids")
        ids = tuple(ids) if ids else None
        count = len(ids) if ids else None
        delta = choice.get("delta") or {}
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        text = choice.get("text") or delta.get("content")
        for made, kind in ((reasoning, "reasoning"), (text, "text")):
            if made:
                if not isinstance(made, str):
                    raise GarbageError
                self.seen = True
                yield Delta(made, ids, count, kind)  # type: ignore[arg-type]
        for call in delta.get("tool_calls") or ():
            self.seen = True
            yield Delta(str((call.get("function") or {}).get("arguments") or ""), None, None, "tool")


def _usage(usage: Mapping[str, Any]) -> Usage:
    details = usage.get("prompt_tokens_details") or {}
    return Usage(_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")), _count(details.get("cached_tokens")))


def _count(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise GarbageError
    return value


class OpenAIEngine:
    """One OpenAI-compatible server. slots: what it is configured to run at once, if known; priority: send priorities (the server must
    have been started with priority scheduling)."""

    def __init__(self, http: HttpClient, *, name: str, model: str, dialect: Dialect = OPENAI, slots: int | None = None,
                 priority: bool = False) -> None:
        if priority and not dialect.priority:
            raise ConfigValueError("options.priority", f"an engine of kind {dialect.kind!r} takes no priorities")
        params = {"max_tokens", "temperature", "seed"} | ({"ignore_eos"} if dialect.ignores_eos else set())
        self.facts = EngineFacts(name, dialect.kind, "low_first" if dialect.priority else None, params=frozenset(params))
        self.in_flight = 0
        self._http, self._model, self._dialect, self._slots, self._priority = http, model, dialect, slots, priority
        self._table = MetricsTable.load(dialect.table) if dialect.table else None

    async def health(self) -> Health:
        return await ask_health(self._http, self._dialect.health)

    async def capabilities(self) -> Capabilities:
        models = (await ask(self._http, "/v1/models")).json()
        first = ((models.get("data") if isinstance(models, dict) else None) or [{}])[0]
        if self._table is None:
            return Capabilities(None, first.get("id"), self._slots, first.get("max_model_len"))
        version = (await ask(self._http, "/version")).json()
        values = self._table.read((await ask(self._http, "/metrics")).text)
        blocks, block_size = values.get("num_blocks"), values.get("block_size")
        return Capabilities(
            version.get("version") if isinstance(version, dict) else None, first.get("id"), self._slots, first.get("max_model_len"),
            int(blocks * block_size) if blocks is not None and block_size is not None else None, *self._table.found(values),
        )

    def stream(self, call: EngineCall) -> EngineStream:
        check_call(call)
        path = "/v1/completions" if call.messages is None else "/v1/chat/completions"
        return EngineStream(self._events(path, self.body(call), {"x-request-id": call.call_id}))

    async def _events(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> AsyncGenerator[EngineEvent, None]:
        events = stream_call(self._http, path, body, headers, OpenAIReader(self.facts.kind))
        self.in_flight += 1
        try:
            async for event in events:
                yield event
        finally:
            self.in_flight -= 1
            await events.aclose()

    def body(self, call: EngineCall) -> dict[str, Any]:
        """The JSON body of a call: always streamed, so that leaving frees the engine."""
        what = {"prompt": prompt_of(call)} if call.messages is None else {"messages": [dict(m) for m in call.messages]}
        body: dict[str, Any] = {"model": call.model or self._model, **what, "stream": True, "stream_options": {"include_usage": True}}
        for name in ("max_tokens", "temperature", "seed"):
            if getattr(call, name) is not None:
                body[name] = getattr(call, name)
        if call.ignore_eos and self._dialect.ignores_eos:
            body["ignore_eos"] = True
        if self._priority:
            body["priority"] = call.priority
        body.update(call.options)
        return body

    async def scrape(self, sampled_s: float = 0.0) -> Scrape:
        if self._table is None:
            return Scrape(sampled_s, self.in_flight)  # nothing else is known of a server without metrics
        return self._table.scrape((await ask(self._http, "/metrics")).text, sampled_s)

    async def abort(self, call_id: str) -> bool:
        return False  # leaving the stream is the stop

    async def close(self) -> None:
        await self._http.aclose()


def prompt_of(call: EngineCall) -> str | list[int]:
    """The prompt as the wire wants it: text, or a list of token ids."""
    return call.prompt if isinstance(call.prompt, str) else list(call.prompt or ())


async def ask(http: HttpClient, path: str) -> HttpReply:
    """GET, or EngineUnavailableError for anything but 200."""
    reply = await http.get(path, timeout_s=ASK_S)
    if reply.status != 200:
        raise EngineUnavailableError(f"GET {path} gave {reply.status}")
    return reply


async def ask_health(http: HttpClient, path: str) -> Health:
    """Never raises; patient, since a busy engine is not a dead one."""
    try:
        reply = await http.get(path, timeout_s=ASK_S)
    except TransportError as error:
        return Health(False, "unreachable", error.message)
    if reply.status == 200:
        return Health(True)
    words = message_of(reply.json()) or f"GET {path} gave {reply.status}"
    return Health(False, "loading" if "loading" in words.lower() else "error", words[:200])

