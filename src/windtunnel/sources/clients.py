"""Clients as they are: they give up after a while, leave, and try again. A wrapper around any source.

A retry is a new request of the same `origin` with the id `{id of the first}!{attempt}`; metrics count the original once, from its first arrival.
A client that gives up without cancelling leaves a zombie, which runs to its end for nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from heapq import heappop, heappush

import numpy as np

from windtunnel.effects import Close, Note, Reject, WakeAt
from windtunnel.events import Arrived, Cancelled, Event, Finished, FirstToken, Progressed, Request, Woke
from windtunnel.policy.param import check_number
from windtunnel.sources.backoff import Budget, Retry, backoff_s
from windtunnel.sources.dist import Dist
from windtunnel.sources.source import Ask, Loop, Source, check_books

AGAIN = frozenset({"rate_limited", "provider_failure", "provider_timeout"})
GAVE_UP = "client_gave_up"
_BULK = 256  # draws of patience at a time
_NEXT, _TIMEOUT, _TTFT, _IDLE, _PATIENCE, _RETRY = range(6)
_OUTCOME = {_TIMEOUT: "local_timeout", _TTFT: "local_timeout", _IDLE: "local_timeout", _PATIENCE: "local_cancelled"}
_REASON = {_TIMEOUT: "client_timeout", _TTFT: "client_ttft_timeout", _IDLE: "client_idle_timeout", _PATIENCE: "client_left"}


class _Client:
    """One original. request: as it was first made; id: of the submission that counts, "" while none is open."""

    __slots__ = ("attempt", "first_token", "heard_s", "id", "last", "leaves_s", "previous_s", "request", "tokens")

    def __init__(self, request: Request, previous_s: float) -> None:
        self.request, self.id, self.attempt, self.previous_s = request, request.id, 1, previous_s
        self.first_token = False
        self.leaves_s: float | None = None
        self.heard_s, self.tokens = request.arrived_s, 0
        self.last: Reject | Close | None = None  # what ended the submission before


class Clients:
    """Timeouts, abandonment and retries around `inner`. All times in seconds, None = off.

    timeout_s: of a submission, to its last token; ttft_timeout_s: to its first token; idle_timeout_s: between tokens, so from the first one
    on (at most 0.25 s late: that often the world tells of progress); patience: how long an original waits for its first token before its
    client leaves for good. cancel_on_timeout False: the client only stops listening.
    tell_deadline: a submission carries `arrived + timeout_s` as its deadline, so that a queue can drop what nobody waits for.
    retry None: never. rng: the clients' own generator, so that policies are compared on the same arrivals.
    """

    def __init__(self, inner: Source, *, timeout_s: float | None = None, ttft_timeout_s: float | None = None,
                 idle_timeout_s: float | None = None, patience: Dist | None = None, cancel_on_timeout: bool = True,
                 tell_deadline: bool = False, retry: Retry | None = None, rng: np.random.Generator | int = 0) -> None:
        for name, value in (("timeout_s", timeout_s), ("ttft_timeout_s", ttft_timeout_s), ("idle_timeout_s", idle_timeout_s)):
            if value is not None:
                check_number(name, value, above=0.0)
        self.inner, self.name = inner, inner.name
        self.loop: Loop = "mixed" if inner.loop == "open" else inner.loop
        self.needs = inner.needs | _needs(ttft_timeout_s, idle_timeout_s, patience)
        self.endless = getattr(inner, "endless", False)
        self._spans = ((_TIMEOUT, timeout_s), (_TTFT, ttft_timeout_s), (_IDLE, idle_timeout_s))
        self._timeout_s, self._idle_s, self._tell_deadline = timeout_s, idle_timeout_s, tell_deadline
        self._patience, self._cancels, self._retry = patience, cancel_on_timeout, retry
        self._rng = rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng)
        self._drawn: list[float] = []
        self.budget = Budget(retry.budget if retry is not None else None)
        self.retries = self.gave_up = 0
        self._key = f"{inner.name}/clients"
        self._armed: float | None = None
        self._clocks: list[tuple[float, int, int, _Client | None, str]] = []  # due, count, kind, whose, submission
        self._count = self._pending = 0  # clocks made; retries that wait for theirs
        self._open: dict[str, _Client] = {}  # by id of the submission
        self._stream: Iterator[Request] | None = None
        self._ahead: Request | None = None

    # -- as a source --------------------------------------------------------------------------------------------------------------

    def stream(self) -> Iterator[Request] | None:
        """None: clients react, so that also an open loop arrives by their own clock."""
        return None

    def start(self, now: float) -> Sequence[Ask]:
        self._stream = self.inner.stream()
        self._pull()
        return self._done(self._from_inner(self.inner.start(now), now), now)

    def handle(self, what: Event | Reject | Close, now: float) -> Sequence[Ask]:
        if isinstance(what, Woke):
            if what.key != self._key:
                return self._done(self._from_inner(self.inner.handle(what, now), now), now)
            self._armed = None
            return self._done([], now)
        if isinstance(what, (Finished, Reject, Close)):
            return self._done(self._ended(what, now), now)
        if isinstance(what, FirstToken) and (client := self._open.get(what.request_id)) is not None:
            client.first_token, client.heard_s, client.tokens = True, now, max(client.tokens, 1)
        elif isinstance(what, Progressed):
            for request_id, tokens in what.counts:
                if (one := self._open.get(request_id)) is not None and tokens > one.tokens:
                    one.tokens, one.heard_s = tokens, now
        return self._done(self._from_inner(self.inner.handle(what, now), now), now) if self.inner.needs else ()

    def done(self) -> bool:
        return self._ahead is None and not self._pending and self.inner.done()

    def check(self) -> None:
        check_books(self.inner)

    # -- clocks -------------------------------------------------------------------------------------------------------------------

    def _done(self, out: list[Ask], now: float) -> list[Ask]:
        """What is due by now happens, then the next wake is asked for."""
        clocks = self._clocks
        while clocks and clocks[0][0] <= now:
            _, _, kind, client, submission = heappop(clocks)
            if kind == _NEXT:
                request = self._ahead
                self._pull()
                out.append(self._arrive(request, now))  # type: ignore[arg-type]
            elif kind == _RETRY:
                self._pending -= 1
                self._send_again(client, now, out)  # type: ignore[arg-type]
            elif client is not None and client.id == submission:
                self._expire(kind, client, now, out)
        if clocks and (self._armed is None or clocks[0][0] < self._armed):
            self._armed = clocks[0][0]
            out.append(WakeAt(self._armed, self._key))
        return out

    def _clock(self, at: float, kind: int, client: _Client | None = None) -> None:
        self._count += 1
        heappush(self._clocks, (at, self._count, kind, client, client.id if client is not None else ""))

    def _pull(self) -> None:
        self._ahead = next(self._stream, None) if self._stream is not None else None
        if self._ahead is not None:
            self._clock(self._ahead.arrived_s, _NEXT)

    def _expire(self, kind: int, client: _Client, now: float, out: list[Ask]) -> None:
        """A clock of the open submission ran out: the client gives this one up, and perhaps tries again."""
        if kind in (_TTFT, _PATIENCE) and client.first_token:
            return
        if kind == _IDLE:
            if not client.tokens:
                client.heard_s = now  # no gap before the first token
            if client.heard_s + self._idle_s > now:  # type: ignore[operator]
                self._clock(client.heard_s + self._idle_s, _IDLE, client)  # type: ignore[operator]
                return
        outcome, reason, submission = _OUTCOME[kind], _REASON[kind], client.id
        del self._open[submission]
        client.id, client.last = "", None
        self.gave_up += 1
        if self._cancels:
            out.append(Cancelled(submission, None, reason, outcome))
        else:
            out.append(Note(GAVE_UP, "request", self.gave_up, (submission,), reason, {"outcome": outcome}))
        if kind == _PATIENCE or not self._again(client, None, now, out):
            out.extend(self._tell_inner(Close(client.request.id, "cancelled", outcome, reason), now))

    # -- submissions --------------------------------------------------------------------------------------------------------------

    def _from_inner(self, asks: Sequence[Ask], now: float) -> list[Ask]:
        return [self._arrive(ask.request, now) if isinstance(ask, Arrived) else self._cancel(ask) if isinstance(ask, Cancelled) else ask
                for ask in asks]

    def _cancel(self, ask: Cancelled) -> Cancelled:
        """The inner source stops one of its own: its open submission, under the name that it has by now."""
        for submission, client in self._open.items():
            if client.request.id == ask.request_id:
                return replace(ask, request_id=submission)
        return ask

    def _arrive(self, request: Request, now: float) -> Arrived:
        client = _Client(request, self._retry.base_s if self._retry is not None else 0.0)
        self.budget.earn()
        if self._patience is not None:
            if not self._drawn:
                self._drawn = [float(v) for v in self._patience.sample(self._rng, _BULK)][::-1]
            client.leaves_s = now + self._drawn.pop()
        return self._submit(client, request, now)

    def _submit(self, client: _Client, request: Request, now: float) -> Arrived:
        client.id, client.first_token, client.heard_s, client.tokens = request.id, False, now, 0
        self._open[request.id] = client
        for kind, span in self._spans:
            if span is not None:
                self._clock(now + span, kind, client)
        if client.leaves_s is not None:
            self._clock(client.leaves_s, _PATIENCE, client)
        if self._tell_deadline and self._timeout_s is not None:
            own = client.request.deadline_s
            deadline = now + self._timeout_s
            request = replace(request, deadline_s=deadline if own is None else min(own, deadline))
        return Arrived(request)

    def _ended(self, what: Finished | Reject | Close, now: float) -> list[Ask]:
        client = self._open.pop(what.request_id, None)
        if client is None:
            return []  # nobody listens any more
        client.id = ""
        out: list[Ask] = []
        if not isinstance(what, Finished):
            client.last = what
            fails = what.denial.retriable if isinstance(what, Reject) else what.outcome in AGAIN
            if fails and self._again(client, what, now, out):
                return out
        out.extend(self._tell_inner(what, now, client.request.id))
        return out

    def _tell_inner(self, what: Finished | Reject | Close, now: float, original: str = "") -> list[Ask]:
        if original and what.request_id != original:
            what = replace(what, request_id=original)
        return self._from_inner(self.inner.handle(what, now), now)

    # -- retries ------------------------------------------------------------------------------------------------------------------

    def _again(self, client: _Client, what: Reject | Close | None, now: float, out: list[Ask]) -> bool:
        """Will this original be submitted again? At once, or after its backoff; never past its deadline or its client's patience."""
        retry, request = self._retry, client.request
        if retry is None or client.attempt >= retry.max_attempts:
            return False
        wait_s = client.previous_s = backoff_s(retry, client.attempt, client.previous_s, self._rng)
        told_s = None if what is None else what.denial.retry_after_s if isinstance(what, Reject) else what.retry_after_s
        if retry.honour_retry_after and told_s is not None:
            wait_s = max(wait_s, told_s)
        at = now + wait_s
        if (request.deadline_s is not None and at >= request.deadline_s) or (client.leaves_s is not None and at >= client.leaves_s):
            return False
        if not self.budget.take():
            return False
        if at <= now:
            self._send_again(client, now, out)
        else:
            self._pending += 1
            self._clock(at, _RETRY, client)
        return True

    def _send_again(self, client: _Client, now: float, out: list[Ask]) -> None:
        client.attempt += 1
        self.retries += 1
        first = client.request
        again = replace(first, id=f"{first.id}!{client.attempt}", origin=first.origin or first.id,
                        attempt=first.attempt + client.attempt - 1, arrived_s=now)
        out.append(self._submit(client, again, now))


def _needs(ttft_timeout_s: float | None, idle_timeout_s: float | None, patience: Dist | None) -> frozenset[str]:
    """What the clocks must be told of."""
    words = {"first_token"} if ttft_timeout_s is not None or idle_timeout_s is not None or patience is not None else set()
    return frozenset(words | ({"progress"} if idle_timeout_s is not None else set()))
