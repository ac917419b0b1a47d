"""Who starts: select, acquire, commit, until nothing may start; heads whose endpoint is pressed stand back for others."""

from __future__ import annotations

from windtunnel.policy.queueing.item import QueueItem, QueueView, Selection
from windtunnel.policy.tasks.board import Board, Running
from windtunnel.policy.tasks.messages import Pressure, StartTask
from windtunnel.policy.tasks.resources import TaskLease
from windtunnel.policy.tasks.task import SchedulableTask


class Dispatcher:
    """Starts tasks, each with its lease.

    `admission_denied` and `stale_selection` are told only of a sharing policy that is not pure: nothing else comes between a selection,
    its lease and its commit, all of one call.
    """

    def __init__(self, board: Board) -> None:
        self.board = board
        self._passed: set[str] = set()

    def run(self) -> None:
        board = self.board
        while (selection := self._select()) is not None:
            item, now = selection.item, board.now
            known = board.known[item.id]
            board.note("selected", known)
            lease = board.admission.try_acquire(item, selection.queue_view, now)
            if not isinstance(lease, TaskLease):
                board.note("admission_denied", known, reason=lease.reason, scheduler_resource_key=lease.resource)
                return  # a policy that answers twice differently must not spin
            if board.queue.commit(selection, now) is None:
                board.admission.release(lease, now)
                board.note("stale_selection", known, task_lease_id=lease.lease_id)
                continue
            self._begin(known, item, lease)

    def _begin(self, known: SchedulableTask, item: QueueItem, lease: TaskLease) -> None:
        board = self.board
        now, notes = board.now, board.notes
        del board.waiting[known.task_id]
        self._passed.discard(known.task_id)
        board.counts.executions += 1
        execution = f"{board.admission.generation}-x{board.counts.executions}"
        times: dict[str, float | None] = {"dependency_ready_at": board.ready_at[known.task_id], "ready_enqueued_at": item.arrived_at,
                                          "selected_at": now, "task_lease_acquired_at": now, "worker_spawned_at": now}
        running = Running(lease, known, times, notes.correlation(known, execution) if notes.on else None)
        board.running[lease.lease_id] = running
        board.note("task_lease_acquired", known, running)
        board.out.append(StartTask(lease, known.payload))
        board.note("worker_spawned", known, running)

    # -- pressure of the request stage ----------------------------------------------------------------------------------------------

    def pressed(self, pressure: Pressure) -> None:
        """The newest word on one request resource."""
        self.board.pressure[pressure.resource_key] = pressure

    def _select(self) -> Selection | None:
        """The queue's choice; heads whose endpoint is pressed stand back while another group's head may start without pressing."""
        board = self.board
        eligible_now = board.admission.is_eligible
        if board.pressure and board.config.request_pressure_advisory and (reasons := self._pressed_now()):
            stood_back: list[tuple[QueueItem, str]] = []

            def eligible(item: QueueItem, view: QueueView) -> bool:
                reason = reasons.get(board.known[item.id].request_resource_key or "")
                if reason is None:
                    return eligible_now(item, view)
                stood_back.append((item, reason))
                return False

            selection = board.queue.select(eligible, board.now)
            if selection is not None:
                self._tell_passed(stood_back, selection)
                return selection
        return board.queue.select(eligible_now, board.now)

    def _pressed_now(self) -> dict[str, str]:
        found = ((key, pressure.reason(self.board.now)) for key, pressure in self.board.pressure.items())
        return {key: reason for key, reason in found if reason is not None}

    def _tell_passed(self, stood_back: list[tuple[QueueItem, str]], selection: Selection) -> None:
        board = self.board
        if not board.notes.on:
            return
        for item, reason in stood_back:
            if item.id not in self._passed and board.admission.is_eligible(item, selection.queue_view):
                self._passed.add(item.id)
                known = board.known[item.id]
                board.note("request_pressure_advisory_skipped", known, reason=reason, scheduler_resource_key=known.request_resource_key)
