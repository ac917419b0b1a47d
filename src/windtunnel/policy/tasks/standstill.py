"""Why nothing more starts, and when to look again."""

from __future__ import annotations

from typing import Any

from windtunnel.policy.tasks.board import Board
from windtunnel.policy.tasks.resources import BlockSummary

SHARED_OUT = frozenset({"group_cap", "borrow_debt"})


class Standstill:
    """Said once per change: an empty queue is not a blocked one."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self._blocked: Any = None
        self._was_empty = True

    def tell(self) -> None:
        """At the end of a pass: notes and the next wake; a run in which nothing can ever start again is stopped."""
        board = self.board
        summary = self._summary()
        at = self._next(summary)
        if at is None and len(board.queue) and not board.running:
            board.stop("aborted", "nothing that waits can ever start")
            return
        board.wake(at)

    def _summary(self) -> BlockSummary | None:
        board = self.board
        was_empty, self._was_empty = self._was_empty, not len(board.queue)
        if self._was_empty:
            self._blocked = None
            if not was_empty:
                board.note("queue_empty")
            return None
        summary = board.admission.explain_blocked(board.queue.view())
        if summary.signature != self._blocked:
            self._blocked = summary.signature
            kind = "group_capped" if set(summary.denial_reasons) <= SHARED_OUT else "admission_blocked"
            board.note(kind, snapshot=summary.snapshot, diagnostics={"reasons": summary.denial_reasons, "queued": summary.queued_count})
        return summary

    def _next(self, summary: BlockSummary | None) -> float | None:
        board = self.board
        times = [board.deferred.first(), None if summary is None else summary.available_after]
        if summary is not None:
            times += [p.blocked_until for p in board.pressure.values() if p.blocked_until is not None and p.blocked_until > board.now]
        return min((t for t in times if t is not None), default=None)
