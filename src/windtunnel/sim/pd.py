"""Split prefill and decode in the simulated world: a dispatch with a prefill replica runs its prompt there, moves its KV over links that all
share, and goes on at its decode replica. A driver has one of these if its fleet has such pools; no other request passes here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from windtunnel.effects import Cancel, Dispatch
from windtunnel.errors import ConfigInfeasibleError, PolicyError
from windtunnel.events import Event, Failed, HandedOver
from windtunnel.sim.agenda import ARRIVAL, COMPLETION, Agenda
from windtunnel.sim.engine import Attempt, SimEngine
from windtunnel.sim.fleet import SimFleet
from windtunnel.sim.fleet_config import FleetConfig, Pool
from windtunnel.sim.lifecycle import READY, SimReplica
from windtunnel.sim.transfer import KvMover, Links

PREFILL, MOVING, DECODE = range(3)
STILL = 1e-12  # share of its bandwidth that a link has while it is down: so little that nothing arrives
Refuse = Callable[[Dispatch, str, int, str, "float | None"], None]  # dispatch, replica, status, reason, retry_after_s


class _Trip:
    """One attempt on two replicas. left: is its KV on the way? told: does the control know that its prefill
    side is done?"""

    __slots__ = ("decode", "dispatch", "id", "left", "phase", "prefill", "told")

    def __init__(self, effect: Dispatch) -> None:
        self.id, self.dispatch, self.decode = effect.request.id, effect.dispatch, effect.replica
        self.prefill: str = effect.prefill  # type: ignore[assignment]
        self.phase, self.left, self.told = PREFILL, False, False


class Handoffs:
    """Attempts on their way from prefill to decode replicas, until their end.

    back(event): an answer to the control, over the network; deliver(event): at once. refuse: an attempt that did not begin. fails(replica):
    the HTTP status with which a replica turns attempts away now, or None.
    """

    def __init__(self, fleet: SimFleet, agenda: Agenda, *, deliver: Callable[[Event], None], back: Callable[[Event], None], refuse: Refuse,
                 fails: Callable[[str], int | None]) -> None:
        self.fleet, self.links = fleet, Links(agenda)
        self._agenda, self._deliver, self._back, self._refuse, self._fails = agenda, deliver, back, refuse, fails
        self._network_s = fleet.config.network_s
        self._trips: dict[tuple[str, int], _Trip] = {}
        self._down: dict[str, float] = {}  # replicas whose link is down: transfers fail after so many seconds
        self._movers = {pool.name: self._mover(pool) for pool in fleet.config.pools.values() if pool.role == "prefill"}

    def _mover(self, pool: Pool) -> KvMover:
        link = pool.link
        assert link is not None  # see `pairs_of`
        return KvMover(self._agenda, self.links, link.kv_bytes_per_token, lambda a, reason: None, link.layers,
                       on_started=self._moving, on_moved=self._moved)

    def options(self, name: str, pool: Pool, options: dict[str, Any]) -> dict[str, Any]:
        """Engine callbacks of a replica that shares requests, around those of any replica; its link is there from now on."""
        tell_finished, tell_cancelled = options["on_finish"], options["on_cancelled"]

        def finished(a: Attempt) -> None:
            trip = self._over(a.id, a.dispatch)
            tell_finished(a)
            self._look(trip)

        def cancelled(a: Attempt) -> None:
            trip = self._over(a.id, a.dispatch)
            tell_cancelled(a)
            self._look(trip)

        options["on_finish"], options["on_cancelled"] = finished, cancelled
        if pool.role == "prefill":
            options["on_prefilled"] = self._prefilled
        if pool.link is not None:
            self.links.attach(name, pool.link.bandwidth, pool.link.latency_s)
        return options

    # -- on the way -----------------------------------------------------------------------------------------------------------------

    def submit(self, effect: Dispatch, attempt: Attempt) -> None:
        """To the prefill side, if both sides are there and have room for it at all."""
        trip = _Trip(effect)
        for name in (trip.prefill, trip.decode):
            replica = self.fleet.replicas.get(name)
            if replica is None or replica.state != READY:
                self._refuse(effect, name, 503, "engine_unavailable", None)
                return
            if (status := self._fails(name)) is not None:
                self._refuse(effect, name, status, f"http_{status}", None)
                return
        first, second = self._engine(trip.prefill), self._engine(trip.decode)
        refusal = second.refuses_for_ever(attempt)
        at = trip.decode if refusal is not None else trip.prefill
        refusal = refusal or first.submit(attempt)
        if refusal is not None:
            self._refuse(effect, at, refusal.status, refusal.reason, refusal.retry_after_s)
            return
        self._trips[trip.id, trip.dispatch] = trip
        self.fleet.replicas[trip.decode].promised += 1

    def _prefilled(self, a: Attempt) -> None:
        trip = self._trips.get((a.id, a.dispatch))
        if trip is None:
            raise PolicyError(f"request {a.id!r} was sent to a prefill replica alone: nobody is there to decode it")
        trip.phase = MOVING
        prefill = self.fleet.replicas[trip.prefill]
        refusal = self._movers[prefill.pool.name].move(a, self._engine(trip.prefill), self._engine(trip.decode))
        if refusal is not None:
            self._over(a.id, a.dispatch)
            outcome = "rate_limited" if refusal.reason == "engine_queue_full" else "provider_failure"
            self._back(Failed(a.id, a.dispatch, trip.decode, outcome, refusal.reason, refusal.status, refusal.retry_after_s, a.generated,
                              a.started_s, a.first_token_s))
            self._look(trip)

    def _moving(self, b: Attempt) -> None:
        """Its room is there and its KV leaves: the prefill side's work is done, though its blocks are held until all has arrived."""
        trip = self._trips[b.id, b.dispatch]
        self.fleet.replicas[trip.prefill].requests += 1
        trip.left = True
        if self._down:
            self._watch(trip)

        def tell(_: Any) -> None:
            if self._trips.get((trip.id, trip.dispatch)) is trip:
                trip.told = True
                self._deliver(HandedOver(trip.id, trip.dispatch, trip.prefill))

        if self._network_s:
            self._agenda.at(self._agenda._now + self._network_s, ARRIVAL, tell)
        else:
            tell(None)

    def _moved(self, b: Attempt) -> None:
        trip = self._trips[b.id, b.dispatch]
        trip.phase = DECODE
        self.fleet.emptied(self.fleet.replicas[trip.prefill])

    def cancel(self, effect: Cancel) -> bool:
        """Stop an attempt wherever it is; False: it is not under way."""
        trip = self._trips.get((effect.request_id, effect.dispatch))
        if trip is None:
            return False
        if trip.phase == MOVING:
            b = self._stop_moving(trip)
            self._over(trip.id, trip.dispatch)
            self._back(Failed(trip.id, trip.dispatch, trip.decode, "local_cancelled", "cancelled", None, None, b.generated, b.started_s,
                              b.first_token_s))
            self._look(trip)
            return True
        return self._engine(trip.prefill if trip.phase == PREFILL else trip.decode).cancel(trip.id, trip.dispatch)

    def lost(self, replica: SimReplica) -> list[Event]:
        """A replica is gone, and with it the KV that it had. Returns what the control cannot know by itself: KV of prompts that it takes
        for handed over."""
        name, told = replica.name, list[Event]()
        mine = [t for t in self._trips.values() if name == t.decode or (name == t.prefill and (t.phase != DECODE or not t.told))]
        for trip in mine:
            self._over(trip.id, trip.dispatch)
            if trip.phase == MOVING:
                b = self._stop_moving(trip)
                if name == trip.prefill and trip.told:
                    told.append(Failed(trip.id, trip.dispatch, name, "provider_failure", "kv_lost", None, None, b.generated, b.started_s,
                                       b.first_token_s))
            elif trip.phase == PREFILL and name == trip.decode:
                self._engine(trip.prefill).cancel(trip.id, trip.dispatch)
            elif trip.phase == DECODE and name == trip.prefill:  # the news of its hand-over is still on the way
                self._engine(trip.decode).cancel(trip.id, trip.dispatch)
        self.links.drop(name)
        self._down.pop(name, None)
        for trip in mine:
            self._look(trip)
        return told

    def relink(self, name: str, factor: float, timeout_s: float | None) -> None:
        """The link of a replica has `factor` times its bandwidth now; with a timeout it is down, and transfers fail after so long."""
        link = self.fleet.replicas[name].pool.link
        assert link is not None
        self.links.attach(name, link.bandwidth * (STILL if timeout_s is not None else factor), link.latency_s)
        self._down.pop(name, None)
        if timeout_s is not None:
            self._down[name] = timeout_s
            for trip in self._trips.values():
                if trip.left and trip.phase == MOVING and name in (trip.prefill, trip.decode):
                    self._watch(trip)

    def _watch(self, trip: _Trip) -> None:
        timeouts = [self._down[name] for name in (trip.prefill, trip.decode) if name in self._down]

        def due(_: Any) -> None:
            standing = trip.prefill in self._down or trip.decode in self._down
            if trip.phase == MOVING and standing and self._trips.get((trip.id, trip.dispatch)) is trip:
                self._give_up(trip)

        if timeouts:
            self._agenda.at(self._agenda._now + min(timeouts), COMPLETION, due)

    def _give_up(self, trip: _Trip) -> None:
        b = self._stop_moving(trip)
        self._over(trip.id, trip.dispatch)
        self._back(Failed(trip.id, trip.dispatch, trip.decode, "provider_failure", "kv_lost", None, None, b.generated, b.started_s, b.first_token_s))
        self._look(trip)

    # -- small things ---------------------------------------------------------------------------------------------------------------

    def _engine(self, name: str) -> SimEngine:
        engine = self.fleet.replicas[name].engine
        assert isinstance(engine, SimEngine)
        return engine

    def _stop_moving(self, trip: _Trip) -> Attempt:
        b = self._movers[self.fleet.replicas[trip.prefill].pool.name].cancel(trip.id, trip.dispatch)
        assert b is not None
        return b

    def _over(self, id: str, dispatch: int) -> _Trip | None:
        trip = self._trips.pop((id, dispatch), None)
        if trip is not None:
            self.fleet.replicas[trip.decode].promised -= 1
        return trip

    def _look(self, trip: _Trip | None) -> None:
        """A draining replica that has nothing left is gone."""
        for name in () if trip is None else (trip.prefill, trip.decode):
            self.fleet.emptied(self.fleet.replicas[name])

    def check(self) -> None:
        """What was promised is under way; AssertionError if not."""
        promised = {name: r.promised for name, r in self.fleet.replicas.items() if r.promised}
        found: dict[str, int] = {}
        for trip in self._trips.values():
            found[trip.decode] = found.get(trip.decode, 0) + 1
        assert promised == found, f"promised {promised}, under way {found}"


def pairs_of(config: FleetConfig) -> dict[str, tuple[list[Pool], list[Pool]]]:
    """By model with a prefill or decode pool: its prefill pools, and those that can take their KV. ConfigInfeasibleError if one side is
    missing or the two do not fit together."""
    found: dict[str, tuple[list[Pool], list[Pool]]] = {}
    for model in {p.model: None for p in config.pools.values() if p.role != "agg"}:
        of = [p for p in config.pools.values() if p.model == model]
        first, second = [p for p in of if p.role == "prefill"], [p for p in of if p.role != "prefill"]
        if not first or not second:
            side = "prefill" if not first else "decode"
            raise ConfigInfeasibleError(f"fleet.pools: {model} has no pool of role {side}",
                                        hint=f"add one with `role: {side}`, or give all its pools role agg")
        links = [p.link for p in of]
        if None in links or any(p.pp > 1 for p in of) or len({link.kv_bytes_per_token for link in links if link is not None}) > 1:
            raise ConfigInfeasibleError(f"the pools {', '.join(p.name for p in of)} cannot exchange KV",
                                        hint="give each a link, one KV dtype, pp 1, and an engine with steps")
        if len({getattr(p.engine, "first_token", None) for p in of}) > 1:
            raise ConfigInfeasibleError(f"the pools {', '.join(p.name for p in of)} differ in engine.first_token",
                                        hint="one side yields token 1: write the same for all")
        found[model] = first, second
    return found
