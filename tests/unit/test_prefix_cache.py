"""Prefix cache: longest known prefix, references, least recently released out first."""

from __future__ import annotations

import gzip
import json

import pytest

from windtunnel.datafiles import data_path
from windtunnel.errors import ConfigValueError
from windtunnel.sim.prefix import PrefixCache


def test_SX_2_lookup_stops_at_the_first_miss() -> None:
    cache = PrefixCache()
    cache.access((1, 2, 3))
    assert cache.lookup((1, 2, 9, 3), 4) == 2
    assert cache.lookup((9, 1, 2), 3) == 0
    assert cache.lookup((1, 2, 3), 2) == 2


def test_SX_4_the_least_recently_released_goes_first() -> None:
    cache = PrefixCache(2)
    cache.access((1,))
    cache.access((2,))
    cache.access((1,))
    cache.access((3,))
    assert cache.evictions == 1
    assert [cache.lookup((h,), 1) for h in (1, 2, 3)] == [1, 0, 1]


@pytest.mark.parametrize(("touch", "left"), [("reverse", (1, 2)), ("forward", ())])
def test_SK_5_a_tail_is_evicted_before_its_prefix(touch: str, left: tuple[int, ...]) -> None:
    cache = PrefixCache(3, touch)  # type: ignore[arg-type]
    cache.access((1, 2, 3))
    cache.access((9,))
    assert cache.lookup((1, 2, 3), 3) == len(left)


def test_SX_2_what_is_held_is_not_evicted() -> None:
    cache = PrefixCache()
    cache.access((1, 2))
    assert cache.acquire((1,)) == 1
    assert cache.acquire((1,)) == 0
    cache.trim(0)
    assert cache.lookup((1, 2), 2) == 1
    assert cache.release([1]) == 0
    assert cache.release([1]) == 1
    assert len(cache) == 1


def test_SX_2_an_equal_block_filled_twice_is_kept_once() -> None:
    cache = PrefixCache()
    assert cache.insert(5)
    assert not cache.insert(5)
    assert cache.refs == {5: 1}


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigValueError, match="capacity"):
        PrefixCache(0)
    with pytest.raises(ConfigValueError, match="touch"):
        PrefixCache(1, "sideways")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def conversation() -> list[list[int]]:
    with gzip.open(data_path("traces/mooncake_conversation.jsonl.gz"), "rt") as file:
        return [json.loads(line)["hash_ids"] for line in file]


@pytest.mark.parametrize(("capacity", "forward", "reverse"), [
    (None, 0.3664, 0.3664), (50_000, 0.3546, 0.3546), (30_000, 0.3257, 0.3257), (10_000, 0.2112, 0.2116), (5859, 0.1355, 0.1361),
    (1000, 0.0445, 0.0445)])
def test_SQ_41_conversation_trace(conversation: list[list[int]], capacity: int | None, forward: float, reverse: float) -> None:
    blocks = sum(len(ids) for ids in conversation)
    for touch, expected in (("forward", forward), ("reverse", reverse)):
        cache = PrefixCache(capacity, touch)  # type: ignore[arg-type]
        assert round(sum(cache.access(ids) for ids in conversation) / blocks, 4) == expected
