"""Prefix affinity: the rule, the gate, and what it forgets."""

from __future__ import annotations

import random

import pytest

from windtunnel.errors import ConfigValueError
from windtunnel.events import ReplicaBooting, ReplicaReady, Request, Scrape, Scraped
from windtunnel.policy.param import BuildContext, PoolFacts
from windtunnel.policy.routing.affinity import PrefixAffinity, PrefixAffinityConfig
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.router import Choice, NoReplica, ReplicaChange

TEN = tuple(range(100, 110))


class World:
    """Replicas r0, r1, ... with a router, driven as a control drives them."""

    def __init__(self, n: int = 3, *, slots: int | None = None, kv_tokens: int | None = None, weights: tuple[float, ...] = (),
                 config: PrefixAffinityConfig | None = None, exact: bool = False) -> None:
        self.router, self.fleet, self.sent_n = PrefixAffinity(config, exact=exact), Fleet(), 0
        for i in range(n):
            weight = weights[i] if weights else 1.0
            self.fleet.ready(ReplicaReady(f"r{i}", "p", weight=weight, slots=slots, kv_tokens=kv_tokens), 0.0)

    def request(self, blocks: tuple[int, ...] | None, **more: object) -> Request:
        self.sent_n += 1
        return Request(f"q{self.sent_n}", "t", "m", 0, 0.0, 160, 20, blocks=blocks, **more)  # type: ignore[arg-type]

    def pick(self, blocks: tuple[int, ...] | None, now: float = 1.0, **more: object) -> Choice | NoReplica:
        return self.router.pick(self.request(blocks, **more), self.fleet, now)

    def send(self, blocks: tuple[int, ...] | None, to: str | None = None, now: float = 1.0) -> tuple[Request, Choice]:
        request = self.request(blocks)
        choice = self.router.pick(request, self.fleet, now)
        assert isinstance(choice, Choice)
        choice = choice if to is None else Choice(to, "")
        self.router.sent(request, choice, now)
        self.fleet.sent(request, choice.replica, now)
        return request, choice

    def end(self, request: Request, replica: str, now: float = 2.0) -> None:
        self.router.done(request, replica, "success", now)
        self.fleet.done(request.id, replica, now, success=True, output_tokens=5)

    def at_once(self, blocks: tuple[int, ...] | None, to: str | None = None) -> Choice:
        request, choice = self.send(blocks, to)
        self.end(request, choice.replica)
        return choice

    def change(self, kind: str, id: str, **more: object) -> None:
        self.router.changed(ReplicaChange(kind, id, **more), 3.0)  # type: ignore[arg-type]


def loaded(matches: tuple[int, int, int], loads: tuple[int, int, int] = (6, 2, 1), **more: object) -> World:
    """Replicas that hold so many leading blocks of TEN, under load."""
    world = World(**more)  # type: ignore[arg-type]
    for i, n in enumerate(matches):
        if n:
            world.at_once(TEN[:n], f"r{i}")
    for i, n in enumerate(loads):
        for _ in range(n):
            world.send(None, f"r{i}")
    return world


# -- the rule --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("matches", "slots", "expected"), [
    ((9, 4, 0), None, Choice("r1", "prefix", None, 4)),
    ((9, 2, 0), None, Choice("r2", "prefix_busy", 2.0, 0)),
    ((0, 2, 0), None, Choice("r2", "prefix_miss", 2.0, 0)),
    ((9, 4, 0), 16, Choice("r0", "prefix", None, 9)),
])
def test_RT_44_worked(matches: tuple[int, int, int], slots: int | None, expected: Choice) -> None:
    assert loaded(matches, slots=slots).pick(TEN) == expected


@pytest.mark.parametrize("blocks", [None, ()])
def test_RT_44_without_blocks_the_least_outstanding(blocks: tuple[int, ...] | None) -> None:
    world = loaded((9, 0, 0))
    assert world.pick(blocks) == Choice("r2", "prefix_miss", 2.0, None if blocks is None else 0)


def test_RT_44_equal_matches_go_to_the_less_loaded_then_the_less_recent() -> None:
    world = loaded((4, 4, 4), loads=(1, 0, 0))
    assert world.pick(TEN[:4]) == Choice("r1", "prefix", None, 4)
    world.at_once(None, "r1")
    assert world.pick(TEN[:4]) == Choice("r2", "prefix", None, 4)


def test_RT_44_min_blocks_and_min_ratio_both_have_to_be_met() -> None:
    few = loaded((1, 0, 0), loads=(0, 0, 0), config=PrefixAffinityConfig(min_ratio=0.0, min_blocks=2))
    assert few.pick(TEN).reason == "prefix_miss"
    few.at_once(TEN[:2], "r0")
    assert few.pick(TEN) == Choice("r0", "prefix", None, 2)
    assert loaded((3, 0, 0), (0, 0, 0)).pick(TEN).reason == "prefix"  # 3 of 10 is 0.3 of them
    assert loaded((2, 0, 0), (0, 0, 0)).pick(TEN).reason == "prefix_miss"
    exact = World(config=PrefixAffinityConfig(min_ratio=0.55))
    exact.at_once((*TEN, 1), "r1")
    assert exact.pick((*TEN, 1, *range(9))) == Choice("r1", "prefix", None, 11)  # 11 of 20


def test_RT_45_the_gate_is_relative_to_the_load_and_the_weight_of_all() -> None:
    world = loaded((9, 0, 0), loads=(6, 2, 1), weights=(2.0, 1.0, 1.0))
    assert world.pick(TEN) == Choice("r0", "prefix", None, 9)  # 7 <= ceil(1.25 * 10 * 2 / 4)
    assert loaded((9, 0, 0), loads=(0, 0, 0)).pick(TEN).reason == "prefix"
    assert loaded((9, 0, 0), loads=(1, 0, 0)).pick(TEN).reason == "prefix_busy"  # 2 > ceil(1.25 * 2 / 3)
    assert loaded((9, 0, 0), loads=(1, 0, 0), config=PrefixAffinityConfig(eps=0.6)).pick(TEN).reason == "prefix"


def test_RT_45_half_of_the_slots_is_open_whatever_the_others_have() -> None:
    assert loaded((9, 0, 0), loads=(7, 0, 0), slots=16).pick(TEN).reason == "prefix"
    assert loaded((9, 0, 0), loads=(8, 0, 0), slots=16).pick(TEN).reason == "prefix_busy"
    assert loaded((9, 0, 0), loads=(7, 0, 0), slots=16, config=PrefixAffinityConfig(busy=0.0)).pick(TEN).reason == "prefix_busy"


def test_RT_45_the_gate_is_asked_of_each_replica() -> None:
    """One busy holder does not switch affinity off for prompts of the others."""
    world = loaded((9, 0, 0), loads=(6, 0, 0))
    world.at_once((7, 8, 9), "r1")
    assert world.pick(TEN).reason == "prefix_busy"
    assert world.pick((7, 8, 9)) == Choice("r1", "prefix", None, 3)


def test_RT_45_other_peoples_load_counts_while_its_scrape_is_fresh() -> None:
    world = loaded((9, 0, 0), loads=(0, 0, 0))
    world.fleet.scraped(Scraped("r0", Scrape(1.0, 5, 0)), 1.0)
    assert world.pick(TEN, 1.5).reason == "prefix_busy"
    assert world.pick(TEN, 4.5).reason == "prefix"


def test_RT_45_the_total_follows_what_is_sent_and_ends() -> None:
    """The running sum of loads is that of a fresh count, whatever comes and goes."""
    world, rng = World(4), random.Random(3)
    live: list[tuple[Request, str]] = []
    for i in range(600):
        if live and rng.random() < 0.45:
            world.end(*live.pop(rng.randrange(len(live))))
        elif i % 97 == 5:
            id = f"r{rng.randrange(4)}"
            world.fleet.draining(id, 1.0)
            world.change("draining", id)
        elif i % 97 == 50:
            for id in [r.id for r in world.fleet.replicas.values() if r.state == "draining"]:
                world.fleet.undrain(id, 1.0)
                world.change("ready", id)
        else:
            request, choice = world.send((i % 7, i % 3, i))
            live.append((request, choice.replica))
        shares, request = world.router._shares, world.request(None)
        candidates = shares.candidates(request, world.fleet)
        assert shares.total(candidates, world.fleet, 1.0) == (sum(r.in_flight for r in candidates.values()), len(candidates))


# -- who may be picked, and what is forgotten ---------------------------------------------------------------------------------------


def test_RT_1_a_pick_without_sent_leaves_no_trace() -> None:
    world = loaded((9, 4, 0))
    request = world.request((*TEN, 1, 2))
    before = ({k: dict.fromkeys(v) for k, v in world.router.index._held.items()}, dict(world.router.index.holders), world.fleet.version)
    first = world.router.pick(request, world.fleet, 1.0)
    assert world.router.pick(request, world.fleet, 1.0) == first
    assert ({k: dict.fromkeys(v) for k, v in world.router.index._held.items()}, dict(world.router.index.holders), world.fleet.version) == before


def test_RT_4_tried_fixed_and_draining_replicas() -> None:
    world = loaded((9, 4, 4), loads=(0, 0, 0))
    assert world.pick(TEN, tried=frozenset({"r0"})).replica in ("r1", "r2")  # type: ignore[union-attr]
    assert world.pick(TEN, tried=frozenset({"r0"})).reason == "prefix"
    assert world.pick(TEN, tried=frozenset({"r0", "r1", "r2"})) == Choice("r0", "prefix+tried_again", None, 9)
    assert world.pick((5,), tried=frozenset({"r0", "r1", "r2"})).reason == "prefix_miss+tried_again"
    assert world.pick(TEN, replica="r2") == Choice("r2", "prefix", None, 4)
    world.fleet.draining("r0", 1.0)
    world.change("draining", "r0")
    assert world.pick(TEN).replica != "r0"  # type: ignore[union-attr]
    world.fleet.undrain("r0", 1.0)
    world.change("ready", "r0")
    assert world.pick(TEN) == Choice("r0", "prefix", None, 9)  # it kept what it had


def test_RT_3_nobody_there() -> None:
    world = World(0)
    assert world.pick(TEN) == NoReplica("no_replica")
    world.fleet.booting(ReplicaBooting("r0", "p"), 0.0)
    assert world.pick(TEN) == NoReplica("none_ready")


def test_RT_43_a_replica_that_is_gone_or_starts_anew_holds_nothing() -> None:
    world = loaded((9, 4, 0), loads=(0, 0, 0))
    world.fleet.gone("r0", 2.0)
    world.change("gone", "r0")
    assert world.pick(TEN) == Choice("r1", "prefix", None, 4)
    world.fleet.booting(ReplicaBooting("r1", "p"), 2.0)
    world.fleet.ready(ReplicaReady("r1", "p"), 5.0)
    world.change("ready", "r1")
    assert world.pick(TEN).reason == "prefix_miss" and world.router.index.holders == {}


@pytest.mark.parametrize(("kv_tokens", "index_blocks", "left"), [(96, 100_000, 6), (None, 8, 8), (15, 8, 0), (100_000, 2, 10)])
def test_RT_42_as_many_blocks_as_its_kv_memory_holds(kv_tokens: int | None, index_blocks: int, left: int) -> None:
    world = World(1, kv_tokens=kv_tokens, config=PrefixAffinityConfig(index_blocks=index_blocks))
    world.at_once(TEN)
    assert world.router.index.held("r0") == list(TEN[10 - left :])


def test_RT_43_exact_mode_believes_the_engines_alone() -> None:
    world = World(2, exact=True)
    assert world.router.needs == {"prefix_blocks", "kv_events"}
    world.at_once(TEN, "r0")
    assert world.pick(TEN).reason == "prefix_miss"
    world.change("stored", "r1", blocks=TEN[:5])
    assert world.pick(TEN) == Choice("r1", "prefix", None, 5)
    world.change("removed", "r1", blocks=TEN[1:5])
    assert world.pick(TEN).reason == "prefix_miss"
    guessing = World(2)
    guessing.change("stored", "r1", blocks=TEN)
    assert guessing.pick(TEN).reason == "prefix_miss" and guessing.router.needs == {"prefix_blocks"}


# -- config ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [{"min_ratio": 1.1}, {"min_ratio": float("nan")}, {"min_blocks": 0}, {"min_blocks": 1.5}, {"eps": -0.1},
                                 {"busy": 2}, {"index_blocks": 0}, {"block_tokens": 0}])
def test_RT_44_bad_parameters(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigValueError, match=next(iter(bad))):
        PrefixAffinityConfig(**bad)  # type: ignore[arg-type]


def test_RT_42_block_tokens_are_the_engines_unless_given() -> None:
    engines = BuildContext(pools=(PoolFacts("p", limits={"block_tokens": 512}),))
    assert PrefixAffinityConfig().build(engines).block_tokens == 512
    assert PrefixAffinityConfig(block_tokens=64).build(engines).block_tokens == 64
    assert PrefixAffinityConfig().build(BuildContext(pools=(PoolFacts("p"),))).block_tokens == 16
    router = PrefixAffinityConfig().build(engines)
    fleet = Fleet()
    fleet.ready(ReplicaReady("other", "q"), 0.0)
    assert router.pick(Request("a", "t", "m", 0, 0.0, blocks=TEN), fleet, 0.0) == NoReplica("no_replica")
