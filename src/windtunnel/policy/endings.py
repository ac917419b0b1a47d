"""How requests end: success, failure, cancellation, refusal, a lost replica, a stop. Each ends once and gives back what it held."""

from __future__ import annotations

from windtunnel import effects as fx
from windtunnel.events import Cancelled, Failed, Finished
from windtunnel.policy import outcomes
from windtunnel.policy.admission.denial import Denial, make_denial
from windtunnel.policy.admission.gates import Used
from windtunnel.policy.book import Book
from windtunnel.policy.lane import Lane
from windtunnel.policy.open_request import CLOSING, WAITING, OpenRequest
from windtunnel.policy.outcomes import outcome_of, outcome_of_denial


class Endings(Book):
    """Ends requests and attempts; a failed attempt may go back to its queue."""

    def finished(self, event: Finished) -> None:
        request_id, opened = event.request_id, self.open.get(event.request_id)
        if opened is None or opened.dispatches != event.dispatch or opened.state == WAITING:
            self.late_events += 1
            return
        if self.quarantined:
            self._forget_quarantine(opened)
        rtt_s = None if event.first_token_s is None else event.first_token_s - opened.sent_s
        if opened.lane.signal != "ttft":
            rtt_s = opened.lane.latency_s(event, opened.sent_s, self.now)
        self._release(opened, "success", rtt_s, None, event.output_tokens)
        del self.open[request_id]
        if opened.lane.gates is not None:
            self._settle(opened, "success", event.input_tokens, event.output_tokens)
        if opened.state != CLOSING:
            tally, deadline_s = opened.tally, opened.request.deadline_s
            tally.active -= 1
            tally.completed += 1
            if deadline_s is not None and self.now <= deadline_s:
                tally.deadlines_met += 1

    def failed(self, event: Failed) -> None:
        opened = self.open.get(event.request_id)
        if opened is None or opened.dispatches != event.dispatch or opened.state == WAITING:
            self.late_events += 1
            return
        no_token = event.first_token_s is None and not event.output_tokens and not opened.first_token
        self._attempt_over(opened, event.outcome, event.reason, event.retry_after_s, no_token, event.output_tokens, event.replica)

    def _attempt_over(self, opened: OpenRequest, outcome: str, reason: str, retry_after_s: float | None, no_token: bool,
                      output_tokens: int | None = None, culprit: str = "") -> None:
        """An attempt ended without success: release, then try again or close the request. culprit: the replica that failed, if not the
        attempt's own."""
        gates = opened.lane.gates
        if self.quarantined:
            self._forget_quarantine(opened)
        self._release(opened, opened.lease_outcome or outcome, None, retry_after_s, output_tokens)
        request = opened.request
        end = outcome_of(outcome, reason)
        late = request.deadline_s is not None and self.now >= request.deadline_s
        failed = opened.dispatches - opened.preempted
        again = end.again and no_token and failed < self.settings.attempts and not late and not self.stopped
        if again and opened.state != CLOSING and (gates is None or gates.may_retry(self.now)):
            self._again(opened, outcome, culprit)
            return
        del self.open[request.id]
        if gates is not None:
            self._settle(opened, opened.lease_outcome or outcome, *((0, 0) if no_token else (None, output_tokens)))
        if opened.state == CLOSING:
            return
        self._count_end(opened.tally, end.state)
        self.out.append(fx.Close(request.id, end.state, end.outcome, reason, retry_after_s))

    def _forget_quarantine(self, opened: OpenRequest) -> None:
        """It has ended after all."""
        held = self.quarantined.get(opened.replica, {})
        if held.pop(opened.request.id, None) is not None and not held:
            del self.quarantined[opened.replica]

    def _settle(self, opened: OpenRequest, outcome: str, input_tokens: int | None, output_tokens: int | None) -> None:
        """Gates learn how a request ended, once, when nothing of it runs any more. Tokens None: unknown, then the most it could be."""
        gates = opened.lane.gates
        assert gates is not None
        sent_s = opened.sent_s if opened.dispatches else self.now
        gates.settle(opened.request, Used(outcome, sent_s - opened.item.arrived_at, input_tokens, output_tokens), self.now)

    def _again(self, opened: OpenRequest, outcome: str, culprit: str) -> None:
        """Back to the queue with its place; a replica that failed (not one that was merely full) is avoided."""
        if outcome != "rate_limited":
            opened.avoid(culprit if opened.paired and culprit else opened.replica)
        self._to_wait_again(opened)
        opened.lane.queue.restore(opened.item, self.now)
        self._arm_waiting(opened)
        self.mark(opened.lane)

    def _to_wait_again(self, opened: OpenRequest) -> None:
        opened.paired = False
        opened.state = WAITING  # it stays `active` in the counts: it was admitted once
        opened.item = opened.item_again()

    def _release(self, opened: OpenRequest, outcome: str, rtt_s: float | None, retry_after_s: float | None, output_tokens: int | None) -> None:
        """Give back what the attempt held: router, ledger, lease; the lane may have room now."""
        request, lane, now = opened.request, opened.lane, self.now
        assert opened.lease is not None
        if opened.prefill is not None:
            self._leave_prefill(opened)
        lane.router.done(request, opened.replica, outcome, now)
        self.fleet.done(request.id, opened.replica, now, success=outcome == "success", output_tokens=output_tokens)
        lane.admission.release(opened.lease, outcome, now, retry_after_s=retry_after_s, rtt_s=rtt_s)
        if lane.meter is not None:
            lane.meter.settle(request.id, output_tokens, now)
        if lane.waiting:
            self.mark(lane)

    def _leave_prefill(self, opened: OpenRequest) -> None:
        """The prefill side of a pair holds nothing of it any more: said once, to router and ledger."""
        opened.prefill = None
        told = getattr(opened.lane.router, "handed_over", None)
        if told is not None:
            told(opened.request, self.now)
        self.fleet.handed_over(opened.request.id, self.now)

    def cancelled(self, event: Cancelled) -> None:
        if event.request_id is None:
            self._session_over(event)
            return
        opened = self.open.get(event.request_id)
        if opened is not None:
            self._cancel(opened, event)

    def _session_over(self, event: Cancelled) -> None:
        """The whole session is given up: what is open of it ends, in order of arrival; routers forget where it was."""
        session = event.session
        if session is None:
            return
        for opened in [o for o in self.open.values() if (turn := o.request.turn) is not None and turn.session == session]:
            self._cancel(opened, event)
        for lane in self.lanes:
            abort = getattr(lane.router, "abort", None)
            if abort is not None:
                abort(session, self.now)

    def _cancel(self, opened: OpenRequest, event: Cancelled) -> None:
        if opened.state == CLOSING:
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
        self.out.append(fx.Close(opened.request.id, state, outcome, reason))
        self._cancel_attempt(opened, reason)

    def _cancel_attempt(self, opened: OpenRequest, reason: str) -> None:
        self.out.append(fx.Cancel(opened.request.id, opened.dispatches, opened.replica, reason))
        if self.settings.cancellation_deadline_s is not None:
            self._watch(self.now + self.settings.cancellation_deadline_s, opened, "cancel")

    def _end_waiting(self, request_id: str, denial: Denial, outcome: str | None = None, *, at_the_door: bool = False) -> None:
        """A waiting request ends: never dispatched -> Reject, dispatched before -> Close. at_the_door: gates have their charge back."""
        opened = self.open.pop(request_id)
        lane, tally = opened.lane, opened.tally
        lane.queue.discard(request_id, self.now)
        if lane.waiting and lane.admission.admissible(lane.resource, self.now):
            self.mark(lane)  # it may have held up those behind it
        end = outcome_of_denial(denial.reason)
        if lane.gates is not None and not at_the_door:
            self._settle(opened, "local_cancelled" if opened.dispatches else "", 0, 0)
        if opened.dispatches:
            state = outcomes.CANCELLED if end.state == outcomes.ABANDONED else outcomes.FAILED
            self._count_end(tally, state)
            self.out.append(fx.Close(request_id, state, outcome or end.outcome, str(denial.reason), denial.retry_after_s))
            return
        tally.waiting -= 1
        setattr(tally, end.state, getattr(tally, end.state) + 1)
        self.out.append(fx.Reject(request_id, denial, end.state, outcome or end.outcome))

    def lost(self, replica: str, reason: str) -> None:
        """A replica is gone: what ran on it has failed, in dispatch order, before anything is dispatched again. Of two replicas that shared
        a request, either one takes its KV along."""
        for request_id, dispatch in self.fleet.in_flight_of(replica):
            opened = self.open.get(request_id)
            if opened is not None and opened.dispatches == dispatch:
                no_token = self.tracks_first_token and not opened.first_token
                self._attempt_over(opened, "provider_failure", "kv_lost" if opened.paired else reason, None, no_token, None, replica)

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
