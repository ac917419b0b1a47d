"""The conformance battery: every adapter against a scripted server that does what real engines and networks do."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest
from adapter_calls import FAST, KINDS, call, collect, flown, on, text_of

from windtunnel.errors import ConfigUnknownKeyError, ConfigValueError, EngineUnavailableError
from windtunnel.live.engines import make_engine
from windtunnel.live.engines.engine import Delta, Ended, Engine, EngineCall, EngineEvent, Failed, Opened, Usage
from windtunnel.live.engines.failures import from_status
from windtunnel.live.fake_server import FakeEngine, FakeScript, Fault

WAYS = [("vllm", "prompt"), ("vllm", "messages"), ("openai", "prompt"), ("llamacpp", "prompt"), ("llamacpp", "messages")]


# -- good answers -----------------------------------------------------------------------------------------------------------------


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


# -- broken answers ---------------------------------------------------------------------------------------------------------------


BROKEN = [  # (fault, code, outcome, reason)
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


# -- stopping ---------------------------------------------------------------------------------------------------------------------


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


# -- what the engine says of itself -----------------------------------------------------------------------------------------------


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
