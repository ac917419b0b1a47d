"""Routers one by one: rules, ties, reasons, draws."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from windtunnel.errors import ConfigError
from windtunnel.events import ReplicaReady, Request, Scrape, Scraped
from windtunnel.policy.param import BuildContext, PoolFacts
from windtunnel.policy.routing.choices import PowerOfTwo, PowerOfTwoConfig, RandomConfig, RandomRouter
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.least import LeastOutstanding, LeastOutstandingConfig
from windtunnel.policy.routing.roundrobin import RoundRobin, RoundRobinConfig
from windtunnel.policy.routing.router import Choice, NoReplica, ReplicaChange, Router


def ask(id: str, **more: object) -> Request:
    return Request(id, "t", "m", 0, 0.0, 100, 50, **more)  # type: ignore[arg-type]


class World:
    """A fleet and a router, driven as a control drives them."""

    def __init__(self, router: Router, *weights: float, slots: int | None = None) -> None:
        self.router, self.fleet, self.n = router, Fleet(), 0
        for i, weight in enumerate(weights):
            self.fleet.ready(ReplicaReady("ABCDEFGH"[i], "p", weight=weight, slots=slots), 0.0)

    def pick(self, now: float = 1.0, **more: object) -> Choice | NoReplica:
        return self.router.pick(ask("?", **more), self.fleet, now)

    def send(self, now: float = 1.0, to: str | None = None, **more: object) -> Choice:
        self.n += 1
        request = ask(f"r{self.n}", **more)
        choice = self.router.pick(request, self.fleet, now)
        assert isinstance(choice, Choice)
        choice = Choice(to, "") if to else choice
        self.router.sent(request, choice, now)
        self.fleet.sent(request, choice.replica, now)
        return choice

    def end(self, id: str, replica: str, now: float = 2.0) -> None:
        self.router.done(ask(id), replica, "success", now)
        self.fleet.done(id, replica, now, success=True, output_tokens=50)


@pytest.mark.parametrize(("weights", "turns"), [((5, 1, 1), "AABACAA"), ((3, 2), "ABABA"), ((1, 1, 1), "ABCABC")])
def test_RT_20_smooth_weighted_round_robin(weights: tuple[float, ...], turns: str) -> None:
    world = World(RoundRobin(), *weights)
    assert "".join(world.send().replica for _ in turns) == turns
    assert world.send().reason == "round_robin"


def test_RT_20_newcomers_start_at_zero_and_the_gone_are_forgotten() -> None:
    world = World(RoundRobin(), 1, 1)
    assert "".join(world.send().replica for _ in range(3)) == "ABA"
    world.fleet.ready(ReplicaReady("C", "p"), 1.0)
    assert "".join(world.send().replica for _ in range(3)) == "BCA"
    world.fleet.gone("A", 2.0)
    world.router.changed(ReplicaChange("gone", "A"), 2.0)
    assert set(world.router._counters) == {"B", "C"}  # type: ignore[attr-defined]
    assert {world.send().replica for _ in range(2)} == {"B", "C"}


def test_RT_21_random_by_weight_with_one_draw() -> None:
    world = World(RandomRouter(random.Random(5)), 3, 1)
    counts = Counter(world.pick().replica for _ in range(4000))  # type: ignore[union-attr]
    assert counts["A"] / 4000 == pytest.approx(0.75, abs=0.03)
    rng, same = random.Random(9), random.Random(9)
    World(RandomRouter(rng), 1, 1).pick()
    same.random()
    assert rng.random() == same.random()


def test_RT_22_power_of_two_draws_two_distinct_by_the_rule() -> None:
    rng, same = random.Random(3), random.Random(3)
    world = World(PowerOfTwo(rng), 1, 1, 1, 1)
    for name, load in zip("ABCD", (3, 1, 2, 0)):
        for _ in range(load):
            world.send(to=name)
    rng.seed(3)
    for _ in range(50):
        choice = world.pick()
        i, j = same.randrange(4), same.randrange(3)
        j += j >= i
        assert isinstance(choice, Choice)
        assert choice.replica == min("ABCD"[i] + "ABCD"[j], key=lambda name: {"A": 3, "B": 1, "C": 2, "D": 0}[name])
        assert choice.reason == "p2c"


def test_RT_22_few_candidates_take_no_draw_and_weights_draw_by_weight() -> None:
    rng = random.Random(1)
    state = rng.getstate()
    world = World(PowerOfTwo(rng), 1, 1)
    world.send(to="A")
    assert world.pick() == Choice("B", "p2c", 1.0)
    assert rng.getstate() == state
    heavy = World(PowerOfTwo(random.Random(1)), 8, 1, 1, 8)
    counts = Counter(heavy.pick().replica for _ in range(2000))  # type: ignore[union-attr]
    assert counts["A"] + counts["D"] > 1800
    eight = World(PowerOfTwo(random.Random(1), 8), *[1] * 8)
    assert eight.pick() == Choice("A", "p2c", 1.0)


@pytest.mark.parametrize("d", [1, 9, 2.0])
def test_RT_22_bad_d(d: int) -> None:
    with pytest.raises(ConfigError, match="d: expected"):
        PowerOfTwoConfig(d)


def test_RT_23_worked() -> None:
    world = World(LeastOutstanding(), 2, 1)
    for name in "BAAA":
        world.send(to=name)
    assert world.pick() == Choice("B", "least_requests", 2.0)  # equal scores: B was sent to longer ago
    assert World(LeastOutstanding(), 2, 1).pick() == Choice("A", "least_requests", 0.5)
    world.send(to="B")
    assert world.pick() == Choice("A", "least_requests", 2.0)


def test_RT_23_by_tokens_adds_the_charge_before_it_divides() -> None:
    router = LeastOutstanding(LeastOutstandingConfig(by="tokens"))
    world = World(router, 4, 1)
    world.send(to="A", expected_tokens=None)
    assert world.pick() == Choice("A", "least_tokens", 75.0)  # (150 + 150) / 4 < (0 + 150) / 1
    even = World(LeastOutstanding(LeastOutstandingConfig(by="tokens")), 1, 1)
    assert "".join(even.send().replica for _ in range(4)) == "ABAB"
    even.end("r1", "A")
    assert even.send() == Choice("A", "least_tokens", 300.0)


def test_RT_15_ties() -> None:
    recent = World(LeastOutstanding(), 1, 1, 1)
    assert "".join(recent.send().replica for _ in range(4)) == "ABCA"
    for n, name in ((3, "C"), (2, "B"), (1, "A"), (4, "A")):
        recent.end(f"r{n}", name)
    assert "".join(recent.send().replica for _ in range(3)) == "BCA"
    first = World(LeastOutstanding(LeastOutstandingConfig(ties="first")), 1, 1, 1)
    first.send()
    first.end("r1", "A")
    assert first.send().replica == "A"
    rng, same = random.Random(4), random.Random(4)
    drawn = World(LeastOutstanding(LeastOutstandingConfig(ties="random"), rng=rng), 1, 1, 1)
    drawn.fleet.sent(ask("x"), "B", 0.0)
    assert [drawn.pick().replica for _ in range(20)] == ["AC"[same.randrange(2)] for _ in range(20)]  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="generator"):
        LeastOutstandingConfig(ties="random").build(BuildContext())


def test_RT_14_slow_start_then_the_full_weight() -> None:
    world = World(LeastOutstanding(LeastOutstandingConfig(slow_start_s=10.0)), 1, 1)
    world.fleet.ready(ReplicaReady("C", "p"), 100.0)
    assert "".join(world.send(100.0).replica for _ in range(8)) == "ABABABAB"
    assert world.pick(105.0) == Choice("C", "least_requests", 2.0)
    assert world.pick(110.0) == Choice("C", "least_requests", 1.0)


def test_RT_30_full_replicas_are_left_out() -> None:
    world = World(LeastOutstanding(LeastOutstandingConfig(respect_slots=True)), 1, 3, slots=2)
    assert "".join(world.send().replica for _ in range(4)) == "BBAA"
    assert world.pick() == NoReplica("all_full")
    world.end("r3", "A")
    assert world.pick() == Choice("A", "least_requests", 2.0)
    assert isinstance(World(LeastOutstanding(), 1, slots=1).send(), Choice)


def test_RT_4_tried_and_fixed_replicas() -> None:
    for router in (LeastOutstanding(), RoundRobin(), RandomRouter(random.Random(1)), PowerOfTwo(random.Random(1))):
        world = World(router, 1, 1)
        word = world.pick().reason
        assert (world.pick(tried=frozenset("A")).replica, world.pick(replica="B").replica) == ("B", "B")  # type: ignore[union-attr]
        assert world.pick(tried=frozenset("AB")).reason == f"{word}+tried_again"
        assert world.pick(replica="Z") == NoReplica("no_replica")
        world.fleet.draining("A", 1.0)
        assert world.pick(replica="A") == NoReplica("all_draining")
        assert {world.pick().replica for _ in range(5)} == {"B"}  # type: ignore[union-attr]


def test_RT_3_reasons_of_an_empty_pool() -> None:
    for router in (LeastOutstanding(), RoundRobin(), RandomRouter(random.Random(1)), PowerOfTwo(random.Random(1))):
        world = World(router)
        assert world.pick() == NoReplica("no_replica")
        world.fleet.ready(ReplicaReady("A", "p"), 0.0)
        assert isinstance(world.pick(), Choice)
        world.fleet.gone("A", 1.0)
        assert world.pick() == NoReplica("no_replica")


def test_other_peoples_load_counts_while_its_scrape_is_fresh() -> None:
    world = World(LeastOutstanding(), 1, 1)
    world.fleet.scraped(Scraped("A", Scrape(1.0, 5, 1)), 1.0)
    world.fleet.scraped(Scraped("B", Scrape(1.0, None, None)), 1.0)
    assert world.send().replica == "B"
    assert world.send().replica == "B"
    assert world.pick(4.0).replica == "B"  # type: ignore[union-attr]
    assert world.pick(4.1).replica == "A"  # type: ignore[union-attr]


def test_a_change_of_weight_counts_at_once() -> None:
    world = World(LeastOutstanding(), 1, 1)
    world.fleet.ready(ReplicaReady("B", "p", weight=4.0), 1.0)
    assert world.pick() == Choice("B", "least_requests", 0.25)


@pytest.mark.parametrize("config", [LeastOutstandingConfig(), RoundRobinConfig(), RandomConfig(), PowerOfTwoConfig()])
def test_built_routers_see_only_their_lane(config: LeastOutstandingConfig) -> None:
    router = config.build(BuildContext(rng=random.Random(2), pools=(PoolFacts("q"),)))
    world = World(router, 1, 1)
    assert router.needs == frozenset()
    assert world.pick() == NoReplica("no_replica")
    world.fleet.ready(ReplicaReady("Q", "q"), 0.0)
    assert world.pick().replica == "Q"  # type: ignore[union-attr]
