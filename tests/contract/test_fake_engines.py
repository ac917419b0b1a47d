"""The engines that stand in for real ones, over HTTP and in process."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from adapter_calls import FAST, call, collect, on, text_of

from windtunnel.errors import ConfigValueError, EngineUnavailableError
from windtunnel.live.engines import make_engine
from windtunnel.live.engines.engine import Delta, Ended, Engine, EngineEvent, Failed, Usage
from windtunnel.live.fake_server import FakeEngine, FakeScript, Fault


def test_queue_limit_refuses_and_slots_bound_what_runs() -> None:
    async def work(engine: Engine) -> list[EngineEvent]:
        return [events[-1] for events in await asyncio.gather(*(collect(engine, call(max_tokens=3)) for _ in range(6)))]

    with FakeEngine(FakeScript(ttft_s=0.05, itl_s=0.01, slots=2, queue_limit=2)) as server:
        ends = on("vllm", server, work)
    refused = [e for e in ends if isinstance(e, Failed)]
    assert len(refused) == 2 and {e.reason for e in refused} == {"engine_queue_full"}
    assert server.peak == 2 and server.ended == 4


def test_the_stand_ins_times_are_kept() -> None:
    async def work(engine: Engine) -> tuple[float, float]:
        began = time.perf_counter()
        stamps = []
        async with engine.stream(call(max_tokens=11)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    stamps.append(time.perf_counter() - began)
        return stamps[0], stamps[-1]

    with FakeEngine(FakeScript(ttft_s=0.1, itl_s=0.02), kind="llamacpp") as server:
        first, last = on("llamacpp", server, work)
    assert 0.1 <= first < 0.25 and 0.3 <= last < 0.5


def test_three_hundred_streams_at_once() -> None:
    async def work(engine: Engine) -> list[EngineEvent]:
        return [events[-1] for events in await asyncio.gather(*(collect(engine, call(max_tokens=20)) for _ in range(300)))]

    with FakeEngine(FakeScript(ttft_s=0.3, itl_s=0.05, slots=None)) as server:
        ends = on("vllm", server, work)
        assert server.peak == 300 and server.load.output_tokens == 6000
    assert all(isinstance(e, Ended) for e in ends)


def test_a_taken_port_is_said_clearly() -> None:
    with FakeEngine(FakeScript()) as server, pytest.raises(EngineUnavailableError, match=str(server.port)):
        FakeEngine(FakeScript(), port=server.port).__enter__()


def test_what_a_stand_in_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigValueError, match=r"fault\.kind"):
        Fault("explode")  # type: ignore[arg-type]
    with pytest.raises(ConfigValueError, match="itl_s"):
        FakeScript(itl_s=-1)


@pytest.mark.parametrize(("fault", "reason"), [
    (Fault("refuse", status=429, retry_after="4"), "http_429"), (Fault("drop"), "eof_without_end"), (Fault("die"), "connection_reset"),
    (Fault("empty"), "empty_success"), (Fault("error_frame", status=500), "http_500"), (None, None),
])
def test_EN_6_the_in_process_stand_in(fault: Fault | None, reason: str | None) -> None:
    async def main() -> tuple[list[EngineEvent], Any]:
        engine = make_engine("mock", "mock://a", name="e", model="m", slots=1, options=FAST)
        engine.script = FakeScript(**FAST, slots=1, faults=(fault,) if fault else ())  # type: ignore[attr-defined]
        return await collect(engine, call()), await engine.scrape(1.0)

    events, scrape = asyncio.run(main())
    end = events[-1]
    assert (end.reason if isinstance(end, Failed) else None) == reason
    assert (scrape.running, scrape.waiting, scrape.kv_used_fraction) == (0, 0, 0)
    if fault is None:
        assert text_of(events) == " tok" * 6 and Usage(12, 6, 0) in events


def test_the_in_process_stand_in_queues_and_frees() -> None:
    async def main() -> tuple[int, int]:
        engine = make_engine("mock", "mock://a", name="e", model="m", slots=1, options={"ttft_s": 5.0, "itl_s": 0.0})
        tasks = [asyncio.ensure_future(collect(engine, call())) for _ in range(3)]
        await asyncio.sleep(0.02)
        before = await engine.scrape()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        after = await engine.scrape()
        assert (after.running, after.waiting) == (0, 0)
        return before.running or 0, before.waiting or 0

    assert asyncio.run(main()) == (1, 2)
