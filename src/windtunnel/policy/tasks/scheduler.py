"""The one owner of a pipeline's frontier, queue and task admission: `handle(event, now) -> effects`, without clock and without I/O.

The work is done by parts that share one `Board`: `Dispatcher` (who starts), `Ends` (what an end means), `Checkpoints` (row groups) and
`Standstill` (why nothing more starts).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from windtunnel.events import Woke
from windtunnel.policy.capacity import Maxima
from windtunnel.policy.queueing.item import went_backwards
from windtunnel.policy.tasks import books
from windtunnel.policy.tasks.board import Board, Running
from windtunnel.policy.tasks.checkpoints import Checkpoints
from windtunnel.policy.tasks.config import TaskSchedulerConfig
from windtunnel.policy.tasks.dispatch import Dispatcher
from windtunnel.policy.tasks.ends import Ends
from windtunnel.policy.tasks.graph import Graph
from windtunnel.policy.tasks.messages import (
    RequestPressure,
    RunCancelled,
    RunEnded,
    RunResult,
    RunStarted,
    SchedulerEffect,
    SchedulerEvent,
    TaskEnded,
)
from windtunnel.policy.tasks.record import SchedulerNotes
from windtunnel.policy.tasks.resolve import Resolver
from windtunnel.policy.tasks.standstill import Standstill


class TaskScheduler:
    """Tasks of a pipeline from `RunStarted` to `RunEnded`.

    At the end of every call nothing that could start is left waiting; a task starts only with its lease, and the lease is released when
    it ends. notes: make Notes; timeline: keep one row of times per attempt in `timeline`. Raises PolicyClockError.
    """

    def __init__(self, graph: Graph, row_groups: Mapping[int, int], resolver: Resolver, config: TaskSchedulerConfig | None = None, *,
                 run_id: str = "run", generation: str = "g0", notes: bool = False, timeline: bool = False) -> None:
        self.config = config = config or TaskSchedulerConfig()
        self.board = board = Board(graph, row_groups, resolver, config, SchedulerNotes(run_id, on=notes), generation)
        self.tracker, self.resolver, self.queue, self.admission = board.tracker, resolver, board.queue, board.admission
        self.row_groups, self.deferred, self.health = board.row_groups, board.deferred, board.health
        self.timeline: list[dict[str, Any]] | None = [] if timeline else None
        self.ready_idle_gap_s = 0.0  # measured with the timeline
        self.maxima = Maxima()  # seen at the end of each call; kept with the timeline
        self._idle_since: float | None = None
        self._dispatcher, self._checkpoints, self._standstill = Dispatcher(board), Checkpoints(board), Standstill(board)
        self._ends = Ends(board, self._checkpoints.settle, self.timeline)
        self._on: dict[type, Callable[[Any], None]] = {
            RunStarted: self._start, TaskEnded: self._ends.ended, RequestPressure: self._pressed, RunCancelled: self._cancelled,
            Woke: self._woke,
        }

    @property
    def status(self) -> str:
        """idle, running, or how it ended (it may still wait for what runs)."""
        return self.board.status

    @property
    def result(self) -> RunResult | None:
        return self.board.result

    @property
    def running(self) -> Mapping[str, Running]:
        """Started attempts by lease."""
        return self.board.running

    def snapshot(self) -> dict[str, Any]:
        """Plain numbers of the task stage."""
        return self.board.snapshot()

    def check(self) -> None:
        """Conservation of tasks, leases and amounts; raises PolicyError naming what does not add up. O(queued + running)."""
        books.check(self.board)

    def handle(self, event: SchedulerEvent, now: float) -> list[SchedulerEffect]:
        """What to do about an event; `now` in run s."""
        board = self.board
        if now < board.now:
            raise went_backwards(now, board.now)
        board.now, board.out = now, []
        self._on[type(event)](event)
        if board.status == "running":
            self._pass()
        self._finish_if_done()
        if self.timeline is not None:
            self._watch_idle()
            self._watch_maxima()
        out, board.out = board.out, []
        return out

    def _pass(self) -> None:
        board = self.board
        self._redispatch()
        self._checkpoints.open()
        self._start_ready()
        while self._checkpoints.salvage():
            self._start_ready()
        if self._checkpoints.grow():
            self._start_ready()
        if board.status == "running":
            self._standstill.tell()

    def _start_ready(self) -> None:
        self.board.offer(self.tracker.ready_frontier())
        self._dispatcher.run()

    def _redispatch(self) -> None:
        """Deferred tasks whose time has come, in order of deferral."""
        board, back = self.board, []
        for entry in board.deferred.due(board.now):
            if board.tracker.readd(entry.task):
                back.append(entry.task)
                board.note("salvage_redispatched", board.known[entry.task_id], reason=entry.error)
        board.offer(back)

    def _watch_idle(self) -> None:
        """Add up the time in which something could start and does not: nothing, unless a policy contradicts itself."""
        now = self.board.now
        if self._idle_since is not None:
            self.ready_idle_gap_s += now - self._idle_since
        startable = len(self.queue) and self.queue.select(self.admission.is_eligible, now) is not None
        self._idle_since = now if startable else None

    def _watch_maxima(self) -> None:
        view, lines = self.admission.view(), self.queue.lines()
        self.maxima.saw("row_groups_in_flight", len(self.row_groups.open))
        self.maxima.saw("queued_tasks_by_group", {key: len(line) for key, line in lines.items()})
        self.maxima.saw("task_leases_by_resource", {name: limit - view.available[name] for name, limit in view.limits.items()})

    # -- begin and end ----------------------------------------------------------------------------------------------------------------------

    def _start(self, event: RunStarted) -> None:
        if self.status == "idle":
            self.board.status = "running"
            self.board.note("scheduler_job_started", snapshot=self.snapshot())

    def _woke(self, event: Woke) -> None:
        self.board.woke()

    def _pressed(self, event: RequestPressure) -> None:
        self._dispatcher.pressed(event.snapshot)

    def _cancelled(self, event: RunCancelled) -> None:
        if self.status in ("idle", "running"):
            self.board.stop(event.reason, event.reason)

    def _finish_if_done(self) -> None:
        board, counts = self.board, self.board.counts
        if board.result is not None or board.status == "idle" or board.running or len(board.queue) or len(board.deferred):
            return
        if board.status == "running":
            if board.row_groups.open or board.row_groups.waiting:
                return
            board.status = "completed"
        board.result = RunResult(board.status, counts.checkpointed, counts.rows_dropped, counts.completed, counts.retries,
                                 dict(counts.errors), board.why)
        board.note("scheduler_job_completed", reason=board.status, snapshot=board.snapshot())
        board.out.append(RunEnded(board.result))
