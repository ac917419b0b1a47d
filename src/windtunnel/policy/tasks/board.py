"""What all parts of a task scheduler share: who waits, who runs, who is deferred, what has been counted, what is said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from windtunnel.effects import WakeAt
from windtunnel.policy.queueing.fair import FairTaskQueue
from windtunnel.policy.queueing.item import QueueItem
from windtunnel.policy.tasks.admission import TaskAdmissionConfig, TaskAdmissionController
from windtunnel.policy.tasks.config import TaskSchedulerConfig
from windtunnel.policy.tasks.frontier import CompletionTracker, FrontierDelta
from windtunnel.policy.tasks.graph import Graph
from windtunnel.policy.tasks.messages import CancelTask, Pressure, RunResult, SchedulerEffect
from windtunnel.policy.tasks.record import SchedulerNotes
from windtunnel.policy.tasks.resolve import Resolver
from windtunnel.policy.tasks.resources import TaskLease
from windtunnel.policy.tasks.retry import Deferred, Health
from windtunnel.policy.tasks.row_groups import RowGroupGate
from windtunnel.policy.tasks.task import SchedulableTask, Task, task_id

WAKE = "tasks"


@dataclass(slots=True)
class Running:
    """A started attempt. wanted: its end will still count."""

    lease: TaskLease
    task: SchedulableTask
    times: dict[str, float | None]
    correlation: Mapping[str, Any] | None
    wanted: bool = True


@dataclass(slots=True)
class Counts:
    """What has happened so far; errors: non-retryable ends by kind; executions: tasks taken from the queue and started."""

    errors: Counter[str]
    completed: int = 0
    retries: int = 0
    checkpointed: int = 0
    rows_dropped: int = 0
    enqueued: int = 0
    executions: int = 0
    discarded: int = 0


class Board:
    """State of one run and the moves that more than one part makes. `now` and `out` are those of the event in hand."""

    def __init__(self, graph: Graph, row_groups: Mapping[int, int], resolver: Resolver, config: TaskSchedulerConfig, notes: SchedulerNotes,
                 generation: str) -> None:
        self.config, self.resolver, self.notes = config, resolver, notes
        self.tracker, self.queue = CompletionTracker(graph, row_groups), FairTaskQueue()
        self.admission = TaskAdmissionController(
            TaskAdmissionConfig(config.max_in_flight_tasks, resolver.limits, config.policy), generation=generation)
        self.row_groups = RowGroupGate(row_groups, concurrency=config.max_concurrent_row_groups, adaptive=config.adaptive_row_groups,
                                       buffer_size=config.buffer_size, in_flight_cap=config.max_in_flight_tasks)
        self.deferred, self.health, self.counts = Deferred(), Health(), Counts(Counter())
        self.status, self.why = "idle", ""
        self.result: RunResult | None = None
        self.known: dict[str, SchedulableTask] = {}
        self.waiting: dict[str, QueueItem] = {}
        self.running: dict[str, Running] = {}  # by lease
        self.ready_at: dict[str, float] = {}
        self.open: Counter[int] = Counter()  # queued and running tasks by row group
        self.in_salvage: set[int] = set()
        self.pressure: dict[str, Pressure] = {}
        self.now = float("-inf")
        self.out: list[SchedulerEffect] = []
        self._armed: float | None = None

    # -- what became ready, waits, and is over ----------------------------------------------------------------------------------------

    def became_ready(self, delta: FrontierDelta) -> None:
        for task in delta.added:
            known = self.resolver.task(task)
            self.known[known.task_id] = known
            self.ready_at[known.task_id] = self.now
            self.note("dependency_ready", known)

    def offer(self, tasks: list[Task]) -> None:
        """Into the queue; what it accepts leaves the frontier."""
        if not tasks:
            return
        items = []
        for task in tasks:
            known = self.known[task_id(task)]
            items.append(QueueItem(known.task_id, known.group, tuple(known.resources.items()), 1.0, 0, self.now))
        accepted = self.queue.offer(items, self.now).accepted
        self.tracker.mark_enqueued([item.id for item in accepted])
        self.counts.enqueued += len(accepted)
        for item in accepted:
            known = self.known[item.id]
            self.waiting[item.id] = item
            self.open[known.payload.row_group] += 1
            self.in_salvage.discard(known.payload.row_group)
            self.note("ready_enqueued", known)

    def forget(self, key: str) -> None:
        """The task is over for good."""
        self.known.pop(key, None)
        self.ready_at.pop(key, None)
        self.deferred.over(key)

    def stop(self, status: str, why: str) -> None:
        """Nothing more starts; what runs is asked to stop."""
        self.status, self.why = status, why
        for item in self.queue.discard_where(lambda _: True, self.now):
            self.counts.discarded += 1
            self.open[self.known[item.id].payload.row_group] -= 1
            self.note("cancelled", self.known[item.id], reason=why)
        for entry in self.deferred.all():
            self.deferred.discard(entry.task_id)
            self.note("cancelled", self.known[entry.task_id], reason=why)
        self.note("queue_drained", reason=why)
        self.waiting.clear()
        self.row_groups.give_up()
        for running in self.running.values():
            running.wanted = False
            self.out.append(CancelTask(running.lease, running.task.payload))
        if self._armed is not None:
            self._armed = None
            self.out.append(WakeAt(None, WAKE))

    # -- wakes --------------------------------------------------------------------------------------------------------------------------

    def wake(self, at: float | None) -> None:
        """Only an earlier wake is asked for; a later need finds the old one, which is harmless."""
        if at is not None and (self._armed is None or at < self._armed):
            self._armed = at
            self.out.append(WakeAt(at, WAKE))

    def woke(self) -> None:
        if self._armed is not None and self._armed <= self.now:
            self._armed = None

    # -- what is said -------------------------------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Plain numbers of the task stage."""
        return {"queued": len(self.queue), "running": len(self.running), "deferred": len(self.deferred), "completed": self.counts.completed,
                "row_groups_open": len(self.row_groups.open), "row_groups_waiting": self.row_groups.waiting,
                "rows_dropped": self.counts.rows_dropped, "retries": self.counts.retries, "admission": self.admission.view().freeze()}

    def note(self, kind: str, known: SchedulableTask | None = None, running: Running | None = None, *, reason: str = "",
             ids: tuple[str, ...] = (), snapshot: Any = None, diagnostics: Any = None, **extra: Any) -> None:
        notes = self.notes
        if not notes.on:
            return
        correlation = None
        if known is not None:
            correlation = running.correlation if running is not None else notes.correlation(known, None)
            extra["task_id"] = known.task_id
            ids = ids or (known.task_id,)
        if running is not None:
            extra["task_lease_id"] = running.lease.lease_id
            extra["task_execution_id"] = (running.correlation or {}).get("task_execution_id")
        self.out.append(notes.make(kind, self.now, ids=ids, reason=reason, correlation=correlation, snapshot=snapshot,
                                   diagnostics=diagnostics, **extra))
