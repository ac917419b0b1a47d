"""What `Control` remembers of a request until it ends and its last attempt is over."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from windtunnel.events import Request
from windtunnel.policy.queueing.item import QueueItem
from windtunnel.policy.view import Tally

if TYPE_CHECKING:
    from windtunnel.policy.admission.lease import RequestLease
    from windtunnel.policy.lane import Lane

WAITING, RUNNING, CLOSING = 0, 1, 2  # closing: the request has ended, its attempt has not


class OpenRequest:
    """dispatches: attempts sent so far; replica, lease, sent_s (run s), first_token: of the live attempt; prefill: where its prompt is
    computed, if elsewhere and as long as that holds it. paired: two replicas share it. lease_outcome: set once a
    watchdog stopped it, whatever the engine then says. predicted_start_s: set when it is queued for the first time.
    preempted: times that it was stopped for a more urgent request."""

    __slots__ = ("dispatches", "first_token", "item", "lane", "lease", "lease_outcome", "paired", "predicted_start_s", "preempted", "prefill",
                 "replica", "request", "sent_s", "state", "tally")

    def __init__(self, request: Request, lane: Lane, tally: Tally, item: QueueItem) -> None:
        self.request, self.lane, self.tally, self.item = request, lane, tally, item
        self.state = WAITING
        self.dispatches = self.preempted = 0
        self.replica = ""
        self.prefill: str | None = None
        self.paired = False
        self.lease: RequestLease | None = None
        self.lease_outcome: str | None = None
        self.sent_s = 0.0
        self.predicted_start_s: float | None
        self.first_token = False

    def avoid(self, replica: str) -> None:
        """The next attempt goes elsewhere if it can."""
        self.request = replace(self.request, tried=self.request.tried | {replica})

    def item_again(self) -> QueueItem:
        """The queue item of the next attempt: same place, the request as it is now."""
        return replace(self.item, request=self.request)
