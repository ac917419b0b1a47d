"""What goes into the task scheduler and what comes out, beside `Woke`, `WakeAt` and `Note`."""

from __future__ import annotations

from collections.abc import Mapping

from windtunnel.effects import Note, WakeAt
from windtunnel.events import Woke, fact
from windtunnel.policy.tasks.resources import TaskLease
from windtunnel.policy.tasks.task import Task


@fact
class RunStarted:
    """Begin: the first row groups are admitted."""


@fact
class TaskEnded:
    """A started task is over. outcome: `success` or what went wrong; error_kind: more exactly (a name, never a message).

    request_times: run s of the task's requests by timeline field; left out where it made none, or they are not known.
    """

    lease_id: str
    outcome: str
    error_kind: str | None = None
    retry_after_s: float | None = None
    request_times: Mapping[str, float] | None = None


@fact
class Pressure:
    """What is known of one request resource; None is unknown. cap: of its endpoint; blocked_until: run s of a cool-down's end."""

    resource_key: str
    in_flight: int | None = None
    limit: int | None = None
    waiters: int | None = None
    endpoint_in_flight: int | None = None
    endpoint_cap: int | None = None
    blocked_until: float | None = None

    def reason(self, now: float) -> str | None:
        """Why the resource is pressed, the first that holds; None if nothing known says so."""
        if self.endpoint_cap is not None and self.endpoint_in_flight is not None and self.endpoint_in_flight >= self.endpoint_cap:
            return "endpoint_cap"
        if self.blocked_until is not None and now < self.blocked_until:
            return "cooldown"
        if self.waiters:
            return "waiters"
        if self.in_flight is not None and self.limit is not None and self.in_flight >= self.limit:
            return "limit"
        return None


@fact
class RequestPressure:
    """The newest word on one request resource; it replaces the one before."""

    snapshot: Pressure


@fact
class RunCancelled:
    """Stop: nothing more starts, what runs is asked to stop. reason: cancelled or shutdown."""

    reason: str = "cancelled"


@fact
class StartTask:
    """Run the task's program; its end comes back as one TaskEnded."""

    lease: TaskLease
    task: Task


@fact
class CancelTask:
    """Ask a running task to stop; its end still comes back as TaskEnded."""

    lease: TaskLease
    task: Task


@fact
class RunResult:
    """How a pipeline ended. status: completed, cancelled, shutdown, early_stopped or aborted; errors: non-retryable ends by kind."""

    status: str
    row_groups_completed: int
    rows_dropped: int
    tasks_completed: int
    retries: int
    errors: Mapping[str, int]
    reason: str = ""


@fact
class RunEnded:
    """The last effect: no lease, no deferred and no queued task is left."""

    result: RunResult


SchedulerEvent = RunStarted | TaskEnded | RequestPressure | RunCancelled | Woke
SchedulerEffect = StartTask | CancelTask | WakeAt | RunEnded | Note
