"""The check that a task scheduler's books balance: queue, leases, amounts, debts, deferrals and row groups tell one story."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from windtunnel.errors import PolicyError
from windtunnel.policy.tasks.admission import TaskAdmissionController

if TYPE_CHECKING:
    from windtunnel.policy.tasks.board import Board


def check(board: Board) -> None:
    """Raises PolicyError naming the first sum that does not add up. O(queued + running + deferred)."""
    counts, queued, running, deferred = board.counts, len(board.queue), board.running, board.deferred
    if counts.enqueued != counts.executions + counts.discarded + queued:
        raise PolicyError(f"{counts.enqueued} tasks were queued, {counts.executions} started, {counts.discarded} discarded, {queued} wait")
    if queued != len(board.waiting) or any(key not in board.known for key in board.waiting):
        raise PolicyError(f"{len(board.waiting)} tasks are said to wait, the queue holds {queued}")
    if running.keys() != board.admission.active.keys():
        raise PolicyError(f"{len(running)} tasks run, {len(board.admission.active)} leases are out")
    waits = {entry.task_id for entry in deferred.all()}
    runs = {r.task.task_id for r in running.values() if r.wanted}
    if len(waits) != sum(deferred.by_row_group.values()) or waits & runs or waits & board.waiting.keys() or runs & board.waiting.keys():
        raise PolicyError("a task is in two places at once: queued, running or deferred")
    rows = Counter(board.known[key].payload.row_group for key in board.waiting) + Counter(r.task.payload.row_group for r in running.values())
    if rows != Counter({rg: n for rg, n in board.open.items() if n}):
        raise PolicyError(f"open tasks by row group are {dict(rows)}, counted were {dict(board.open)}")
    check_leases(board.admission)


def check_leases(admission: TaskAdmissionController) -> None:
    """Leases out are those acquired and not released; their amounts are what is missing, and nobody owes more than it holds."""
    books, active = admission.view(), admission.active
    if admission.acquired != admission.releases["released"] + len(active):
        raise PolicyError(f"{admission.acquired} leases acquired, {admission.releases['released']} released, {len(active)} out")
    used: Counter[str] = Counter()
    by_group: dict[str, Counter[str]] = {}
    for lease in active.values():
        used.update(dict(lease.resources))
        by_group.setdefault(lease.item.group.key, Counter()).update(dict(lease.resources))
    for name, limit in books.limits.items():
        if books.available[name] != limit - used[name] or books.available[name] < 0:
            raise PolicyError(f"resource {name!r}: {used[name]} of {limit} are leased, {books.available[name]} are said to be left")
    held = {key: Counter({name: n for name, n in amounts.items() if n}) for key, amounts in books.leased.items()}
    if held != by_group:
        raise PolicyError(f"groups hold {by_group}, counted were {held}")
    for key, debts in books.debt.items():
        for name, debt in debts.items():
            if not 0 <= debt <= by_group.get(key, Counter())[name]:
                raise PolicyError(f"group {key!r} owes {debt} of {name!r} and holds {by_group.get(key, Counter())[name]}")
