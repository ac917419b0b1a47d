"""Where work comes from: the protocol of sources, and the limit on what an open-loop source has in flight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, Protocol

from windtunnel.effects import Close, Note, Reject, WakeAt
from windtunnel.events import Arrived, Cancelled, Event, Finished, Request, Woke

Ask = Arrived | Cancelled | WakeAt | Note
Loop = Literal["open", "closed", "mixed"]


class Source(Protocol):
    """What a world asks of a source. needs: words of observations (`started`, `first_token`, ...) that it must be told of; `ends`: of the ends
    of its requests, though its loop is open."""

    name: str
    loop: Loop
    needs: frozenset[str]

    def stream(self) -> Iterator[Request] | None:
        """Open-loop requests in order of `arrived_s` (the world holds exactly one ahead); None for a source that only reacts."""

    def start(self, now: float) -> Sequence[Ask]:
        """Called once, when the run begins."""

    def handle(self, what: Event | Reject | Close, now: float) -> Sequence[Ask]:
        """Told of ends of its own requests, of its own wakes and of what it needs, after the control was."""

    def done(self) -> bool:
        """True when nothing more will come without an event."""


def check_books(source: Source) -> None:
    """A source may have `check()`, which raises PolicyError if its books do not balance; a world that checks calls it after each event."""
    check = getattr(source, "check", None)
    if check is not None:
        check()


THROTTLED = frozenset({"ends"})  # what a source that has a Throttle needs


class Throttle:
    """A schedule of which at most `max_in_flight` requests are open at a time.

    The schedule is never moved: a request that had to wait is sent at once when a place is free, in order, with its true
    `arrived_s`; `arrived_s - intended_s` is its lag. A deadline counts from the arrival and moves with it.
    """

    def __init__(self, name: str, requests: Iterator[Request], max_in_flight: int) -> None:
        self._key, self._requests, self._max = f"{name}/next", requests, max_in_flight
        self._next = next(requests, None)
        self._open: set[str] = set()

    def start(self, now: float) -> Sequence[Ask]:
        return self._release(now)

    def handle(self, what: Event | Reject | Close, now: float) -> Sequence[Ask]:
        if isinstance(what, Woke):
            return self._release(now) if what.key == self._key else ()
        if isinstance(what, (Finished, Reject, Close)) and what.request_id in self._open:
            self._open.discard(what.request_id)
            return self._release(now)
        return ()

    def done(self) -> bool:
        return self._next is None

    def _release(self, now: float) -> list[Ask]:
        out: list[Ask] = []
        while self._next is not None and len(self._open) < self._max:
            if self._next.arrived_s > now:
                out.append(WakeAt(self._next.arrived_s, self._key))
                break
            request, self._next = self._next, next(self._requests, None)
            self._open.add(request.id)
            out.append(Arrived(_sent_at(request, now)))
        return out


def _sent_at(request: Request, now: float) -> Request:
    lag = now - request.arrived_s
    if lag == 0:
        return request
    deadline = None if request.deadline_s is None else request.deadline_s + lag
    return replace(request, arrived_s=now, deadline_s=deadline)
