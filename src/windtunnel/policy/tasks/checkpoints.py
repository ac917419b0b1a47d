"""Row groups from opening to checkpoint; those with nothing left but deferred tasks are in salvage."""

from __future__ import annotations

from windtunnel.policy.tasks.board import Board
from windtunnel.policy.tasks.losses import give_up
from windtunnel.policy.tasks.retry import PRESERVED, DeferredTask


class Checkpoints:
    """Opens row groups as the gate allows, and closes them when all their rows are complete or dropped."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self._rounds: dict[int, int] = {}

    def open(self) -> None:
        board = self.board
        while True:
            rg = board.row_groups.next(len(board.queue))
            if rg is None:
                return
            if isinstance(rg, str):
                board.note("row_group_admission_blocked", reason=rg, diagnostics={"open": len(board.row_groups.open)})
                return
            board.note("row_group_admitted", diagnostics={"row_group": rg, "open": len(board.row_groups.open)})
            board.became_ready(board.tracker.add_root_tasks(rg))
            self.settle(rg)

    def settle(self, rg: int) -> None:
        """Close a row group that is complete; the next one may be opened."""
        board = self.board
        if rg not in board.row_groups.open or not board.tracker.is_complete(rg):
            return
        board.counts.checkpointed += 1
        board.note("row_group_checkpointed", diagnostics={"row_group": rg, "dropped": sum(board.tracker.dropped(rg))})
        board.tracker.compact(rg)
        board.row_groups.closed(rg)
        self._rounds.pop(rg, None)
        board.in_salvage.discard(rg)
        if not board.open[rg]:
            del board.open[rg]
        if board.status == "running":
            self.open()

    def salvage(self) -> bool:
        """Row groups with nothing left but deferred tasks: count a round; after the last one, keep only work that was turned away.

        True if something was given up, so that other tasks may have become ready.
        """
        board, moved = self.board, False
        for rg in list(board.deferred.by_row_group):
            if board.open.get(rg, 0) or rg in board.in_salvage:
                continue
            board.in_salvage.add(rg)
            self._rounds[rg] = self._rounds.get(rg, 0) + 1
            if self._rounds[rg] <= board.config.salvage_rounds:
                continue
            for entry in board.deferred.of_row_group(rg):
                if entry.live and entry.error not in PRESERVED:
                    self._lost(entry)
                    moved = True
            self.settle(rg)
        return moved

    def _lost(self, entry: DeferredTask) -> None:
        self.board.deferred.discard(entry.task_id)
        give_up(self.board, self.board.known[entry.task_id], None, entry.error)

    def grow(self) -> bool:
        """The adaptive target, after a pass."""
        board = self.board
        if not board.row_groups.tick(queued=len(board.queue), room=board.admission.may_admit_any()):
            return False
        board.note("row_group_admission_target_changed", diagnostics={"target": board.row_groups.target})
        self.open()
        return True
