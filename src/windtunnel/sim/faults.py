"""Faults as data: what breaks, when, where and for how long. Overlaps compose; every start and end is a note of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import count
from math import inf
from typing import Annotated, Any, Literal

import numpy as np

from windtunnel.effects import Note
from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import Param, check_number
from windtunnel.sim.agenda import COMPLETION, STEP_START, Agenda
from windtunnel.sim.engine import EngineConfig, SimEngine
from windtunnel.sim.fleet import SimFleet
from windtunnel.sim.lifecycle import DRAINING, READY, SimReplica
from windtunnel.sim.missed_faults import MissedFaults
from windtunnel.sim.pipelined import PipelineEngine
from windtunnel.sources.seeding import generator
from windtunnel.sources.surge import Surge

Kind = Literal["crash", "spot", "slow", "pause", "boot_slow", "boot_fail", "errors", "metrics_delay", "metrics_drop", "metrics_freeze", "clock",
               "load", "link"]
KINDS = ("crash", "spot", "slow", "pause", "boot_slow", "boot_fail", "errors", "metrics_delay", "metrics_drop", "metrics_freeze", "clock", "load",
         "link")
INSTANT = ("crash", "spot")
_TARGET = ("pool", "replicas", "fraction", "count")
_MEANS: dict[str, tuple[str, ...]] = {  # what a fault of each kind reads, beside when it happens
    "crash": (*_TARGET, "restart"), "spot": (*_TARGET, "notice_s", "unavailable_s"), "slow": (*_TARGET, "for_s", "factor"),
    "pause": (*_TARGET, "for_s"), "boot_slow": ("pool", "for_s", "factor"), "boot_fail": ("pool", "for_s", "p"),
    "errors": (*_TARGET, "for_s", "p", "status", "after"), "metrics_delay": (*_TARGET, "for_s", "delay_s"),
    "metrics_drop": (*_TARGET, "for_s", "p"), "metrics_freeze": (*_TARGET, "for_s"), "clock": (*_TARGET, "for_s", "step_s"),
    "load": ("for_s", "factor", "tenant"), "link": (*_TARGET, "for_s", "factor", "down", "timeout_s"),
}
RETRY_S, RETRY_MAX_S = 30.0, 300.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. When: `at_s`, or again and again `every_s`, or at random `rate_per_h`; it lasts `for_s` (None: for good).

    Where: `pool` ("": all) and, of its ready replicas, ordinals in `replicas`, a `fraction`, or `count` at random; none given: all of them.
    """

    kind: Annotated[Kind, Param(choices=KINDS, label="kind", help="what breaks")]
    at_s: Annotated[float | None, Param(0, 86400, 1, "s", "at", "when it happens")] = None
    every_s: Annotated[float | None, Param(1, 86400, 1, "s", "every", "it comes back after so long")] = None
    rate_per_h: Annotated[float | None, Param(0, 3600, 0.1, "1/h", "rate", "it comes at random, so often")] = None
    for_s: Annotated[float | None, Param(0, 86400, 1, "s", "for", "how long it lasts; left out: for good")] = None
    pool: Annotated[str, Param(label="pool", help="where; left out: every pool")] = ""
    replicas: tuple[int, ...] = ()
    fraction: Annotated[float | None, Param(0, 1, 0.05, label="fraction", help="share of the ready replicas")] = None
    count: Annotated[int | None, Param(1, 1000, 1, label="count", help="so many ready replicas at random")] = None
    factor: Annotated[float, Param(0.1, 20, 0.1, label="factor", help="slow: steps; boot_slow: boots; load: arrivals; link: bandwidth")] = 2.0
    p: Annotated[float, Param(0, 1, 0.01, label="p", help="errors, boot_fail, metrics_drop: how often")] = 1.0
    status: Annotated[int, Param(400, 599, 1, label="status", help="errors: the HTTP status of the reply")] = 503
    after: Annotated[Literal["accept", "first_token"], Param(choices=("accept", "first_token"), label="after", help="errors: when")] = "accept"
    step_s: Annotated[float, Param(-60, 60, 1, "s", "clock step", "clock: by how much the replica's timestamps are off")] = 5.0
    tenant: Annotated[str, Param(label="tenant", help="load: whose arrivals; left out: all")] = ""
    notice_s: Annotated[float, Param(0, 600, 1, "s", "notice", "spot: warning before the replica is taken")] = 120.0
    unavailable_s: Annotated[float, Param(0, 86400, 1, "s", "unavailable", "spot: how long until another one can be had")] = 180.0
    delay_s: Annotated[float, Param(0, 600, 0.5, "s", "delay", "metrics_delay: how late scrapes arrive")] = 5.0
    down: Annotated[bool, Param(label="down", help="link: nothing passes, whatever the factor")] = False
    timeout_s: Annotated[float, Param(0, 600, 1, "s", "timeout", "link: transfers that stand still so long have failed")] = 30.0
    restart: Annotated[bool, Param(label="restart", help="crash: the pool boots another one")] = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigValueError("kind", f"expected one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.at_s is None and self.every_s is None and self.rate_per_h is None:
            raise ConfigValueError("at_s", "a fault needs at_s, every_s or rate_per_h")
        for name in ("at_s", "notice_s", "unavailable_s", "delay_s", "timeout_s"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), lo=0.0)
        for name in ("every_s", "rate_per_h", "for_s", "factor"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0.0)
        check_number("p", self.p, lo=0.0, hi=1.0)
        check_number("step_s", self.step_s)
        if self.after not in ("accept", "first_token"):
            raise ConfigValueError("after", f"expected accept or first_token, got {self.after!r}")
        check_number("status", self.status, lo=400, hi=599, whole=True)
        if self.fraction is not None:
            check_number("fraction", self.fraction, lo=0.0, hi=1.0)
        if self.count is not None:
            check_number("count", self.count, lo=1, whole=True)
        for ordinal in self.replicas:
            check_number("replicas", ordinal, lo=0, whole=True)
        self._refuse_ignored()

    def _refuse_ignored(self) -> None:
        """What this fault would not read must not be given: nobody would see that it does nothing."""
        given = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        for name in given:
            if name not in ("kind", "at_s", "every_s", "rate_per_h", *_MEANS[self.kind]):
                raise ConfigValueError(name, f"means nothing for a fault of kind {self.kind}; it reads {', '.join(_MEANS[self.kind])}")
        for names in (("every_s", "rate_per_h"), ("replicas", "fraction", "count")):
            both = [name for name in names if name in given]
            if len(both) > 1:
                raise ConfigValueError(both[1], f"stands beside {both[0]}; write one of them")
        if self.kind == "link" and not self.down and self.factor >= 1.0:
            raise ConfigValueError("factor", f"expected the share of the bandwidth that is left, below 1, or down: true, got {self.factor:g}")

    def times(self, rng: np.random.Generator) -> Iterator[float]:
        """Run seconds at which it happens, ascending; endless for faults that come back."""
        if self.every_s is None and self.rate_per_h is None:
            yield float(self.at_s or 0.0)
            return
        at = float(self.at_s or 0.0) if self.every_s is not None else float(self.at_s or 0.0) + rng.exponential(3600.0 / (self.rate_per_h or 1.0))
        while True:
            yield at
            at += self.every_s if self.every_s is not None else float(rng.exponential(3600.0 / (self.rate_per_h or 1.0)))


def surges_of(faults: Sequence[Fault], *, seed: int, replication: int, until_s: float | None) -> list[Surge]:
    """The windows of the `load` faults, at the times at which `Faults` notes them. until_s None: of a fault that comes back, the first 1000."""
    out = []
    for n, fault in enumerate(faults):
        if fault.kind != "load":
            continue
        for at, _ in zip(fault.times(generator(seed, f"fault/{n}", replication)), range(1000) if until_s is None else count()):
            if until_s is not None and at >= until_s:
                break
            out.append(Surge(at, inf if fault.for_s is None else at + fault.for_s, fault.factor, fault.tenant))
    return out


@dataclass(slots=True)
class _Marks:
    """What is wrong with one replica or pool now: active faults by kind, in the order they came."""

    active: dict[str, list[Fault]] = field(default_factory=dict)

    def add(self, fault: Fault) -> None:
        self.active.setdefault(fault.kind, []).append(fault)

    def drop(self, fault: Fault) -> None:
        mine = self.active.get(fault.kind, [])
        if fault in mine:
            mine.remove(fault)

    def of(self, kind: str) -> list[Fault]:
        return self.active.get(kind, [])


class Faults:
    """Carries faults out on a fleet. note(note): told of every start and end. until: nothing begins at or after it.

    A target that is not there is noted (`fault_missed`) and nothing happens to it; `missed` keeps the books. Draws come from generators of
    their own, one per fault.
    """

    def __init__(self, faults: Sequence[Fault], fleet: SimFleet, agenda: Agenda, note: Callable[[Note], None], *, seed: int,
                 replication: int = 0, until: float | None = None) -> None:
        for n, fault in enumerate(faults):
            if fault.pool and fault.pool not in fleet.config.pools:
                raise ConfigValueError(f"faults.{n}.pool", f"no pool {fault.pool!r}; there are {', '.join(fleet.config.pools)}")
            served_in_seconds = [p.name for p in fleet.config.pools.values() if not isinstance(p.engine, EngineConfig) and fault.pool in ("", p.name)]
            linked = [p for p in fleet.config.pools.values() if p.link is not None and fault.pool in ("", p.name)]
            if fault.kind == "link" and not linked:
                raise ConfigValueError(f"faults.{n}.kind", f"no KV moves between the replicas of {fault.pool or 'this fleet'}",
                                       hint="links are those of prefill and decode pools")
            if fault.kind == "pause" and served_in_seconds:
                raise ConfigValueError(f"faults.{n}.kind", f"pool {served_in_seconds[0]!r} serves in seconds and has no steps to pause")
            if fault.kind == "errors" and fault.after == "first_token" and served_in_seconds:
                raise ConfigValueError(f"faults.{n}.after", f"pool {served_in_seconds[0]!r} serves in seconds and tells no first token")
        self._fleet, self._agenda, self._note, self._until = fleet, agenda, note, until
        self.missed = MissedFaults(faults, until)
        self._on: dict[str, _Marks] = {}  # by replica
        self._pools: dict[str, _Marks] = {}
        self._boot_fails: dict[str, int] = {}
        self._frozen: dict[str, Any] = {}
        self._sequence = 0
        self._rngs = [generator(seed, f"fault/{n}", replication) for n in range(len(faults))]
        self._dice = generator(seed, "fault/dice", replication)
        fleet.boot_faults = self if any(f.kind.startswith("boot") for f in faults) else None
        self.replies = any(f.kind == "errors" and f.after == "accept" for f in faults)
        self.breaks_off = any(f.kind == "errors" and f.after == "first_token" for f in faults)
        self.metrics = any(f.kind.startswith("metrics") or f.kind in ("clock", "pause") for f in faults)
        for n, (fault, rng) in enumerate(zip(faults, self._rngs)):
            self._next(n, fault, rng, fault.times(rng))

    def _next(self, n: int, fault: Fault, rng: np.random.Generator, times: Iterator[float]) -> None:
        at = next(times, None)
        if at is None or (self._until is not None and at >= self._until):
            return

        def begin(_: Any) -> None:
            self._begin(n, fault, rng)
            self._next(n, fault, rng, times)

        at = max(at, self._agenda.now)
        self._agenda.at(at, COMPLETION if at > 0 else STEP_START, begin)  # at the start, after the first replicas serve

    # -- begin and end ----------------------------------------------------------------------------------------------------------------

    def _begin(self, n: int, fault: Fault, rng: np.random.Generator) -> None:
        self.missed.came(n)
        marks: list[_Marks] = []
        ids: tuple[str, ...] = ()
        if fault.kind.startswith("boot"):
            names = [fault.pool] if fault.pool else list(self._fleet.config.pools)
            marks = [self._pools.setdefault(name, _Marks()) for name in names]
            ids = tuple(names)
        elif fault.kind != "load":  # the source does that; here it is only told
            targets = self._targets(fault, rng)
            ids = tuple(r.name for r in targets)
            if not self.missed.found(n, self._agenda.now, targets) or not targets:
                self._tell("fault_missed", fault, ())
            if not targets:
                return
            self._tell("fault_started", fault, ids)
            if fault.kind in INSTANT:
                for replica in targets:
                    self._lose(fault, replica)
                return
            marks = [self._on.setdefault(name, _Marks()) for name in ids]
        if fault.kind == "load" or fault.kind.startswith("boot"):
            self._tell("fault_started", fault, ids)
        for mark in marks:
            mark.add(fault)
        self._changed(fault.kind, ids)
        if fault.for_s is not None:
            self._agenda.at(self._agenda.now + fault.for_s, COMPLETION, lambda _: self._end(fault, marks, ids))

    def _end(self, fault: Fault, marks: Sequence[_Marks], ids: tuple[str, ...]) -> None:
        for mark in marks:
            mark.drop(fault)
        self._tell("fault_ended", fault, ids)
        self._changed(fault.kind, ids)

    def _changed(self, kind: str, ids: Sequence[str]) -> None:
        """Overlapping slow-downs multiply; a replica goes on when its last pause is over."""
        for name in ids if kind in ("slow", "pause", "link") else ():
            replica = self._fleet.replicas.get(name)
            if replica is None or replica.state not in (READY, DRAINING):
                continue
            active, engine = self._on[name].of(kind), replica.engine
            if kind != "pause":
                factor, down = 1.0, [fault.timeout_s for fault in active if fault.down]
                for fault in active:
                    factor *= fault.factor
                if kind == "slow":
                    engine.set_speed(factor)
                elif self._fleet.on_link is not None and replica.pool.link is not None:
                    self._fleet.on_link(name, factor, min(down) if down else None)
            elif isinstance(engine, SimEngine | PipelineEngine):
                engine.pause() if active else engine.resume()

    def _targets(self, fault: Fault, rng: np.random.Generator) -> list[SimReplica]:
        ready = sorted((r for r in self._fleet.replicas.values() if r.state == READY and fault.pool in ("", r.pool.name)),
                       key=lambda r: (r.pool.name, r.ordinal))
        if fault.replicas:
            return [r for r in ready if r.ordinal in fault.replicas]
        n = fault.count
        if n is None and fault.fraction is not None:  # a small share of few replicas is one of them, not none
            n = max(1, int(fault.fraction * len(ready) + 0.5)) if fault.fraction > 0 else 0
        if n is None or n >= len(ready):
            return ready
        return [ready[i] for i in sorted(rng.choice(len(ready), n, replace=False).tolist())]

    def _lose(self, fault: Fault, replica: SimReplica) -> None:
        fleet, pool, agenda = self._fleet, replica.pool, self._agenda
        if fault.kind == "crash":
            fleet.lose(replica, "crash")
            if fault.restart:
                fleet.order(pool)
            return
        fleet.withhold(pool)  # before the loss is told: a planner that orders another at once has to wait as well
        fleet.take(replica, "spot", fault.notice_s)
        agenda.at(agenda.now + fault.notice_s + fault.unavailable_s, COMPLETION, lambda _: fleet.release(pool))

    def _tell(self, kind: str, fault: Fault, ids: tuple[str, ...]) -> None:
        self._sequence += 1
        self._note(Note(kind, "fleet", self._sequence, ids, fault.kind, {"pool": fault.pool, "at_s": self._agenda.now, "for_s": fault.for_s}))

    # -- what others ask ----------------------------------------------------------------------------------------------------------------

    def refuses(self, replica: str, after: str = "accept") -> int | None:
        """The HTTP status with which this replica fails an attempt now, when it comes or at its first token; None: it does not."""
        mark = self._on.get(replica)
        for fault in mark.of("errors") if mark is not None else ():
            if fault.after != after:
                continue
            if fault.p >= 1.0 or self._dice.random() < fault.p:
                return fault.status
        return None

    def boot_factor(self, pool: str) -> float:
        """By how much longer boots take now."""
        factor = 1.0
        for fault in self._pools[pool].of("boot_slow") if pool in self._pools else ():
            factor *= fault.factor
        return factor

    def boot_fails(self, pool: str) -> float | None:
        """Does the boot that ends now fail? Then after how many seconds the pool asks again: 30, doubling to 300."""
        mark = self._pools.get(pool)
        failed = mark is not None and any(f.p >= 1.0 or self._dice.random() < f.p for f in mark.of("boot_fail"))
        if not failed:
            self._boot_fails.pop(pool, None)
            return None
        n = self._boot_fails[pool] = self._boot_fails.get(pool, 0) + 1
        return min(RETRY_MAX_S, RETRY_S * 2.0 ** (n - 1))

    def report(self, replica: str) -> float | None:
        """How late an engine's step report arrives; None if nobody hears of it."""
        mark = self._on.get(replica)
        if mark is None:
            return 0.0
        lost = mark.of("metrics_freeze") or mark.of("pause") or any(f.p >= 1.0 or self._dice.random() < f.p for f in mark.of("metrics_drop"))
        return None if lost else sum(f.delay_s for f in mark.of("metrics_delay"))

    def scrape(self, replica: str, scrape: Any) -> tuple[Any, float] | None:
        """(what the metrics page says, how late it arrives), or None if nobody hears of it."""
        mark = self._on.get(replica)
        if mark is None:
            return scrape, 0.0
        if any(f.p >= 1.0 or self._dice.random() < f.p for f in mark.of("metrics_drop")):
            return None
        if mark.of("metrics_freeze") or mark.of("pause"):
            scrape = self._frozen.setdefault(replica, scrape)
        else:
            self._frozen.pop(replica, None)
        off_s = sum(f.step_s for f in mark.of("clock"))
        if off_s:
            scrape = replace(scrape, sampled_s=scrape.sampled_s + off_s)
        return scrape, sum(f.delay_s for f in mark.of("metrics_delay"))
