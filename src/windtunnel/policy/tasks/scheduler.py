"""The one owner of a pipeline's frontier, queue and task admission: `handle(event, now) -> effects`, without clock and without I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from windtunnel.effects import WakeAt
from windtunnel.events import Woke
from windtunnel.policy.param import check_number
from windtunnel.policy.queueing.fair import FairTaskQueue
from windtunnel.policy.queueing.item import QueueItem, QueueView, Selection, went_backwards
from windtunnel.policy.tasks.admission import TaskAdmissionConfig, TaskAdmissionController
from windtunnel.policy.tasks.bounded_borrow import BoundedBorrow
from windtunnel.policy.tasks.decision import TaskAdmissionPolicy
from windtunnel.policy.tasks.frontier import CompletionTracker, FrontierDelta
from windtunnel.policy.tasks.graph import Graph
from windtunnel.policy.tasks.messages import (
    CancelTask,
    Pressure,
    RequestPressure,
    RunCancelled,
    RunEnded,
    RunResult,
    RunStarted,
    SchedulerEffect,
    SchedulerEvent,
    StartTask,
    TaskEnded,
)
from windtunnel.policy.tasks.record import SchedulerNotes
from windtunnel.policy.tasks.resolve import Resolver
from windtunnel.policy.tasks.resources import BlockSummary, TaskLease
from windtunnel.policy.tasks.retry import PRESERVED, PROGRAMMING, RETRYABLE, SALVAGE_ROUNDS, Deferred, DeferredTask, Health
from windtunnel.policy.tasks.row_groups import RowGroupGate
from windtunnel.policy.tasks.task import SchedulableTask, Task, task_id

WAKE = "tasks"
SHARED_OUT = frozenset({"group_cap", "borrow_debt"})


@dataclass(frozen=True, slots=True)
class TaskSchedulerConfig:
    """starved_after_s: a task that an endpoint turned away for this long, without one success there, is given up; None: never.

    A pipeline on an endpoint that only says 429 ends because of it.
    """

    policy: TaskAdmissionPolicy = field(default_factory=BoundedBorrow)
    max_concurrent_row_groups: int = 3
    adaptive_row_groups: bool = False
    buffer_size: int = 1000
    max_in_flight_tasks: int = 1024
    request_pressure_advisory: bool = True
    salvage_rounds: int = SALVAGE_ROUNDS
    starved_after_s: float | None = 600.0
    early_stop: bool = True

    def __post_init__(self) -> None:
        for name in ("max_concurrent_row_groups", "buffer_size", "max_in_flight_tasks"):
            check_number(name, getattr(self, name), lo=1, whole=True)
        check_number("salvage_rounds", self.salvage_rounds, lo=0, whole=True)
        if self.starved_after_s is not None:
            check_number("starved_after_s", self.starved_after_s, above=0.0)


@dataclass(slots=True)
class Running:
    """A started attempt."""

    lease: TaskLease
    task: SchedulableTask
    times: dict[str, float | None]
    correlation: Mapping[str, Any] | None
    wanted: bool = True


class TaskScheduler:
    """Tasks of a pipeline from `RunStarted` to `RunEnded`.

    At the end of every call nothing that could start is left waiting; a task starts only with its lease, and the lease is released when
    it ends. notes: make Notes; timeline: keep one row of times per attempt in `timeline`. Raises PolicyClockError.
    """

    def __init__(self, graph: Graph, row_groups: Mapping[int, int], resolver: Resolver, config: TaskSchedulerConfig | None = None, *,
                 run_id: str = "run", generation: str = "g0", notes: bool = False, timeline: bool = False) -> None:
        self.config = config = config or TaskSchedulerConfig()
        self.tracker, self.resolver = CompletionTracker(graph, row_groups), resolver
        self.queue = FairTaskQueue()
        self.admission = TaskAdmissionController(
            TaskAdmissionConfig(config.max_in_flight_tasks, resolver.limits, config.policy), generation=generation)
        self.row_groups = RowGroupGate(row_groups, concurrency=config.max_concurrent_row_groups, adaptive=config.adaptive_row_groups,
                                       buffer_size=config.buffer_size, in_flight_cap=config.max_in_flight_tasks)
        self.deferred, self.health = Deferred(), Health()
        self.running: dict[str, Running] = {}
        self.timeline: list[dict[str, Any]] | None = [] if timeline else None
        self.ready_idle_gap_s = 0.0  # measured with the timeline
        self._idle_since: float | None = None
        self.status = "idle"
        self.result: RunResult | None = None
        self._notes = SchedulerNotes(run_id, on=notes)
        self._known: dict[str, SchedulableTask] = {}
        self._waiting: dict[str, QueueItem] = {}
        self._ready_at: dict[str, float] = {}
        self._open: Counter[int] = Counter()  # queued and running tasks by row group
        self._rounds: dict[int, int] = {}
        self._in_salvage: set[int] = set()
        self._pressure: dict[str, Pressure] = {}
        self._last_success: dict[str, float] = {}
        self._passed: set[str] = set()
        self._blocked: Any = None
        self._was_empty = True
        self._armed: float | None = None
        self._errors: Counter[str] = Counter()
        self._completed = self._retries = self._checkpointed = self._rows_dropped = self._executions = 0
        self._why = ""
        self._now = float("-inf")
        self._out: list[SchedulerEffect] = []
        self._on: dict[type, Callable[[Any], None]] = {
            RunStarted: self._start, TaskEnded: self._ended, RequestPressure: self._pressed, RunCancelled: self._cancelled, Woke: self._woke,
        }

    def handle(self, event: SchedulerEvent, now: float) -> list[SchedulerEffect]:
        """What to do about an event; `now` in run s."""
        if now < self._now:
            raise went_backwards(now, self._now)
        self._now, self._out = now, []
        self._on[type(event)](event)
        if self.status == "running":
            self._pass()
        self._finish_if_done()
        if self.timeline is not None:
            self._watch_idle()
        out, self._out = self._out, []
        return out

    def _watch_idle(self) -> None:
        """Add up the time in which something could start and does not: nothing, unless a policy contradicts itself."""
        if self._idle_since is not None:
            self.ready_idle_gap_s += self._now - self._idle_since
        startable = len(self.queue) and self.queue.select(self.admission.is_eligible, self._now) is not None
        self._idle_since = self._now if startable else None

    # -- one pass ---------------------------------------------------------------------------------------------------------------------

    def _pass(self) -> None:
        self._redispatch()
        self._open_row_groups()
        self._offer(self.tracker.ready_frontier())
        self._dispatch()
        while self._salvage():
            self._offer(self.tracker.ready_frontier())
            self._dispatch()
        if self._grow():
            self._offer(self.tracker.ready_frontier())
            self._dispatch()
        if self.status == "running":
            self._summarise()

    def _redispatch(self) -> None:
        """Deferred tasks whose time has come, in order of deferral."""
        back = []
        for entry in self.deferred.due(self._now):
            if self.tracker.readd(entry.task):
                back.append(entry.task)
                self._note("salvage_redispatched", self._known[entry.task_id], reason=entry.error)
        self._offer(back)

    def _open_row_groups(self) -> None:
        while True:
            rg = self.row_groups.next(len(self.queue))
            if rg is None:
                return
            if isinstance(rg, str):
                self._note("row_group_admission_blocked", reason=rg, diagnostics={"open": len(self.row_groups.open)})
                return
            self._note("row_group_admitted", diagnostics={"row_group": rg, "open": len(self.row_groups.open)})
            self._became_ready(self.tracker.add_root_tasks(rg))
            self._settle(rg)

    def _became_ready(self, delta: FrontierDelta) -> None:
        for task in delta.added:
            known = self.resolver.task(task)
            self._known[known.task_id] = known
            self._ready_at[known.task_id] = self._now
            self._note("dependency_ready", known)

    def _offer(self, tasks: list[Task]) -> None:
        if not tasks:
            return
        items = []
        for task in tasks:
            known = self._known[task_id(task)]
            items.append(QueueItem(known.task_id, known.group, tuple(known.resources.items()), 1.0, 0, self._now))
        accepted = self.queue.offer(items, self._now).accepted
        self.tracker.mark_enqueued([item.id for item in accepted])
        for item in accepted:
            known = self._known[item.id]
            self._waiting[item.id] = item
            self._open[known.payload.row_group] += 1
            self._in_salvage.discard(known.payload.row_group)
            self._note("ready_enqueued", known)

    def _dispatch(self) -> None:
        while (selection := self._select()) is not None:
            item = selection.item
            known, now = self._known[item.id], self._now
            self._note("selected", known)
            lease = self.admission.try_acquire(item, selection.queue_view, now)
            if not isinstance(lease, TaskLease):
                self._note("admission_denied", known, reason=lease.reason, scheduler_resource_key=lease.resource)
                return  # a policy that answers twice differently must not spin
            if self.queue.commit(selection, now) is None:
                self.admission.release(lease, now)
                self._note("stale_selection", known, task_lease_id=lease.lease_id)
                continue
            self._begin(known, item, lease)

    def _begin(self, known: SchedulableTask, item: QueueItem, lease: TaskLease) -> None:
        now, note = self._now, self._notes
        del self._waiting[known.task_id]
        self._passed.discard(known.task_id)
        self._executions += 1
        execution = f"{self.admission.generation}-x{self._executions}"
        times: dict[str, float | None] = {"dependency_ready_at": self._ready_at[known.task_id], "ready_enqueued_at": item.arrived_at,
                                          "selected_at": now, "task_lease_acquired_at": now, "worker_spawned_at": now}
        running = Running(lease, known, times, note.correlation(known, execution) if note.on else None)
        self.running[lease.lease_id] = running
        self._note("task_lease_acquired", known, running)
        self._out.append(StartTask(lease, known.payload))
        self._note("worker_spawned", known, running)

    # -- whom to start ----------------------------------------------------------------------------------------------------------------

    def _select(self) -> Selection | None:
        """The queue's choice; heads whose endpoint is pressed stand back while another group's head may start without pressing."""
        if self._pressure and self.config.request_pressure_advisory and (reasons := self._pressed_now()):
            stood_back: list[tuple[QueueItem, str]] = []

            def eligible(item: QueueItem, view: QueueView) -> bool:
                reason = reasons.get(self._known[item.id].request_resource_key or "")
                if reason is None:
                    return self.admission.is_eligible(item, view)
                stood_back.append((item, reason))
                return False

            selection = self.queue.select(eligible, self._now)
            if selection is not None:
                self._tell_passed(stood_back, selection)
                return selection
        return self.queue.select(self.admission.is_eligible, self._now)

    def _pressed_now(self) -> dict[str, str]:
        found = ((key, pressure.reason(self._now)) for key, pressure in self._pressure.items())
        return {key: reason for key, reason in found if reason is not None}

    def _tell_passed(self, stood_back: list[tuple[QueueItem, str]], selection: Selection) -> None:
        if not self._notes.on:
            return
        for item, reason in stood_back:
            if item.id not in self._passed and self.admission.is_eligible(item, selection.queue_view):
                self._passed.add(item.id)
                known = self._known[item.id]
                self._note("request_pressure_advisory_skipped", known, reason=reason, scheduler_resource_key=known.request_resource_key)

    # -- ends of tasks ------------------------------------------------------------------------------------------------------------------

    def _ended(self, event: TaskEnded) -> None:
        running = self.running.pop(event.lease_id, None)
        if running is None:
            self._note("release_diagnostic", reason="unknown_lease", ids=(event.lease_id,))
            return
        known, rg = running.task, running.task.payload.row_group
        self._open[rg] -= 1
        kind = "success" if event.outcome == "success" else event.error_kind or event.outcome
        if kind == "worker_spawn_failed":
            self._note("worker_spawn_failed", known, running)
        if kind == "success" and running.wanted and self.status == "running":
            self._succeeded(known)
        self._note("task_completed", known, running, reason=kind)
        self._release(running, event)
        if kind == "success" or not running.wanted or self.status != "running":
            self._settle(rg)
            return
        self._failed(known, running, kind, event.retry_after_s)
        self._settle(rg)

    def _release(self, running: Running, event: TaskEnded) -> None:
        result = self.admission.release(running.lease, self._now)
        self._note("task_lease_released" if result.released else "release_diagnostic", running.task, running, reason=result.reason)
        if self.timeline is not None:
            times = running.times | dict(event.request_times or {})
            times["task_completed_at"] = times["task_lease_released_at"] = self._now
            payload = running.task.payload
            self.timeline.append({"task_id": running.task.task_id, "task_lease_id": running.lease.lease_id, "column": payload.column,
                                  "row_group": payload.row_group, "row_index": payload.row_index, "group": running.task.group.key,
                                  "outcome": event.outcome, **times})

    def _succeeded(self, known: SchedulableTask) -> None:
        task = known.payload
        self._completed += 1
        self.health.saw(error=False, retryable=False)
        self.deferred.over(known.task_id)
        if known.request_resource_key is not None:
            self._last_success[known.request_resource_key] = self._now
        self._forget(known.task_id)
        if task.row_index is None:
            self._became_ready(self.tracker.mark_range_complete(task.column, task.row_group))
        else:
            self._became_ready(self.tracker.mark_cell_complete(task.column, task.row_group, task.row_index))

    def _failed(self, known: SchedulableTask, running: Running, kind: str, retry_after_s: float | None) -> None:
        retryable = kind in RETRYABLE
        self.health.saw(error=True, retryable=retryable)
        if kind in PROGRAMMING:
            self._errors[kind] += 1
            self._stop("aborted", kind)
        elif retryable and not self._starved(known, kind):
            self._defer(known, running, kind, retry_after_s)
        else:
            self._give_up(known, running, kind)
            if self.config.early_stop and self.health.hopeless:
                self._stop("early_stopped", "too many errors")
        if self.health.degraded(self._now):
            self._note("scheduler_health_snapshot", reason="degraded_provider", snapshot=self.snapshot())

    def _starved(self, known: SchedulableTask, kind: str) -> bool:
        patience_s = self.config.starved_after_s
        if patience_s is None or kind not in PRESERVED:
            return False
        since = self.deferred.since(known.task_id, self._now)
        success = self._last_success.get(known.request_resource_key or "", since)
        return self._now - max(since, success) >= patience_s

    def _defer(self, known: SchedulableTask, running: Running, kind: str, retry_after_s: float | None) -> None:
        pressure = self._pressure.get(known.request_resource_key or "")
        until = pressure.blocked_until if pressure is not None else None
        cooldown_s = max(retry_after_s or 0.0, 0.0 if until is None else until - self._now)
        self._retries += 1
        entry = self.deferred.add(known.task_id, known.payload, kind, self._now, cooldown_s)
        self._note("retry_deferred", known, running, reason=kind, diagnostics={"retry_at": entry.at})

    def _give_up(self, known: SchedulableTask, running: Running | None, kind: str) -> None:
        self._errors[kind] += 1
        self._note("non_retryable_dropped", known, running, reason=kind)
        task = known.payload
        rows = range(self.tracker.row_groups[task.row_group]) if task.row_index is None else (task.row_index,)
        for row in rows:
            self._drop(task.row_group, row)

    def _drop(self, rg: int, row: int) -> None:
        """The row is lost: what waits for it goes, what runs for it is no longer wanted."""
        before = self.tracker.dropped(rg)[row]
        delta = self.tracker.drop_row(rg, row)
        self._rows_dropped += not before
        for task in delta.removed:
            key = task_id(task)
            if self._waiting.pop(key, None) is not None:
                self.queue.discard(key, self._now)
                self._open[rg] -= 1
            self.deferred.discard(key)
            self._forget(key)
        self._unwant(delta)
        self._became_ready(delta)

    def _unwant(self, delta: FrontierDelta) -> None:
        gone = set(delta.removed)
        for running in self.running.values():
            if running.task.payload in gone:
                running.wanted = False

    def _forget(self, key: str) -> None:
        self._known.pop(key, None)
        self._ready_at.pop(key, None)
        self.deferred.over(key)

    # -- row groups ---------------------------------------------------------------------------------------------------------------------

    def _settle(self, rg: int) -> None:
        """Close a row group that is complete; the next one may be opened."""
        if rg not in self.row_groups.open or not self.tracker.is_complete(rg):
            return
        self._checkpointed += 1
        self._note("row_group_checkpointed", diagnostics={"row_group": rg, "dropped": sum(self.tracker.dropped(rg))})
        self.tracker.compact(rg)
        self.row_groups.closed(rg)
        self._rounds.pop(rg, None)
        self._in_salvage.discard(rg)
        if not self._open[rg]:
            del self._open[rg]
        if self.status == "running":
            self._open_row_groups()

    def _salvage(self) -> bool:
        """Row groups with nothing left but deferred tasks: count a round; after the last one, keep only work that was turned away."""
        moved = False
        for rg in list(self.deferred.by_row_group):
            if self._open.get(rg, 0) or rg in self._in_salvage:
                continue
            self._in_salvage.add(rg)
            self._rounds[rg] = self._rounds.get(rg, 0) + 1
            if self._rounds[rg] <= self.config.salvage_rounds:
                continue
            for entry in self.deferred.of_row_group(rg):
                if entry.live and entry.error not in PRESERVED:
                    self._lost(entry)
                    moved = True
            self._settle(rg)
        return moved

    def _lost(self, entry: DeferredTask) -> None:
        self.deferred.discard(entry.task_id)
        self._give_up(self._known[entry.task_id], None, entry.error)

    def _grow(self) -> bool:
        if not self.row_groups.tick(queued=len(self.queue), room=self.admission.may_admit_any()):
            return False
        self._note("row_group_admission_target_changed", diagnostics={"target": self.row_groups.target})
        self._open_row_groups()
        return True

    # -- what is left ---------------------------------------------------------------------------------------------------------------------

    def _summarise(self) -> None:
        """Say why nothing starts (an empty queue is not a blocked one), and when to look again."""
        summary: BlockSummary | None = None
        if not len(self.queue):
            self._blocked = None
            if not self._was_empty:
                self._note("queue_empty")
        else:
            summary = self.admission.explain_blocked(self.queue.view())
            if summary.signature != self._blocked:
                self._blocked = summary.signature
                kind = "group_capped" if set(summary.denial_reasons) <= SHARED_OUT else "admission_blocked"
                self._note(kind, snapshot=summary.snapshot, diagnostics={"reasons": summary.denial_reasons, "queued": summary.queued_count})
        self._was_empty = not len(self.queue)
        times = [self.deferred.first(), None if summary is None else summary.available_after]
        if len(self.queue):
            times += [p.blocked_until for p in self._pressure.values() if p.blocked_until is not None and p.blocked_until > self._now]
        at = min((t for t in times if t is not None), default=None)
        if at is None and len(self.queue) and not self.running:
            self._stop("aborted", "nothing that waits can ever start")
            return
        self._wake(at)

    def _wake(self, at: float | None) -> None:
        """Only an earlier wake is asked for; a later need finds the old one, which is harmless."""
        if at is not None and (self._armed is None or at < self._armed):
            self._armed = at
            self._out.append(WakeAt(at, WAKE))

    # -- begin and end ----------------------------------------------------------------------------------------------------------------------

    def _start(self, event: RunStarted) -> None:
        if self.status == "idle":
            self.status = "running"
            self._note("scheduler_job_started", snapshot=self.snapshot())

    def _woke(self, event: Woke) -> None:
        if self._armed is not None and self._armed <= self._now:
            self._armed = None

    def _pressed(self, event: RequestPressure) -> None:
        self._pressure[event.snapshot.resource_key] = event.snapshot

    def _cancelled(self, event: RunCancelled) -> None:
        if self.status in ("idle", "running"):
            self._stop(event.reason, event.reason)

    def _stop(self, status: str, why: str) -> None:
        """Nothing more starts; what runs is asked to stop."""
        self.status, self._why = status, why
        for item in self.queue.discard_where(lambda _: True, self._now):
            self._note("cancelled", self._known[item.id], reason=why)
        for entry in self.deferred.all():
            self.deferred.discard(entry.task_id)
            self._note("cancelled", self._known[entry.task_id], reason=why)
        self._note("queue_drained", reason=why)
        self._waiting.clear()
        self.row_groups.give_up()
        for running in self.running.values():
            running.wanted = False
            self._out.append(CancelTask(running.lease, running.task.payload))
        if self._armed is not None:
            self._armed = None
            self._out.append(WakeAt(None, WAKE))

    def _finish_if_done(self) -> None:
        if self.result is not None or self.status == "idle" or self.running or len(self.queue) or len(self.deferred):
            return
        if self.status == "running":
            if self.row_groups.open or self.row_groups.waiting:
                return
            self.status = "completed"
        self.result = RunResult(self.status, self._checkpointed, self._rows_dropped, self._completed, self._retries, dict(self._errors), self._why)
        self._note("scheduler_job_completed", reason=self.status, snapshot=self.snapshot())
        self._out.append(RunEnded(self.result))

    def snapshot(self) -> dict[str, Any]:
        """Plain numbers of the task stage."""
        return {"queued": len(self.queue), "running": len(self.running), "deferred": len(self.deferred), "completed": self._completed,
                "row_groups_open": len(self.row_groups.open), "row_groups_waiting": self.row_groups.waiting,
                "rows_dropped": self._rows_dropped, "retries": self._retries, "admission": self.admission.view().freeze()}

    def _note(self, kind: str, known: SchedulableTask | None = None, running: Running | None = None, *, reason: str = "",
              ids: tuple[str, ...] = (), snapshot: Any = None, diagnostics: Any = None, **extra: Any) -> None:
        notes = self._notes
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
        self._out.append(notes.make(kind, self._now, ids=ids, reason=reason, correlation=correlation, snapshot=snapshot,
                                    diagnostics=diagnostics, **extra))
