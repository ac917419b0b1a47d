"""Where work comes from: the protocol of sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

from windtunnel.effects import Close, Note, Reject, WakeAt
from windtunnel.events import Arrived, Cancelled, Event, Request

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
