"""The request stream of a whole control: the notes of all its lanes as one, each with the attempt that it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from windtunnel.effects import Dispatch, Effect, Note
from windtunnel.policy.lane import Lane
from windtunnel.policy.open_request import OpenRequest
from windtunnel.policy.tasks.record import correlation_of

RELEASED = "request_lease_released"


class RequestStream:
    """Numbers the notes of the lanes' admissions anew, as one stream; a gap still says how many were lost.

    No waits are among them: in a control requests wait in their lane's queue, and the admission's own lines are empty. What the admission
    does not know of a lease is added while it is out: the attempt, the group that it waited in, and the correlation of the pipeline's task
    that made the request.
    """

    def __init__(self) -> None:
        self._made = 0
        self._last: dict[str, int] = {}  # number of a lane's last note, in its own count
        self._about: dict[tuple[str, str], Mapping[str, Any]] = {}  # by lane and lease

    def tell(self, lanes: Sequence[Lane], open: Mapping[str, OpenRequest], out: list[Effect]) -> None:
        """Append what was noted during this call to its effects `out`."""
        for effect in out:
            if type(effect) is Dispatch:
                self._sent(effect, open)
        for lane in lanes:
            for note in lane.admission.drain_notes():
                out.append(self._numbered(lane.name, note))

    def _sent(self, sent: Dispatch, open: Mapping[str, OpenRequest]) -> None:
        opened = open.get(sent.request.id)
        if opened is not None:
            self._about[opened.lane.name, sent.lease_id] = {
                "request_attempt_id": f"{sent.request.id}/{sent.dispatch}", "request_group_key": opened.item.group.key,
                "correlation": correlation_of(sent.request.labels)}

    def _numbered(self, lane: str, note: Note) -> Note:
        self._made += note.sequence - self._last.get(lane, 0)
        self._last[lane] = note.sequence
        data = dict(note.data or {})
        key = (lane, str(data.get("request_lease_id")))
        about = self._about.pop(key, None) if note.kind == RELEASED else self._about.get(key)
        return Note(note.kind, note.stream, self._made, note.ids, note.reason, data if about is None else {**data, **about})
