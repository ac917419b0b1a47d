"""Those who wait for a lease inside the admission: one line per resource, the lines in fair order, every wait with an end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from windtunnel.events import fact
from windtunnel.policy.admission.denial import Denial
from windtunnel.policy.admission.lease import RequestLease
from windtunnel.policy.admission.resource import Resource, ResourceKey
from windtunnel.policy.param import check_number
from windtunnel.policy.queueing.deadline_drop import DeadlineDropQueue
from windtunnel.policy.queueing.fair import Eligible, FairTaskQueue
from windtunnel.policy.queueing.item import Group, QueueItem


@dataclass(frozen=True, slots=True)
class RequestItem:
    """Who asks for what. queue_wait_timeout_s: longest wait, 0 = try once, None = the admission's default; context: the caller's own."""

    resource: ResourceKey
    weight: float = 1.0
    queue_wait_timeout_s: float | None = None
    context: Any = None

    def __post_init__(self) -> None:
        check_number("weight", self.weight, above=0.0)
        if self.queue_wait_timeout_s is not None:
            check_number("queue_wait_timeout_s", self.queue_wait_timeout_s, lo=0.0)


@fact
class Waiting:
    """The item waits. deadline: run s at which its wait ends without a lease; None: it has no end."""

    waiter_id: str
    deadline: float | None


@fact
class Granted:
    """A waiter has its lease; it must be released, used or not."""

    waiter_id: str
    lease: RequestLease
    waited_s: float
    context: Any = None


@fact
class Expired:
    """A wait is over without a lease: its time was up, or nothing is admitted any more."""

    waiter_id: str
    denial: Denial
    waited_s: float
    context: Any = None


@fact
class WaiterCancelled:
    """It waited and is gone."""

    waiter_id: str


@fact
class AlreadyGranted:
    """Too late: this lease is the waiter's, release it as `local_cancelled`."""

    waiter_id: str
    lease: RequestLease


@fact
class UnknownWaiter:
    """Nobody of that id waits, or holds a lease."""

    waiter_id: str


class Waiter:
    """One entry of a line."""

    __slots__ = ("id", "item", "queued", "resource", "since")

    def __init__(self, id: str, item: RequestItem, resource: Resource, since: float, queued: QueueItem) -> None:
        self.id, self.item, self.resource, self.since, self.queued = id, item, resource, since, queued

    def live(self, now: float) -> bool:
        return self.queued.deadline is None or now < self.queued.deadline


class Waiters:
    """A fair queue whose groups are the resources: start-time fair order by weight between lines, first come first served within one.

    add, remove, take, and each expiry O(log waiters); `next` also passes the heads that are blocked.
    """

    def __init__(self) -> None:
        self._queue = DeadlineDropQueue(FairTaskQueue())
        self.by_id: dict[str, Waiter] = {}
        self._groups: dict[ResourceKey, str] = {}
        self.lines: dict[ResourceKey, Resource] = {}  # what is waited for, in the order in which it was first

    def __len__(self) -> int:
        return len(self.by_id)

    def add(self, waiter_id: str, item: RequestItem, resource: Resource, deadline: float | None, now: float) -> Waiter:
        line = self._groups.setdefault(resource.name, str(len(self._groups)))
        queued = QueueItem(waiter_id, Group(line, item.weight), arrived_at=now, deadline=deadline)
        waiter = self.by_id[waiter_id] = Waiter(waiter_id, item, resource, now, queued)
        self._queue.offer((queued,), now)
        resource.waiting += 1
        self.lines[resource.name] = resource
        return waiter

    def _forget(self, waiter_id: str) -> Waiter:
        waiter = self.by_id.pop(waiter_id)
        resource = waiter.resource
        resource.waiting -= 1
        if not resource.waiting:
            del self.lines[resource.name]
        return waiter

    def remove(self, waiter_id: str, now: float) -> Waiter | None:
        """Take a waiter out of its line, wherever it stands; None if nobody of that id waits."""
        return None if self._queue.discard(waiter_id, now) is None else self._forget(waiter_id)

    def expired(self, now: float) -> list[Waiter]:
        """Take out those whose time is up, the earliest first."""
        return [self._forget(shed.item.id) for shed in self._queue.shed(now)]

    def next(self, eligible: Eligible, now: float) -> Waiter | None:
        """Take the first head, in fair order, that is eligible."""
        selection = self._queue.select(eligible, now)
        if selection is None:
            return None
        self._queue.commit(selection, now)
        return self._forget(selection.item.id)

    def next_deadline(self) -> float | None:
        return self._queue.next_deadline()

    def any_live(self, resource: Resource, now: float) -> bool:
        """Does anyone wait for the resource whose time is not up? O(1) unless the expired ones were not drained yet."""
        if not resource.waiting:
            return False
        first = self._queue.next_deadline()
        if first is None or first > now:
            return True
        return any(w.resource is resource and w.live(now) for w in self.by_id.values())
