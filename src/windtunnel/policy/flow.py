"""The way of requests through `Control`: intake, queue, admission, routing, and every way in which they end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from windtunnel import effects as fx
from windtunnel.effects import Effect
from windtunnel.errors import PolicyError
from windtunnel.events import Arrived, Cancelled, Failed, Finished, FirstToken, Request
from windtunnel.policy import outcomes
from windtunnel.policy.admission.denial import Denial, make_denial
from windtunnel.policy.lane import Lane
from windtunnel.policy.open_request import CLOSING, RUNNING, WAITING, OpenRequest
from windtunnel.policy.outcomes import outcome_of, outcome_of_denial
from windtunnel.policy.queueing.item import Group, QueueItem
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.router import Choice, NoReplica
from windtunnel.policy.settings import ControlSettings
from windtunnel.policy.timers import Timers
from windtunnel.policy.view import Tally


class Flow:
    """Owns the open requests and their clocks. `Control` sets `now` and `out` before each call and reads `wanted` after it."""

    def __init__(self, lanes: Sequence[Lane], fleet: Fleet, tenants: Mapping[str, float], settings: ControlSettings) -> None:
        self.lanes, self.fleet, self.settings = tuple(lanes), fleet, settings
        self._tenants = dict(tenants)
        self._by_pool = {pool: lane for lane in lanes for pool in lane.pools}
        self._by_model = {model: lane for lane in lanes for model in lane.models}
        self._only = self.lanes[0] if len(self.lanes) == 1 else None
        self.now = float("-inf")
        self.out: list[Effect] = []
        self.open: dict[str, OpenRequest] = {}
        self.tallies: dict[tuple[str, int], Tally] = {}
        self.wanted: dict[str, float] = {}
        self.expected: dict[str, int] = {}  # replicas that the planner has asked for, by pool
        self.late_events = 0
        self.stopped = False
        self.planned = False  # does a planner size the pools? Then an empty lane can come to life
        self.tracks_first_token = settings.attempts > 1 or settings.first_token_s is not None or settings.cancel_late
        self._groups: dict[str, Group] = {}
        self.dirty: list[Lane] = []
        self._queue_timers, self._watch_timers = Timers(), Timers()

    def arrived(self, event: Arrived) -> None:
        request, now = event.request, self.now
        if request.id in self.open:
            raise PolicyError(f"request {request.id!r} arrived while a request of that id is open")
        key = (request.tenant, request.priority)
        tally = self.tallies.get(key)
        if tally is None:
            tally = self.tallies[key] = Tally()
        tally.arrivals += 1
        lane = self._only if self._only is not None and request.pool is None else self._lane_of(request)
        denial = self._intake(request, lane)
        if denial is not None or lane is None:
            tally.rejected += 1
            self.out.append(fx.Reject(request.id, denial, *_ended(denial, tally)))  # type: ignore[arg-type]
            return
        item = QueueItem(request.id, self._group_of(request.tenant), (), 1.0 if lane.cost == "requests" else lane.cost_of(request),
                         request.priority, now, request.deadline_s, request)
        opened = self.open[request.id] = OpenRequest(request, lane, tally, item)
        if not len(lane.queue) and lane.admission.admissible(lane.resource, now):
            choice = lane.router.pick(request, self.fleet, now)
            if type(choice) is Choice:
                lease = lane.admission.try_acquire(lane.resource, now)
                if type(lease) is not Denial:
                    if lane.queue.straight(item, now):
                        self._dispatch(opened, choice, lease)
                        return
                    lane.admission.release(lease, "local_cancelled", now)  # type: ignore[arg-type]  # the pump acquires anew
        self._wait(opened)

    def _intake(self, request: Request, lane: Lane | None) -> Denial | None:
        """The checks before the queue: stopped, no such service, too late, nothing there, breaker open."""
        now = self.now
        if self.stopped:
            return make_denial("intake", "shutdown", retry_after_s=1.0)
        if lane is None:
            return make_denial("intake", "hard_policy_denial", diagnostics={"model": request.model, "pool": request.pool})
        if request.deadline_s is not None and now >= request.deadline_s:
            return make_denial("intake", "deadline_passed")
        if not self._alive(lane):
            return make_denial("route", "no_replica", resource=lane.resource)
        breaker = lane.admission.breaker
        if breaker is not None and not breaker.admissible(now):
            return lane.admission.breaker_denial(lane.resource, now)
        return None

    def _wait(self, opened: OpenRequest) -> None:
        """Offer the request to its lane's queue; victims and refusals end here."""
        lane, item, now = opened.lane, opened.item, self.now
        offered = lane.queue.offer((item,), now)
        opened.tally.waiting += 1
        for shed in offered.evicted:
            self.open[shed.item.id].tally.evicted += 1
            self._end_waiting(shed.item.id, shed.denial)
        if offered.rejected:
            self._end_waiting(item.id, offered.rejected[0].denial)
            return
        self._arm_waiting(opened)
        if len(lane.queue) == 1 or lane.admission.admissible(lane.resource, now):
            self.mark(lane)  # open although others wait: they are held up by wishes of their own

    def _arm_waiting(self, opened: OpenRequest) -> None:
        settings, timers, request = self.settings, self._queue_timers, opened.request
        if request.deadline_s is not None:
            timers.add(request.deadline_s, request.id, opened.dispatches, "deadline_passed")
            self.want("queue", request.deadline_s)
        if settings.queue_wait_timeout_s is not None:
            timers.add(self.now + settings.queue_wait_timeout_s, request.id, opened.dispatches, "queue_timeout")
            self.want("queue", self.now + settings.queue_wait_timeout_s)
        if settings.hold_unready_s is not None and not self.fleet.ready_count(opened.lane.pools):
            self._hold(opened, settings.hold_unready_s)

    def _hold(self, opened: OpenRequest, hold_s: float) -> None:
        self._queue_timers.add(self.now + hold_s, opened.request.id, opened.dispatches, "none_ready")
        self.want("queue", self.now + hold_s)

    def _pump(self, lane: Lane) -> None:
        """Dispatch until the lane is shut or nothing eligible waits: O(log n) per dispatched or blocked head."""
        now, queue, admission = self.now, lane.queue, lane.admission
        lane.dirty = False
        if (due_s := self._queue_timers.first()) is not None and due_s <= now:
            self._expire_due()  # a wake may be late, or still to come at this very time: what is over is not dispatched
        for shed in queue.shed(now):
            self._end_waiting(shed.item.id, shed.denial)
        while len(queue):
            if not admission.admissible(lane.resource, now):
                opens_at = admission.next_open(lane.resource, now)
                if opens_at is not None:
                    self.want("requests", opens_at)
                break
            selection = queue.select(lane.eligible, now)
            if selection is None:
                break
            opened = self.open[selection.item.id]
            choice = lane.router.pick(opened.request, self.fleet, now)
            if type(choice) is NoReplica:
                if self._pass_over(opened, choice.reason):
                    continue
                self._no_replica(lane)
                break
            lease = admission.try_acquire(lane.resource, now)
            if type(lease) is Denial:
                break
            if queue.commit(selection, now) is None:
                admission.release(lease, "local_cancelled", now)  # type: ignore[arg-type]
                continue
            if not opened.dispatches:
                opened.tally.waiting -= 1
            self._dispatch(opened, choice, lease)  # type: ignore[arg-type]
        if lane.skip:
            lane.skip.clear()

    def _pass_over(self, opened: OpenRequest, reason: str) -> bool:
        """Has this head wishes of its own that nothing meets now? Then it does not hold up the lane; it ends if its replica is no more."""
        request, lane = opened.request, opened.lane
        if request.replica is not None and reason == "no_replica":
            self._end_waiting(request.id, make_denial("route", reason, resource=lane.resource))
            return True
        if reason == "bound_full" or request.replica is not None or request.pool is not None:
            lane.skip.add(request.id)
            return True
        return False

    def _dispatch(self, opened: OpenRequest, choice: Choice, lease: Any) -> None:
        request, lane, now = opened.request, opened.lane, self.now
        opened.dispatches += 1
        opened.state, opened.replica, opened.lease, opened.sent_s, opened.first_token = RUNNING, choice.replica, lease, now, False
        if opened.dispatches == 1:
            opened.tally.active += 1
        lane.router.sent(request, choice, now)
        self.fleet.sent(request, choice.replica, now, opened.dispatches)
        self.out.append(fx.Dispatch(request, opened.dispatches, choice.replica, lease.lease_id, choice.reason, choice.prefill, choice.epoch,
                                     choice.matched_blocks, choice.score))
        settings = self.settings
        if settings.first_token_s is not None:
            self._watch(now + settings.first_token_s, opened, "first_token")
        if settings.wall_s is not None:
            self._watch(now + settings.wall_s, opened, "wall")
        if settings.cancel_late and request.deadline_s is not None:
            self._watch(request.deadline_s, opened, "late")

    def first_token(self, event: FirstToken) -> None:
        opened = self.open.get(event.request_id)
        if opened is None or opened.dispatches != event.dispatch or opened.state == WAITING:
            self.late_events += 1
            return
        opened.first_token = True
        self.fleet.first_token(event.request_id, event.replica)

    def finished(self, event: Finished) -> None:
        opened = self.open.get(event.request_id)
        if opened is None or opened.dispatches != event.dispatch or opened.state == WAITING:
            self.late_events += 1
            return
        rtt_s = None if event.first_token_s is None else event.first_token_s - opened.sent_s
        self._release(opened, "success", rtt_s, None, event.output_tokens)
        del self.open[event.request_id]
        if opened.state != CLOSING:
            opened.tally.active -= 1
            opened.tally.completed += 1

    def failed(self, event: Failed) -> None:
        opened = self.open.get(event.request_id)
        if opened is None or opened.dispatches != event.dispatch or opened.state == WAITING:
            self.late_events += 1
            return
        no_token = event.first_token_s is None and not event.output_tokens and not opened.first_token
        self._attempt_over(opened, event.outcome, event.reason, event.retry_after_s, no_token)

    def _attempt_over(self, opened: OpenRequest, outcome: str, reason: str, retry_after_s: float | None, no_token: bool) -> None:
        """An attempt ended without success: release, then try again or close the request."""
        self._release(opened, opened.lease_outcome or outcome, None, retry_after_s, None)
        request = opened.request
        if opened.state == CLOSING:
            del self.open[request.id]
            return
        end = outcome_of(outcome, reason)
        late = request.deadline_s is not None and self.now >= request.deadline_s
        if end.again and no_token and opened.dispatches < self.settings.attempts and not late and not self.stopped:
            self._again(opened, outcome)
            return
        del self.open[request.id]
        self._count_end(opened.tally, end.state)
        self.out.append(fx.Close(request.id, end.state, end.outcome, reason, retry_after_s))

    def _again(self, opened: OpenRequest, outcome: str) -> None:
        """Back to the queue with its place; a replica that failed (not one that was merely full) is avoided."""
        if outcome != "rate_limited":
            opened.avoid(opened.replica)
        opened.state = WAITING  # it stays `active` in the counts: it was admitted once
        opened.item = opened.item_again()
        opened.lane.queue.restore(opened.item, self.now)
        self._arm_waiting(opened)
        self.mark(opened.lane)

    def _release(self, opened: OpenRequest, outcome: str, rtt_s: float | None, retry_after_s: float | None, output_tokens: int | None) -> None:
        """Give back what the attempt held: router, ledger, lease; the lane may have room now."""
        request, lane, now = opened.request, opened.lane, self.now
        assert opened.lease is not None
        lane.router.done(request, opened.replica, outcome, now)
        self.fleet.done(request.id, opened.replica, now, success=outcome == "success", output_tokens=output_tokens)
        lane.admission.release(opened.lease, outcome, now, retry_after_s=retry_after_s, rtt_s=rtt_s)
        if len(lane.queue):
            self.mark(lane)

    def cancelled(self, event: Cancelled) -> None:
        opened = self.open.get(event.request_id or "")
        if opened is None or opened.state == CLOSING:
            return
        if opened.state == WAITING:
            self._end_waiting(opened.request.id, make_denial("queue", "cancellation"), event.outcome)
            return
        self._stop_running(opened, outcomes.CANCELLED, event.outcome, event.reason)

    def _stop_running(self, opened: OpenRequest, state: str, outcome: str, reason: str, lease_outcome: str | None = None) -> None:
        """End a running request now; its attempt holds lease and ledger until the engine has let go.

        lease_outcome: what limits and breaker then learn; None: what the engine says.
        """
        opened.state, opened.lease_outcome = CLOSING, lease_outcome
        self._count_end(opened.tally, state)
        request_id = opened.request.id
        self.out.append(fx.Close(request_id, state, outcome, reason))
        self.out.append(fx.Cancel(request_id, opened.dispatches, opened.replica, reason))

    def _end_waiting(self, request_id: str, denial: Denial, outcome: str | None = None) -> None:
        """A waiting request ends: never dispatched -> Reject, dispatched before -> Close."""
        opened = self.open.pop(request_id)
        lane, tally = opened.lane, opened.tally
        lane.queue.discard(request_id, self.now)
        if len(lane.queue) and lane.admission.admissible(lane.resource, self.now):
            self.mark(lane)  # it may have held up those behind it
        end = outcome_of_denial(denial.reason)
        if opened.dispatches:
            state = outcomes.CANCELLED if end.state == outcomes.ABANDONED else outcomes.FAILED
            self._count_end(tally, state)
            self.out.append(fx.Close(request_id, state, outcome or end.outcome, str(denial.reason), denial.retry_after_s))
            return
        tally.waiting -= 1
        setattr(tally, end.state, getattr(tally, end.state) + 1)
        self.out.append(fx.Reject(request_id, denial, end.state, outcome or end.outcome))

    @staticmethod
    def _count_end(tally: Tally, state: str) -> None:
        tally.active -= 1
        setattr(tally, state, getattr(tally, state) + 1)

    # -- time ---------------------------------------------------------------------------------------------------------------------

    def woke(self, key: str) -> None:
        """Clocks of waiting requests (`queue`), of running ones (`watch`), or a limit that opens again (`requests`)."""
        if key == "queue":
            self._expire_due()
        elif key == "watch":
            for request_id, dispatches, reason in self._watch_timers.due(self.now):
                self._bark(request_id, dispatches, reason)
            self.want("watch", self._watch_timers.first())
        elif key == "requests":
            for lane in self.lanes:
                if len(lane.queue):
                    self.mark(lane)

    def _expire_due(self) -> None:
        for request_id, dispatches, reason in self._queue_timers.due(self.now):
            self._expire(request_id, dispatches, reason)
        self.want("queue", self._queue_timers.first())

    def _expire(self, request_id: str, dispatches: int, reason: str) -> None:
        opened = self.open.get(request_id)
        if opened is None or opened.state != WAITING or opened.dispatches != dispatches:
            return
        lane, retry_after_s = opened.lane, None
        if reason == "none_ready":
            since_s, hold_s = lane.unready_since_s, self.settings.hold_unready_s
            if since_s is None or hold_s is None or self.now < since_s + hold_s:
                return  # one was there in between
        elif reason == "queue_timeout" and (rate_rps := lane.admission.completion_rate(lane.resource, self.now)):
            retry_after_s = len(lane.queue) / rate_rps
        self._end_waiting(request_id, make_denial("queue", reason, retry_after_s=retry_after_s, resource=lane.resource))

    def _bark(self, request_id: str, dispatches: int, reason: str) -> None:
        """A watchdog fired: an attempt without a first token, or one that lives too long, is stopped."""
        opened = self.open.get(request_id)
        if opened is None or opened.state != RUNNING or opened.dispatches != dispatches:
            return
        if reason != "wall" and opened.first_token:
            return
        if reason == "late":
            end = outcome_of("local_timeout", "deadline_passed")
            self._stop_running(opened, end.state, end.outcome, "deadline_passed")
            return
        end = outcome_of("provider_timeout")
        self._stop_running(opened, end.state, end.outcome, f"{reason}_timeout", "provider_timeout")

    # -- the fleet, seen from the requests ------------------------------------------------------------------------------------------

    def lost(self, replica: str, reason: str) -> None:
        """A replica is gone: what ran on it has failed, in dispatch order, before anything is dispatched again."""
        for request_id, dispatch in self.fleet.in_flight_of(replica):
            opened = self.open.get(request_id)
            if opened is not None and opened.dispatches == dispatch:
                no_token = self.tracks_first_token and not opened.first_token
                self._attempt_over(opened, "provider_failure", reason, None, no_token)

    def capacity_changed(self, pool: str, *, less: bool) -> None:
        """Replicas of a pool came or went: the limit's ceiling follows, and what waits is looked at again."""
        lane = self._by_pool.get(pool)
        if lane is None:
            return
        lane.follow(self.fleet.slots(lane.pools), self.now)
        went = lane.serves(self.fleet.ready_count(lane.pools) > 0, self.now)
        if len(lane.queue):
            if less:
                self._no_replica(lane)
            if went and self.settings.hold_unready_s is not None:
                for opened in self._waiting_in(lane):
                    self._hold(opened, self.settings.hold_unready_s)
            self.mark(lane)

    def lane_of_pool(self, pool: str) -> Lane | None:
        return self._by_pool.get(pool)

    def _alive(self, lane: Lane) -> bool:
        """Is a replica there, or coming: booting, draining, or planned?"""
        fleet, pools = self.fleet, lane.pools
        return self.planned or bool(fleet.ready_count(pools) or fleet.coming_count(pools) or any(self.expected.get(p, 0) > 0 for p in pools))

    def _no_replica(self, lane: Lane) -> None:
        """Nothing serves this lane and nothing is coming: all that wait in it end now, in order of arrival."""
        if self._alive(lane):
            return
        for opened in self._waiting_in(lane):
            self._end_waiting(opened.request.id, make_denial("route", "no_replica", resource=lane.resource))

    def stop(self) -> None:
        """Nothing more is admitted; what waits ends now, what runs goes on."""
        self.stopped = True
        for lane in self.lanes:
            for opened in self._waiting_in(lane):
                self._end_waiting(opened.request.id, make_denial("intake", "stopped", retry_after_s=1.0))

    # -- small helpers ------------------------------------------------------------------------------------------------------------

    def pump_all(self) -> None:
        """Dispatch from every lane in which something may have become eligible, in order of marking."""
        for lane in self.dirty:
            self._pump(lane)
        self.dirty.clear()

    def _lane_of(self, request: Request) -> Lane | None:
        if request.pool is not None:
            return self._by_pool.get(request.pool)
        return self._by_model.get(request.model)

    def _group_of(self, tenant: str) -> Group:
        group = self._groups.get(tenant)
        if group is None:
            weight = self._tenants.get(tenant, self._tenants.get("default", 1.0))
            group = self._groups[tenant] = Group(tenant, weight)
        return group

    def _waiting_in(self, lane: Lane) -> list[OpenRequest]:
        return [o for o in self.open.values() if o.lane is lane and o.state == WAITING]

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


def _ended(denial: Denial, tally: Tally) -> tuple[str, str]:
    """State and outcome of a refusal at intake; moves the count from `rejected` where the table says otherwise."""
    end = outcome_of_denial(denial.reason)
    if end.state != outcomes.REJECTED:
        tally.rejected -= 1
        setattr(tally, end.state, getattr(tally, end.state) + 1)
    return end.state, end.outcome
