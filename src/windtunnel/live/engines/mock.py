"""The in-process stand-in: answers as scripted, with slots and a queue, and nothing leaves the process. For dry runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from windtunnel.events import Scrape
from windtunnel.live.engines.engine import (
    Capabilities,
    Delta,
    Ended,
    EngineCall,
    EngineEvent,
    EngineFacts,
    EngineStream,
    Failed,
    Health,
    Opened,
    Prefill,
    Usage,
    check_call,
)
from windtunnel.live.engines.failures import broken, empty_success, from_status
from windtunnel.live.fake_script import FakeScript, Fault

_TEXT = " tok"


class MockEngine:
    """One scripted engine without HTTP. Faults of a script that only HTTP can show end as what they would be read as."""

    def __init__(self, *, name: str, model: str = "", script: FakeScript | None = None) -> None:
        self.facts = EngineFacts(name, "mock", "low_first", params=frozenset({"max_tokens", "temperature", "seed", "ignore_eos"}))
        self.script = script or FakeScript()
        self.running = self.waiting = 0
        self._model = model or self.script.model
        self._number = self._input_tokens = self._output_tokens = self._held_tokens = 0
        self._slots = asyncio.Semaphore(self.script.slots) if self.script.slots is not None else None

    async def health(self) -> Health:
        return Health(True)

    async def capabilities(self) -> Capabilities:
        slots, ctx = self.script.slots, self.script.ctx_tokens
        found = ("running", "waiting", "kv_used_fraction", "prompt_tokens_total", "output_tokens_total")
        return Capabilities("mock", self._model, slots, ctx, None if slots is None else slots * ctx, found)

    def stream(self, call: EngineCall) -> EngineStream:
        check_call(call)
        return EngineStream(self._events(call))

    async def _events(self, call: EngineCall) -> AsyncGenerator[EngineEvent, None]:
        self._number += 1
        fault = self.script.fault_for(self._number)
        input_tokens = input_tokens_of(call)
        refusal = self._refusal(fault, input_tokens)
        if refusal is not None:
            yield refusal
            return
        if fault is not None and fault.kind == "hang":
            await asyncio.Event().wait()
        if self._slots is not None:
            self.waiting += 1
            try:
                await self._slots.acquire()
            finally:
                self.waiting -= 1
        self.running += 1
        self._held_tokens += input_tokens
        sent = 0
        try:
            yield Opened()
            async for event in self._answer(call, fault, input_tokens):
                if type(event) is Delta:
                    sent += 1
                    self._held_tokens += 1
                    self._output_tokens += 1
                yield event
        finally:
            self.running -= 1
            self._held_tokens -= input_tokens + sent
            if self._slots is not None:
                self._slots.release()

    async def _answer(self, call: EngineCall, fault: Fault | None, input_tokens: int) -> AsyncGenerator[EngineEvent, None]:
        loop, script = asyncio.get_running_loop(), self.script
        first_at = loop.time() + script.ttft_s + script.ttft_per_token_s * input_tokens
        total = script.answer_tokens(call.max_tokens, call.ignore_eos)
        length = total
        if fault is not None and fault.kind in _ENDS:
            length = 0 if fault.kind == "empty" else min(total, fault.after_tokens)
        await asyncio.sleep(max(0.0, first_at - loop.time()))
        self._input_tokens += input_tokens
        if call.progress:
            yield Prefill(input_tokens, input_tokens, 0)
        for n in range(length):
            await asyncio.sleep(max(0.0, first_at + n * script.itl_s - loop.time()))
            yield Delta(_TEXT, None, 1)
        if fault is not None and fault.kind in _ENDS:
            if fault.kind == "stall":
                await asyncio.Event().wait()
            yield _end(fault)
            return
        yield Usage(input_tokens, total, 0)
        yield Ended("length" if total == call.max_tokens else "stop")

    def _refusal(self, fault: Fault | None, input_tokens: int) -> Failed | None:
        script = self.script
        if fault is not None and fault.kind == "refuse":
            return from_status(fault.status, None, {"retry-after": fault.retry_after} if fault.retry_after else {}, "openai")
        if fault is not None and fault.kind == "drop":
            return broken("eof_without_end")
        if input_tokens > script.ctx_tokens:
            return from_status(400, {"error": f"{input_tokens} tokens exceed the context of {script.ctx_tokens}"}, {}, "openai")
        if script.queue_limit is not None and self._slots is not None and self._slots.locked() and self.waiting >= script.queue_limit:
            return from_status(503, {"error": "queue is full"}, {}, "openai")
        return None

    async def scrape(self, sampled_s: float = 0.0) -> Scrape:
        room = self.script.ctx_tokens * (self.script.slots or max(1, self.running))
        used = min(1.0, self._held_tokens / room)
        return Scrape(sampled_s, self.running, self.waiting, used, None, self._input_tokens, self._output_tokens)

    async def abort(self, call_id: str) -> bool:
        return False  # leaving the stream is the stop

    async def close(self) -> None:
        return None


_ENDS = {
    "die": "connection_reset", "cut": "eof_without_end", "no_end": "eof_without_end", "garbage": "garbage",
    "oversized": "frame_too_long", "error_frame": "engine_error", "empty": "empty_success", "stall": "",
}


def _end(fault: Fault) -> Failed:
    if fault.kind == "empty":
        return empty_success()
    if fault.kind == "error_frame":
        return from_status(fault.status, {"error": "scripted failure"}, {}, "openai")
    return broken(_ENDS[fault.kind])


def input_tokens_of(call: EngineCall) -> int:
    """Token ids are counted, text is guessed at 4 characters a token."""
    if call.prompt is not None and not isinstance(call.prompt, str):
        return len(call.prompt)
    text = call.prompt if isinstance(call.prompt, str) else " ".join(str(m.get("content", "")) for m in call.messages or ())
    return max(1, len(text) // 4)
