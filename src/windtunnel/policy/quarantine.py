"""Attempts whose engine does not say that it has stopped: what they hold counts as used until the engine shows that they are gone."""

from __future__ import annotations

from windtunnel.events import Scraped
from windtunnel.policy.endings import Endings
from windtunnel.policy.open_request import CLOSING, OpenRequest


class Quarantine(Endings):
    """A cancelled attempt gets `cancellation_deadline_s` to end. After that its slot is in quarantine: counted as used until a scrape
    shows the engine without it, the replica starts anew or is gone, or the engine answers after all."""

    def quarantine(self, request_id: str, dispatches: int) -> None:
        """The deadline is over; nothing happens if the attempt has ended meanwhile."""
        opened = self.open.get(request_id)
        if opened is None or opened.state != CLOSING or opened.dispatches != dispatches:
            return
        self._held_up(opened)

    def _held_up(self, opened: OpenRequest) -> None:
        self.cancel_forced += 1
        self.quarantined.setdefault(opened.replica, {})[opened.request.id] = self.now

    def scraped(self, event: Scraped) -> None:
        """Own attempts that were there when the engine was asked, less what it then had: as many are gone, the oldest first."""
        held, scrape = self.quarantined.get(event.replica), event.scrape
        replica = self.fleet.replicas.get(event.replica)
        if not held or replica is None or replica.scrape is not scrape or scrape.running is None or scrape.waiting is None:
            return
        if self.now - scrape.sampled_s > self.fleet.ledger_window_s:
            return  # how many were sent since is not known so far back
        gone = replica.in_flight - replica.after(scrape.sampled_s)[0] - scrape.running - scrape.waiting
        for request_id in [i for i, since_s in held.items() if since_s <= scrape.sampled_s][: max(0, gone)]:
            self._let_go(request_id, "quarantine_over")

    def restarted(self, replica: str) -> None:
        """It starts anew: nothing of before runs on it."""
        for request_id in list(self.quarantined.get(replica, ())):
            self._let_go(request_id, "restarted")

    def _let_go(self, request_id: str, reason: str) -> None:
        self._attempt_over(self.open[request_id], "local_cancelled", reason, None, False)
