"""What happens when a clock of an open request runs out, waiting or running."""

from __future__ import annotations

from windtunnel.policy.admission.denial import make_denial
from windtunnel.policy.open_request import RUNNING, WAITING, OpenRequest
from windtunnel.policy.outcomes import outcome_of
from windtunnel.policy.quarantine import Quarantine


class Expiry(Quarantine):
    """Wakes: `queue` (waiting requests), `watch` (running ones), `requests` (a limit that opens again)."""

    def woke(self, key: str) -> None:
        """Clocks of waiting requests (`queue`), of running ones (`watch`), or a limit that opens again (`requests`)."""
        if key == "queue":
            self._expire_due()
        elif key == "watch":
            for request_id, dispatches, reason in self._watch_timers.due(self.now):
                if reason == "cancel":
                    self.quarantine(request_id, dispatches)
                elif reason == "idle":
                    self._listen(request_id, dispatches)
                else:
                    self._bark(request_id, dispatches, reason)
            self.want("watch", self._watch_timers.first())
        elif key == "requests":
            for lane in self.lanes:
                if lane.waiting:
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
        self._gave_no_sign(opened, reason)

    def _listen(self, request_id: str, dispatches: int) -> None:
        """The idle watchdog of a stream: it looks again when the pause could be over, one clock per stream."""
        opened, heard, idle_s = self.open.get(request_id), self._heard.get(request_id), self.settings.idle_s
        if heard is None or heard[0] != dispatches:
            return  # of an attempt before this one
        if opened is None or opened.state != RUNNING or opened.dispatches != dispatches or idle_s is None:
            del self._heard[request_id]
        elif self.now < heard[2] + idle_s:
            self._watch(heard[2] + idle_s, opened, "idle")
        else:
            del self._heard[request_id]
            self._gave_no_sign(opened, "idle")

    def _gave_no_sign(self, opened: OpenRequest, reason: str) -> None:
        end = outcome_of("provider_timeout")
        self._stop_running(opened, end.state, end.outcome, f"{reason}_timeout", "provider_timeout")
