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


Prompts = list[tuple[int, list[int]]]  # (tokens, block ids)


def mooncake(name: str) -> Prompts:
    with gzip.open(data_path(f"traces/mooncake_{name}.jsonl.gz"), "rt") as file:
        return [(row["input_length"], row["hash_ids"]) for row in map(json.loads, file)]


@pytest.fixture(scope="module")
def conversation() -> Prompts:
    return mooncake("conversation")


@pytest.fixture(scope="module")
def synthetic() -> Prompts:
    return mooncake("synthetic")


def replayed(prompts: Prompts, capacity: int | None, touch: str) -> tuple[float, float]:
    """Hit rate by block and by token."""
    cache = PrefixCache(capacity, touch)  # type: ignore[arg-type]
    hits = [cache.access(ids) for _, ids in prompts]
    tokens = sum(min(512 * n, length) for n, (length, _) in zip(hits, prompts, strict=True))
    return round(sum(hits) / sum(len(ids) for _, ids in prompts), 4), round(tokens / sum(length for length, _ in prompts), 4)


@pytest.mark.parametrize(("capacity", "forward", "reverse"), [
    (None, (0.3664, 0.3736), (0.3664, 0.3736)), (50_000, (0.3546, 0.3615), (0.3546, 0.3615)), (30_000, (0.3257, 0.3321), (0.3257, None)),
    (10_000, (0.2112, 0.2153), (0.2116, 0.2157)), (5859, (0.1355, 0.1382), (0.1361, 0.1387)), (1000, (0.0445, 0.0454), (0.0445, None))])
def test_SQ_41_conversation_trace(conversation: Prompts, capacity: int | None, forward: tuple[float, float | None],
                                  reverse: tuple[float, float | None]) -> None:
    for touch, (by_block, by_token) in (("forward", forward), ("reverse", reverse)):
        got = replayed(conversation, capacity, touch)
        assert got == (by_block, got[1] if by_token is None else by_token)


@pytest.mark.parametrize(("capacity", "forward", "reverse"), [
    (None, (0.6396, 0.6512), (0.6396, 0.6512)), (30_000, (0.6242, 0.6356), (0.6242, None)), (10_000, (0.4235, 0.4313), (0.4239, 0.4318)),
    (5859, (0.3094, 0.3151), (0.3094, 0.3151)), (1000, (0.0825, 0.0840), (0.0841, None))])
def test_SQ_41_synthetic_trace(synthetic: Prompts, capacity: int | None, forward: tuple[float, float | None],
                               reverse: tuple[float, float | None]) -> None:
    for touch, (by_block, by_token) in (("forward", forward), ("reverse", reverse)):
        got = replayed(synthetic, capacity, touch)
        assert got == (by_block, got[1] if by_token is None else by_token)
