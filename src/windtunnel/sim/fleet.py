"""Pools of simulated replicas: boots, readiness, drains, cost. What `ScaleTo` and `Drain` do in the simulated world."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from windtunnel.effects import Drain, Note, ScaleTo
from windtunnel.events import Event, ReplicaBooting, ReplicaGone, ReplicaReady, ScaleAnswered
from windtunnel.sim.agenda import COMPLETION, Agenda
from windtunnel.sim.attempt import Attempt
from windtunnel.sim.cost import replica_row
from windtunnel.sim.fleet_config import FleetConfig, Pool, ReplicaEngine, engine_of
from windtunnel.sim.lifecycle import BOOTING, DRAINING, GONE, PROVISIONING, READY, REQUESTED, STAGES, Nodes, SimReplica, scale_down_order
from windtunnel.sources.seeding import generator


class BootFaults(Protocol):
    """What may go wrong while replicas boot."""

    def boot_factor(self, pool: str) -> float: ...
    def boot_fails(self, pool: str) -> float | None: ...


class SimFleet:
    """Carries out ScaleTo and Drain; tells what happened through `emit(event)`; keeps one row per replica life."""

    def __init__(self, config: FleetConfig, agenda: Agenda, emit: Callable[[Event], None], *, seed: int, replication: int = 0,
                 engine_options: Callable[[str, Pool], Mapping[str, Any]]) -> None:
        self.config, self.agenda, self.emit = config, agenda, emit
        self.replicas: dict[str, SimReplica] = {}
        self._by_pool: dict[str, list[SimReplica]] = {name: [] for name in config.pools}
        self._seed, self._replication = seed, replication
        self._engine_options = engine_options  # by replica name and pool: callbacks and switches of its engine
        self._last_plan = 0
        self.boot_faults: BootFaults | None = None
        self.on_ready: Callable[[SimReplica], None] | None = None
        self.on_ending: Callable[[str], None] | None = None  # a replica is about to be gone, with all that is on it
        self.on_dropped: Callable[[str, list[Attempt]], None] | None = None  # what was on a replica that is gone
        self.on_link: Callable[[str, float, float | None], None] | None = None  # bandwidth times so much; or down, with a timeout (s)
        self.on_gone: Callable[[SimReplica], list[Event]] | None = None  # what to tell beside its loss
        self.note: Callable[[Note], None] | None = None
        self._nodes = Nodes(config.max_gpus)
        self._short: list[SimReplica] = []  # asked for, and no GPUs left for them
        self._wanted = {name: pool.replicas for name, pool in config.pools.items()}
        self.rows: list[dict[str, Any]] = []

    def start(self) -> None:
        """The replicas that serve from the start are ready at time 0, without a boot."""
        for pool in self.config.pools.values():
            for _ in range(pool.replicas):
                replica = self._new(pool)
                self._nodes.take(pool)
                replica.boot = (0.0,) * len(STAGES)
                self._serve(replica, None)

    def scale_to(self, effect: ScaleTo) -> None:
        """Absolute targets, pending replicas included; the same targets again change nothing."""
        if effect.plan_id < self._last_plan:
            self.emit(ScaleAnswered(effect.plan_id, "superseded", f"plan {self._last_plan} is newer"))
            return
        self._last_plan = effect.plan_id
        status, reason = "unchanged", ""
        for name, wanted in effect.targets:
            pool = self.config.pools.get(name)
            if pool is None:
                status, reason = "refused", f"no pool {name!r}"
                continue
            target = max(pool.min, wanted if pool.max is None else min(wanted, pool.max))
            have = self._there(name)
            self._wanted[name] = target
            if target != len(have):
                status = "accepted"
            for _ in range(target - len(have)):
                self._order(pool)
            for replica in scale_down_order(have)[: max(0, len(have) - target)]:
                self._retire(replica, "scaled_down", pool.drain_timeout_s)
        self.emit(ScaleAnswered(effect.plan_id, status, reason))

    def drain(self, effect: Drain) -> None:
        """No new work; gone when empty or at the deadline. A booting replica is cancelled."""
        replica = self.replicas.get(effect.replica)
        if replica is None or replica.state == GONE:
            return
        if effect.undo:
            if replica.state == DRAINING:
                replica.version += 1
                replica.times.pop("draining_s", None)
                self._wanted[replica.pool.name] += 1
                self._serve(replica, None)
            return
        timeout = replica.pool.drain_timeout_s if effect.deadline_at is None else max(0.0, effect.deadline_at - self.agenda.now)
        if replica.state != DRAINING:
            self._wanted[replica.pool.name] -= 1
        self._retire(replica, effect.reason or "drained", timeout)

    def order(self, pool: Pool) -> None:
        """Boot a replica in place of one that was lost, unless the plans want fewer by now or have replaced it themselves."""
        if len(self._there(pool.name)) < self._wanted[pool.name]:
            self._order(pool)

    def withhold(self, pool: Pool) -> None:
        """No more replicas of this pool can be had until as many `release` calls; what is asked for meanwhile waits."""
        self._nodes.withheld[pool.name] = self._nodes.withheld.get(pool.name, 0) + 1

    def release(self, pool: Pool) -> None:
        """One can be had again."""
        self._nodes.withheld[pool.name] -= 1
        self._serve_short()
        self.order(pool)

    def _there(self, pool: str) -> list[SimReplica]:
        """Replicas that count towards the pool's target."""
        return [r for r in self._by_pool[pool] if r.pending or r.state == READY]

    def lose(self, replica: SimReplica, reason: str) -> None:
        """It is gone at once, with everything on it."""
        if replica.state != GONE:
            self._end(replica, reason)

    def take(self, replica: SimReplica, reason: str, notice_s: float) -> None:
        """It will be taken away in `notice_s`: no new work, and what still runs then is lost."""
        if replica.state in (DRAINING, GONE):
            return
        if notice_s <= 0:
            self._end(replica, reason)
            return
        self._retire(replica, reason, notice_s, cut=reason)

    def emptied(self, replica: SimReplica) -> None:
        """An attempt ended on it: a draining replica without work is gone."""
        if replica.state == DRAINING and replica.idle:
            self._end(replica, replica.gone_reason)

    def finish(self, now: float) -> None:
        """The run is over: write the rows of the replicas that still live."""
        for replica in self.replicas.values():
            if replica.state != GONE:
                self.rows.append(replica_row(replica, now))

    def counts(self, pool: str) -> tuple[int, int, int]:
        """(ready, booting, draining) replicas of a pool."""
        states = [r.state for r in self._by_pool[pool]]
        return states.count(READY), sum(s in (REQUESTED, PROVISIONING, BOOTING) for s in states), states.count(DRAINING)

    def _new(self, pool: Pool) -> SimReplica:
        ordinal = len(self._by_pool[pool.name]) + sum(1 for row in self.rows if row["pool"] == pool.name)
        name = f"{pool.name}-{ordinal}"
        replica = SimReplica(name, pool, ordinal, self._engine(name, pool, ordinal))
        replica.times["requested_s"] = self.agenda.now
        self.replicas[name] = replica
        self._by_pool[pool.name].append(replica)
        return replica

    def _engine(self, name: str, pool: Pool, ordinal: int) -> ReplicaEngine:
        options = dict(self._engine_options(name, pool))
        if pool.engine.draws:
            options["rng"] = generator(self._seed, f"pool/{pool.name}/replica/{ordinal}/noise", self._replication)
        return engine_of(pool, name, self.agenda, options)

    def _order(self, pool: Pool) -> None:
        replica = self._new(pool)
        if self._nodes.take(pool):
            self._provision(replica)
            return
        self._short.append(replica)
        self.emit(ReplicaBooting(replica.name, pool.name, pool.role, REQUESTED))
        if self.note is not None:
            reason = "unavailable" if self._nodes.withheld.get(pool.name) else "max_gpus"
            self.note(Note("no_capacity", "fleet", 0, (replica.name,), reason, {"max_gpus": self._nodes.max_gpus, "used": self._nodes.used}))

    def _provision(self, replica: SimReplica) -> None:
        """It has its GPUs; from now on it costs."""
        pool, now = replica.pool, self.agenda.now
        warm = self._nodes.warm(pool, now)
        replica.boot = pool.startup.draw(self._seed, f"pool/{pool.name}/replica/{replica.ordinal}/boot", self._replication, warm=warm)
        replica.state, replica.times["provisioned_s"] = PROVISIONING, now
        self.emit(ReplicaBooting(replica.name, pool.name, pool.role, PROVISIONING))
        self._next_stage(replica)

    def _next_stage(self, replica: SimReplica) -> None:
        """Boot stages follow each other; one that is cancelled in between (version) never gets ready."""
        version, now = replica.version, self.agenda.now
        if replica.stage_n == len(STAGES):
            again_s = None if self.boot_faults is None else self.boot_faults.boot_fails(replica.pool.name)
            if again_s is not None:
                self._end(replica, "boot_failed")
                self.agenda.at(now + again_s, COMPLETION, lambda _: self.order(replica.pool))
                return
            self._serve(replica, now - replica.times["requested_s"])
            return
        if replica.stage_n == 1:
            replica.state = BOOTING
            self.emit(ReplicaBooting(replica.name, replica.pool.name, replica.pool.role, BOOTING))
        n, boot = replica.stage_n, replica.boot
        seconds = boot[n] * (1.0 if self.boot_faults is None else self.boot_faults.boot_factor(replica.pool.name))
        replica.boot = (*boot[:n], seconds, *boot[n + 1 :])  # as it was, for the record
        replica.stage_n += 1

        def reached(_: Any) -> None:
            if replica.version == version and replica.pending:
                self._next_stage(replica)

        self.agenda.at(now + seconds, COMPLETION, reached)

    def _serve(self, replica: SimReplica, boot_s: float | None) -> None:
        pool = replica.pool
        replica.state = READY
        replica.times.setdefault("ready_s", self.agenda.now)
        self.emit(ReplicaReady(replica.name, pool.name, pool.role, pool.weight, pool.slots, pool.kv_tokens, boot_s))
        if self.on_ready is not None:
            self.on_ready(replica)

    def _retire(self, replica: SimReplica, reason: str, timeout_s: float, cut: str = "drain_timeout") -> None:
        if replica.state in (DRAINING, GONE):
            return
        replica.version += 1
        if replica.pending or replica.idle:
            self._end(replica, reason)
            return
        now, version = self.agenda.now, replica.version
        replica.state, replica.gone_reason = DRAINING, reason
        replica.times["draining_s"] = now
        self.emit(ReplicaGone(replica.name, reason, now + timeout_s))

        def late(_: Any) -> None:
            if replica.version == version and replica.state == DRAINING:
                self._end(replica, cut)

        self.agenda.at(now + timeout_s, COMPLETION, late)

    def _end(self, replica: SimReplica, reason: str) -> None:
        """Gone for good; what still ran is ended by Control from the one event."""
        if self.on_ending is not None:
            self.on_ending(replica.name)
        dropped = replica.engine.drop_all(reason)
        if self.on_dropped is not None:
            self.on_dropped(replica.name, dropped)
        held = replica.on_node
        replica.state, replica.gone_reason = GONE, reason
        replica.times["gone_s"] = self.agenda.now
        replica.version += 1
        self._by_pool[replica.pool.name].remove(replica)
        self.rows.append(replica_row(replica, self.agenda.now))
        lost = () if self.on_gone is None else self.on_gone(replica)
        self.emit(ReplicaGone(replica.name, reason))
        for event in lost:
            self.emit(event)
        if not held:
            self._short.remove(replica)
            return
        self._nodes.give(replica, self.agenda.now)
        self._serve_short()

    def _serve_short(self) -> None:
        for waiting in list(self._short):  # first asked, first served, but a smaller one may fit where a larger does not
            if waiting.state == REQUESTED and self._nodes.take(waiting.pool):
                self._short.remove(waiting)
                self._provision(waiting)
