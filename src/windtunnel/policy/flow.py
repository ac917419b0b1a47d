"""The way of requests through `Control`: intake, queue, admission, routing, dispatch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from windtunnel import effects as fx
from windtunnel.errors import PolicyError
from windtunnel.events import Arrived, FirstToken, HandedOver, Progressed, Request, Started
from windtunnel.policy import outcomes
from windtunnel.policy.admission.denial import Denial, make_denial
from windtunnel.policy.expiry import Expiry
from windtunnel.policy.lane import Lane
from windtunnel.policy.open_request import RUNNING, WAITING, OpenRequest
from windtunnel.policy.outcomes import outcome_of_denial
from windtunnel.policy.queueing.item import Group, QueueItem
from windtunnel.policy.routing.router import Choice, NoReplica
from windtunnel.policy.view import Tally

if TYPE_CHECKING:
    from windtunnel.policy.admission.lease import RequestLease


class Flow(Expiry):
    """The request path of one `Control`, on top of its book, its endings and its clocks."""

    def arrived(self, event: Arrived) -> None:
        request, now = event.request, self.now
        request_id, tenant, priority = request.id, request.tenant, request.priority
        if request_id in self.open:
            raise PolicyError(f"request {request_id!r} arrived while a request of that id is open")
        tally = self.tallies.get((tenant, priority))
        if tally is None:
            tally = self.tallies[(tenant, priority)] = Tally()
        tally.arrivals += 1
        lane = self._only if self._only is not None and request.pool is None else self._lane_of(request)
        if lane is None or self.stopped or lane.guarded or lane.unready_since_s is not None or request.deadline_s is not None:
            if request.deadline_s is not None:
                tally.deadlines += 1
            denial = self._intake(request, lane)
            if denial is not None or lane is None:
                tally.rejected += 1
                self.out.append(fx.Reject(request_id, denial, *_ended(denial, tally)))  # type: ignore[arg-type]
                return
        item = QueueItem(request_id, self._groups.get(tenant) or self._group_of(tenant), (),
                         1.0 if lane.cost == "requests" else lane.cost_of(request), priority, now, request.deadline_s, request)
        opened = self.open[request_id] = OpenRequest(request, lane, tally, item)
        if not lane.waiting and lane.admission.admissible(lane.resource, now):
            choice = lane.router.pick(request, self.fleet, now)
            if type(choice) is Choice and lane.queue.straight(item, now):
                self._dispatch(opened, choice, lane.admission.grant(lane.resource, now))
                return
        self._wait(opened)

    def _intake(self, request: Request, lane: Lane | None) -> Denial | None:
        """The checks before the queue: stopped, no such service, too late, nothing there, gates, breaker open.

        A request that passes has been charged by the gates. One that was accepted before a restart is refused neither by them nor by a
        breaker, nor by the queue's bounds.
        """
        now = self.now
        if self.stopped:
            return make_denial("intake", "shutdown", retry_after_s=1.0)
        if lane is None:
            return make_denial("intake", "hard_policy_denial", diagnostics={"model": request.model, "pool": request.pool})
        if request.deadline_s is not None and now >= request.deadline_s:
            return make_denial("intake", "deadline_passed")
        if lane.unready_since_s is not None and not self._alive(lane):
            return make_denial("route", "no_replica", resource=lane.resource)
        if lane.gates is not None:
            denial = lane.gates.check(request, now)
            return None if denial is None else lane.when(denial, now)
        breaker = lane.admission.breaker
        if breaker is not None and not request.recovered and not breaker.admissible(now):
            return lane.admission.breaker_denial(lane.resource, now)
        return None

    def _wait(self, opened: OpenRequest) -> None:
        """Offer the request to its lane's queue; victims and refusals end here."""
        lane, item, now = opened.lane, opened.item, self.now
        offered = lane.queue.offer((item,), now)
        opened.tally.waiting += 1
        for shed in offered.evicted:
            victim = self.open[shed.item.id]
            if not victim.dispatches:  # else it was admitted once, and has failed
                victim.tally.evicted += 1
            self._end_waiting(shed.item.id, shed.denial)
        if offered.rejected:
            if lane.gates is not None:
                lane.gates.give_back(opened.request, now)
            self._end_waiting(item.id, offered.rejected[0].denial, at_the_door=True)
            return
        opened.predicted_start_s = lane.predicted_start_s(item, now)
        self._arm_waiting(opened)
        if len(lane.waiting) == 1 or lane.admission.admissible(lane.resource, now):
            self.mark(lane)  # open although others wait: they are held up by wishes of their own

    def _pump(self, lane: Lane) -> None:
        """Dispatch until the lane is shut or nothing eligible waits: O(log n) per dispatched or blocked head."""
        now, queue, admission = self.now, lane.queue, lane.admission
        lane.dirty = False
        self._let_go_of_late(lane)
        while lane.waiting:
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
            if queue.commit(selection, now) is None:
                continue
            self._dispatch(opened, choice, admission.grant(lane.resource, now), True)  # type: ignore[arg-type]
        if lane.skip:
            lane.skip.clear()

    def _let_go_of_late(self, lane: Lane) -> None:
        """A wake may be late, or still to come at this very time: what is over is not dispatched, nor what the queue sheds."""
        now = self.now
        if (due_s := self._queue_timers.first()) is not None and due_s <= now:
            self._expire_due()
        for shed in lane.queue.shed(now):
            self._end_waiting(shed.item.id, lane.when(shed.denial, now))

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

    def _dispatch(self, opened: OpenRequest, choice: Choice, lease: RequestLease, queued: bool = False) -> None:
        request, now, replica = opened.request, self.now, choice.replica
        opened.dispatches = dispatch = opened.dispatches + 1
        opened.state, opened.replica, opened.lease, opened.sent_s, opened.first_token = RUNNING, replica, lease, now, False
        predicted_start_s = None
        if dispatch == 1:
            opened.tally.active += 1
            if queued:
                opened.tally.waiting -= 1
                predicted_start_s = opened.predicted_start_s
            if (gates := opened.lane.gates) is not None:
                gates.dispatched(request, now - opened.item.arrived_at, now)
        opened.lane.router.sent(request, choice, now)
        if choice.prefill is None:
            charge = self.fleet.sent(request, replica, now, dispatch)
        else:
            opened.paired, opened.prefill = True, choice.prefill
            charge = self.fleet.sent_pair(request, replica, choice.prefill, now, dispatch)
        if dispatch == 1:
            opened.tally.admitted_tokens += charge
        self.out.append(fx.Dispatch(request, dispatch, replica, lease.lease_id, choice.reason, choice.prefill, choice.epoch,
                                     choice.matched_blocks, choice.score, predicted_start_s))
        if self._watches:
            self._watch_attempt(opened)

    def _watch_attempt(self, opened: OpenRequest) -> None:
        settings, now, deadline_s = self.settings, self.now, opened.request.deadline_s
        if settings.first_token_s is not None:
            self._watch(now + settings.first_token_s, opened, "first_token")
        if settings.wall_s is not None:
            self._watch(now + settings.wall_s, opened, "wall")
        if settings.cancel_late and deadline_s is not None:
            self._watch(deadline_s, opened, "late")

    def started(self, event: Started) -> None:
        """The record of an attempt: nothing is decided by it, so one that is over is no late event either."""
        opened = self.open.get(event.request_id)
        if opened is not None and opened.dispatches == event.dispatch and opened.state != WAITING and opened.lease is not None:
            opened.lane.admission.began(opened.lease, self.now)

    def progressed(self, event: Progressed) -> None:
        """Queues that charge for service, and the idle watchdog, learn how far the running requests of a replica are."""
        heard = self._heard
        for request_id, output_tokens in event.counts:
            opened = self.open.get(request_id)
            if opened is None or opened.state != RUNNING or opened.replica != event.replica:
                continue  # of an attempt that is over, perhaps
            if opened.lane.meter is not None:
                opened.lane.meter.charge(request_id, output_tokens, self.now)
            if heard and (last := heard.get(request_id)) is not None and output_tokens > last[1]:
                heard[request_id] = (last[0], output_tokens, self.now)

    def first_token(self, event: FirstToken) -> None:
        opened = self.open.get(event.request_id)
        if opened is None or opened.dispatches != event.dispatch or opened.state == WAITING:
            self.late_events += 1
            return
        if self.settings.idle_s is not None and opened.state == RUNNING and not opened.first_token:
            self._heard[event.request_id] = (event.dispatch, 1, self.now)
            self._watch(self.now + self.settings.idle_s, opened, "idle")
        opened.first_token = True
        self.fleet.first_token(event.request_id, event.replica)
        if opened.lane.gates is not None:
            opened.lane.gates.first_token(opened.request, self.now)

    def handed_over(self, event: HandedOver) -> None:
        """The prefill side of a pair has done its part."""
        opened = self.open.get(event.request_id)
        if opened is None or opened.dispatches != event.dispatch or opened.prefill is None:
            self.late_events += 1
            return
        self._leave_prefill(opened)

    def capacity_changed(self, pool: str, *, less: bool) -> None:
        """Replicas of a pool came or went: the limit's ceiling follows, and what waits is looked at again."""
        lane = self._by_pool.get(pool)
        if lane is None:
            return
        lane.follow(self.fleet.slots(lane.pools), self.now)
        went = lane.serves(all(self.fleet.ready_count(side) > 0 for side in lane.sides), self.now)
        if lane.waiting:
            if less:
                self._no_replica(lane)
            if went and self.settings.hold_unready_s is not None:
                for opened in self._waiting_in(lane):
                    self._hold(opened, self.settings.hold_unready_s)
            self.mark(lane)

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


def _ended(denial: Denial, tally: Tally) -> tuple[str, str]:
    """State and outcome of a refusal at intake; moves the count from `rejected` where the table says otherwise."""
    end = outcome_of_denial(denial.reason)
    if end.state != outcomes.REJECTED:
        tally.rejected -= 1
        setattr(tally, end.state, getattr(tally, end.state) + 1)
    return end.state, end.outcome
