"""Scheduling decisions beside one heap push and pop: ratios, so that a slow machine does not fail them and a quadratic loop does.

    python sims/bench/scheduling.py [--quick]

U is the median time of one heappush + heappop on a heap of 256 triples, measured in this process. Each row is the best of five
repeats' medians. A row is made by a function that returns `Row`s; ROWS lists them.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush

from windtunnel.events import Arrived, Finished, ReplicaReady, Request
from windtunnel.policy.presets import default_control
from windtunnel.policy.queueing.fair import FairTaskQueue
from windtunnel.policy.queueing.item import Group, QueueItem
from windtunnel.policy.queueing.vtc import Vtc, VtcQueue
from windtunnel.policy.tasks.admission import TaskAdmissionConfig, TaskAdmissionController
from windtunnel.policy.tasks.bounded_borrow import BoundedBorrow
from windtunnel.policy.tasks.resources import TaskLease

REPEATS = 5
CAPACITY, IN_FLIGHT = 256, 128
RESOURCES = (("submission", 1), ("llm_wait", 1))
GROUP_COUNTS = (1, 8, 64, 256, 4096)


@dataclass(frozen=True, slots=True)
class Row:
    """One measured cost in units of U (or of `unit`). bar: the most it may be, None: for information; p95 likewise."""

    name: str
    cost_u: float
    bar_u: float | None = None
    p95_u: float | None = None
    unit: str = "U"

    @property
    def passed(self) -> bool:
        return self.bar_u is None or (self.cost_u <= self.bar_u and (self.p95_u is None or self.p95_u <= 2 * self.bar_u))


def unit_s() -> float:
    """U, s: best of five medians over 2000 pairs, in batches of 20."""
    heap = [(float(i * 7919 % 256), i, None) for i in range(256)]
    heap.sort()
    medians = []
    for _ in range(REPEATS):
        took = []
        for n in range(100):
            start = time.perf_counter()
            for k in range(20):
                heappush(heap, (float((n * 20 + k) * 31 % 256), n * 20 + k + 1000, None))
                heappop(heap)
            took.append((time.perf_counter() - start) / 20)
        medians.append(statistics.median(took))
    return min(medians)


def items_of(tasks: int, groups: int) -> list[QueueItem]:
    """Tasks dealt out to groups of weights 1 to 4."""
    of = [Group(f"g{i}", float(1 + i % 4), CAPACITY) for i in range(groups)]
    return [QueueItem(f"t{n}", of[n % groups], RESOURCES) for n in range(tasks)]


def fresh() -> tuple[FairTaskQueue, TaskAdmissionController]:
    return FairTaskQueue(), TaskAdmissionController(TaskAdmissionConfig(CAPACITY, {"llm_wait": CAPACITY}, BoundedBorrow()))


def cycles(tasks: int, groups: int) -> list[float]:
    """Seconds of each select + try_acquire + commit while 128 tasks run."""
    queue, controller = fresh()
    queue.offer(items_of(tasks, groups), 0.0)
    running: deque[TaskLease] = deque()
    took: list[float] = []
    clock = time.perf_counter
    for _ in range(tasks):
        if len(running) >= IN_FLIGHT:
            controller.release(running.popleft(), 0.0)
        start = clock()
        selection = queue.select(controller.is_eligible, 0.0)
        if selection is not None:
            lease = controller.try_acquire(selection.item, selection.queue_view, 0.0)
            queue.commit(selection, 0.0)
        took.append(clock() - start)
        if selection is None:  # all are at their share: the oldest end first
            controller.release(running.popleft(), 0.0)
        else:
            running.append(lease)  # type: ignore[arg-type]
    return took


def quiet(measure: Callable[[], Sequence[float]]) -> list[float]:
    """Sorted times of one repeat, without garbage collection."""
    gc.collect()
    gc.disable()
    try:
        return sorted(measure())
    finally:
        gc.enable()


def best(measure: Callable[[], Sequence[float]], unit: float, repeats: int = REPEATS) -> tuple[float, float]:
    """Smallest median and the p95 of that repeat, in U."""
    found = [quiet(measure) for _ in range(repeats)]
    return min((took[len(took) // 2] / unit, took[int(len(took) * 0.95)] / unit) for took in found)


def side_by_side(first: Callable[[], Sequence[float]], second: Callable[[], Sequence[float]], unit: float, repeats: int) -> tuple[float, float]:
    """Smallest medians of two measures taken in turn, in U: a machine that changes its speed changes both."""
    pairs = [(quiet(first), quiet(second)) for _ in range(repeats)]
    return tuple(min(took[len(took) // 2] for took in side) / unit for side in zip(*pairs))  # type: ignore[return-value]


def task_cycle(unit: float, *, quick: bool) -> list[Row]:
    """select + try_acquire + commit, bounded borrow, by number of groups."""
    n, repeats = 2_000 if quick else 10_000, 3 if quick else REPEATS
    bars = {1: 22.0, 256: 44.0}
    rows = []
    for groups in GROUP_COUNTS:
        cost, p95 = best(partial(cycles, n, groups), unit, repeats)
        rows.append(Row(f"task cycle, {n} tasks, {groups} groups", cost, bars.get(groups), p95))
    return rows


def task_growth(unit: float, *, quick: bool) -> list[Row]:
    """Ten times the tasks, and 1024 groups against 64."""
    n, repeats, rows = 2_000 if quick else 10_000, 3 if quick else REPEATS, []
    for groups in (1, 256):
        small, large = side_by_side(partial(cycles, n, groups), partial(cycles, 10 * n, groups), unit, repeats)
        rows.append(Row(f"task cycle, {10 * n} tasks, {groups} groups (+10 % over {n})", large, 1.1 * small))
    small, large = side_by_side(partial(cycles, n, 64), partial(cycles, n, 1024), unit, repeats)
    return [*rows, Row("task cycle, 1024 groups (1.5 x that of 64)", large, 1.5 * small)]


def offers(tasks: int = 20_000) -> list[float]:
    """Seconds per task of offers in batches of 1000 over 64 groups."""
    items, queue, took = items_of(tasks, 64), FairTaskQueue(), []
    for i in range(0, tasks, 1000):
        start = time.perf_counter()
        queue.offer(items[i : i + 1000], 0.0)
        took.append((time.perf_counter() - start) / 1000)
    return took


def blocked() -> list[float]:
    """Seconds of a select over 256 groups of which nobody may start."""
    queue, controller = fresh()
    queue.offer([QueueItem(f"x{n}", Group("x"), RESOURCES) for n in range(CAPACITY)], 0.0)
    while (selection := queue.select(controller.is_eligible, 0.0)) is not None:
        controller.try_acquire(selection.item, selection.queue_view, 0.0)
        queue.commit(selection, 0.0)
    queue.offer(items_of(2560, 256), 0.0)
    took = []
    for _ in range(50):
        start = time.perf_counter()
        assert queue.select(controller.is_eligible, 0.0) is None
        took.append(time.perf_counter() - start)
    return took


def offer_and_blocked(unit: float, *, quick: bool) -> list[Row]:
    """What queueing costs, and what a wake costs that starts nothing."""
    return [Row("offer, per task in batches of 1000", best(offers, unit)[0], 3.0),
            Row("select over 256 blocked groups", best(blocked, unit)[0], 600.0)]


def charges(clients: int = 10_000) -> list[float]:
    """Seconds of telling the token counter of one running request's progress, with a request of each client running and one waiting."""
    queue = VtcQueue(Vtc())
    for n in range(clients):
        for k in range(2):
            request = Request(f"r{n}-{k}", f"c{n}", "m", 0, 0.0, 10, 64)
            queue.offer([QueueItem(request.id, Group(f"c{n}"), request=request)], 0.0)
    running = []
    for _ in range(clients):
        selection = queue.select(lambda item, view: True, 0.0)
        assert selection is not None
        running.append(queue.commit(selection, 0.0))
    took = []
    for n, item in enumerate(running):
        start = time.perf_counter()
        queue.charge(item.id, 1 + n % 32, 0.0)  # type: ignore[union-attr]
        took.append(time.perf_counter() - start)
    return took


def idle_bytes(groups: int = 50_000) -> float:
    """Bytes that a group leaves behind in the fair queue when it is idle, beyond its key."""
    queue = FairTaskQueue()
    keys = [f"tenant-{n}" for n in range(groups)]
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for key in keys:
        queue.offer([QueueItem(key, Group(key))], 0.0)
        selection = queue.select(lambda item, view: True, 0.0)
        assert selection is not None and queue.commit(selection, 0.0) is not None
    del selection
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) / groups


def crowd(tenants: int) -> tuple[float, float, float]:
    """Tenants of one request each through a control: seconds per tenant in the first and the last tenth, bytes that stay of each."""
    control = default_control(["x"], cap=4)
    control.handle(ReplicaReady("x-0", "x", slots=4), 0.0)
    marks, before = [], resident_bytes()
    gc.collect()
    gc.disable()  # as the simulation does it; a collection looks at all that is alive, whatever one tenant costs
    for n in range(tenants):
        if n in (0, tenants // 10, tenants - tenants // 10):
            marks.append(time.perf_counter())
        control.handle(Arrived(Request(f"r{n}", f"tenant-{n}", "m", 0, n * 1e-3, 1, 1)), n * 1e-3)
        control.handle(Finished(f"r{n}", 1, "x-0", 1), n * 1e-3)
    end, share = time.perf_counter(), tenants // 10
    gc.enable()
    assert control.open_count == 0
    return (marks[1] - marks[0]) / share, (end - marks[2]) / share, (resident_bytes() - before) / tenants


def waiting_crowd(tenants: int) -> tuple[float, float, float]:
    """The same, all waiting at once in the fair queue: seconds to offer and to take one, bytes of one that waits."""
    queue, before = FairTaskQueue(), resident_bytes()
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    for n in range(tenants):
        queue.offer([QueueItem(f"i{n}", Group(f"tenant-{n}"))], 0.0)
    middle, held = time.perf_counter(), resident_bytes()
    while (selection := queue.select(lambda item, view: True, 0.0)) is not None:
        queue.commit(selection, 0.0)
    gc.enable()
    return (middle - start) / tenants, (time.perf_counter() - middle) / tenants, (held - before) / tenants


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def tenants(unit: float, *, quick: bool) -> list[Row]:
    """Charges beside many clients, what an idle group keeps, and tenants of one request each (a million, if there is time)."""
    n = 100_000 if quick else 1_000_000
    first, last, kept = crowd(n)
    offer, take, held = waiting_crowd(n)
    return [Row("token counter: a charge beside 10 000 clients", best(charges, unit, 3)[0], 10.0),
            Row("fair queue: what an idle group keeps, bytes", idle_bytes(), 200.0, unit="B"),
            Row(f"control, {n} tenants: the last ones (1.5 x the first)", last / unit, 1.5 * first / unit),
            Row(f"control, {n} tenants: what each leaves behind", kept, 2048.0, unit="B"),
            Row(f"fair queue, {n} tenants wait: make and offer one", offer / unit, 100.0),
            Row(f"fair queue, {n} tenants wait: take one", take / unit, 120.0),
            Row(f"fair queue, {n} tenants wait: one of them", held, 2048.0, unit="B")]


ROWS: list[Callable[..., list[Row]]] = [task_cycle, task_growth, offer_and_blocked, tenants]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer tasks and repeats")
    quick = parser.parse_args().quick
    unit = unit_s()
    print(f"U = {unit * 1e6:.3f} us")
    rows = [row for make in ROWS for row in make(unit, quick=quick)]
    for row in rows:
        bar = "" if row.bar_u is None else f"   bar {row.bar_u:6.1f} {row.unit}   {'ok' if row.passed else 'ABOVE'}"
        p95 = "" if row.p95_u is None else f"  p95 {row.p95_u:7.1f} U"
        print(f"{row.name:<58}{row.cost_u:8.1f} {row.unit}{p95}{bar}")
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
