"""The scheduler stream of notes, and the timeline of each attempt of a task."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from windtunnel.effects import Note
from windtunnel.policy.tasks.task import SchedulableTask

TIMELINE = (
    "dependency_ready_at", "ready_enqueued_at", "selected_at", "task_lease_acquired_at", "worker_spawned_at", "request_wait_started_at",
    "request_wait_completed_at", "request_lease_acquired_at", "model_request_started_at", "model_request_completed_at",
    "request_lease_released_at", "task_completed_at", "task_lease_released_at",
)
CORRELATION = ("run_id", "row_group", "task_column", "task_type", "group_kind", "group_identity_hash", "task_execution_id")
NOT_OF_A_TASK = dict.fromkeys(("task_id", "task_execution_id", "task_lease_id", "scheduler_resource_key"))


def plain(value: Any) -> Any:
    """JSON-safe: non-finite floats become texts."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def group_hash(key: str) -> str:
    """What stands for a group's identity in the record."""
    return hashlib.sha1(key.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()[:16]


def labels_of(correlation: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """A task's correlation as labels of its requests: what is known, as texts."""
    return tuple((key, str(value)) for key, value in correlation.items() if value is not None)


def correlation_of(labels: tuple[tuple[str, str], ...]) -> dict[str, Any] | None:
    """The correlation that these labels were made of; None if they are no task's."""
    found: dict[str, Any] = {key: value for key, value in labels if key in CORRELATION}
    if not found:
        return None
    if str(found.get("row_group", "")).isdecimal():
        found["row_group"] = int(found["row_group"])
    return {key: found.get(key) for key in CORRELATION}


class SchedulerNotes:
    """Numbered without gaps. on=False: nothing is made, and the scheduler asks before it gathers what to say."""

    def __init__(self, run_id: str, *, on: bool) -> None:
        self.run_id, self.on = run_id, on
        self._made = 0
        self._hashes: dict[str, str] = {}

    def correlation(self, task: SchedulableTask, execution_id: str | None) -> dict[str, Any]:
        """Who this is about, captured when the attempt was made."""
        payload, key = task.payload, task.group.key
        hashed = self._hashes.get(key)
        if hashed is None:
            hashed = self._hashes[key] = group_hash(key)
        return {
            "run_id": self.run_id, "row_group": payload.row_group, "task_column": payload.column, "task_type": payload.task_type,
            "group_kind": key.partition("/")[0], "group_identity_hash": hashed, "task_execution_id": execution_id,
        }

    def make(self, kind: str, now: float, *, ids: tuple[str, ...] = (), reason: str = "", correlation: Mapping[str, Any] | None = None,
             snapshot: Any = None, diagnostics: Any = None, **extra: Any) -> Note:
        self._made += 1
        data = {"at": plain(now), "correlation": correlation or {"run_id": self.run_id}, "snapshot": plain(snapshot),
                "diagnostics": plain(diagnostics), **NOT_OF_A_TASK, **{k: plain(v) for k, v in extra.items()}}
        return Note(kind, "scheduler", self._made, ids, reason, data)
