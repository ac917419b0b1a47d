"""llama.cpp's own server: its native stream for prompts, its OpenAI route for chat, its metrics and slots."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from windtunnel.errors import EngineUnavailableError
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
    Prefill,
    Usage,
    check_call,
)
from windtunnel.live.engines.metrics import MetricsTable
from windtunnel.live.engines.openai import LLAMACPP_CHAT, OpenAIEngine, OpenAIReader, ask, ask_health, prompt_of
from windtunnel.live.engines.wire import GarbageError, stream_call
from windtunnel.live.http import HttpClient

_RANDOM_SEED = 4294967295  # what llama.cpp takes for "choose one"
_FINISH = {"limit": "length", "eos": "stop", "word": "stop"}


class NativeReader:
    """Frames of `/completion`. Tokens are counted by the server's own counter: a chunk may hold several (UTF-8) or none (progress)."""

    kind = "llamacpp"

    def __init__(self) -> None:
        self.seen = False
        self._tokens = 0

    def read(self, frame: Mapping[str, Any]) -> Sequence[EngineEvent]:
        if "content" not in frame:
            raise GarbageError
        events: list[EngineEvent] = []
        progress = frame.get("prompt_progress")
        if progress:
            events.append(Prefill(progress["processed"], progress.get("total"), progress.get("cache")))
        stop = bool(frame.get("stop"))
        text, ids = frame["content"], frame.get("tokens")
        count = int(frame.get("tokens_predicted") or 0)
        if count < self._tokens:
            raise GarbageError("non_monotone")
        if text and not isinstance(text, str):
            raise GarbageError
        if text:
            self.seen = True
            events.append(Delta(text, tuple(ids) if ids else None, (count - self._tokens) or None))
            self._tokens = count  # tokens without text yet are counted with the text that they become
        if stop:
            events += self._last(frame)
        return events

    def _last(self, frame: Mapping[str, Any]) -> tuple[EngineEvent, ...]:
        timings = frame.get("timings")
        self.seen = self.seen or frame.get("tokens_predicted") is not None
        cached = timings.get("cache_n") if timings else None
        kind = str(frame.get("stop_type") or "")
        usage = Usage(frame.get("tokens_evaluated"), frame.get("tokens_predicted"), cached)
        return usage, Ended(_FINISH.get(kind, "length" if frame.get("truncated") else "stop"), dict(timings) if timings else None)

    def done(self) -> EngineEvent:
        raise GarbageError  # `[DONE]` is not a word of this dialect

    def end(self) -> EngineEvent | None:
        return None


class LlamaCppEngine:
    """One llama.cpp server. slots: None = what it says; cache_prompt: reuse a slot's cached prefix.

    Leaving a stream frees the slot within a step while it decodes; a prompt being processed runs to the end of its batch first.
    """

    def __init__(self, http: HttpClient, *, name: str, model: str, slots: int | None = None, cache_prompt: bool = True) -> None:
        self.facts = EngineFacts(name, "llamacpp", seed_bits=32, params=frozenset({"max_tokens", "temperature", "seed", "ignore_eos"}))
        self._http, self._slots, self._cache_prompt = http, slots, cache_prompt
        self._table = MetricsTable.load("llamacpp")
        self._chat = OpenAIEngine(http, name=name, model=model, dialect=LLAMACPP_CHAT)

    async def health(self) -> Health:
        return await ask_health(self._http, "/health")

    async def capabilities(self) -> Capabilities:
        props, metrics = await asyncio.gather(ask(self._http, "/props"), self._http.get("/metrics"))
        said = props.json()
        if not isinstance(said, dict):
            raise EngineUnavailableError("GET /props gave no JSON object: is this a llama.cpp server?")
        slots, ctx = said.get("total_slots"), (said.get("default_generation_settings") or {}).get("n_ctx")
        values = self._table.read(metrics.text if metrics.status == 200 else "")
        kv_tokens = slots * ctx if isinstance(slots, int) and isinstance(ctx, int) else None
        found = self._table.found(values)
        return Capabilities(said.get("build_info"), said.get("model_alias"), self._slots or slots, ctx, kv_tokens, *found)

    def stream(self, call: EngineCall) -> EngineStream:
        check_call(call)
        headers = {"x-request-id": call.call_id}
        if call.messages is None:
            return EngineStream(stream_call(self._http, "/completion", self.body(call), headers, NativeReader()))
        body = self._chat.body(call)
        if call.seed is not None:
            body["seed"] = seed32(call.seed)
        body.setdefault("cache_prompt", self._cache_prompt)
        return EngineStream(stream_call(self._http, "/v1/chat/completions", body, headers, OpenAIReader("llamacpp")))

    def body(self, call: EngineCall) -> dict[str, Any]:
        """The JSON body of a native call."""
        body: dict[str, Any] = {"prompt": prompt_of(call), "stream": True, "cache_prompt": self._cache_prompt}
        if call.max_tokens is not None:
            body["n_predict"] = call.max_tokens
        if call.temperature is not None:
            body["temperature"] = call.temperature
        if call.seed is not None:
            body["seed"] = seed32(call.seed)
        if call.ignore_eos:
            body["ignore_eos"] = True
        if call.progress:
            body["return_progress"] = True
        body.update(call.options)
        return body

    async def scrape(self, sampled_s: float = 0.0) -> Scrape:
        """Metrics, and the KV use that only /slots tells."""
        metrics, slots = await asyncio.gather(ask(self._http, "/metrics"), self._http.get("/slots"))
        scrape = self._table.scrape(metrics.text, sampled_s)
        if scrape.kv_used_fraction is None and slots.status == 200:
            return replace(scrape, kv_used_fraction=kv_used_fraction(slots.json()))
        return scrape

    async def abort(self, call_id: str) -> bool:
        return False  # leaving the stream is the stop

    async def close(self) -> None:
        await self._http.aclose()


def seed32(seed: int) -> int:
    """The low 32 bits; the value that means "random" there becomes 0."""
    low = seed & 0xFFFFFFFF
    return 0 if low == _RANDOM_SEED else low


def kv_used_fraction(slots: Any) -> float | None:
    """Tokens held by busy slots over the context of all slots (0..1), or None if /slots says something else."""
    try:
        total = sum(slot["n_ctx"] for slot in slots)
        used = sum(_held_tokens(slot) for slot in slots if slot.get("is_processing"))
    except (TypeError, KeyError, AttributeError):
        return None
    return used / total if total else None


def _held_tokens(slot: Mapping[str, Any]) -> int:
    decoded = sum(part.get("n_decoded", 0) for part in slot.get("next_token") or ())
    return int(slot.get("n_prompt_tokens", 0)) + int(decoded)
