"""Consistent hashing with bounded loads: keys, the ring, the bound, and who moves."""

from __future__ import annotations

from collections import Counter

import pytest

from windtunnel.errors import ConfigError, ConfigValueError
from windtunnel.events import ReplicaReady, Request, Scrape, Scraped
from windtunnel.policy.param import BuildContext, PoolFacts
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.ring import BoundedHash, BoundedHashConfig, key_of
from windtunnel.policy.routing.router import Choice, NoReplica, ReplicaChange
from windtunnel.policy.routing.turns import TurnRef

KEYS = [f"key-{i}" for i in range(400)]


def ask(id: str = "?", **more: object) -> Request:
    return Request(id, "t", "m", 0, 0.0, 100, 50, **more)  # type: ignore[arg-type]


class World:
    def __init__(self, *weights: float, config: BoundedHashConfig | None = None) -> None:
        self.router, self.fleet, self.n = BoundedHash(config), Fleet(), 0
        for i, weight in enumerate(weights):
            self.join(f"r{i}", weight)

    def join(self, id: str, weight: float = 1.0) -> None:
        self.fleet.ready(ReplicaReady(id, "p", weight=weight), 0.0)
        self.router.changed(ReplicaChange("ready", id), 0.0)

    def leave(self, id: str) -> None:
        self.fleet.gone(id, 0.0)
        self.router.changed(ReplicaChange("gone", id), 0.0)

    def load(self, **loads: int) -> World:
        for id, n in loads.items():
            for _ in range(n):
                self.n += 1
                self.router.sent(ask(f"q{self.n}"), Choice(id, ""), 0.0)
                self.fleet.sent(ask(f"q{self.n}"), id, 0.0)
        return self

    def pick(self, key: str | None = None, now: float = 0.0, **more: object) -> Choice | NoReplica:
        return self.router.pick(ask(route_key=key, **more), self.fleet, now)

    def homes(self) -> dict[str, str]:
        return {key: self.pick(key).replica for key in KEYS}  # type: ignore[union-attr]


def test_RT_55_worked() -> None:
    world = World(1, 1, 1)
    homes = {"session-1": "r1", "session-2": "r2", "session-3": "r1", "a": "r0"}
    assert {key: world.pick(key) for key in homes} == {key: Choice(id, "ring") for key, id in homes.items()}
    world.load(r0=2, r1=9, r2=1)
    assert world.pick("session-1") == Choice("r0", "ring_spill")
    assert world.pick("session-3") == Choice("r2", "ring_spill")
    assert world.pick("session-2") == Choice("r2", "ring")
    assert world.pick("a") == Choice("r0", "ring")


def test_RT_55_the_key_is_the_first_that_is_known() -> None:
    turn = TurnRef("child", 2, None, "root", "root")
    assert key_of(ask(route_key="k", turn=turn, blocks=(7,))) == "k"
    assert key_of(ask(route_key="", turn=turn)) == ""
    assert key_of(ask(turn=turn, blocks=(7,))) == "root"
    assert key_of(ask(turn=TurnRef("alone", 0, True), blocks=(7,))) == "alone"
    assert key_of(ask(blocks=(7, 8))) == "7"
    assert key_of(ask(blocks=())) == key_of(ask()) == "t"
    assert key_of(Request("id-ü", "", "m", 0, 0.0)) == "id-ü"


def test_RT_55_sessions_and_prefixes_stay_together() -> None:
    world = World(1, 1, 1, 1)
    assert len({world.pick(turn=TurnRef(f"s{i}", 0, None, "top", "top")).replica for i in range(20)}) == 1  # type: ignore[union-attr]
    assert len({world.pick(blocks=(5, i)).replica for i in range(20)}) == 1  # type: ignore[union-attr]


def test_RT_55_keys_spread_by_weight() -> None:
    counts = Counter(World(1, 1, 2).homes().values())
    assert counts["r2"] / len(KEYS) == pytest.approx(0.5, abs=0.08)
    tiny = World(1, 0.001)
    tiny.homes()
    assert Counter(tiny.router._owners) == {"r0": 100, "r1": 1}


def test_RT_55_nobody_gets_more_than_its_share() -> None:
    """One key, many requests: no replica is ever sent more than (1 + eps) of its part, and somebody always has room."""
    for weights, eps in (((1, 1, 1, 1), 0.25), ((3, 1, 0.5), 0.01), ((1,), 0.5)):
        world = World(*weights, config=BoundedHashConfig(eps=eps))
        reasons = set()
        for i in range(1, 200):
            choice = world.pick("hot")
            assert isinstance(choice, Choice)
            reasons.add(choice.reason)
            world.load(**{choice.replica: 1})
            for r in world.fleet.replicas.values():
                assert r.in_flight <= max(1, -(-(1 + eps) * i * r.weight // sum(weights)))
        assert reasons == ({"ring"} if len(weights) == 1 else {"ring", "ring_spill"})


def test_RT_55_other_peoples_load_counts() -> None:
    world = World(1, 1, 1)
    home = world.pick("a").replica  # type: ignore[union-attr]
    world.fleet.scraped(Scraped(home, Scrape(0.0, 9, 0)), 0.0)
    assert world.pick("a", 1.0).reason == "ring_spill" and world.pick("a", 9.0) == Choice(home, "ring")


def test_RT_56_a_leave_moves_only_the_keys_of_the_one_that_left() -> None:
    world = World(1, 1, 2, 1)
    before = world.homes()
    world.leave("r1")
    after = world.homes()
    assert all(after[k] == before[k] for k in KEYS if before[k] != "r1") and "r1" not in after.values()
    world.join("r1")
    assert world.homes() == before
    world.join("r9")
    assert all(now == before[k] or now == "r9" for k, now in world.homes().items()) and "r9" in world.homes().values()


def test_RT_32_a_draining_replica_is_passed_by_and_gets_its_keys_back() -> None:
    world = World(1, 1, 1)
    before = world.homes()
    world.fleet.draining("r2", 0.0)
    assert all(now == before[k] if before[k] != "r2" else now != "r2" for k, now in world.homes().items())
    world.fleet.undrain("r2", 0.0)
    assert world.homes() == before


def test_RT_4_tried_and_fixed_replicas() -> None:
    world = World(1, 1, 1)
    assert world.pick("session-1", tried=frozenset({"r1"})) == Choice("r0", "ring")
    assert world.pick("session-1", tried=frozenset({"r0", "r1", "r2"})) == Choice("r1", "ring+tried_again")
    assert world.pick("session-1", replica="r2") == Choice("r2", "ring")
    assert world.pick("session-1", replica="zz") == NoReplica("no_replica")


def test_RT_3_nobody_there() -> None:
    world = World()
    assert world.pick("a") == NoReplica("no_replica")
    world.join("r0")
    assert world.pick("a") == Choice("r0", "ring")
    world.fleet.draining("r0", 0.0)
    assert world.pick("a") == NoReplica("all_draining")
    world.leave("r0")
    assert world.pick("a") == NoReplica("no_replica") and world.router._points == {}


@pytest.mark.parametrize("bad", [{"eps": 0.0}, {"eps": -1}, {"eps": float("inf")}, {"points": 0}, {"points": 2.5}])
def test_RT_55_bad_parameters(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        BoundedHashConfig(**bad)  # type: ignore[arg-type]
    assert issubclass(ConfigValueError, ConfigError)


def test_it_sees_only_its_lane() -> None:
    router = BoundedHashConfig().build(BuildContext(pools=(PoolFacts("q"),)))
    fleet = Fleet()
    fleet.ready(ReplicaReady("A", "p"), 0.0)
    assert router.pick(ask(), fleet, 0.0) == NoReplica("no_replica")
    fleet.ready(ReplicaReady("B", "q"), 0.0)
    assert router.pick(ask(), fleet, 0.0) == Choice("B", "ring") and router.needs == {"prefix_blocks", "route_key"}
