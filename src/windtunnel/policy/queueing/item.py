"""What waits in a queue, and the values that queues take and give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from windtunnel.errors import PolicyStaleViewError
from windtunnel.events import Request, fact
from windtunnel.policy.param import check_number

if TYPE_CHECKING:
    from windtunnel.policy.admission.denial import Denial


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
    """One waiting thing. cost: what it takes of its group's share; priority: 0 most urgent; times in run seconds."""

    id: str
    group: Group
    resources: tuple[tuple[str, int], ...] = ()
    cost: float = 1.0
    priority: int = 0
    arrived_at: float = 0.0
    deadline: float | None = None
    request: Request | None = None


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


class QueueView:
    """A read-only handle on a queue, valid for one version; reading it later raises PolicyStaleViewError. `freeze()` gives plain data."""

    __slots__ = ("_queue", "_read", "sequence_version")

    def __init__(self, queue: Any, read: Callable[[], Mapping[str, Any]], sequence_version: int) -> None:
        self._queue, self._read, self.sequence_version = queue, read, sequence_version

    def freeze(self) -> Mapping[str, Any]:
        """queued_total, queued_by_group, queued_demand_by_group, head_by_group, demand_by_resource, heads_by_shape."""
        if self._queue.sequence_version != self.sequence_version:
            raise PolicyStaleViewError(f"the queue is at version {self._queue.sequence_version}, this view at {self.sequence_version}")
        return self._read()

    def __getattr__(self, name: str) -> Any:
        try:
            return self.freeze()[name]
        except KeyError:
            raise AttributeError(name) from None
