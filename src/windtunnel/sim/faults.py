"""Faults carried out on a fleet. Overlaps compose; every start and end is a note of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from windtunnel.effects import Note
from windtunnel.errors import ConfigValueError
from windtunnel.sim.agenda import COMPLETION, STEP_START, Agenda
from windtunnel.sim.engine import EngineConfig, SimEngine
from windtunnel.sim.fault_config import Fault
from windtunnel.sim.fleet import SimFleet
from windtunnel.sim.lifecycle import DRAINING, READY, SimReplica
from windtunnel.sim.missed_faults import MissedFaults
from windtunnel.sim.pipelined import PipelineEngine
from windtunnel.sources.seeding import generator

INSTANT = ("crash", "spot")
RETRY_S, RETRY_MAX_S = 30.0, 300.0


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
        _refuse_impossible(faults, fleet)
        self._fleet, self._agenda, self._note, self._until = fleet, agenda, note, until
        self.missed = MissedFaults(faults, until)
        self._on: dict[str, _Marks] = {}  # by replica
        self._pools: dict[str, _Marks] = {}
        self._boot_fails: dict[str, int] = {}
        self._frozen: dict[str, Any] = {}
        self._sequence = 0
        self._dice = generator(seed, "fault/dice", replication)
        fleet.boot_faults = self if any(f.kind.startswith("boot") for f in faults) else None
        self.replies = any(f.kind == "errors" and f.after == "accept" for f in faults)
        self.breaks_off = any(f.kind == "errors" and f.after == "first_token" for f in faults)
        self.metrics = any(f.kind.startswith("metrics") or f.kind in ("clock", "pause") for f in faults)
        for n, fault in enumerate(faults):
            rng = generator(seed, f"fault/{n}", replication)
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


def _refuse_impossible(faults: Sequence[Fault], fleet: SimFleet) -> None:
    """Raise ConfigValueError for a fault that this fleet cannot have: nobody would see that it does nothing."""
    pools = fleet.config.pools
    for n, fault in enumerate(faults):
        if fault.pool and fault.pool not in pools:
            raise ConfigValueError(f"faults.{n}.pool", f"no pool {fault.pool!r}; there are {', '.join(pools)}")
        served_in_seconds = [p.name for p in pools.values() if not isinstance(p.engine, EngineConfig) and fault.pool in ("", p.name)]
        linked = [p for p in pools.values() if p.link is not None and fault.pool in ("", p.name)]
        if fault.kind == "link" and not linked:
            raise ConfigValueError(f"faults.{n}.kind", f"no KV moves between the replicas of {fault.pool or 'this fleet'}",
                                   hint="links are those of prefill and decode pools")
        if fault.kind == "pause" and served_in_seconds:
            raise ConfigValueError(f"faults.{n}.kind", f"pool {served_in_seconds[0]!r} serves in seconds and has no steps to pause")
        if fault.kind == "errors" and fault.after == "first_token" and served_in_seconds:
            raise ConfigValueError(f"faults.{n}.after", f"pool {served_in_seconds[0]!r} serves in seconds and tells no first token")
