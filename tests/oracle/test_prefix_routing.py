"""Routing by prefix over public traces: the block hit rates that are known, with every request over before the next comes."""

from __future__ import annotations

import gzip
import json
from collections import Counter

import pytest

from windtunnel.datafiles import data_path
from windtunnel.events import ReplicaReady, Request
from windtunnel.policy.routing.affinity import PrefixAffinity, PrefixAffinityConfig
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.ring import BoundedHash
from windtunnel.policy.routing.roundrobin import RoundRobin
from windtunnel.policy.routing.router import Choice, Router
from windtunnel.sim.prefix import PrefixCache

Prompts = list[tuple[int, ...]]


def prompts(name: str) -> Prompts:
    with gzip.open(data_path(f"traces/mooncake_{name}.jsonl.gz"), "rt") as file:
        return [tuple(json.loads(line)["hash_ids"]) for line in file]


@pytest.fixture(scope="module")
def conversation() -> Prompts:
    return prompts("conversation")


@pytest.fixture(scope="module")
def arxiv() -> Prompts:
    return prompts("arxiv_first1000")


def routed(router: Router, rows: Prompts, capacity: int | None = 10_000, replicas: int = 4) -> tuple[float, list[int]]:
    """(block hit rate in real caches behind the router, requests per replica)."""
    fleet, hits, counts = Fleet(), 0, Counter[str]()
    names = [f"r{i}" for i in range(replicas)]
    caches = {name: PrefixCache(capacity, "forward") for name in names}
    for name in names:
        fleet.ready(ReplicaReady(name, "p"), 0.0)
    for i, blocks in enumerate(rows):
        request = Request(str(i), "t", "m", 0, 0.0, blocks=blocks)
        choice = router.pick(request, fleet, 0.0)
        assert isinstance(choice, Choice)
        found = caches[choice.replica].access(blocks)
        if isinstance(router, PrefixAffinity):
            assert choice.matched_blocks == found, "the index guesses what a cache of the same size holds"
        hits, counts[choice.replica] = hits + found, counts[choice.replica] + 1
        router.sent(request, choice, 0.0)
        fleet.sent(request, choice.replica, 0.0)
        router.done(request, choice.replica, "success", 0.0)
        fleet.done(request.id, choice.replica, 0.0, success=True)
    return round(hits / sum(map(len, rows)), 4), [counts[name] for name in names]


def affinity(min_ratio: float = 0.3) -> PrefixAffinity:
    return PrefixAffinity(PrefixAffinityConfig(min_ratio=min_ratio, index_blocks=10_000))


def test_OR_6_conversation(conversation: Prompts) -> None:
    assert routed(RoundRobin(), conversation)[0] == 0.1586
    assert routed(affinity(), conversation) == (0.3469, [2981, 3038, 2996, 3016])


def test_OR_6_affinity_collapses_where_one_first_block_is_shared_by_all(conversation: Prompts) -> None:
    """Why there is a least part of a prompt that a replica must hold."""
    assert routed(affinity(0.0), conversation) == (0.2112, [12031, 0, 0, 0])


def test_OR_6_arxiv(arxiv: Prompts) -> None:
    assert routed(RoundRobin(), arxiv)[0] == 0.3079
    assert routed(affinity(), arxiv) == (0.3775, [414, 157, 268, 161])


def test_OR_6_synthetic() -> None:
    rows = prompts("synthetic")
    assert routed(RoundRobin(), rows)[0] == 0.3155
    assert routed(affinity(), rows) == (0.6389, [1023, 1056, 946, 968])


def test_bounded_hashing_keeps_first_blocks_together(arxiv: Prompts) -> None:
    """Without load nothing spills: equal first blocks have one home, which is worth as much as one cache for all."""
    rate, counts = routed(BoundedHash(), arxiv, capacity=None)
    assert rate == 0.3799 and sum(counts) == 1000
