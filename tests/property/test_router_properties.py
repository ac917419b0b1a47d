"""Any history of sends, ends, joins and losses: picks change nothing, heaps agree with a scan, the ledger's books balance."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windtunnel.events import ReplicaBooting, ReplicaReady, Request, Scrape, Scraped
from windtunnel.policy.routing.affinity import PrefixAffinity, PrefixAffinityConfig
from windtunnel.policy.routing.choices import PowerOfTwo, RandomRouter
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.hashing import h64
from windtunnel.policy.routing.least import LeastOutstanding, LeastOutstandingConfig
from windtunnel.policy.routing.ring import BoundedHash, BoundedHashConfig
from windtunnel.policy.routing.roundrobin import RoundRobin
from windtunnel.policy.routing.router import Choice, NoReplica, ReplicaChange, Router

WEIGHTS = (1.0, 1.0, 1.0, 2.0, 0.3)
WORDS = ["send"] * 6 + ["end"] * 5 + ["ready", "booting", "drain", "undrain", "gone", "scrape", "tried", "elsewhere"]
OPS = st.lists(st.tuples(st.sampled_from(WORDS), st.integers(0, 10_000)), min_size=30, max_size=150)


def naive(fleet: Fleet, request: Request, now: float, by: str, ties: str, slow_s: float, respect: bool) -> str | None:
    """RT-4, RT-14, RT-15, RT-23, RT-30 word by word: the least of all candidates."""
    ready = [r for r in fleet.replicas.values() if r.state == "ready"]
    found = [r for r in ready if r.id not in request.tried] or ready
    if respect:
        found = [r for r in found if r.slots is None or fleet.load(r.id, now) < r.slots]

    def score(id: str) -> tuple[float, int, int]:
        r = fleet.replicas[id]
        work = r.in_flight_tokens + r.tokens.charge(request) if by == "tokens" else fleet.load(id, now) + 1
        weight = r.weight * min(1.0, max(0.1, (now - (r.ready_s or 0.0)) / slow_s)) if slow_s else r.weight
        return work / weight, r.last_sent_seq if ties == "recent" else 0, r.ordinal

    return min((r.id for r in found), key=score, default=None)


class History:
    """Applies drawn operations to a fleet and a router, as a control would."""

    def __init__(self, router: Router, ledger_first: bool = False) -> None:
        self.router, self.fleet, self.now, self.n = router, Fleet(), 0.0, 0
        self.live: list[tuple[Request, str]] = []
        self.ledger_first = ledger_first  # the ledger may hear of an end before the router
        self.check: Callable[[Request], None] = lambda request: None

    def run(self, ops: list[tuple[str, int]]) -> None:
        for i in range(3):
            self.join(i)
        for op, arg in ops:
            self.now += (arg % 7) * 0.25
            getattr(self, f"do_{op}")(arg)

    def join(self, arg: int) -> None:
        self.fleet.ready(ReplicaReady(f"a-{arg % 6}", "a", weight=WEIGHTS[arg % 5], slots=(None, 2, 5)[arg % 3]), self.now)

    def do_send(self, arg: int, tried: frozenset[str] = frozenset(), to: str | None = None) -> None:
        self.n += 1
        request = Request(f"r{self.n}", "t", "m", 0, self.now, (None, 10, 500)[arg % 3], (None, 7, 900)[arg % 2], tried=tried,
                          blocks=(None, (), tuple(range(arg % 4, arg % 4 + arg % 9)))[min(arg % 5, 2)])
        self.check(request)
        choice = self.router.pick(request, self.fleet, self.now)
        if isinstance(choice, Choice):
            choice = Choice(to, "") if to else choice
            self.router.sent(request, choice, self.now)
            self.fleet.sent(request, choice.replica, self.now)
            self.live.append((request, choice.replica))

    def do_tried(self, arg: int) -> None:
        self.do_send(arg, frozenset({f"a-{arg % 6}", f"a-{arg % 4}"}))

    def do_elsewhere(self, arg: int) -> None:
        ready = self.fleet.serving(())
        self.do_send(arg, to=ready[arg % len(ready)].id if ready else None)

    def do_end(self, arg: int) -> None:
        if self.live:
            self.end(*self.live.pop(arg % len(self.live)), tokens=arg % 300)

    def end(self, request: Request, replica: str, tokens: int | None = None) -> None:
        if not self.ledger_first:
            self.router.done(request, replica, "success", self.now)
        self.fleet.done(request.id, replica, self.now, success=tokens is not None, output_tokens=tokens)
        if self.ledger_first:
            self.router.done(request, replica, "success", self.now)

    def do_ready(self, arg: int) -> None:
        self.join(arg)
        self.router.changed(ReplicaChange("ready", f"a-{arg % 6}"), self.now)

    def do_booting(self, arg: int) -> None:
        self.fleet.booting(ReplicaBooting(f"a-{arg % 6}", "a"), self.now)

    def do_drain(self, arg: int) -> None:
        self.fleet.draining(f"a-{arg % 6}", self.now)
        self.router.changed(ReplicaChange("draining", f"a-{arg % 6}"), self.now)

    def do_undrain(self, arg: int) -> None:
        self.fleet.undrain(f"a-{arg % 6}", self.now)
        self.router.changed(ReplicaChange("ready", f"a-{arg % 6}"), self.now)

    def do_gone(self, arg: int) -> None:
        name = f"a-{arg % 6}"
        for request, replica in [x for x in self.live if x[1] == name]:
            self.end(request, replica)
            self.live.remove((request, replica))
        assert self.fleet.gone(name, self.now) == []
        self.router.changed(ReplicaChange("gone", name), self.now)

    def do_scrape(self, arg: int) -> None:
        if arg % 4 == 0:
            scrape = Scrape(self.now - (arg % 3), (arg % 5, None)[arg % 7 == 0], arg % 2)
            self.fleet.scraped(Scraped(f"a-{arg % 6}", scrape), self.now)


@settings(max_examples=60, deadline=None)
@given(OPS, st.sampled_from(["requests", "tokens"]), st.sampled_from(["recent", "first"]), st.sampled_from([0.0, 3.0]), st.booleans(),
       st.booleans())
def test_RT_31_the_heap_picks_what_a_scan_picks(ops: list[tuple[str, int]], by: str, ties: str, slow_s: float, respect: bool,
                                                first: bool) -> None:
    router = LeastOutstanding(LeastOutstandingConfig(by, ties, slow_s, respect))  # type: ignore[arg-type]
    history = History(router, first)

    def check(request: Request) -> None:
        expected = naive(history.fleet, request, history.now, by, ties, slow_s, respect)
        got = router.pick(request, history.fleet, history.now)
        assert (None if isinstance(got, NoReplica) else got.replica) == expected

    history.check = check
    history.run(ops)


@settings(max_examples=40, deadline=None)
@given(OPS, st.sampled_from(["least", "round", "p2c", "random", "affinity", "ring"]))
def test_RT_1_pick_changes_nothing(ops: list[tuple[str, int]], kind: str) -> None:
    rng = random.Random(1)
    routers: dict[str, Router] = {
        "least": LeastOutstanding(), "round": RoundRobin(), "p2c": PowerOfTwo(rng), "random": RandomRouter(rng),
        "affinity": PrefixAffinity(), "ring": BoundedHash(),
    }
    router = routers[kind]
    history = History(router)

    def seen() -> object:
        index = getattr(router, "index", None)
        books = None if index is None else (index.holders, {id: index.held(id) for id in index._held})
        live = copy.deepcopy((getattr(router, "_counters", None), books))
        return repr(history.fleet.view(history.now)), history.fleet.version, live

    def check(request: Request) -> None:
        before = seen()
        state = rng.getstate()
        one = router.pick(request, history.fleet, history.now)
        rng.setstate(state)
        assert router.pick(request, history.fleet, history.now) == one
        assert seen() == before
        rng.setstate(state)

    history.check = check
    history.run(ops)


def naive_affinity(router: PrefixAffinity, fleet: Fleet, request: Request, now: float) -> tuple[str | None, str]:
    """RT-44, RT-45 word by word, over the blocks that each replica holds."""
    config, blocks = router.config, request.blocks or ()
    ready = [r for r in fleet.replicas.values() if r.state == "ready"]
    found = [r for r in ready if r.id not in request.tried] or ready
    load = {r.id: fleet.load(r.id, now) for r in found}

    def match(id: str) -> int:
        held = set(router.index.held(id))
        return next((i for i, block in enumerate(blocks) if block not in held), len(blocks))

    affine = [r for r in found if match(r.id) >= max(config.min_blocks, config.min_ratio * len(blocks))]
    for r in sorted(affine, key=lambda r: (-match(r.id), load[r.id], r.last_sent_seq, r.ordinal)):
        part = (1 + config.eps) * (sum(load.values()) + 1) * r.weight / sum(o.weight for o in found)
        if (r.slots is not None and load[r.id] + 1 <= config.busy * r.slots) or load[r.id] + 1 <= math.ceil(part - 1e-9):
            return r.id, "prefix"
    return naive(fleet, request, now, "requests", "recent", 0.0, False), "prefix_busy" if affine else "prefix_miss"


@settings(max_examples=60, deadline=None)
@given(OPS, st.booleans(), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.0, 0.5]))
def test_RT_44_affinity_picks_what_the_rule_says(ops: list[tuple[str, int]], first: bool, min_ratio: float, busy: float) -> None:
    router = PrefixAffinity(PrefixAffinityConfig(min_ratio=min_ratio, busy=busy, index_blocks=6))
    history = History(router, first)

    def check(request: Request) -> None:
        expected = naive_affinity(router, history.fleet, request, history.now)
        got = router.pick(request, history.fleet, history.now)
        assert (None if isinstance(got, NoReplica) else got.replica) == expected[0]
        assert isinstance(got, NoReplica) or got.reason.removesuffix("+tried_again") == expected[1]

    history.check = check
    history.run(ops)


@settings(max_examples=60, deadline=None)
@given(OPS)
def test_RT_42_the_mask_of_a_block_is_who_holds_it(ops: list[tuple[str, int]]) -> None:
    router = PrefixAffinity(PrefixAffinityConfig(index_blocks=6))
    History(router).run(ops)
    index = router.index
    assert all(len(index.held(id)) <= 6 for id in index._held)
    expected: dict[int, int] = {}
    for id, bit in index._bits.items():
        for block in index.held(id):
            expected[block] = expected.get(block, 0) | bit
    assert index.holders == expected


@settings(max_examples=60, deadline=None)
@given(OPS, st.sampled_from([0.05, 0.25, 1.0]))
def test_RT_55_the_first_on_the_ring_that_has_room(ops: list[tuple[str, int]], eps: float) -> None:
    router = BoundedHash(BoundedHashConfig(eps=eps, points=9))
    history = History(router)

    def check(request: Request) -> None:
        got = router.pick(request, history.fleet, history.now)
        ready = [r for r in history.fleet.replicas.values() if r.state == "ready"]
        found = [r for r in ready if r.id not in request.tried] or ready
        load = {r.id: history.fleet.load(r.id, history.now) for r in found}
        points = sorted((h64(f"{r.id}#{i}"), r.ordinal, r.id) for r in ready for i in range(max(1, round(9 * r.weight))))
        place = h64(str(request.blocks[0]) if request.blocks else "t")
        walk = dict.fromkeys(id for _, _, id in [p for p in points if p[0] >= place] + points if id in load)
        room = [id for id in walk if load[id] + 1 <= math.ceil(
            (1 + eps) * (sum(load.values()) + 1) * history.fleet.replicas[id].weight / sum(r.weight for r in found) - 1e-9)]
        assert (None if isinstance(got, NoReplica) else got.replica) == next(iter(room), None) and bool(room) == bool(found)

    history.check = check
    history.run(ops)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(WEIGHTS), min_size=2, max_size=7), st.integers(0, 6), st.lists(st.text(max_size=8), min_size=1, max_size=60))
def test_RT_56_a_join_or_a_leave_moves_only_the_keys_next_to_its_points(weights: list[float], which: int, keys: list[str]) -> None:
    router, fleet = BoundedHash(), Fleet()

    def homes() -> dict[str, str]:
        picks = {key: router.pick(Request("q", "t", "m", 0, 0.0, route_key=key), fleet, 0.0) for key in keys}
        return {key: choice.replica for key, choice in picks.items() if isinstance(choice, Choice)}

    for i, weight in enumerate(weights):
        fleet.ready(ReplicaReady(f"a-{i}", "a", weight=weight), 0.0)
    before, name = homes(), f"a-{which % len(weights)}"
    fleet.gone(name, 0.0)
    router.changed(ReplicaChange("gone", name), 0.0)
    without = homes()
    assert all(home == before[key] if before[key] != name else home != name for key, home in without.items())
    fleet.ready(ReplicaReady("new", "a"), 0.0)
    assert all(home in (without[key], "new") for key, home in homes().items())


@settings(max_examples=40, deadline=None)
@given(OPS)
def test_ledger_is_conserved(ops: list[tuple[str, int]]) -> None:
    history = History(LeastOutstanding())
    history.run(ops)
    fleet = history.fleet
    for r in fleet.replicas.values():
        mine = [request for request, replica in history.live if replica == r.id]
        assert r.in_flight == len(mine)
        assert r.in_flight_tokens == sum(fleet.charge_of(request.id) for request in mine)
        assert fleet.in_flight_of(r.id) == [(request.id, 1) for request in sorted(mine, key=lambda q: int(q.id[1:]))]
        assert fleet.load(r.id, history.now) >= r.in_flight
    for request, replica in list(history.live):
        history.end(request, replica)
    assert all((r.in_flight, r.in_flight_tokens, r.prefill_tokens) == (0, 0, 0) for r in fleet.replicas.values())
    assert fleet.late_done == 0


@pytest.mark.parametrize("by", ["requests", "tokens"])
def test_RT_31_heaps_stay_small_and_rarely_scan(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    router = LeastOutstanding(LeastOutstandingConfig(by=by))  # type: ignore[arg-type]
    history, rng, scans = History(router), random.Random(2), []
    for i in range(32):
        history.fleet.ready(ReplicaReady(f"b-{i}", "b", weight=1.0 + i % 2), 0.0)
    monkeypatch.setattr(LeastOutstanding, "_scan", lambda *a: scans.append(a))
    for i in range(4000):
        history.do_send(i)
        if len(history.live) > 200 or (history.live and rng.random() < 0.4):
            history.do_end(rng.randrange(10_000))
        assert sum(len(h) for h in router._heaps.values()) <= 2 * (4 * 32 + 64) + 2
    assert scans == []
