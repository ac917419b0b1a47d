"""What the end of a task means: done, tried again later, given up, or the end of the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from windtunnel.policy.tasks.board import Board, Running
from windtunnel.policy.tasks.losses import give_up
from windtunnel.policy.tasks.messages import TaskEnded
from windtunnel.policy.tasks.retry import PRESERVED, PROGRAMMING, RETRYABLE
from windtunnel.policy.tasks.task import SchedulableTask


class Ends:
    """settle: told of each row group of which a task has ended. timeline: one row of times per attempt, if kept."""

    def __init__(self, board: Board, settle: Callable[[int], None], timeline: list[dict[str, Any]] | None) -> None:
        self.board, self.timeline, self._settle = board, timeline, settle
        self._last_success: dict[str, float] = {}

    def ended(self, event: TaskEnded) -> None:
        board = self.board
        running = board.running.pop(event.lease_id, None)
        if running is None:
            board.note("release_diagnostic", reason="unknown_lease", ids=(event.lease_id,))
            return
        known, rg = running.task, running.task.payload.row_group
        board.open[rg] -= 1
        kind = "success" if event.outcome == "success" else event.error_kind or event.outcome
        if kind == "worker_spawn_failed":  # told by a world whose tasks are processes of their own; requests of a source need none
            board.note("worker_spawn_failed", known, running)
        if kind == "success" and running.wanted and board.status == "running":
            self._succeeded(known)
        board.note("task_completed", known, running, reason=kind)
        self._release(running, event)
        if kind != "success" and running.wanted and board.status == "running":
            self._failed(known, running, kind, event.retry_after_s)
        self._settle(rg)

    def _release(self, running: Running, event: TaskEnded) -> None:
        board = self.board
        result = board.admission.release(running.lease, board.now)
        board.note("task_lease_released" if result.released else "release_diagnostic", running.task, running, reason=result.reason)
        if self.timeline is not None:
            times = running.times | dict(event.request_times or {})
            times["task_completed_at"] = times["task_lease_released_at"] = board.now
            payload = running.task.payload
            self.timeline.append({"task_id": running.task.task_id, "task_lease_id": running.lease.lease_id, "column": payload.column,
                                  "row_group": payload.row_group, "row_index": payload.row_index, "group": running.task.group.key,
                                  "outcome": event.outcome, **times})

    def _succeeded(self, known: SchedulableTask) -> None:
        board, task = self.board, known.payload
        board.counts.completed += 1
        board.health.saw(error=False, retryable=False)
        board.deferred.over(known.task_id)
        if known.request_resource_key is not None:
            self._last_success[known.request_resource_key] = board.now
        board.forget(known.task_id)
        if task.row_index is None:
            board.became_ready(board.tracker.mark_range_complete(task.column, task.row_group))
        else:
            board.became_ready(board.tracker.mark_cell_complete(task.column, task.row_group, task.row_index))

    def _failed(self, known: SchedulableTask, running: Running, kind: str, retry_after_s: float | None) -> None:
        board = self.board
        retryable = kind in RETRYABLE
        board.health.saw(error=True, retryable=retryable)
        if kind in PROGRAMMING:
            board.counts.errors[kind] += 1
            board.stop("aborted", kind)
        elif retryable and not self._starved(known, kind):
            self._defer(known, running, kind, retry_after_s)
        else:
            give_up(board, known, running, kind)
            if board.config.early_stop and board.health.hopeless:
                board.stop("early_stopped", "too many errors")
        if board.health.degraded(board.now):
            board.note("scheduler_health_snapshot", reason="degraded_provider", snapshot=board.snapshot())

    def _starved(self, known: SchedulableTask, kind: str) -> bool:
        board, patience_s = self.board, self.board.config.starved_after_s
        if patience_s is None or kind not in PRESERVED:
            return False
        since = board.deferred.since(known.task_id, board.now)
        success = self._last_success.get(known.request_resource_key or "", since)
        return board.now - max(since, success) >= patience_s

    def _defer(self, known: SchedulableTask, running: Running, kind: str, retry_after_s: float | None) -> None:
        board = self.board
        pressure = board.pressure.get(known.request_resource_key or "")
        until = pressure.blocked_until if pressure is not None else None
        cooldown_s = max(retry_after_s or 0.0, 0.0 if until is None else until - board.now)
        board.counts.retries += 1
        entry = board.deferred.add(known.task_id, known.payload, kind, board.now, cooldown_s)
        board.note("retry_deferred", known, running, reason=kind, diagnostics={"retry_at": entry.at})
