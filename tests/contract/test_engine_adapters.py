"""The conformance battery: every adapter against a scripted server that does what real engines and networks do."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windtunnel.errors import ConfigUnknownKeyError, ConfigValueError, EngineUnavailableError
from windtunnel.live.engines import make_engine
from windtunnel.live.engines.engine import Delta, Ended, Engine, EngineCall, EngineEvent, Failed, Opened, Prefill, Usage
from windtunnel.live.engines.failures import from_status
from windtunnel.live.engines.llamacpp import NativeReader, seed32
from windtunnel.live.engines.openai import OpenAIReader
from windtunnel.live.engines.wire import Reader, events_of
from windtunnel.live.fake_server import FakeEngine, FakeScript, Fault
from windtunnel.live.http import HttpClient, retry_after_s
from windtunnel.live.sse import SseDecoder

REPLIES = Path(__file__).parents[2] / "data" / "engine_replies"
KINDS = {"vllm": "openai", "openai": "openai", "llamacpp": "llamacpp"}  # adapter: what the server speaks
WAYS = [("vllm", "prompt"), ("vllm", "messages"), ("openai", "prompt"), ("llamacpp", "prompt"), ("llamacpp", "messages")]
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


# --- good answers


@pytest.mark.parametrize(("kind", "what"), WAYS)
def test_AD_2_a_complete_answer(kind: str, what: str) -> None:
    events = flown(kind, what)
    assert isinstance(events[0], Opened)
    assert text_of(events) == " tok" * 6
    usage = [e for e in events if isinstance(e, Usage)][-1]
    assert usage.output_tokens == 6 and usage.input_tokens
    assert isinstance(events[-1], Ended) and events[-1].finish_reason == "length"


def test_MX_9_native_tokens_are_counted_by_the_server() -> None:
    assert [e.n for e in flown("llamacpp") if isinstance(e, Delta)] == [1] * 6


@pytest.mark.parametrize(("kind", "what"), WAYS)
def test_AD_1_every_call_is_streamed_and_carries_its_id(kind: str, what: str) -> None:
    with FakeEngine(FakeScript(**FAST), kind=KINDS[kind]) as server:  # type: ignore[arg-type]
        on(kind, server, lambda engine: collect(engine, call(what, temperature=0.5, seed=2**32 + 7, ignore_eos=True)))
    body, headers = server.bodies[0], server.headers[0]
    assert body["stream"] is True and headers["x-request-id"] == "r1/1"
    assert body["temperature"] == 0.5 and body["seed"] == (7 if kind == "llamacpp" else 2**32 + 7)
    assert body.get("ignore_eos") == (None if kind == "openai" else True)
    assert "priority" not in body


def test_AD_4_priority_is_sent_only_if_configured() -> None:
    with FakeEngine(FakeScript(**FAST)) as server:
        on("vllm", server, lambda engine: collect(engine, call(priority=1)), priority=True, api_key="k")
    assert server.bodies[0]["priority"] == 1 and server.headers[0]["authorization"] == "Bearer k"
    with pytest.raises(ConfigUnknownKeyError, match="cache_prompt"):
        make_engine("llamacpp", "http://x", name="e", model="", options={"cache_promt": True})
    for options, field in (({"headers": {"a": 1}}, "headers"), ({"connect_s": 0}, "connect_s"), ({"trust_env": "yes"}, "trust_env")):
        with pytest.raises(ConfigValueError, match=field):
            make_engine("vllm", "http://x", name="e", model="", options=options)
    with pytest.raises(ConfigValueError, match="expected one of"):
        make_engine("tgi", "http://x", name="e", model="")
    with pytest.raises(ConfigValueError, match="exactly one"):
        make_engine("vllm", "http://x", name="e", model="").stream(EngineCall("r/1"))


@pytest.mark.parametrize(("kind", "what"), WAYS)
def test_AD_6_half_characters_arrive_whole(kind: str, what: str) -> None:
    assert text_of(flown(kind, what, Fault("half_utf8"), itl_s=0.002)) == "é" * 6


@pytest.mark.parametrize(("kind", "what"), [w for w in WAYS if w != ("llamacpp", "prompt")])
def test_AD_6_a_missing_done_is_no_failure(kind: str, what: str) -> None:
    events = flown(kind, what, Fault("no_done"))
    assert isinstance(events[-1], Ended) and events[-1].finish_reason == "length"


# --- broken answers: (fault, code, outcome, reason)

BROKEN = [
    (Fault("die"), "WORKER_RESET", "provider_failure", "connection_reset"),
    (Fault("cut"), "WORKER_RESET", "provider_failure", "eof_without_end"),
    (Fault("no_end"), "WORKER_RESET", "provider_failure", "eof_without_end"),
    (Fault("drop"), "WORKER_RESET", "provider_failure", "eof_without_end"),
    (Fault("garbage"), "WORKER_RESET", "provider_failure", "garbage"),
    (Fault("oversized"), "WORKER_RESET", "provider_failure", "frame_too_long"),
    (Fault("error_frame", status=500), "WORKER_RESET", "provider_failure", "http_500"),
    (Fault("error_frame", status=400), "INVALID_PARAMS", "local_cancelled", "invalid_request"),
    (Fault("empty"), "INTERNAL", "unexpected_exception", "empty_success"),
    (Fault("refuse", status=429), "REPLICA_EXHAUSTED", "rate_limited", "http_429"),
    (Fault("refuse", status=503, retry_after="2"), "REPLICA_EXHAUSTED", "rate_limited", "http_503"),
    (Fault("refuse", status=503), "REPLICA_EXHAUSTED", "rate_limited", "engine_queue_full"),
    (Fault("refuse", status=500), "WORKER_RESET", "provider_failure", "http_500"),
    (Fault("refuse", status=401), "INTERNAL", "unexpected_exception", "unauthorized"),
    (Fault("refuse", status=422), "INVALID_PARAMS", "local_cancelled", "invalid_request"),
]


@pytest.mark.parametrize(("fault", "code", "outcome", "reason"), BROKEN,
                         ids=lambda v: f"{v.kind}{v.status}" if isinstance(v, Fault) else None)
@pytest.mark.parametrize(("kind", "what"), [("vllm", "prompt"), ("openai", "messages"), ("llamacpp", "prompt"), ("llamacpp", "messages")])
def test_AD_5_broken_answers_have_their_outcome(kind: str, what: str, fault: Fault, code: str, outcome: str, reason: str) -> None:
    events = flown(kind, what, fault)
    end = events[-1]
    assert isinstance(end, Failed)
    assert (end.code, end.outcome, end.reason) == (code, outcome, reason)
    streamed = fault.kind in ("die", "cut", "no_end", "garbage", "oversized", "error_frame")
    assert text_of(events) == (" tok" * 2 if streamed else "")


def test_AD_5_a_503_that_is_not_overload_is_a_failure() -> None:
    loading = from_status(503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, {}, "llamacpp")
    assert (loading.outcome, loading.reason) == ("provider_failure", "http_503")


def test_AD_5_a_clients_mistake_keeps_the_engines_words_cut() -> None:
    failed = from_status(400, {"error": {"message": "x" * 900}}, {}, "vllm")
    assert failed.message == "x" * 500
    assert from_status(500, {"error": {"message": "secret"}}, {}, "vllm").message == "the engine answered 500"


def test_EN_1_too_long_prompts_are_the_clients_mistake() -> None:
    for kind in KINDS:
        end = flown(kind, asked=call(prompt=[1] * 9000))[-1]
        assert isinstance(end, Failed) and (end.status, end.outcome, end.reason) == (400, "local_cancelled", "invalid_request")
        assert "9000" in end.message


def test_nobody_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"

    async def main() -> tuple[EngineEvent, bool, str]:
        engine = make_engine("llamacpp", url, name="e", model="")
        end = (await collect(engine, call()))[-1]
        health = await engine.health()
        with pytest.raises(EngineUnavailableError):
            await engine.scrape()
        await engine.close()
        return end, health.ok, health.status

    end, ok, status = asyncio.run(main())
    assert isinstance(end, Failed) and (end.outcome, end.reason) == ("provider_failure", "connection_refused")
    assert (ok, status) == (False, "unreachable")


def raw_server(reply: bytes) -> tuple[socket.socket, str]:
    """A server that answers every connection with these bytes and closes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                client.recv(65536)
                client.sendall(reply)
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):  # closing with bytes unread would be a reset
                    pass

    threading.Thread(target=serve, daemon=True).start()
    return listener, f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(("reply", "reason"), [
    (b"SSH-2.0-nothing like HTTP\r\n\r\n", "garbage"),
    (b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}', "garbage"),
    (b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 25\r\n\r\n{"error":{"message":"x"}}', "engine_error"),
    (b'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9\r\n\r\ndata: 7\n\n', "garbage"),
    (b'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {"choices":[{"index":0,"te', "eof_without_end"),
    (b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n", "http_302"),
])
def test_AD_6_servers_that_are_no_engines(reply: bytes, reason: str) -> None:
    listener, url = raw_server(reply)

    async def main() -> EngineEvent:
        engine = make_engine("vllm", url, name="e", model="")
        end = (await collect(engine, call()))[-1]
        await engine.close()
        return end

    end = asyncio.run(main())
    listener.close()
    assert isinstance(end, Failed) and (end.outcome, end.reason) == ("provider_failure", reason)


# --- stopping


@pytest.mark.parametrize(("kind", "what"), WAYS)
@pytest.mark.parametrize("fault", [None, Fault("stall"), Fault("hang")], ids=["running", "stall", "hang"])
def test_AD_6_leaving_closes_the_socket_and_frees_the_slot(kind: str, what: str, fault: Fault | None) -> None:
    async def leave(engine: Engine) -> int:
        seen = 0
        try:
            async with asyncio.timeout(0.15), engine.stream(call(what, max_tokens=4000)) as events:
                async for event in events:
                    seen += isinstance(event, Delta)
                    if seen == 3:
                        break
        except TimeoutError:
            pass
        for _ in range(200):
            if server.in_flight == 0:
                break
            await asyncio.sleep(0.005)
        return seen

    script = FakeScript(ttft_s=0.0, itl_s=0.01, slots=1, faults=(fault,) if fault else ())
    with FakeEngine(script, kind=KINDS[kind]) as server:  # type: ignore[arg-type]
        seen = on(kind, server, leave)
        assert server.in_flight == 0 and server.load.held_tokens == 0
        assert (seen, server.left) == {None: (3, 1), "stall": (2, 1), "hang": (0, 0)}[fault.kind if fault else None]
    assert server.count("POST") == 1


def test_a_cancelled_task_stops_its_call() -> None:
    async def work(engine: Engine) -> None:
        task = asyncio.ensure_future(collect(engine, call(max_tokens=4000)))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.05)

    with FakeEngine(FakeScript(ttft_s=0.0, itl_s=0.01), kind="llamacpp") as server:
        on("llamacpp", server, work)
        assert (server.left, server.in_flight) == (1, 0)


# --- connections


def test_AD_3_a_reused_connection_that_is_dead_is_tried_once_more() -> None:
    """The server drops the second request, which comes on a kept connection, without a byte."""
    async def work(engine: Engine) -> list[EngineEvent]:
        await collect(engine, call())
        return await collect(engine, call())

    with FakeEngine(FakeScript(**FAST, faults=(Fault("drop", at=(2,)),)), kind="llamacpp") as server:
        assert isinstance(on("llamacpp", server, work)[-1], Ended)
        assert server.count("POST") == 3


def test_AD_3_a_new_connection_or_a_second_death_is_not_retried() -> None:
    for fault, posts in ((Fault("drop"), 1), (Fault("drop", at=(2, 3)), 3)):
        with FakeEngine(FakeScript(**FAST, faults=(fault,))) as server:
            async def work(engine: Engine) -> EngineEvent:
                first = await collect(engine, call())
                return first[-1] if isinstance(first[-1], Failed) else (await collect(engine, call()))[-1]

            assert isinstance(on("vllm", server, work), Failed)
            assert server.count("POST") == posts


def test_AD_3_nothing_is_sent_again_after_the_first_byte() -> None:
    async def work(engine: Engine) -> EngineEvent:
        await collect(engine, call())
        return (await collect(engine, call()))[-1]

    with FakeEngine(FakeScript(**FAST, faults=(Fault("die", at=(2,), after_tokens=0),))) as server:
        end = on("vllm", server, work)
    assert isinstance(end, Failed) and end.reason == "connection_reset" and server.count("POST") == 2


def test_AD_3_connections_are_kept() -> None:
    async def main() -> int:
        opened = 0
        http = HttpClient(server.url)
        for _ in range(5):
            async with http.stream_post("/v1/completions", {"prompt": "a", "stream": True, "max_tokens": 2}) as reply:
                while await reply.chunk() is not None:
                    pass
            opened = max(opened, len(server._links))
        await http.aclose()
        return opened

    with FakeEngine(FakeScript(**FAST)) as server:
        assert asyncio.run(main()) == 1


# --- retry-after


def test_retry_after_as_seconds_and_as_a_date() -> None:
    now = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
    date = format_datetime(now + timedelta(seconds=90), usegmt=True)
    assert retry_after_s({"retry-after": "7"}) == 7
    assert retry_after_s({"retry-after": "1.5"}) == 1.5
    assert retry_after_s({"retry-after": date}, now.timestamp) == 90
    assert retry_after_s({"retry-after": date, "date": format_datetime(now + timedelta(seconds=30), usegmt=True)}) == 60
    assert retry_after_s({"retry-after": format_datetime(now - timedelta(days=1), usegmt=True)}, now.timestamp) == 0
    for nothing in ({}, {"retry-after": ""}, {"retry-after": "soon"}, {"retry-after": "-3"}, {"retry-after": "nan"}):
        assert retry_after_s(nothing) is None


@pytest.mark.parametrize("kind", KINDS)
def test_retry_after_reaches_the_failure(kind: str) -> None:
    seconds = flown(kind, "prompt", Fault("refuse", status=429, retry_after="3"))[-1]
    assert isinstance(seconds, Failed) and seconds.retry_after_s == 3
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    dated = flown(kind, "prompt", Fault("refuse", status=503, retry_after=at))[-1]
    assert isinstance(dated, Failed) and dated.outcome == "rate_limited" and dated.retry_after_s == pytest.approx(60, abs=3)


# --- recorded replies

RECORDED = [
    ("llamacpp-b11549/stream_native.sse", NativeReader, (6, 6, 0), "length"),
    ("llamacpp-b11549/stream_native_progress.sse", NativeReader, (182, 4, 0), "length"),
    ("llamacpp-b11549/stream_openai_chat.sse", OpenAIReader, (25, 6, 0), "length"),
    ("llamacpp-b11549/stream_openai_completions.sse", OpenAIReader, (6, 6, 1), "length"),
    ("vllm-0.32.0/stream_chat.sse", OpenAIReader, (19, 6, None), "length"),
    ("vllm-0.32.0/stream_completions.sse", OpenAIReader, (11, 8, None), "length"),
]


def read_in_pieces(raw: bytes, edges: list[int], reader: Reader) -> list[EngineEvent]:
    decoder, events = SseDecoder(), []
    for a, b in zip([0, *edges], [*edges, len(raw)]):
        events += events_of(decoder.feed(raw[a:b]), reader)
    return events + list(events_of(decoder.end(), reader))


@pytest.mark.parametrize(("path", "reader", "counts", "finish"), RECORDED, ids=lambda v: v if isinstance(v, str) else "")
def test_AD_6_recorded_replies(path: str, reader: Callable[[], Reader], counts: tuple[int, int, int | None], finish: str) -> None:
    events = read_in_pieces((REPLIES / path).read_bytes(), [], reader())
    usage = [e for e in events if isinstance(e, Usage)][-1]
    assert (usage.input_tokens, usage.output_tokens, usage.cached_tokens) == counts
    assert isinstance(events[-1], Ended) and events[-1].finish_reason == finish
    assert sum(isinstance(e, Delta) for e in events) == counts[1] and text_of(events)
    assert all(e.text for e in events if isinstance(e, Delta))


@settings(max_examples=25)
@given(st.sampled_from(RECORDED), st.data())
def test_AD_6_recorded_replies_at_any_cuts(recorded: Any, data: st.DataObject) -> None:
    path, reader, _, _ = recorded
    raw = (REPLIES / path).read_bytes()
    edges = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=20)))
    assert read_in_pieces(raw, edges, reader()) == read_in_pieces(raw, [], reader())


def test_MX_1_prefill_progress_is_no_token() -> None:
    events = read_in_pieces((REPLIES / "llamacpp-b11549/stream_native_progress.sse").read_bytes(), [], NativeReader())
    assert events[:3] == [Prefill(0, 182, 0), Prefill(178, 182, 0), Prefill(182, 182, 0)]
    assert isinstance(events[3], Delta) and events[3].n == 1


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=3), st.sampled_from(["\n", "\r\n", "\r"]))
def test_AD_6_over_http_in_small_pieces(sizes: list[int], line_end: str) -> None:
    body = (REPLIES / "vllm-0.32.0/stream_chat.sse").read_text("utf-8").replace("\n", line_end).replace("<t890>", "日本🙂")
    faults = tuple(Fault("replay", at=(i + 1,), body=body.encode(), piece_bytes=size) for i, size in enumerate(sizes))
    script = FakeScript(**FAST, faults=faults)

    async def work(engine: Engine) -> list[list[EngineEvent]]:
        return [await collect(engine, call("messages")) for _ in sizes]

    with FakeEngine(script) as server:
        for events in on("vllm", server, work):
            assert "日本🙂" in text_of(events) and isinstance(events[-1], Ended)
            assert Usage(19, 6, None) in events


ODD = [
    ('data: {"choices":[{"index":0,"text":"a","new_field":{"x":1}}],"later":3}\n\ndata: [DONE]\n\n', "a", Ended),
    ('data: {"choices":[{"index":0,"text":"a"}]}\n\ndata: [DONE]\n\ndata: {"choices":[{"index":0,"text":"late"}]}\n\n', "a", Ended),
    ('data: {"choices":[{"index":1,"text":"a"}]}\n\n', "", Failed),
    ('data: {"choices":[{"index":0,"text":["a"]}]}\n\n', "", Failed),
    ('data: {"choices":7}\n\n', "", Failed),
    ('data: {"choices":[{"index":0,"text":"a","finish_reason":"abort"}]}\n\n', "a", Failed),
    ('data: {"choices":[{"index":0,"text":"a","finish_reason":"repetition"}]}\n\ndata: [DONE]\n\n', "a", Ended),
    ('data: {"error":{"message":"died","code":500}}\n\ndata: [DONE]\n\n', "", Failed),
    ('data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":0}}\n\ndata: [DONE]\n\n', "", Ended),
    ('data: {"choices":[{"index":0,"delta":{"reasoning_content":"hm"}}]}\n\ndata: [DONE]\n\n', "hm", Ended),
    ('data: {"choices":[],"usage":{"prompt_tokens":-3}}\n\ndata: [DONE]\n\n', "", Failed),
    ("data: " + "[" * 100_000 + "\n\n", "", Failed),
]


@pytest.mark.parametrize(("raw", "text", "end"), ODD)
def test_EN_2_odd_frames(raw: str, text: str, end: type) -> None:
    events = read_in_pieces(raw.encode(), [], OpenAIReader("vllm"))
    ends = [i for i, e in enumerate(events) if isinstance(e, Ended | Failed)]
    assert text_of(events[: ends[0]]) == text
    assert isinstance(events[ends[0]], end)


def test_native_counter_must_not_run_back() -> None:
    raw = b'data: {"content":"a","tokens_predicted":2}\n\ndata: {"content":"b","tokens_predicted":1}\n\n'
    end = read_in_pieces(raw, [], NativeReader())[-1]
    assert isinstance(end, Failed) and end.reason == "non_monotone"


def test_native_tokens_that_become_text_later_are_counted_with_it() -> None:
    raw = b"".join(b'data: {"content":"%s","tokens_predicted":%d}\n\n' % pair for pair in ((b"a", 1), (b"", 2), (b"b", 3)))
    assert [e.n for e in read_in_pieces(raw, [], NativeReader()) if isinstance(e, Delta)] == [1, 2]


def test_DT_2_seeds_for_32_bits() -> None:
    assert (seed32(2**40 + 5), seed32(4294967295), seed32(6007808976514037404)) == (5, 0, 4085626524)


# --- what the engine says of itself


def test_capabilities_and_scrape() -> None:
    async def work(engine: Engine) -> tuple[Any, Any, Any]:
        async with engine.stream(call(max_tokens=4000)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    break
            scrape = await engine.scrape(3.5)
        return await engine.capabilities(), scrape, await engine.health()

    for kind in KINDS:
        with FakeEngine(FakeScript(ttft_s=0.0, itl_s=0.005, slots=3), kind=KINDS[kind]) as server:  # type: ignore[arg-type]
            said, scrape, health = on(kind, server, work)
        assert health.ok and (scrape.sampled_s, scrape.running) == (3.5, 1)
        assert said.ctx_tokens == 8192 and said.slots == (3 if kind == "llamacpp" else None)
        if kind == "openai":  # a server without known metrics: only what is our own is known
            assert scrape.waiting is None and scrape.kv_used_fraction is None
        else:
            assert scrape.waiting == 0 and scrape.kv_used_fraction > 0 and "running" in said.metrics


def test_scrape_of_something_else_is_an_error() -> None:
    listener, url = raw_server(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")

    async def main() -> None:
        engine = make_engine("vllm", url, name="e", model="")
        with pytest.raises(EngineUnavailableError, match="404"):
            await engine.scrape()
        assert not (await engine.health()).ok
        await engine.close()

    asyncio.run(main())
    listener.close()


# --- the stand-ins themselves


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
