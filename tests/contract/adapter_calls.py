"""For tests: calls of an adapter to a scripted server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from windtunnel.live.engines import make_engine
from windtunnel.live.engines.engine import Delta, Ended, Engine, EngineCall, EngineEvent, Failed
from windtunnel.live.fake_server import FakeEngine, FakeScript, Fault

KINDS = {"vllm": "openai", "openai": "openai", "llamacpp": "llamacpp"}  # adapter: what the server speaks
FAST = {"ttft_s": 0.0, "itl_s": 0.0}
T = TypeVar("T")


def call(what: str = "prompt", **fields: Any) -> EngineCall:
    given = {"prompt": [5] * 12} if what == "prompt" else {"messages": [{"role": "user", "content": "hello"}]}
    return EngineCall("r1/1", **{**given, "max_tokens": 6, **fields})


def on(kind: str, server: FakeEngine, work: Callable[[Engine], Awaitable[T]], **options: Any) -> T:
    """Run `work` with an adapter to this server, and close it."""
    async def main() -> T:
        engine = make_engine(kind, server.url, name="e", model="m", options=options)
        try:
            return await asyncio.wait_for(work(engine), 15)
        finally:
            await engine.close()

    return asyncio.run(main())


async def collect(engine: Engine, asked: EngineCall) -> list[EngineEvent]:
    """All events, with the rule that holds for all: exactly one end, at the end."""
    async with engine.stream(asked) as events:
        got = [event async for event in events]
    ends = [e for e in got if isinstance(e, Ended | Failed)]
    assert len(ends) == 1 and got[-1] is ends[0], got
    return got


def flown(kind: str, what: str = "prompt", *faults: Fault, asked: EngineCall | None = None, **script: Any) -> list[EngineEvent]:
    """The events of one call at a server with these faults."""
    with FakeEngine(FakeScript(**{**FAST, **script}, faults=faults), kind=KINDS[kind]) as server:  # type: ignore[arg-type]
        return on(kind, server, lambda engine: collect(engine, asked or call(what)))


def text_of(events: list[EngineEvent]) -> str:
    return "".join(e.text for e in events if isinstance(e, Delta))
