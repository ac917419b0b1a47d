"""The request stream of notes: what admission did, for the recorder."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from windtunnel.effects import Note
from windtunnel.policy.admission.limit import LimitChange

UNDRAINED_KEPT = 4096
CHANGED = {"increase": "request_limit_increased", "decrease": "request_limit_decreased"}
RECOVERED = {"soft_ceiling": "request_soft_ceiling_recovered", "full": "request_fully_recovered"}


class RequestNotes:
    """Numbered without gaps as they are made; a gap in what was drained says how many nobody came for."""

    def __init__(self) -> None:
        self._kept: deque[Note] = deque(maxlen=UNDRAINED_KEPT)
        self._made = 0
        self._begun: set[str] = set()  # leases whose attempt an engine has begun

    def add(self, kind: str, ids: tuple[str, ...], reason: str, data: Mapping[str, Any]) -> None:
        self._made += 1
        self._kept.append(Note(kind, "request", self._made, ids, reason, data))

    def began(self, lease_id: str, data: Mapping[str, Any]) -> None:
        """An engine began the attempt of a lease: told once, and once more when it is over."""
        if lease_id not in self._begun:
            self._begun.add(lease_id)
            self.add("model_request_started", (lease_id,), "", data)

    def released(self, lease_id: str, resource: str, outcome: str, change: LimitChange | None, gauges: Mapping[str, Any]) -> None:
        """The notes of one release, in the order in which they were caused."""
        ids = (lease_id,)
        if lease_id in self._begun:
            self._begun.remove(lease_id)
            self.add("model_request_completed", ids, outcome, gauges)
        if outcome == "rate_limited":
            self.add("request_rate_limited", ids, outcome, gauges)
        if change is not None:
            moved = {"resource": resource, "before": change.before, "after": change.after}
            if change.reason in CHANGED:
                self.add(CHANGED[change.reason], ids, change.reason, moved)
            for what in change.recovered:
                self.add(RECOVERED[what], ids, what, moved)
        self.add("request_lease_released", ids, outcome, gauges)

    def drain(self) -> list[Note]:
        drained = list(self._kept)
        self._kept.clear()
        return drained
