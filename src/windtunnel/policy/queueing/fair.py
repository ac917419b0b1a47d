"""Start-time fair queueing over groups (Goyal, Vin, Cheng: "Start-time fair queueing", SIGCOMM 1996), with real weights and costs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from typing import Protocol

from windtunnel.errors import PolicyError
from windtunnel.policy.param import BuildContext, check_number
from windtunnel.policy.queueing.deadlines import Deadlines
from windtunnel.policy.queueing.item import (
    Group, HeadStats, Offered, QueueItem, QueueView, ResourceVector, Selection, Shed, went_backwards,
)

Eligible = Callable[[QueueItem, QueueView], bool]
IDLE_GROUPS_KEPT = 65_536
STALE_SLACK = 64


class Queue(Protocol):
    """Who goes next. `select` changes nothing; `commit` takes what was selected unless the queue has moved on.

    restore: a committed item comes back for another attempt, at the head of its group; never refused for want of room.
    straight: offer + select + commit of one item on an empty queue, or False (a queue may always say False).
    """

    @property
    def sequence_version(self) -> int: ...

    def offer(self, items: Iterable[QueueItem], now: float) -> Offered: ...
    def shed(self, now: float) -> tuple[Shed, ...]: ...
    def select(self, eligible: Eligible, now: float) -> Selection | None: ...
    def commit(self, selection: Selection, now: float) -> QueueItem | None: ...
    def restore(self, item: QueueItem, now: float) -> None: ...
    def straight(self, item: QueueItem, now: float) -> bool: ...
    def discard(self, item_id: str, now: float) -> QueueItem | None: ...
    def discard_where(self, pred: Callable[[QueueItem], bool], now: float) -> tuple[QueueItem, ...]: ...
    def view(self) -> QueueView: ...
    def next_deadline(self) -> float | None: ...
    def __len__(self) -> int: ...


class _Active:
    """A group with waiting items. finish: its finish tag, None before its first commit; activation: of its one live heap entry."""

    __slots__ = ("activation", "finish", "group", "head", "line", "tag")

    def __init__(self, group: Group, finish: float | None, head: QueueItem) -> None:
        self.group, self.finish, self.head = group, finish, head
        self.line: OrderedDict[str, QueueItem] = OrderedDict()
        self.tag, self.activation = 0.0, 0


class FairTaskQueue:
    """Each group is a FIFO; the group with the smallest virtual start tag goes first, ties by activation.

    State: virtual time V, a finish tag per group (kept while idle: no credit is banked), one live heap entry per active group.
    It knows membership and order only, never running work. offer, commit, discard O(log groups); select O((1 + ineligible heads) log groups).
    """

    def __init__(self) -> None:
        self.sequence_version = 0
        self.virtual_time = 0.0
        self._active: dict[str, _Active] = {}
        self._idle: OrderedDict[str, float] = OrderedDict()  # finish tags, the longest idle first
        self._heap: list[tuple[float, int, _Active]] = []
        self._where: dict[str, _Active] = {}
        self._heads: dict[ResourceVector, dict[float, int]] = {}
        self._deadlines = Deadlines()
        self._activations = 0
        self._now = float("-inf")

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
            accepted.append(item)
        if accepted:
            self.sequence_version += 1
        return Offered(tuple(accepted), tuple(duplicates))

    def _tick(self, now: float) -> None:
        if now < self._now:
            raise went_backwards(now, self._now)
        self._now = now

    def _add(self, item: QueueItem, *, front: bool = False) -> None:
        group = item.group
        active = self._active.get(group.key)
        if active is None:
            active = self._active[group.key] = _Active(group, self._idle.pop(group.key, None), item)
            self._count_head(item.resources, group.weight, 1)
            self._enter(active, self.virtual_time if active.finish is None else active.finish)
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

    def _enter(self, active: _Active, tag: float) -> None:
        """The group's next place in the order; an older heap entry of it is stale from now on."""
        self._activations += 1
        active.tag, active.activation = tag, self._activations
        heap, entry = self._heap, (tag, self._activations, active)
        if heap and heap[0][2] is active:
            heapreplace(heap, entry)
            return
        heappush(heap, entry)
        if len(heap) > STALE_SLACK + 2 * len(self._active):
            self._heap = [e for e in heap if e[2].activation == e[1]]
            heapify(self._heap)

    def shed(self, now: float) -> tuple[Shed, ...]:
        return ()

    def select(self, eligible: Eligible, now: float) -> Selection | None:
        """The first eligible head in order of (tag, activation); nothing changes, whatever `eligible` does."""
        if now < self._now:
            raise went_backwards(now, self._now)
        heap, view = self._heap, QueueView(self, self.sequence_version)
        passed: list[tuple[float, int, _Active]] = []
        try:
            while heap:
                _, activation, active = heap[0]
                if active.activation != activation:
                    heappop(heap)
                elif eligible(active.head, view):
                    return Selection(active.head, view, self.sequence_version)
                else:
                    passed.append(heappop(heap))
        finally:
            for entry in passed:
                heappush(heap, entry)
        return None

    def commit(self, selection: Selection, now: float) -> QueueItem | None:
        """Take the selected item; None if the queue has moved on since, or the item is not its group's head."""
        self._tick(now)
        active = self._where.get(selection.item.id)
        if selection.sequence_version != self.sequence_version or active is None or active.head.id != selection.item.id:
            return None
        item = active.head
        start = self.virtual_time if active.finish is None else active.finish
        if start > self.virtual_time:
            self.virtual_time = start
        active.finish = self.virtual_time + item.cost / active.group.weight
        self._remove(active, item)
        if active.line:
            self._enter(active, active.finish)
        return item

    def _remove(self, active: _Active, item: QueueItem) -> None:
        line = active.line
        del line[item.id], self._where[item.id]
        self.sequence_version += 1
        if item.deadline is not None:
            self._deadlines.remove(item.id)
        if not line:
            self._deactivate(active)
        elif active.head is item:
            self._head_changes(active, next(iter(line.values())), active.group.weight)

    def _deactivate(self, active: _Active) -> None:
        """The group is idle: its finish tag stays, unless too many groups are idle."""
        self._count_head(active.head.resources, active.group.weight, -1)
        active.activation = 0
        if self._heap[0][2] is active:
            heappop(self._heap)
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

    def _head_changes(self, active: _Active, head: QueueItem, weight: float) -> None:
        old = active.head
        if old.resources != head.resources or active.group.weight != weight:
            self._count_head(old.resources, active.group.weight, -1)
            self._count_head(head.resources, weight, 1)
        active.head = head

    def _count_head(self, shape: ResourceVector, weight: float, by: int) -> None:
        weights = self._heads.setdefault(shape, {})
        weights[weight] = weights.get(weight, 0) + by
        if not weights[weight]:
            del weights[weight]
            if not weights:
                del self._heads[shape]

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
        if now < self._now:
            raise went_backwards(now, self._now)
        self._now = now
        self.sequence_version += 2
        self._activations += 1
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
        active = self._where.get(item_id)
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
        return {shape: HeadStats(sum(weights.values()), dict(weights)) for shape, weights in self._heads.items()}

    def next_deadline(self) -> float | None:
        """The earliest deadline that waits, run s."""
        first = self._deadlines.first()
        return None if first is None else first[0]


@dataclass(frozen=True, slots=True)
class Fair:
    """Config of the fair queue: no parameters; weights come from `control.tenants`."""

    def build(self, ctx: BuildContext) -> FairTaskQueue:
        for tenant, weight in ctx.tenants.items():
            check_number(f"tenants.{tenant}.weight", weight, above=0.0)
        return FairTaskQueue()
