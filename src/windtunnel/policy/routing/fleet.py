"""The fleet ledger: what this control has running on each replica. Own in-flight is exact, never stale."""

from __future__ import annotations

from math import inf
from typing import Literal

from windtunnel.errors import ConfigValueError, PolicyError
from windtunnel.events import Request, Scraped
from windtunnel.policy.param import check_number
from windtunnel.policy.routing.replica import GONE, Replica, ReplicaView
from windtunnel.policy.routing.roll import Roll

FORGET_EVERY = 1024  # dispatches, between two looks at what is older than the window
ACCOUNTINGS = ("in_flight", "since_scrape", "snapshot")
_VIEWED = tuple(name for name in ReplicaView.__dataclass_fields__ if name != "scrape")


class Fleet(Roll):
    """Owned and changed by `Control` alone, from events; routers read it. An empty tuple of pools means all pools.

    accounting: how a fresh scrape counts in `load`: `in_flight` adds other people's requests to our own, `since_scrape` adds our sends
    after it, `snapshot` takes it alone (for study: it herds). ledger_window_s: how far back own in-flight is known. version grows with
    every change, members only with those of replicas. Raises ConfigValueError for numbers out of range.
    """

    def __init__(self, *, scrape_interval_s: float = 1.0, stale_after_s: float | None = None, ledger_window_s: float = 30.0,
                 accounting: Literal["in_flight", "since_scrape", "snapshot"] = "in_flight") -> None:
        check_number("scrape_interval_s", scrape_interval_s, above=0.0)
        check_number("ledger_window_s", ledger_window_s, lo=0.0)
        if stale_after_s is not None:
            check_number("stale_after_s", stale_after_s, lo=0.0)
        if accounting not in ACCOUNTINGS:
            raise ConfigValueError("accounting", f"expected one of {', '.join(ACCOUNTINGS)}, got {accounting!r}")
        self.stale_after_s = 3 * scrape_interval_s if stale_after_s is None else stale_after_s
        self.ledger_window_s, self.accounting = ledger_window_s, accounting
        self._usable_s = min(self.stale_after_s, ledger_window_s)
        super().__init__()
        self.sequence = self.late_done = 0
        self.scan_until = -inf  # until then a scrape may make `load` differ from `in_flight`
        self._ended = self._scrapes = 0
        self._forget_at = FORGET_EVERY
        self._flights: dict[str, tuple[Replica, int, int, int]] = {}  # request id -> (replica, dispatch, charge, prefill tokens left)
        self._prefills: dict[str, tuple[Replica, int, int]] = {}  # of pairs: request id -> (prefill replica, tokens, prefill tokens left)

    @property
    def version(self) -> int:
        return self.members + self.sequence + self._ended + self._scrapes

    # -- replicas -----------------------------------------------------------------------------------------------------------------

    def gone(self, id: str, now: float) -> list[tuple[str, int]]:
        """Forget a replica. Returns what was still on it, as `in_flight_of` does; later ends of these are late."""
        lost = self.in_flight_of(id)
        for request_id, _ in lost:
            held = self._prefills.get(request_id)
            if held is not None and held[0].id == id:
                self.handed_over(request_id, now)
            else:
                del self._flights[request_id]
        if (r := self.replicas.pop(id, None)) is not None:
            self._move(r, GONE)
        return lost

    # -- traffic ------------------------------------------------------------------------------------------------------------------

    def sent(self, request: Request, id: str, now: float, dispatch: int = 1) -> int:
        """Count an attempt on a replica; returns the tokens it is charged with, exactly what `done` takes back.

        Raises PolicyError for a request in flight already or a replica that is not there.
        """
        r, request_id = self.replicas.get(id), request.id
        if r is None or request_id in self._flights:
            why = "no such replica" if r is None else "it is in flight"
            raise PolicyError(f"request {request_id!r} cannot be sent to {id!r}: {why}")
        tokens, tokens_in = r.tokens, request.input_tokens
        if tokens_in is None:
            tokens_in = tokens.input()
        else:
            tokens.inputs.append(tokens_in)
        bound, mean = request.max_tokens, tokens.output
        charge = tokens_in + (mean if bound is None or mean < bound else bound)
        self._flights[request_id] = (r, dispatch, charge, tokens_in)
        r.in_flight += 1
        r.in_flight_tokens += charge
        r.prefill_tokens += tokens_in
        r.last_sent_seq = sequence = self.sequence
        self.sequence = sequence + 1
        r.sent_at.append(now)
        if sequence >= self._forget_at:
            self._forget(now)
        return charge

    def sent_pair(self, request: Request, id: str, prefill: str, now: float, dispatch: int = 1) -> int:
        """Count an attempt on two replicas: its prompt on `prefill` until `handed_over`, its room on `id` until `done`. Both or neither:
        raises PolicyError as `sent` does."""
        p = self.replicas.get(prefill)
        if p is None or prefill == id:
            why = "no such replica" if p is None else "it is the same replica"
            raise PolicyError(f"request {request.id!r} cannot be prefilled on {prefill!r} for {id!r}: {why}")
        charge = self.sent(request, id, now, dispatch)
        self._hold_no_prompt(request.id)
        tokens = p.tokens.input() if request.input_tokens is None else request.input_tokens
        self._prefills[request.id] = (p, tokens, tokens)
        p.in_flight += 1
        p.in_flight_tokens += tokens
        p.prefill_tokens += tokens
        p.last_sent_seq = self.sequence
        self.sequence += 1
        p.sent_at.append(now)
        return charge

    def _hold_no_prompt(self, request_id: str) -> None:
        r, dispatch, charge, prompt = self._flights[request_id]
        r.prefill_tokens -= prompt
        self._flights[request_id] = (r, dispatch, charge, 0)

    def handed_over(self, request_id: str, now: float) -> None:
        """The prefill replica of a pair holds nothing of it any more; a second call changes nothing."""
        held = self._prefills.pop(request_id, None)
        if held is None:
            return
        p, tokens, left = held
        p.in_flight -= 1
        p.in_flight_tokens -= tokens
        p.prefill_tokens -= left
        p.ended_at.append(now)
        self._ended += 1

    def first_token(self, request_id: str, id: str) -> None:
        """Its prompt is computed: it no longer counts as prefill."""
        flight = self._flights.get(request_id)
        if flight is not None and flight[0].id == id:
            flight[0].prefill_tokens -= flight[3]
            self._flights[request_id] = (*flight[:3], 0)
        elif (held := self._prefills.get(request_id)) is not None and held[0].id == id:
            held[0].prefill_tokens -= held[2]
            self._prefills[request_id] = (*held[:2], 0)

    def done(self, request_id: str, id: str, now: float, *, success: bool, output_tokens: int | None = None) -> None:
        """The attempt ended; unknown or repeated ends are counted in `late_done` and change nothing else."""
        flight = self._flights.get(request_id)
        if flight is None or flight[0].id != id:
            self.late_done += 1
            return
        del self._flights[request_id]
        r, _, charge, prefill = flight
        r.in_flight -= 1
        r.in_flight_tokens -= charge
        r.prefill_tokens -= prefill
        r.ended_at.append(now)
        self._ended += 1
        if success and output_tokens is not None:
            r.tokens.saw_output(output_tokens)

    def scraped(self, event: Scraped, now: float) -> None:
        """Keep the newest scrape by its sampling time, however late it comes; an older one changes nothing."""
        r, scrape = self.replicas.get(event.replica), event.scrape
        if r is None or (r.scrape is not None and scrape.sampled_s <= r.scrape.sampled_s):
            return
        self._scrapes += 1
        r.scrape, r.others = scrape, None
        if scrape.running is None or scrape.waiting is None or now - scrape.sampled_s > self._usable_s:
            return
        seen, (sent, ended) = scrape.running + scrape.waiting, r.after(scrape.sampled_s)
        if self.accounting == "in_flight":
            r.others = max(0, seen - (r.in_flight - sent + ended))
        else:
            r.others = seen
        if r.others or self.accounting != "in_flight":
            self.scan_until = max(self.scan_until, scrape.sampled_s + self._usable_s + 1e-6)

    def _forget(self, now: float) -> None:
        """Rarely, so that it costs nothing per request."""
        self._forget_at = self.sequence + max(FORGET_EVERY, 16 * len(self.replicas))
        for r in self.replicas.values():
            r.forget(now - self.ledger_window_s)

    # -- reads --------------------------------------------------------------------------------------------------------------------

    def load(self, id: str, now: float) -> int:
        """Requests on a replica: own in flight and, with a fresh scrape in which both counts are known, what `accounting` adds."""
        return self.load_of(self.replicas[id], now)

    def load_of(self, r: Replica, now: float) -> int:
        """As `load`, of a replica that is at hand."""
        others, scrape = r.others, r.scrape
        if others is None or scrape is None or now - scrape.sampled_s > self._usable_s:
            return r.in_flight
        if self.accounting == "in_flight":
            return r.in_flight + others
        return others if self.accounting == "snapshot" else others + r.after(scrape.sampled_s)[0]

    def charge_of(self, request_id: str) -> int:
        """What a request in flight is charged with; 0 if it is not in flight."""
        flight = self._flights.get(request_id)
        return 0 if flight is None else flight[2]

    def in_flight_of(self, id: str) -> list[tuple[str, int]]:
        """(request id, dispatch) of the attempts on a replica, in dispatch order; those that it only prefills, too."""
        prefills = self._prefills
        return [(i, flight[1]) for i, flight in self._flights.items()
                if flight[0].id == id or (prefills and (held := prefills.get(i)) is not None and held[0].id == id)]

    def view(self, now: float) -> tuple[ReplicaView, ...]:
        """All replicas, frozen, in order of joining; a stale scrape reads as None."""
        out = []
        for r in self.replicas.values():
            fresh = r.scrape if r.scrape is not None and now - r.scrape.sampled_s <= self._usable_s else None
            out.append(ReplicaView(**{name: getattr(r, name) for name in _VIEWED}, scrape=fresh))
        return tuple(out)
