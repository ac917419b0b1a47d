"""Start-time fair queueing over groups (Goyal, Vin, Cheng: "Start-time fair queueing", SIGCOMM 1996), with real weights and costs."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, Protocol

from windtunnel.policy.param import BuildContext, check_number
from windtunnel.policy.queueing.item import Group, Offered, QueueItem, QueueView, Selection, Shed

Eligible = Callable[[QueueItem, QueueView], bool]
IDLE_GROUPS_KEPT = 65_536


class Queue(Protocol):
    """Who goes next. `select` changes nothing; `commit` takes what was selected unless the queue has moved on."""

    sequence_version: int

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


class FairTaskQueue:
    """Each group is a FIFO; the group with the smallest virtual start tag goes first, ties by activation, then key.

    State: virtual time V, a finish tag F per group (kept while idle: no credit is banked), one heap entry per active group.
    offer, commit, discard O(log groups); select O((1 + ineligible heads) log groups).
    """

    def __init__(self) -> None:
        self.sequence_version = 0
        self.virtual_time = 0.0
        self._finish: dict[str, float] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._items: dict[str, deque[QueueItem]] = {}
        self._groups: dict[str, Group] = {}
        self._tags: dict[str, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._where: dict[str, str] = {}
        self._activations = 0

    def __len__(self) -> int:
        return len(self._where)

    def offer(self, items: Iterable[QueueItem], now: float) -> Offered:
        accepted, duplicates = [], []
        for item in items:
            if item.id in self._where:
                duplicates.append(item.id)
                continue
            self._add(item)
            accepted.append(item)
        if accepted:
            self.sequence_version += 1
        return Offered(tuple(accepted), tuple(duplicates))

    def _add(self, item: QueueItem, *, front: bool = False) -> None:
        key = item.group.key
        self._groups[key] = item.group
        self._where[item.id] = key
        fifo = self._items.get(key)
        if fifo is None:
            self._items[key] = deque((item,))
            self._idle.pop(key, None)
            self._activate(key, self._finish.get(key, self.virtual_time))
        elif front:
            fifo.appendleft(item)
        else:
            fifo.append(item)

    def _activate(self, key: str, tag: float) -> None:
        self._activations += 1
        self._tags[key] = (tag, self._activations)
        heappush(self._heap, (tag, self._activations, key))

    def shed(self, now: float) -> tuple[Shed, ...]:
        return ()

    def select(self, eligible: Eligible, now: float) -> Selection | None:
        heap, tags = self._heap, self._tags
        view = self.view()
        passed: list[tuple[float, int, str]] = []
        found: QueueItem | None = None
        try:
            while heap:
                entry = heap[0]
                if tags.get(entry[2]) != (entry[0], entry[1]):
                    heappop(heap)
                    continue
                head = self._items[entry[2]][0]
                if eligible(head, view):
                    found = head
                    break
                passed.append(heappop(heap))
        finally:
            for entry in passed:
                heappush(heap, entry)
        return None if found is None else Selection(found, view, self.sequence_version)

    def commit(self, selection: Selection, now: float) -> QueueItem | None:
        item = selection.item
        if selection.sequence_version != self.sequence_version or self._where.get(item.id) != item.group.key:
            return None
        key = item.group.key
        fifo = self._items[key]
        if fifo[0].id != item.id:
            return None
        fifo.popleft()
        del self._where[item.id]
        self.sequence_version += 1
        self._charge(key, item.cost)
        if fifo:
            self._activate(key, self._finish[key])
        else:
            self._deactivate(key)
        return item

    def _charge(self, key: str, cost: float) -> None:
        start = self._finish.get(key, self.virtual_time)
        if start > self.virtual_time:
            self.virtual_time = start
        self._finish[key] = self.virtual_time + cost / self._groups[key].weight

    def _deactivate(self, key: str) -> None:
        """The group is idle: its tag stays, unless too many groups are idle."""
        del self._items[key], self._groups[key]
        self._tags.pop(key, None)
        self._idle[key] = None
        if len(self._idle) > IDLE_GROUPS_KEPT:
            forgotten, _ = self._idle.popitem(last=False)
            self._finish.pop(forgotten, None)

    def restore(self, item: QueueItem, now: float) -> None:
        """An item that was committed comes back for another attempt, at the head of its group."""
        self._add(item, front=True)
        self.sequence_version += 1

    def straight(self, item: QueueItem, now: float) -> bool:
        """offer + select + commit in one, on an empty queue."""
        if self._where:
            return False
        key, finish = item.group.key, self._finish
        self.sequence_version += 2
        self._activations += 1
        start = finish.get(key, self.virtual_time)
        if start > self.virtual_time:
            self.virtual_time = start
        finish[key] = self.virtual_time + item.cost / item.group.weight
        idle = self._idle
        if key in idle:
            idle.move_to_end(key)
        else:
            idle[key] = None
            if len(idle) > IDLE_GROUPS_KEPT:
                finish.pop(idle.popitem(last=False)[0], None)
        return True

    def discard(self, item_id: str, now: float) -> QueueItem | None:
        key = self._where.pop(item_id, None)
        if key is None:
            return None
        fifo = self._items[key]
        item = next(i for i in fifo if i.id == item_id)
        fifo.remove(item)
        self.sequence_version += 1
        if not fifo:
            self._deactivate(key)
        return item

    def discard_where(self, pred: Callable[[QueueItem], bool], now: float) -> tuple[QueueItem, ...]:
        doomed = [item for fifo in self._items.values() for item in fifo if pred(item)]
        for item in doomed:
            self.discard(item.id, now)
        return tuple(doomed)

    def view(self) -> QueueView:
        return QueueView(self, self._read, self.sequence_version)

    def _read(self) -> Mapping[str, Any]:
        demand: dict[str, int] = {}
        for fifo in self._items.values():
            for item in fifo:
                for resource, amount in item.resources:
                    demand[resource] = demand.get(resource, 0) + amount
        return {
            "queued_total": len(self._where), "queued_by_group": {k: len(f) for k, f in self._items.items()},
            "queued_demand_by_group": {k: sum(i.cost for i in f) for k, f in self._items.items()},
            "head_by_group": {k: f[0] for k, f in self._items.items()}, "demand_by_resource": demand,
        }

    def next_deadline(self) -> float | None:
        return min((i.deadline for f in self._items.values() for i in f if i.deadline is not None), default=None)


@dataclass(frozen=True, slots=True)
class Fair:
    """Config of the fair queue: no parameters; weights come from `control.tenants`."""

    def build(self, ctx: BuildContext) -> FairTaskQueue:
        for tenant, weight in ctx.tenants.items():
            check_number(f"tenants.{tenant}.weight", weight, above=0.0)
        return FairTaskQueue()
