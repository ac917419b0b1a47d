"""Routers in reference steps: a step adds one to a counter in a dict of 64, measured just before and after."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from windtunnel.events import ReplicaReady, Request
from windtunnel.policy.routing.affinity import PrefixAffinity
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.ring import BoundedHash
from windtunnel.policy.routing.router import Choice, Router

REPLICAS = 64


def best(work: Callable[[], object], times: int) -> float:
    """CPU seconds of the quickest of `times` rounds."""
    seconds = []
    for _ in range(times):
        begun = time.process_time()
        work()
        seconds.append(time.process_time() - begun)
    return min(seconds)


def step_s() -> float:
    rng = random.Random(1)
    counts = {f"key-{i}": 0 for i in range(64)}
    seq = [f"key-{rng.randrange(64)}" for _ in range(100_000)]

    def work() -> None:
        for key in seq:
            counts[key] = counts[key] + 1

    return best(work, 7) / len(seq)


def steps(work: Callable[[], object], n: int) -> float:
    """Reference steps of each of n things that `work` does; the better of two tries, as other work may share the machine."""
    def once() -> float:
        before = step_s()
        spent = best(work, 5) / n
        return spent / ((before + step_s()) / 2)

    return min(once(), once())


def served(router: Router, in_flight: int = 600, kv_tokens: int | None = None) -> Fleet:
    fleet = Fleet()
    for i in range(REPLICAS):
        fleet.ready(ReplicaReady(f"r{i}", "p", slots=64, kv_tokens=kv_tokens), 0.0)
    for i in range(in_flight):
        send(router, fleet, Request(f"q{i}", "t", "m", 0, 0.0, 100, 50))
    return fleet


def send(router: Router, fleet: Fleet, request: Request) -> str:
    choice = router.pick(request, fleet, 1.0)
    assert isinstance(choice, Choice)
    router.sent(request, choice, 1.0)
    fleet.sent(request, choice.replica, 1.0)
    return choice.replica


def prompt(i: int) -> tuple[int, ...]:
    return tuple(range(1000 * i, 1000 * i + 100))


@pytest.mark.parametrize("hit", [True, False])
def test_PF_4_affinity_pick(hit: bool) -> None:
    router = PrefixAffinity()
    fleet = served(router)
    for i in range(1000):  # 100 000 blocks
        send(router, fleet, Request(f"p{i}", "t", "m", 0, 0.0, 1600, 50, blocks=prompt(i)))
    asked = [Request(f"?{i}", "t", "m", 0, 0.0, 1600, 50, blocks=prompt(i if hit else i + 5000)) for i in range(500)]
    reasons = {router.pick(request, fleet, 1.0).reason for request in asked}
    assert reasons == ({"prefix"} if hit else {"prefix_miss"})
    assert steps(lambda: [router.pick(request, fleet, 1.0) for request in asked], len(asked)) <= 750


def test_PF_5_insert_at_the_bound() -> None:
    router = PrefixAffinity()
    served(router, 1, kv_tokens=16 * 2000)
    index, rounds = router.index, iter(range(1_000_000))
    for i in range(30):
        index.insert("r0", prompt(-i - 1), 2000)
    assert len(index.held("r0")) == 2000

    def work() -> None:
        for _ in range(50):
            index.insert("r0", prompt(next(rounds)), 2000)

    assert steps(work, 50) <= 2500
    assert len(index.held("r0")) == 2000 == len(index.holders)


def test_PF_7_ring_pick() -> None:
    router = BoundedHash()
    fleet = served(router)
    asked = [Request(f"?{i}", "t", "m", 0, 0.0, route_key=f"session-{i}") for i in range(500)]
    assert {router.pick(request, fleet, 1.0).reason for request in asked} <= {"ring", "ring_spill"}
    assert steps(lambda: [router.pick(request, fleet, 1.0) for request in asked], len(asked)) <= 150
