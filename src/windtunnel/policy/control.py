"""`Control`: everything that decides, as one object. `handle(event, now) -> effects`; no clock, no I/O, no lock.

It composes lanes (queue, admission, routing), the fleet ledger and the planner. The same object runs against the simulated fleet and
against real engines; a recorded log of its events replays into equal effects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from windtunnel import effects as fx
from windtunnel.effects import NOTHING, Effect
from windtunnel.errors import PolicyClockError, PolicyError
from windtunnel.events import (
    Answered,
    Arrived,
    Cancelled,
    Commanded,
    Event,
    Failed,
    Finished,
    FirstToken,
    HandedOver,
    PoolsObserved,
    Progressed,
    ReplicaBooting,
    ReplicaGone,
    ReplicaReady,
    ScaleAnswered,
    Scraped,
    Started,
    StepReported,
    Woke,
)
from windtunnel.policy import snapshot
from windtunnel.policy.commands import carry_out
from windtunnel.policy.flow import Flow
from windtunnel.policy.lane import Lane
from windtunnel.policy.open_request import CLOSING
from windtunnel.policy.preemption import HARD, Preempting
from windtunnel.policy.request_stream import RequestStream
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.replica import BOOTING
from windtunnel.policy.routing.router import ReplicaChange
from windtunnel.policy.settings import ControlSettings
from windtunnel.policy.standing import Standing, standing_of
from windtunnel.policy.view import View

if TYPE_CHECKING:
    from windtunnel.policy.planning.planner import Planner


class Control:
    """Composes policies. Owned by one thread.

    lanes: at least one; a request goes to the lane of its `pool`, else of its `model`, else to the only lane.
    tenants: fair-queue weight by tenant name; `default` (1.0) is for everyone else.
    wants: note streams that the recorder keeps; nothing is built for the others.
    """

    def __init__(self, *, lanes: Sequence[Lane], fleet: Fleet, tenants: Mapping[str, float] | None = None, planner: Planner | None = None,
                 settings: ControlSettings | None = None, wants: frozenset[str] = frozenset()) -> None:
        self.lanes, self.fleet, self.planner, self.wants = tuple(lanes), fleet, planner, wants
        self.settings = settings or ControlSettings()
        made = Preempting if self.settings.preemption == HARD else Flow
        self.flow = flow = made(lanes, fleet, tenants or {}, self.settings)
        self._stream = RequestStream() if "request" in wants else None
        self.needs = self._union_of_needs()
        self.seq = self.commands_refused = 0
        self._now = float("-inf")
        self._busy = self._began = False
        self._armed: dict[str, float] = {}
        self._planner_events: frozenset[type] = planner.events if planner else frozenset()
        if planner:
            planner.waiting, planner.in_flight = self.waiting, self._in_flight
            flow.planned = True
        self._on = {
            Arrived: flow.arrived, Finished: flow.finished, Failed: flow.failed, Cancelled: flow.cancelled, FirstToken: flow.first_token,
            ReplicaBooting: self._booting, ReplicaReady: self._ready, ReplicaGone: self._gone, Scraped: self._scraped, Woke: self._woke,
            Commanded: self._commanded, HandedOver: flow.handed_over, Started: flow.started, Progressed: flow.progressed,
            PoolsObserved: self._ignored, ScaleAnswered: self._ignored, Answered: self._ignored, StepReported: self._ignored,
        }

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Take one event at run second `now`; return what to do, in order.

        Raises PolicyClockError if `now` lies before the last call, PolicyError if called from inside itself.
        """
        if now < self._now:
            raise PolicyClockError(f"handle was called with now={now!r} after {self._now!r}")
        if self._busy:
            raise PolicyError("handle was called from inside handle")
        flow = self.flow
        self._busy, self._now, flow.now = True, now, now
        self.seq += 1
        out = flow.out = []
        try:
            kind = type(event)
            self._on[kind](event)  # type: ignore[operator]
            if flow.dirty:
                flow.pump_all()
            if self._stream is not None:
                self._stream.tell(self.lanes, flow.open, out)
            if kind in self._planner_events:
                self._plan(event)
            if flow.wanted:
                self._arm()
        finally:
            self._busy = False
        return out or NOTHING

    # -- the fleet ----------------------------------------------------------------------------------------------------------------

    def _booting(self, event: ReplicaBooting) -> None:
        known = self.fleet.replicas.get(event.replica)
        served = known is not None and known.state != BOOTING
        self.fleet.booting(event, self._now)
        if self.flow.quarantined:
            self.flow.restarted(event.replica)
        if served:  # it starts anew: what it gave is missing until it is ready
            self.flow.capacity_changed(event.pool, less=True)

    def _ready(self, event: ReplicaReady) -> None:
        self.fleet.ready(event, self._now)
        self.changed("ready", event.replica, event.pool)

    def _gone(self, event: ReplicaGone) -> None:
        replica = self.fleet.replicas.get(event.replica)
        if replica is None:
            self.flow.late_events += 1
            return
        pool, now = replica.pool, self._now
        if event.effective_at is not None and event.effective_at > now:
            self.fleet.draining(event.replica, now)
            self.changed("draining", event.replica, pool)
            return
        self.flow.lost(event.replica, event.reason)
        self.fleet.gone(event.replica, now)
        self.changed("gone", event.replica, pool)

    def changed(self, kind: str, replica: str, pool: str) -> None:
        """A replica is ready, draining or gone: its lane's router hears of it, and what waits is looked at again."""
        lane = self.flow.lane_of_pool(pool)
        if lane is not None:
            lane.router.changed(ReplicaChange(kind, replica), self._now)
            self.flow.capacity_changed(pool, less=kind != "ready")

    def _scraped(self, event: Scraped) -> None:
        self.fleet.scraped(event, self._now)
        if self.flow.quarantined:
            self.flow.scraped(event)

    # -- time, commands, planner --------------------------------------------------------------------------------------------------

    def _woke(self, event: Woke) -> None:
        self._armed.pop(event.key, None)
        self.flow.woke(event.key)

    def _commanded(self, event: Commanded) -> None:
        carry_out(self, event, self._now)

    def _ignored(self, event: Event) -> None:
        """Events that only the planner reads."""

    def _plan(self, event: Event) -> None:
        planner, flow = self.planner, self.flow
        assert planner is not None
        made: list[Effect] = []
        if not self._began:
            self._began = True
            made.extend(planner.start(self._now))
        made.extend(planner.handle(event, self._now))
        for effect in made:
            if type(effect) is fx.WakeAt:
                flow.want(effect.key, effect.at)
                continue
            if type(effect) is fx.ScaleTo:
                flow.expected.update(effect.targets)
            flow.out.append(effect)

    def _arm(self) -> None:
        """At most one wake per key and call, and only an earlier one than is armed: later needs re-arm when the old wake fires."""
        wanted = self.flow.wanted
        for key in sorted(wanted):
            at = wanted[key]
            armed = self._armed.get(key)
            if armed is None or at < armed:
                self._armed[key] = at
                self.flow.out.append(fx.WakeAt(at, key))
        wanted.clear()

    def _union_of_needs(self) -> frozenset[str]:
        needs: set[str] = {"first_token"} if self.flow.tracks_first_token else set()
        if self.fleet.accounting != "in_flight":
            needs.add("scrape")
        if self._stream is not None:
            needs.add("started")
        if self.settings.idle_s is not None:
            needs.add("progress")
        if self.settings.preemption == HARD:
            needs.add("interruptible")
        for lane in self.lanes:
            needs |= lane.router.needs | getattr(lane.queue, "needs", frozenset())
            needs |= frozenset() if lane.gates is None else lane.gates.needs
        if self.planner is not None:
            needs |= self.planner.needs
        return frozenset(needs)

    def _in_flight(self, replica: str) -> int:
        known = self.fleet.replicas.get(replica)
        return 0 if known is None else known.in_flight

    # -- pure reads ---------------------------------------------------------------------------------------------------------------

    @property
    def late_events(self) -> int:
        """Events of attempts that were over already."""
        return self.flow.late_events

    @property
    def open_count(self) -> int:
        """Requests that have not ended, and attempts that an engine has not let go of."""
        return len(self.flow.open)

    def open_ids(self) -> list[str]:
        """Ids of the requests that have not ended, in order of arrival."""
        return [i for i, o in self.flow.open.items() if o.state != CLOSING]

    def waiting(self) -> int:
        """Requests waiting in all lanes."""
        return sum(len(lane.queue) for lane in self.lanes)

    def admitted_tokens(self) -> dict[tuple[str, int], int]:
        """Input + expected output tokens of all requests that were ever dispatched, by tenant and class; each only grows."""
        return {who: tally.admitted_tokens for who, tally in self.flow.tallies.items()}

    def view(self) -> View:
        """A frozen snapshot: O(open requests + lanes + replicas)."""
        return snapshot.view_of(self, self._armed, self._now)

    def standing(self, request_id: Any, now: float) -> Standing | None:
        """How an open request stands at run second `now`: its place in line and when it may start; None for one that is not open.

        A pure read, O(log n) after the first. Raises PolicyClockError if `now` lies before the last event.
        """
        return standing_of(self, request_id, now, self._now)

    def check(self) -> None:
        """Conservation of requests and leases; raises PolicyError naming what does not add up. O(open requests)."""
        snapshot.check(self)
