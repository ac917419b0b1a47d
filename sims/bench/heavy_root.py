"""Bounded borrowing against strict sharing: a heavy root group, and a peer that arrives a moment later.

    python sims/bench/heavy_root.py

Two clocks, one controller: float seconds (completion = dispatch + duration, unequal floats are different instants), and integer
ticks of 50 ms. Per instant: completions, then arrivals, then dispatch until nothing may start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from windtunnel.policy.queueing.fair import FairTaskQueue
from windtunnel.policy.queueing.item import Group, QueueItem
from windtunnel.policy.tasks.admission import TaskAdmissionConfig, TaskAdmissionController
from windtunnel.policy.tasks.bounded_borrow import BoundedBorrow
from windtunnel.policy.tasks.decision import TaskAdmissionPolicy
from windtunnel.policy.tasks.resources import TaskLease
from windtunnel.policy.tasks.strict import Strict

CAPACITY = 8
TICK_S = 0.05
RESOURCES = (("submission", 1), ("llm_wait", 1))


@dataclass(frozen=True, slots=True)
class Load:
    """Tasks of one group, all ready at `at_s`."""

    name: str
    tasks: int
    duration_s: float
    weight: float
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """Times in s. waits: first, mean, p50, p95, max of the last group; idle_s: per group, time with none of its tasks running;
    first_before: tasks of the first group dispatched before the last one's first; max_debt: most `llm_wait` owed at once."""

    wall_s: float
    waits: tuple[float, float, float, float, float]
    idle_s: tuple[float, ...]
    first_before: int
    max_debt: int
    open_leases: int
    queued: int


def heavy_root(weights: tuple[float, float] = (4.0, 1.0)) -> tuple[Load, ...]:
    """512 x 0.5 s at 0, and 256 x 0.05 s that arrive at 0.05 s."""
    return Load("hot", 512, 0.5, weights[0]), Load("peer", 256, 0.05, weights[1], 0.05)


NEUTRAL = (Load("root", 256, 0.1, 1.0), Load("peer", 256, 0.1, 1.0))


def percentile(ordered: Sequence[float], q: float) -> float:
    return ordered[round((len(ordered) - 1) * q)]


def simulate(loads: Sequence[Load], policy: TaskAdmissionPolicy, *, ticks: bool = False) -> Result:
    """Run the loads to their end. ticks: integer time, so that equal instants are equal."""
    scale = TICK_S if ticks else 1.0
    at = {load.name: round(load.at_s / TICK_S) if ticks else load.at_s for load in loads}
    lasts = {load.name: round(load.duration_s / TICK_S) if ticks else load.duration_s for load in loads}
    controller = TaskAdmissionController(TaskAdmissionConfig(CAPACITY, {"llm_wait": CAPACITY}, policy))
    queue, books = FairTaskQueue(), controller.view()
    arrivals = sorted(loads, key=lambda load: at[load.name])
    ends: list[tuple[float, int, TaskLease]] = []
    waits: dict[str, list[float]] = {load.name: [] for load in loads}
    idle = {load.name: 0.0 for load in loads}
    now: float = 0
    first_before = max_debt = n = 0
    while arrivals or ends or len(queue):
        instant = min(t for t in (ends[0][0] if ends else None, at[arrivals[0].name] if arrivals else None) if t is not None)
        for load in loads:
            idle[load.name] += 0.0 if books.running.get(load.name) else instant - now
        now = instant
        while ends and ends[0][0] <= now:
            controller.release(heappop(ends)[2], now)
        while arrivals and at[arrivals[0].name] <= now:
            load = arrivals.pop(0)
            group = Group(load.name, load.weight, CAPACITY)
            queue.offer([QueueItem(f"{load.name}-{i}", group, RESOURCES) for i in range(load.tasks)], now)
        while (selection := queue.select(controller.is_eligible, now)) is not None:
            item = selection.item
            lease = controller.try_acquire(item, selection.queue_view, now)
            assert isinstance(lease, TaskLease) and queue.commit(selection, now) is item
            key = item.group.key
            n += 1
            if key == loads[0].name and not waits[loads[-1].name]:
                first_before += 1
            waits[key].append((now - at[key]) * scale)
            heappush(ends, (now + lasts[key], n, lease))
            max_debt = max(max_debt, *(books.debt.get(k, {}).get("llm_wait", 0) for k in idle))
    peer = waits[loads[-1].name]
    ordered = sorted(peer)
    stats = (peer[0], sum(peer) / len(peer), percentile(ordered, 0.5), percentile(ordered, 0.95), ordered[-1])
    return Result(now * scale, stats, tuple(s * scale for s in idle.values()), first_before, max_debt, len(controller.active), len(queue))


def main() -> None:
    rows: list[tuple[str, TaskAdmissionPolicy, bool, tuple[float, float]]] = [
        ("strict", Strict(), False, (4, 1)), ("bounded, float clock", BoundedBorrow(), False, (4, 1)),
        ("bounded", BoundedBorrow(), True, (4, 1)), ("bounded, weights 1:1", BoundedBorrow(), True, (1, 1)),
        ("bounded, floor rounding", BoundedBorrow(strict_share_rounding="floor"), True, (4, 1)),
        ("bounded, reserve 0.25", BoundedBorrow(dynamic_borrow_reserve_fraction=0.25), True, (4, 1)),
        ("bounded, no borrowing", BoundedBorrow(default_borrow_ceiling=0), True, (4, 1)),
    ]
    print(f"{'policy':<26}{'wall s':>8}{'first':>8}{'mean':>9}{'p50':>8}{'p95':>8}{'max':>8}{'idle s':>9}{'debt':>6}")
    for name, policy, ticks, weights in rows:
        r = simulate(heavy_root(weights), policy, ticks=ticks)
        first, *rest = r.waits
        print(f"{name:<26}{r.wall_s:8.2f}{first:8.2f}{rest[0]:9.4f}{rest[1]:8.2f}{rest[2]:8.2f}{rest[3]:8.2f}{sum(r.idle_s):9.2f}{r.max_debt:6d}")


if __name__ == "__main__":
    main()
