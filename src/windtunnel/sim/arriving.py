"""Requests of a source's stream, one at a time on the simulated clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from windtunnel.events import Arrived, Event, Request
from windtunnel.sim.agenda import ARRIVAL, Agenda, Call


class Arriving:
    """Holds exactly one request of the stream ahead; the first that arrives at or after `until` (run s) ends it.

    over: what the agenda asks from the end of the stream on. cut: it ended before the source did.
    """

    def __init__(self, stream: Iterator[Request] | None, agenda: Agenda, deliver: Callable[[Event], None], until: float | None,
                 over: Callable[[], bool]) -> None:
        self._stream, self._agenda, self._deliver, self._until, self._over = stream, agenda, deliver, until, over
        self._call = Call(self._arrive)
        self._next: Request | None = None
        self.cut = False

    @property
    def ended(self) -> bool:
        return self._stream is None

    def pull(self) -> None:
        """Put the next one on the agenda."""
        request = next(self._stream, None) if self._stream is not None else None
        if request is None or (self._until is not None and request.arrived_s >= self._until):
            self.end(cut=request is not None)
            return
        self._next = request
        self._agenda.put(request.arrived_s, ARRIVAL, self._call)

    def end(self, *, cut: bool) -> None:
        """Nothing arrives any more."""
        self.cut, self._stream, self._next = cut, None, None
        self._agenda.over = self._over

    def _arrive(self, _: Any) -> None:
        request = self._next
        self.pull()
        self._deliver(Arrived(request))  # type: ignore[arg-type]
