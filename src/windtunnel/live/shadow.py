"""The adapter between a main world and a shadow control: the same happenings, told in terms of the shadow's own decisions.

The shadow's effects are dropped, so its books close by what the main world's requests did: an end of a request that the shadow had
dispatched is told with the shadow's replica and dispatch; one that it still holds waiting was served elsewhere; one that it had
refused is dropped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from windtunnel.effects import Close, Dispatch, Effect, Reject
from windtunnel.events import (
    Answered,
    Arrived,
    Cancelled,
    Commanded,
    Event,
    Failed,
    Finished,
    FirstToken,
    Progressed,
    ScaleAnswered,
    Started,
    Woke,
)

SERVED_ELSEWHERE, ENDED_ELSEWHERE = "served_elsewhere", "ended_elsewhere"
_NOT_ITS_OWN = (Woke, ScaleAnswered, Answered)  # answers to the main control's effects


class ShadowAdapter:
    """Pure: `translate` what the main world saw or told its sources, `observe` what the shadow decided."""

    def __init__(self) -> None:
        self._open: dict[str, Dispatch | None] = {}  # the shadow's open requests: its attempt, or None while waiting

    def observe(self, effects: Sequence[Effect]) -> None:
        """Remember the shadow's own decisions; call it after each of its `handle`s."""
        for effect in effects:
            if type(effect) is Dispatch:
                if effect.request.id in self._open:
                    self._open[effect.request.id] = effect
            elif isinstance(effect, Reject | Close):
                self._open.pop(effect.request_id, None)

    def translate(self, what: Event | Reject | Close) -> tuple[Event, ...]:
        """What the shadow control is to be told of this, in order; often nothing."""
        if isinstance(what, Arrived):
            self._open[what.request.id] = None
            return (what,)
        if isinstance(what, Finished | Failed):
            return self._attempt_over(what)
        if isinstance(what, Reject | Close):
            return self._ended(what.request_id)
        if isinstance(what, Started | FirstToken):
            own = self._open.get(what.request_id)
            return (replace(what, dispatch=own.dispatch, replica=own.replica),) if own is not None else ()
        if isinstance(what, Progressed):
            return self._progressed(what)
        if isinstance(what, Cancelled):
            return (what,) if what.request_id is None or what.request_id in self._open else ()
        if isinstance(what, _NOT_ITS_OWN) or (isinstance(what, Commanded) and what.name == "stop"):
            return ()
        return (what,)

    def _attempt_over(self, what: Finished | Failed) -> tuple[Event, ...]:
        request_id = what.request_id
        if request_id not in self._open:
            return ()
        own = self._open[request_id]
        if own is not None:
            if isinstance(what, Finished):
                del self._open[request_id]
            else:
                self._open[request_id] = None  # the shadow may try again, or close it
            return (replace(what, dispatch=own.dispatch, replica=own.replica),)
        if isinstance(what, Finished):
            return self._ended(request_id)
        return ()  # the main control may try again; the shadow's request still waits

    def _ended(self, request_id: str) -> tuple[Event, ...]:
        """The main world's request is over without an end that the shadow could take for its own."""
        if request_id not in self._open:
            return ()
        own = self._open.pop(request_id)
        if own is None:
            return (Cancelled(request_id, None, SERVED_ELSEWHERE),)
        return (Failed(request_id, own.dispatch, own.replica, "local_cancelled", ENDED_ELSEWHERE),)

    def _progressed(self, what: Progressed) -> tuple[Event, ...]:
        by_replica: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        for request_id, tokens in what.counts:
            own = self._open.get(request_id)
            if own is not None:
                by_replica[own.replica].append((request_id, tokens))
        return tuple(Progressed(replica, tuple(counts)) for replica, counts in by_replica.items())
