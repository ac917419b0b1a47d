"""The event-stream decoder: line ends, comments, cuts, limits."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windtunnel.live.sse import Frame, SseDecoder

STREAM = (
    '\ufeff: ping\n\ndata: {"a":1}\r\n\r\ndata:é\rdata: 日本 🙂\r\rid: 7\nevent: error\ndata: x\n\n'
    ': ping\ndata\n\ndata: [DONE]\n\n'
).encode()
FRAMES = [Frame('{"a":1}'), Frame("é\n日本 🙂"), Frame("x", "error"), Frame(""), Frame("[DONE]")]


def decoded(pieces: list[bytes], max_bytes: int = 1 << 20) -> tuple[list[Frame], bool]:
    decoder = SseDecoder(max_bytes)
    frames = [frame for piece in pieces for frame in decoder.feed(piece)]
    return (frames + decoder.end() if not decoder.overflowed else frames), decoder.overflowed


def test_frames_of_a_mixed_stream() -> None:
    assert decoded([STREAM]) == (FRAMES, False)


def test_AD_6_every_single_cut_gives_the_same_frames() -> None:
    for at in range(len(STREAM) + 1):
        assert decoded([STREAM[:at], STREAM[at:]]) == (FRAMES, False), at


def test_AD_6_one_byte_at_a_time() -> None:
    assert decoded([STREAM[i : i + 1] for i in range(len(STREAM))]) == (FRAMES, False)


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_AD_6_any_cuts_give_the_same_frames(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    assert decoded([STREAM[a:b] for a, b in pairwise(edges)]) == (FRAMES, False)


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20), max_size=8),
       st.sampled_from(["\n", "\r", "\r\n"]), st.integers(1, 7))
def test_any_text_comes_back(texts: list[str], end: str, step: int) -> None:
    raw = "".join(f"data: {text}{end}{end}" for text in texts).encode()
    frames, _ = decoded([raw[i : i + step] for i in range(0, len(raw), step)])
    assert [f.data for f in frames] == texts


@given(st.binary(max_size=300), st.integers(1, 9))
def test_any_bytes_are_survived_and_cuts_do_not_matter(raw: bytes, step: int) -> None:
    assert decoded([raw]) == decoded([raw[i : i + step] for i in range(0, len(raw), step)])


def test_bytes_that_are_no_utf8_become_replacement_characters() -> None:
    assert decoded([b"data: a\xff\n\n"]) == ([Frame("a\ufffd")], False)


def test_a_last_frame_without_its_blank_line_counts() -> None:
    assert decoded([b"data: [DONE]"]) == ([Frame("[DONE]")], False)


@pytest.mark.parametrize("step", [1, 7, 64, 4096])
def test_AD_6_an_oversized_frame_overflows_at_any_cut(step: int) -> None:
    raw = b"data: ok\n\ndata: " + b"x" * 2000 + b"\n\ndata: late\n\n"
    assert decoded([raw[i : i + step] for i in range(0, len(raw), step)], max_bytes=1000) == ([Frame("ok")], True)


def test_comments_are_no_part_of_a_frames_size() -> None:
    raw = b": " + b"p" * 900 + b"\n"
    assert decoded([raw, raw, b"data: ok\n\n"], max_bytes=1000) == ([Frame("ok")], False)


def test_AD_6_ten_thousand_frames_in_one_read() -> None:
    frames = SseDecoder().feed(b'data: {"n":1}\n\n' * 10_000)
    assert len(frames) == 10_000 and frames[-1].data == '{"n":1}'


def test_many_small_pieces_of_one_line_cost_linear_time() -> None:
    decoder = SseDecoder()
    decoder.feed(b"data: ")
    for _ in range(200_000):
        decoder.feed(b"abcd")
    assert len(decoder.feed(b"\n\n")[0].data) == 800_000


def test_an_error_field_is_an_error_event() -> None:
    assert decoded([b'error: {"code":500}\n\n']) == ([Frame('{"code":500}', "error")], False)
