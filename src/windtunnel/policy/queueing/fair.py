"""Start-time fair queueing over groups (Goyal, Vin, Cheng: "Start-time fair queueing", SIGCOMM 1996), with real weights and costs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass
from math import inf
from typing import Annotated, Any, Literal, Protocol

from windtunnel.errors import ConfigValueError, PolicyError
from windtunnel.policy.param import BuildContext, Param, check_number
from windtunnel.policy.queueing.clocked import Clocked
from windtunnel.policy.queueing.deadlines import Deadlines
from windtunnel.policy.queueing.heads import HeadCounts
from windtunnel.policy.queueing.item import (
    HeadStats,
    Offered,
    QueueItem,
    QueueView,
    ResourceVector,
    Selection,
    Shed,
    bad_cost,
)
from windtunnel.policy.queueing.order import ActiveGroup, Order

Eligible = Callable[[QueueItem, QueueView], bool]
IDLE_GROUPS_KEPT = 65_536
COSTS, INSIDE = ("requests", "tokens"), ("fifo", "edf")


class Queue(Protocol):
    """Who goes next: `select` changes nothing, `commit` takes what was selected. `now`: run s, never before the last one."""

    @property
    def sequence_version(self) -> int:
        """Counts the changes; a selection is good for one version only."""

    def offer(self, items: Iterable[QueueItem], now: float) -> Offered:
        """Queue the items in order: who was taken, who was refused or evicted, and which ids were here already."""

    def shed(self, now: float) -> tuple[Shed, ...]:
        """Take out those who have waited for too long by the queue's own rule."""

    def select(self, eligible: Eligible, now: float) -> Selection | None:
        """Who would go next of those that `eligible(item, view)` lets go; None: nobody. Changes nothing."""

    def commit(self, selection: Selection, now: float) -> QueueItem | None:
        """Take the selected item out; None if the queue has changed since."""

    def restore(self, item: QueueItem, now: float) -> None:
        """A committed item comes back for another attempt, at the head of its group; never refused for want of room."""

    def straight(self, item: QueueItem, now: float) -> bool:
        """Offer, select and commit of one item on an empty queue; False: it was not done (a queue may always say so)."""

    def discard(self, item_id: str, now: float) -> QueueItem | None:
        """Take one out by its id; None if it is not here."""

    def discard_where(self, pred: Callable[[QueueItem], bool], now: float) -> tuple[QueueItem, ...]:
        """Take out all for which `pred` is true."""

    def view(self) -> QueueView:
        """The queue as it stands, not to be used after it has changed."""

    def next_deadline(self) -> float | None:
        """Run s at which `shed` may have something to do; None: not without an event."""

    def __len__(self) -> int:
        """How many wait."""


class FairTaskQueue(Clocked):
    """Each group is a FIFO; the group with the smallest virtual start tag goes first, ties by activation.

    State: virtual time V, a finish tag per group (kept while idle: no credit is banked), one live heap entry per active group.
    It knows membership and order only, never running work. offer, commit, discard O(log groups); select O((1 + ineligible heads) log groups).
    counts: set if a lane that it serves is to count tokens as the cost of requests.
    """

    counts: str

    def __init__(self) -> None:
        super().__init__()
        self.virtual_time = 0.0
        self._active: dict[str, ActiveGroup] = {}
        self._idle: OrderedDict[str, float] = OrderedDict()  # finish tags, the longest idle first
        self._order = Order()
        self._where: dict[str, ActiveGroup] = {}
        self.members: Sized = self._where  # who waits, by its length
        self._heads = HeadCounts()
        self.head_counts = self._heads.counts
        self._deadlines = Deadlines()

    def __len__(self) -> int:
        return len(self._where)

    def offer(self, items: Iterable[QueueItem], now: float) -> Offered:
        """Queue the items; an id that is queued already is reported and changes nothing."""
        self._tick(now)
        accepted: list[QueueItem] = []
        duplicates: list[str] = []
        for item in items:
            if item.id in self._where:
                duplicates.append(item.id)
                continue
            self._add(item)
            if not accepted:
                self.sequence_version += 1
            accepted.append(item)
        return Offered(tuple(accepted), tuple(duplicates))

    def _add(self, item: QueueItem, *, front: bool = False) -> None:
        group = item.group
        if not 0 < item.cost < inf:
            raise bad_cost(item)
        active = self._active.get(group.key)
        if active is None:
            active = ActiveGroup(group, self._idle.pop(group.key, None), item)
            tag = self._first_tag(active)
            self._active[group.key] = active
            self._heads.count(item.resources, group.weight, 1)
            self._order.enter(active, tag)
        else:
            head = item if front else active.head
            self._head_changes(active, head, group.weight)
            active.group = group
        active.line[item.id] = item
        if front:
            active.line.move_to_end(item.id, last=False)
        self._where[item.id] = active
        if item.deadline is not None:
            self._deadlines.add(item)

    def shed(self, now: float) -> tuple[Shed, ...]:
        return ()

    def select(self, eligible: Eligible, now: float) -> Selection | None:
        """The first eligible head in order of (tag, activation); nothing changes, whatever `eligible` does."""
        self._look(now)
        view = QueueView(self, self.sequence_version)
        head = self._order.first(eligible, view)
        return None if head is None else Selection(head, view, self.sequence_version)

    def commit(self, selection: Selection, now: float) -> QueueItem | None:
        """Take the selected item; None if the queue has moved on since, or the item is not its group's head."""
        self._tick(now)
        active = self._where.get(selection.item.id)
        if selection.sequence_version != self.sequence_version or active is None or active.head.id != selection.item.id:
            return None
        item = active.head
        tag = self._pay(active, item)
        self._remove(active, item)
        if active.line:
            self._order.enter(active, tag)
        return item

    def _first_tag(self, active: ActiveGroup) -> Any:
        """The place of a group that was idle until now (it is not among the active ones yet)."""
        return self.virtual_time if active.finish is None else active.finish

    def _pay(self, active: ActiveGroup, item: QueueItem) -> Any:
        """Charge a group for an item that leaves for service; its next place."""
        start = self.virtual_time if active.finish is None else active.finish
        if start > self.virtual_time:
            self.virtual_time = start
        active.finish = finish = self.virtual_time + item.cost / active.group.weight
        return finish

    def _remove(self, active: ActiveGroup, item: QueueItem) -> None:
        line = active.line
        del line[item.id], self._where[item.id]
        self.sequence_version += 1
        if item.deadline is not None:
            self._deadlines.remove(item.id)
        if not line:
            self._deactivate(active)
        elif active.head is item:
            self._head_changes(active, next(iter(line.values())), active.group.weight)

    def _deactivate(self, active: ActiveGroup) -> None:
        """The group is idle: its finish tag stays, unless too many groups are idle."""
        self._heads.count(active.head.resources, active.group.weight, -1)
        self._order.leave(active)
        key = active.group.key
        del self._active[key]
        if active.finish is not None:
            self._keep(key, active.finish)

    def _keep(self, key: str, finish: float) -> None:
        idle = self._idle
        idle[key] = finish
        idle.move_to_end(key)
        if len(idle) > IDLE_GROUPS_KEPT:
            idle.popitem(last=False)

    def _head_changes(self, active: ActiveGroup, head: QueueItem, weight: float) -> None:
        old = active.head
        if old.resources != head.resources or active.group.weight != weight:
            self._heads.count(old.resources, active.group.weight, -1)
            self._heads.count(head.resources, weight, 1)
        active.head = head

    def restore(self, item: QueueItem, now: float) -> None:
        """A committed item comes back for another attempt, at the head of its group. Raises PolicyError if it is still queued."""
        self._tick(now)
        if item.id in self._where:
            raise PolicyError(f"item {item.id!r} was restored while it is queued")
        self._add(item, front=True)
        self.sequence_version += 1

    def straight(self, item: QueueItem, now: float) -> bool:
        """offer + select + commit in one, on an empty queue; False, and nothing done, on any other."""
        if self._where:
            return False
        self._look(now)
        if not 0 < item.cost < inf:
            raise bad_cost(item)
        self._now = now
        self.sequence_version += 2
        self._order.activations += 1
        group, start, idle = item.group, self.virtual_time, self._idle
        finish = idle.get(group.key)
        if finish is not None and finish > start:
            self.virtual_time = start = finish
        idle[group.key] = start + item.cost / group.weight
        idle.move_to_end(group.key)
        if len(idle) > IDLE_GROUPS_KEPT:
            idle.popitem(last=False)
        return True

    def discard(self, item_id: str, now: float) -> QueueItem | None:
        """Take an item out of the queue wherever it stands; no group is charged. None if it is not queued."""
        self._tick(now)
        try:
            active = self._where.get(item_id)
        except TypeError:  # not even hashable: nobody's id
            return None
        if active is None:
            return None
        item = active.line[item_id]
        self._remove(active, item)
        return item

    def discard_where(self, pred: Callable[[QueueItem], bool], now: float) -> tuple[QueueItem, ...]:
        """Take out all items that `pred` names, group by group. O(items)."""
        doomed = [item for active in self._active.values() for item in active.line.values() if pred(item)]
        for item in doomed:
            self.discard(item.id, now)
        return tuple(doomed)

    def head_share(self, key: str) -> tuple[ResourceVector, float] | None:
        """What a group's head asks for, and the group's weight; None if nothing of it waits."""
        active = self._active.get(key)
        return None if active is None else (active.head.resources, active.group.weight)

    def finish_tag(self, key: str) -> float | None:
        """A group's finish tag; None before its first commit, or when it was forgotten."""
        active = self._active.get(key)
        return self._idle.get(key) if active is None else active.finish

    def view(self) -> QueueView:
        return QueueView(self, self.sequence_version)

    def lines(self) -> Mapping[str, Mapping[str, QueueItem]]:
        """Waiting items by group and id, each group in its order."""
        return {key: active.line for key, active in self._active.items()}

    def heads_by_shape(self) -> Mapping[ResourceVector, HeadStats]:
        return self._heads.stats()

    def next_deadline(self) -> float | None:
        """The earliest deadline that waits, run s."""
        first = self._deadlines.first()
        return None if first is None else first[0]


@dataclass(frozen=True, slots=True)
class Fair:
    """Config of the fair queue; weights come from `control.tenants`."""

    cost: Annotated[Literal["requests", "tokens"], Param(choices=COSTS, label="cost", help="what a request takes of its tenant's share: 1, or "
                                                                                          "its input and expected output tokens")] = "requests"
    inside: Annotated[Literal["fifo", "edf"], Param(choices=INSIDE, label="inside", help="a tenant's own requests: in order of arrival, or the "
                                                                                         "earliest deadline first")] = "fifo"

    def __post_init__(self) -> None:
        for name, known in (("cost", COSTS), ("inside", INSIDE)):
            if getattr(self, name) not in known:
                raise ConfigValueError(name, f"expected one of {', '.join(known)}, got {getattr(self, name)!r}")

    def build(self, ctx: BuildContext) -> FairTaskQueue:
        from windtunnel.policy.queueing.fair_edf import FairEdfQueue

        for tenant, weight in ctx.tenants.items():
            check_number(f"tenants.{tenant}.weight", weight, above=0.0)
        queue = FairEdfQueue() if self.inside == "edf" else FairTaskQueue()
        if self.cost == "tokens":
            queue.counts = "tokens"
        return queue
