"""Hard pre-emption: a more urgent request takes the place of a running one, which is stopped and waits again."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from windtunnel.policy.admission.denial import Denial, make_denial
from windtunnel.policy.flow import Flow
from windtunnel.policy.lane import Lane
from windtunnel.policy.open_request import CLOSING, RUNNING, WAITING, OpenRequest
from windtunnel.policy.queueing.item import QueueItem, Selection
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.replica import READY
from windtunnel.policy.routing.router import Choice
from windtunnel.policy.settings import ControlSettings

if TYPE_CHECKING:
    from windtunnel.policy.admission.lease import RequestLease

HARD, PREEMPTED = "hard", "preempted"
MAX_PER_REQUEST = 2
WINDOW_S = 60.0


class Preempting(Flow):
    """A request path that stops running work for more urgent work. Only controls that were made for it pay for it.

    When a lane is shut for want of room alone, the first request in the queue's order that is more urgent than something that runs there
    has a victim stopped: of the least urgent class, strictly less urgent than itself, the one that was dispatched last. The victim keeps
    its lease until the engine has let go of it; then it waits again, with the place of its arrival, and may be sent to any replica. What it
    had produced is lost. Its place goes to the first more urgent request in the queue's order, and so does any free place (a plain line, in
    which only the first can go, gains little). An answer that comes before the engine has stopped counts.
    """

    def __init__(self, lanes: Sequence[Lane], fleet: Fleet, tenants: Mapping[str, float], settings: ControlSettings) -> None:
        super().__init__(lanes, fleet, tenants, settings)
        self._victims: dict[Lane, dict[int, dict[str, OpenRequest]]] = {lane: {} for lane in self.lanes}  # by class, in order of dispatch
        self._waiting: dict[Lane, dict[int, int]] = {lane: {} for lane in self.lanes}  # how many, by class
        self._stopping: dict[str, str | None] = {}  # who is being stopped, and for whom; None: the engine was given up on
        self._promised: set[str] = set()  # those for whom somebody is being stopped
        self._returned: dict[Lane, list[OpenRequest]] = {}  # stopped, and not yet queued again
        self._times: deque[float] = deque()  # of the last minute

    # -- who runs -----------------------------------------------------------------------------------------------------------------

    def _dispatch(self, opened: OpenRequest, choice: Choice, lease: RequestLease, queued: bool = False) -> None:
        if queued:
            self._waits(opened, -1)
        super()._dispatch(opened, choice, lease, queued)
        if opened.preempted < MAX_PER_REQUEST:
            self._victims[opened.lane].setdefault(opened.request.priority, {})[opened.request.id] = opened

    def _spare(self, opened: OpenRequest) -> None:
        """It is no victim any more."""
        mine = self._victims[opened.lane]
        runs = mine.get(opened.request.priority)
        if runs is not None and runs.pop(opened.request.id, None) is not None and not runs:
            del mine[opened.request.priority]

    def _release(self, opened: OpenRequest, outcome: str, rtt_s: float | None, retry_after_s: float | None, output_tokens: int | None) -> None:
        self._spare(opened)
        for_whom = self._stopping.pop(opened.request.id, None)
        if for_whom is not None:
            self._promised.discard(for_whom)
        super()._release(opened, outcome, rtt_s, retry_after_s, output_tokens)

    def _stop_running(self, opened: OpenRequest, state: str, outcome: str, reason: str, lease_outcome: str | None = None) -> None:
        self._spare(opened)
        super()._stop_running(opened, state, outcome, reason, lease_outcome)

    def _cancel_attempt(self, opened: OpenRequest, reason: str) -> None:
        if opened.request.id not in self._stopping:  # else the engine has been told
            super()._cancel_attempt(opened, reason)

    # -- who waits ----------------------------------------------------------------------------------------------------------------

    def _waits(self, opened: OpenRequest, by: int) -> None:
        waiting, cls = self._waiting[opened.lane], opened.request.priority
        waiting[cls] = waiting.get(cls, 0) + by
        if not waiting[cls]:
            del waiting[cls]

    def _to_wait_again(self, opened: OpenRequest) -> None:
        super()._to_wait_again(opened)
        self._waits(opened, 1)

    def _end_waiting(self, request_id: str, denial: Denial, outcome: str | None = None, *, at_the_door: bool = False) -> None:
        opened = self.open[request_id]
        self._waits(opened, -1)
        super()._end_waiting(request_id, denial, outcome, at_the_door=at_the_door)
        if opened.lane.waiting:
            self.mark(opened.lane)  # it may have stood before somebody urgent

    def _first_below(self, lane: Lane, priority: int) -> Selection | None:
        """The first in the queue's order that is more urgent than that; no look if nobody is."""
        if min(self._waiting[lane], default=priority) >= priority:
            return None
        return lane.queue.select(lambda item, view: item.priority < priority and lane.eligible(item, view), self.now)

    # -- who goes -----------------------------------------------------------------------------------------------------------------

    def _wait(self, opened: OpenRequest) -> None:
        self._waits(opened, 1)
        super()._wait(opened)
        self.mark(opened.lane)

    def _pump(self, lane: Lane) -> None:
        self._let_go_of_late(lane)  # before anybody is sent
        returned = self._returned.pop(lane, None)
        if returned is not None:
            self._hand_over(lane, returned)
        self._urgent_first(lane)
        super()._pump(lane)
        if lane.waiting and self.settings.preemption == HARD:
            self._make_way(lane)

    def _urgent_first(self, lane: Lane) -> None:
        """A free place does not go to somebody who would be stopped at once for who comes later in the queue's order."""
        while lane.waiting and lane.admission.admissible(lane.resource, self.now):
            selection = lane.queue.select(lane.eligible, self.now)
            if selection is None or not self._send_before(lane, selection.item.priority):
                return

    def _make_way(self, lane: Lane) -> None:
        """Stop one victim for each waiting request that is urgent enough and has none yet."""
        full_from = lane.admission.full_from(lane.resource, self.now) if self._victims[lane] else None
        if full_from is None:
            return
        if full_from > self.now:
            self.want("requests", full_from)
            return
        while (item := self._next_urgent(lane)) is not None and (self._inherits(lane, item) or self._stop_one(lane, item)):
            continue

    def _next_urgent(self, lane: Lane) -> QueueItem | None:
        """The first in the queue's order that has no place to come and is more urgent than something that runs."""
        least_urgent, promised = max(self._victims[lane], default=None), self._promised
        if least_urgent is None or min(self._waiting[lane], default=least_urgent) >= least_urgent:
            return None
        selection = lane.queue.select(
            lambda item, view: item.priority < least_urgent and item.id not in promised and lane.eligible(item, view), self.now)
        return None if selection is None else selection.item

    def _inherits(self, lane: Lane, item: QueueItem) -> bool:
        """Is somebody being stopped for a request that does not wait any more? Then for this one instead."""
        for request_id, for_whom in self._stopping.items():
            victim = self.open[request_id]
            if for_whom is None or victim.lane is not lane or victim.request.priority <= item.priority:
                continue
            if (other := self.open.get(for_whom)) is None or other.state != WAITING:
                self._promise(request_id, item.id)
                return True
        return False

    def _promise(self, request_id: str, for_whom: str) -> None:
        if (before := self._stopping.get(request_id)) is not None:
            self._promised.discard(before)
        self._stopping[request_id] = for_whom
        self._promised.add(for_whom)

    def _stop_one(self, lane: Lane, item: QueueItem) -> bool:
        victim = self._victim(lane, item)
        if victim is None or not self._within_budget():
            return False
        victim.preempted += 1
        self.preempted += 1
        self._times.append(self.now)
        self._spare(victim)
        self._cancel_attempt(victim, PREEMPTED)
        self._promise(victim.request.id, item.id)
        return True

    def _victim(self, lane: Lane, item: QueueItem) -> OpenRequest | None:
        """The last dispatched of the least urgent class, where its place would be of use."""
        wanted, replicas, victims = item.request, self.fleet.replicas, self._victims[lane]
        for cls in sorted(victims, reverse=True):
            if cls <= item.priority:
                break
            for opened in reversed(victims[cls].values()):
                replica = replicas.get(opened.replica)
                if (replica is not None and replica.state == READY and (wanted is None or (wanted.replica in (None, replica.id)
                                                                                            and wanted.pool in (None, replica.pool)))):
                    return opened
        return None

    def _within_budget(self) -> bool:
        """At most so many in any minute; a wake comes when there may be more."""
        times, now = self._times, self.now
        while times and times[0] + WINDOW_S <= now:
            times.popleft()
        if len(times) < self.settings.max_preemptions_per_min:
            return True
        if times:
            self.want("requests", times[0] + WINDOW_S)
        return False

    # -- and comes back -----------------------------------------------------------------------------------------------------------

    def _attempt_over(self, opened: OpenRequest, outcome: str, reason: str, retry_after_s: float | None, no_token: bool,
                      output_tokens: int | None = None, culprit: str = "") -> None:
        request_id = opened.request.id
        if request_id not in self._stopping or opened.state == CLOSING:
            super()._attempt_over(opened, outcome, reason, retry_after_s, no_token, output_tokens, culprit)
            return
        if self.quarantined:
            self._forget_quarantine(opened)
        self._release(opened, outcome, None, retry_after_s, output_tokens)
        if outcome not in ("local_cancelled", "rate_limited"):
            opened.avoid(culprit if opened.paired and culprit else opened.replica)
        self._to_wait_again(opened)
        if self.stopped:
            self._end_waiting(request_id, make_denial("intake", "stopped", retry_after_s=1.0))
            return
        self._returned.setdefault(opened.lane, []).append(opened)
        self._arm_waiting(opened)
        self.mark(opened.lane)

    def _hand_over(self, lane: Lane, returned: list[OpenRequest]) -> None:
        """Each place goes to somebody more urgent than who gave it up, before that one is queued again."""
        back = [o for o in returned if self.open.get(o.request.id) is o]
        for opened in back:
            self._send_before(lane, opened.request.priority)
        for opened in sorted(back, key=lambda o: o.item.arrived_at, reverse=True):  # each goes to the head of its group
            lane.queue.restore(opened.item, self.now)

    def _send_before(self, lane: Lane, priority: int) -> bool:
        """Give a place to the first who is more urgent than that; False: nobody who can be placed."""
        now, queue, admission = self.now, lane.queue, lane.admission
        if not admission.admissible(lane.resource, now):
            return False
        selection = self._first_below(lane, priority)
        if selection is None:
            return False
        opened = self.open[selection.item.id]
        choice = lane.router.pick(opened.request, self.fleet, now)
        if type(choice) is not Choice or queue.commit(selection, now) is None:
            return False
        self._dispatch(opened, choice, admission.grant(lane.resource, now), True)
        return True

    def quarantine(self, request_id: str, dispatches: int) -> None:
        """An engine that does not let go of a victim in time: the place is not to be had, and another victim may be found."""
        super().quarantine(request_id, dispatches)
        opened = self.open.get(request_id)
        if opened is None or opened.state != RUNNING or opened.dispatches != dispatches or self._stopping.get(request_id) is None:
            return
        self._held_up(opened)
        self._promised.discard(self._stopping[request_id] or "")
        self._stopping[request_id] = None
        self.mark(opened.lane)
