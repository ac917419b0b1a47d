"""What becomes of a task that failed: tried again at a paced time, dropped, or the end of the run."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush

from windtunnel.policy.tasks.task import Task

RETRYABLE = frozenset({"rate_limited", "provider_timeout", "provider_failure", "request_admission_timeout"})
PRESERVED = frozenset({"rate_limited", "request_admission_timeout"})  # the work is good: only the endpoint had no room
PROGRAMMING = frozenset({"KeyError", "TypeError", "AttributeError", "AssertionError"})
MIN_WAIT_S = 0.05
SALVAGE_ROUNDS = 2


@dataclass(slots=True)
class DeferredTask:
    """since: run s of the first deferral in a row; error: the last error's kind."""

    task_id: str
    task: Task
    error: str
    since: float
    at: float = 0.0
    live: bool = True


class Deferred:
    """Tasks that wait to be tried again, each at its own time; those due together in order of deferral. O(log n)."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, DeferredTask]] = []
        self._by_id: dict[str, DeferredTask] = {}
        self._since: dict[str, float] = {}
        self._count = 0
        self.by_row_group: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def since(self, task_id: str, now: float) -> float:
        """When this task was first deferred since its last start from scratch; `now` if it never was."""
        return self._since.get(task_id, now)

    def add(self, task_id: str, task: Task, error: str, now: float, cooldown_s: float) -> DeferredTask:
        """Not before the resource has cooled down, and never at once."""
        since = self._since.setdefault(task_id, now)
        entry = DeferredTask(task_id, task, error, since, now + max(MIN_WAIT_S, cooldown_s))
        self._count += 1
        heappush(self._heap, (entry.at, self._count, entry))
        self._by_id[task_id] = entry
        self.by_row_group[task.row_group] = self.by_row_group.get(task.row_group, 0) + 1
        return entry

    def due(self, now: float) -> list[DeferredTask]:
        """Entries whose time has come, removed."""
        fired: list[tuple[int, DeferredTask]] = []
        while self._heap and (self._heap[0][0] <= now or not self._heap[0][2].live):
            _, n, entry = heappop(self._heap)
            if entry.live:
                self._forget(entry)
                fired.append((n, entry))
        return [entry for _, entry in sorted(fired, key=lambda f: f[0])]

    def discard(self, task_id: str) -> DeferredTask | None:
        """Give one up; None if it does not wait here."""
        entry = self._by_id.get(task_id)
        if entry is not None:
            self._forget(entry)
        return entry

    def _forget(self, entry: DeferredTask) -> None:
        entry.live = False
        del self._by_id[entry.task_id]
        rg = entry.task.row_group
        self.by_row_group[rg] -= 1
        if not self.by_row_group[rg]:
            del self.by_row_group[rg]

    def over(self, task_id: str) -> None:
        """The task has ended for good."""
        self._since.pop(task_id, None)

    def of_row_group(self, rg: int) -> list[DeferredTask]:
        """In order of deferral. O(deferred)."""
        return [entry for entry in self._by_id.values() if entry.task.row_group == rg]

    def all(self) -> list[DeferredTask]:
        return list(self._by_id.values())

    def first(self) -> float | None:
        """The earliest time, run s."""
        while self._heap and not self._heap[0][2].live:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None


class Health:
    """Are the outcomes so bad that the run should stop, or that somebody should look at the provider?"""

    def __init__(self, ratio: float = 0.5, window: int = 10, degraded_ratio: float = 0.5, degraded_window: int = 20,
                 degraded_every_s: float = 60.0) -> None:
        self.ratio, self.degraded_ratio, self.degraded_every_s = ratio, degraded_ratio, degraded_every_s
        self._errors: deque[bool] = deque(maxlen=window)
        self._retryable: deque[bool] = deque(maxlen=degraded_window)
        self._told_at: float | None = None

    def saw(self, *, error: bool, retryable: bool) -> None:
        """One outcome; retryable errors say nothing about the work itself and stay out of the early stop."""
        self._retryable.append(retryable)
        if not retryable:
            self._errors.append(error)

    @property
    def hopeless(self) -> bool:
        """At least `ratio` of the last `window` outcomes were errors that no retry heals."""
        return len(self._errors) == self._errors.maxlen and sum(self._errors) >= self.ratio * len(self._errors)

    def degraded(self, now: float) -> bool:
        """Most of the last outcomes were retryable errors; said at most once a minute."""
        seen = self._retryable
        if len(seen) < (seen.maxlen or 0) or sum(seen) < self.degraded_ratio * len(seen):
            return False
        if self._told_at is not None and now < self._told_at + self.degraded_every_s:
            return False
        self._told_at = now
        return True
