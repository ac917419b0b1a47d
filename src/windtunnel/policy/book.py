"""The open requests of `Control`: where each one stands, what is counted, which clocks run, which lanes want a look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from windtunnel.effects import Effect
from windtunnel.policy.lane import Lane
from windtunnel.policy.open_request import WAITING, OpenRequest
from windtunnel.policy.queueing.item import Group
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.settings import ControlSettings
from windtunnel.policy.timers import Timers
from windtunnel.policy.view import Tally


class Book:
    """State of the request path. `Control` sets `now` and `out` before each call and reads `wanted` after it."""

    def __init__(self, lanes: Sequence[Lane], fleet: Fleet, tenants: Mapping[str, float], settings: ControlSettings) -> None:
        self.lanes, self.fleet, self.settings = tuple(lanes), fleet, settings
        self._tenants = dict(tenants)
        self._by_pool = {pool: lane for lane in lanes for pool in lane.pools}
        self._by_model = {model: lane for lane in lanes for model in lane.models}
        for lane in lanes:
            lane.tokens = fleet.tokens_of(lane.sides[-1][0])
        self._only = self.lanes[0] if len(self.lanes) == 1 else None
        self.now = float("-inf")
        self.out: list[Effect] = []
        self.open: dict[str, OpenRequest] = {}
        self.tallies: dict[tuple[str, int], Tally] = {}
        self.wanted: dict[str, float] = {}
        self.expected: dict[str, int] = {}  # replicas that the planner has asked for, by pool
        self.late_events = self.cancel_forced = self.preempted = 0
        self.quarantined: dict[str, dict[str, float]] = {}  # by replica: attempts that did not end in time after a cancel, and since when
        self._heard: dict[str, tuple[int, int, float]] = {}  # (dispatch, output tokens, since) of streams, while there is an idle watchdog
        self.stopped = False
        self.planned = False  # does a planner size the pools? Then an empty lane can come to life
        self._gated = any(lane.gates is not None and "first_token" in lane.gates.needs for lane in lanes)
        self.follow(settings)
        self._groups: dict[str, Group] = {}
        self.dirty: list[Lane] = []
        self._queue_timers, self._watch_timers = Timers(), Timers()

    def follow(self, settings: ControlSettings) -> None:
        """Take other settings; clocks that run go on as they were set."""
        self.settings = settings
        self.tracks_first_token = (settings.attempts > 1 or settings.first_token_s is not None or settings.idle_s is not None
                                   or settings.cancel_late or self._gated)
        for lane in self.lanes:
            lane.may_shed(settings.preemption != "disabled")
        self._watches = settings.first_token_s is not None or settings.wall_s is not None or settings.cancel_late

    def retune(self, tenants: Mapping[str, float]) -> None:
        """Other weights; they count for what is queued from now on."""
        self._tenants = dict(tenants)
        self._groups.clear()

    def _arm_waiting(self, opened: OpenRequest) -> None:
        settings, timers, request = self.settings, self._queue_timers, opened.request
        if request.deadline_s is not None:
            timers.add(request.deadline_s, request.id, opened.dispatches, "deadline_passed")
            self.want("queue", request.deadline_s)
        if settings.queue_wait_timeout_s is not None:
            timers.add(self.now + settings.queue_wait_timeout_s, request.id, opened.dispatches, "queue_timeout")
            self.want("queue", self.now + settings.queue_wait_timeout_s)
        if settings.hold_unready_s is not None and opened.lane.unready_since_s is not None:
            self._hold(opened, settings.hold_unready_s)

    def _hold(self, opened: OpenRequest, hold_s: float) -> None:
        self._queue_timers.add(self.now + hold_s, opened.request.id, opened.dispatches, "none_ready")
        self.want("queue", self.now + hold_s)

    def mark(self, lane: Lane) -> None:
        if not lane.dirty:
            lane.dirty = True
            self.dirty.append(lane)

    def want(self, key: str, at: float | None) -> None:
        if at is not None and at < self.wanted.get(key, float("inf")):
            self.wanted[key] = at

    def _watch(self, at: float, opened: OpenRequest, kind: str) -> None:
        self._watch_timers.add(at, opened.request.id, opened.dispatches, kind)
        self.want("watch", at)

    @staticmethod
    def _count_end(tally: Tally, state: str) -> None:
        tally.active -= 1
        setattr(tally, state, getattr(tally, state) + 1)

    def _alive(self, lane: Lane) -> bool:
        """Is a replica there, or coming: booting, draining, or planned?"""
        fleet, expected = self.fleet, self.expected
        return self.planned or all(fleet.ready_count(side) or fleet.coming_count(side) or any(expected.get(p, 0) > 0 for p in side)
                                   for side in lane.sides)

    def _waiting_in(self, lane: Lane) -> list[OpenRequest]:
        return [o for o in self.open.values() if o.lane is lane and o.state == WAITING]

    def lane_of_pool(self, pool: str) -> Lane | None:
        return self._by_pool.get(pool)
