"""Rows that are lost: what waits for them goes, what runs for them is no longer wanted."""

from __future__ import annotations

from windtunnel.policy.tasks.board import Board, Running
from windtunnel.policy.tasks.frontier import FrontierDelta
from windtunnel.policy.tasks.task import SchedulableTask, task_id


def give_up(board: Board, known: SchedulableTask, running: Running | None, kind: str) -> None:
    """A task that cannot succeed takes its row with it; a batch task its whole row group."""
    board.counts.errors[kind] += 1
    board.note("non_retryable_dropped", known, running, reason=kind)
    task = known.payload
    rows = range(board.tracker.row_groups[task.row_group]) if task.row_index is None else (task.row_index,)
    for row in rows:
        drop(board, task.row_group, row)


def drop(board: Board, rg: int, row: int) -> None:
    """A row is lost: what was still to be done for it is taken from the queue and the frontier."""
    before = board.tracker.dropped(rg)[row]
    delta = board.tracker.drop_row(rg, row)
    board.counts.rows_dropped += not before
    for task in delta.removed:
        key = task_id(task)
        if board.waiting.pop(key, None) is not None:
            board.queue.discard(key, board.now)
            board.counts.discarded += 1
            board.open[rg] -= 1
        board.deferred.discard(key)
        board.forget(key)
    _unwant(board, delta)
    board.became_ready(delta)


def _unwant(board: Board, delta: FrontierDelta) -> None:
    gone = set(delta.removed)
    for running in board.running.values():
        if running.task.payload in gone:
            running.wanted = False
