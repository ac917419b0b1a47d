"""Sources that follow a schedule, whatever becomes of their requests: a stream, or at most so many open at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace

from windtunnel.effects import Close, Reject, WakeAt
from windtunnel.events import Arrived, Event, Finished, Request, Woke
from windtunnel.sources.source import Ask, Loop

THROTTLED = frozenset({"ends"})  # what a source that has a Throttle needs


class OpenLoop:
    """A source that says which requests come when: as a stream, or through a `Throttle` if `max_in_flight` is not None.

    The constructor may draw the first request at once, so it is called when everything that makes requests is ready.
    """

    loop: Loop = "open"

    def __init__(self, name: str, max_in_flight: int | None) -> None:
        self.name = name
        self.needs: frozenset[str] = frozenset() if max_in_flight is None else THROTTLED
        self._exhausted = False  # the last one was drawn
        self._throttle = None if max_in_flight is None else Throttle(name, self._requests(), max_in_flight)

    @abstractmethod
    def _requests(self) -> Iterator[Request]:
        """All requests in order of `arrived_s`, the same ones each time; sets `_exhausted` at the end."""

    def stream(self) -> Iterator[Request] | None:
        """The requests, from the first; None where a `Throttle` lets them out."""
        return None if self._throttle else self._requests()

    def start(self, now: float) -> Sequence[Ask]:
        """What the throttle lets out at once."""
        return self._throttle.start(now) if self._throttle else ()

    def handle(self, what: Event | Reject | Close, now: float) -> Sequence[Ask]:
        """An end of one of its requests, or its wake: what the throttle lets out now."""
        return self._throttle.handle(what, now) if self._throttle else ()

    def done(self) -> bool:
        """Was the last request drawn?"""
        return self._throttle.done() if self._throttle else self._exhausted


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
        """Let out what may go."""
        return self._release(now)

    def handle(self, what: Event | Reject | Close, now: float) -> Sequence[Ask]:
        """Let out what may go after an end, or at its time."""
        if isinstance(what, Woke):
            return self._release(now) if what.key == self._key else ()
        if isinstance(what, (Finished, Reject, Close)) and what.request_id in self._open:
            self._open.discard(what.request_id)
            return self._release(now)
        return ()

    def done(self) -> bool:
        """Is nothing left to let out?"""
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
