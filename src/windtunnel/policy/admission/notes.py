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
    """Numbered without gaps as they are made; a gap in what was drained says how many nobody came for.

    Each says when (`at`, run s), of which resource, of which lease, and how that resource stood (`pressure_snapshot`). Whose attempt it is
    the admission does not know: that, the queue's group and the correlation are filled in by who took the lease.
    """

    def __init__(self) -> None:
        self._kept: deque[Note] = deque(maxlen=UNDRAINED_KEPT)
        self._made = 0
        self._begun: set[str] = set()  # leases whose attempt an engine has begun

    def add(self, kind: str, now: float, resource: str, gauges: Mapping[str, Any] | None, reason: str = "", ids: tuple[str, ...] = (), *,
            lease_id: str | None = None, diagnostics: Mapping[str, Any] | None = None) -> None:
        self._made += 1
        self._kept.append(Note(kind, "request", self._made, ids, reason, {
            "at": now, "correlation": None, "request_attempt_id": None, "request_lease_id": lease_id, "request_resource_key": resource,
            "request_group_key": None, "pressure_snapshot": gauges, "diagnostics": diagnostics}))

    def granted(self, lease_id: str, now: float, resource: str, gauges: Mapping[str, Any]) -> None:
        self.add("request_lease_acquired", now, resource, gauges, "", (lease_id,), lease_id=lease_id)

    def began(self, lease_id: str, now: float, resource: str, gauges: Mapping[str, Any]) -> None:
        """An engine began the attempt of a lease: told once, and once more when it is over."""
        if lease_id not in self._begun:
            self._begun.add(lease_id)
            self.add("model_request_started", now, resource, gauges, "", (lease_id,), lease_id=lease_id)

    def released(self, lease_id: str, now: float, resource: str, outcome: str, change: LimitChange | None, gauges: Mapping[str, Any]) -> None:
        """The notes of one release, in the order in which they were caused."""
        told: list[tuple[str, str, Mapping[str, Any] | None]] = []
        if lease_id in self._begun:
            self._begun.remove(lease_id)
            told.append(("model_request_completed", outcome, None))
        if outcome == "rate_limited":
            told.append(("request_rate_limited", outcome, None))
        if change is not None:
            moved = {"before": change.before, "after": change.after}
            if change.reason in CHANGED:
                told.append((CHANGED[change.reason], change.reason, moved))
            told.extend((RECOVERED[what], what, moved) for what in change.recovered)
        told.append(("request_lease_released", outcome, None))
        for kind, reason, diagnostics in told:
            self.add(kind, now, resource, gauges, reason, (lease_id,), lease_id=lease_id, diagnostics=diagnostics)

    def drain(self) -> list[Note]:
        drained = list(self._kept)
        self._kept.clear()
        return drained
