"""What waits in a queue, and the values that queues take and give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from windtunnel.errors import ConfigValueError, PolicyClockError, PolicyStaleViewError
from windtunnel.events import Request, fact
from windtunnel.policy.param import check_number

if TYPE_CHECKING:
    from windtunnel.policy.admission.denial import Denial

ResourceVector = tuple[tuple[str, int], ...]
VIEW_FIELDS = ("queued_total", "queued_by_group", "queued_demand_by_group", "head_by_group", "demand_by_resource", "heads_by_shape")


@dataclass(frozen=True, slots=True)
class Group:
    """Who shares fairly with whom: weight is a real number above 0 (0.25 is a quarter share)."""

    key: str
    weight: float = 1.0
    admitted_limit: int | None = None

    def __post_init__(self) -> None:
        check_number("weight", self.weight, above=0.0)
        if self.admitted_limit is not None:
            check_number("admitted_limit", self.admitted_limit, lo=1, whole=True)


@fact
class QueueItem:
    """One waiting thing. cost: what it takes of its group's share, above 0; priority: 0 most urgent; times in run seconds."""

    id: str
    group: Group
    resources: ResourceVector = ()
    cost: float = 1.0
    priority: int = 0
    arrived_at: float = 0.0
    deadline: float | None = None
    request: Request | None = None

    @property
    def recovered(self) -> bool:
        """Is it a request that was accepted before a restart? Then no bound refuses it."""
        return self.request is not None and self.request.recovered


@fact
class Selection:
    """What `select` found; `commit` refuses it once the queue's version has moved on."""

    item: QueueItem
    queue_view: QueueView
    sequence_version: int


@fact
class Shed:
    """An item that a queue let go of, and why."""

    item: QueueItem
    denial: Denial


@fact
class Offered:
    """What became of an offer: accepted items, ids already queued, refused newcomers, victims that made room."""

    accepted: tuple[QueueItem, ...] = ()
    duplicates: tuple[str, ...] = ()
    rejected: tuple[Shed, ...] = ()
    evicted: tuple[Shed, ...] = ()


@dataclass(frozen=True, slots=True)
class HeadStats:
    """The groups whose head asks for one resource vector: how many, and how many per weight."""

    groups: int
    groups_by_weight: Mapping[float, int]


class Readable(Protocol):
    """What a view reads from its queue."""

    sequence_version: int

    def __len__(self) -> int: ...
    def lines(self) -> Mapping[str, Mapping[str, QueueItem]]: ...
    def heads_by_shape(self) -> Mapping[ResourceVector, HeadStats]: ...


class QueueView:
    """A read-only handle on a queue, valid for one version: reading it after the queue changed raises PolicyStaleViewError."""

    __slots__ = ("_queue", "sequence_version")

    def __init__(self, queue: Readable, sequence_version: int) -> None:
        self._queue, self.sequence_version = queue, sequence_version

    def _current(self) -> Readable:
        queue = self._queue
        if queue.sequence_version != self.sequence_version:
            raise PolicyStaleViewError(f"the queue is at version {queue.sequence_version}, this view at {self.sequence_version}")
        return queue

    @property
    def queued_total(self) -> int:
        return len(self._current())

    @property
    def queued_by_group(self) -> Mapping[str, int]:
        return {key: len(line) for key, line in self._current().lines().items()}

    @property
    def queued_demand_by_group(self) -> Mapping[str, Mapping[str, int]]:
        """Resource amounts that each group's waiting items ask for. O(items)."""
        return {key: _demand(line) for key, line in self._current().lines().items()}

    @property
    def head_by_group(self) -> Mapping[str, QueueItem]:
        return {key: next(iter(line.values())) for key, line in self._current().lines().items()}

    def head_share(self, key: str) -> tuple[ResourceVector, float] | None:
        """What one group's head asks for, and the group's weight; O(1) where the queue can say it."""
        queue = self._current()
        direct = getattr(queue, "head_share", None)
        if direct is not None:
            share: tuple[ResourceVector, float] | None = direct(key)
            return share
        head = self.head_by_group.get(key)
        return None if head is None else (head.resources, head.group.weight)

    @property
    def demand_by_resource(self) -> Mapping[str, int]:
        """Resource amounts that all waiting items ask for. O(items)."""
        return _demand({i.id: i for line in self._current().lines().values() for i in line.values()})

    @property
    def heads_by_shape(self) -> Mapping[ResourceVector, HeadStats]:
        """O(distinct resource vectors), not O(groups)."""
        return self._current().heads_by_shape()

    @property
    def head_counts(self) -> Mapping[ResourceVector, Mapping[float, int]]:
        """Groups per shape and weight as the queue keeps them: nothing is copied; valid until the queue changes."""
        queue = self._current()
        counts = getattr(queue, "head_counts", None)
        if counts is None:
            return {shape: stats.groups_by_weight for shape, stats in queue.heads_by_shape().items()}
        kept: Mapping[ResourceVector, Mapping[float, int]] = counts
        return kept

    def freeze(self) -> dict[str, Any]:
        """All fields as one plain dict, for figures: it stays readable when the queue moves on."""
        return {name: getattr(self, name) for name in VIEW_FIELDS}


def _demand(line: Mapping[str, QueueItem]) -> dict[str, int]:
    demand: dict[str, int] = {}
    for item in line.values():
        for resource, amount in item.resources:
            demand[resource] = demand.get(resource, 0) + amount
    return demand


def went_backwards(now: float, last: float) -> PolicyClockError:
    """The error of a call whose `now` lies before the last one seen."""
    return PolicyClockError(f"called with now={now!r} after {last!r}; time must not run backwards")


def bad_cost(item: QueueItem) -> ConfigValueError:
    """The error of an item that would be free, or pay its group back."""
    return ConfigValueError("cost", f"expected a number > 0, got {item.cost!r} of item {item.id!r}")
