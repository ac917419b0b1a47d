"""Replies that real engines gave, and odd frames, read in any pieces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from adapter_calls import FAST, call, collect, on, text_of
from hypothesis import given, settings
from hypothesis import strategies as st

from windtunnel.live.engines.engine import Delta, Ended, Engine, EngineEvent, Failed, Prefill, Usage
from windtunnel.live.engines.llamacpp import NativeReader, seed32
from windtunnel.live.engines.openai import OpenAIReader
from windtunnel.live.engines.wire import Reader, events_of
from windtunnel.live.fake_server import FakeEngine, FakeScript, Fault
from windtunnel.live.sse import SseDecoder

REPLIES = Path(__file__).parents[2] / "data" / "engine_replies"
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
