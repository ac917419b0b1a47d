"""Which tasks may start because everything they need is there: counters per row group and column, never a rescan of rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from windtunnel.errors import ConfigPipelineError, PolicyError
from windtunnel.policy.tasks.graph import Column, Graph
from windtunnel.policy.tasks.task import Task, task_id


@dataclass(frozen=True, slots=True)
class FrontierDelta:
    """Tasks that became ready, and open tasks (ready or enqueued) that are no longer wanted."""

    added: tuple[Task, ...] = ()
    removed: tuple[Task, ...] = ()


NO_DELTA = FrontierDelta()


class ColumnState:
    """One column of one row group.

    done: flag per row; count: rows done and not dropped; missing: per row, cell upstreams not done (cell columns);
    whole_left: upstreams of which the whole column must be complete and is not; parked: rows that wait for those alone.
    """

    __slots__ = ("complete", "count", "done", "missing", "parked", "whole_left")

    def __init__(self, column: Column, columns: Mapping[str, Column], size: int) -> None:
        per_row = 0 if column.whole else sum(not columns[u].whole for u in column.upstreams)
        self.done = bytearray(0 if column.whole else size)
        self.count = 0
        self.missing = [per_row] * (0 if column.whole else size)
        self.whole_left = len(column.upstreams) - per_row
        self.parked: list[int] = list(range(size)) if not column.whole and per_row == 0 and self.whole_left else []
        self.complete = False


class RowGroup:
    """The state of one row group: live rows are those not dropped."""

    __slots__ = ("columns", "columns_left", "dropped", "id", "live", "size")

    def __init__(self, rg: int, size: int, graph: Graph) -> None:
        self.id, self.size, self.live = rg, size, size
        self.dropped = bytearray(size)
        self.columns = {name: ColumnState(graph.columns[name], graph.columns, size) for name in graph.order}
        self.columns_left = len(graph.order)

    @property
    def complete(self) -> bool:
        return not self.columns_left or not self.live


class CompletionTracker:
    """The dependency frontier of a pipeline. row_groups: rows by row group. Raises ConfigPipelineError for a size that is no int >= 1.

    Each mark costs O(downstream columns + tasks it makes ready); a drop O(columns). A group without a live row is complete.
    """

    def __init__(self, graph: Graph, row_groups: Mapping[int, int]) -> None:
        for rg, size in row_groups.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ConfigPipelineError(f"row group {rg}: expected a size >= 1, got {size!r}")
        self.graph, self.row_groups = graph, dict(row_groups)
        self._groups: dict[int, RowGroup] = {}
        self._finished: dict[int, tuple[bool, bytes]] = {}
        self._frontier: dict[str, Task] = {}
        self._enqueued: dict[str, Task] = {}
        self._added: list[Task] = []
        self._removed: list[Task] = []

    # -- marks ------------------------------------------------------------------------------------------------------------------------

    def add_root_tasks(self, rg: int) -> FrontierDelta:
        """Open a row group: its roots are ready. A second call changes nothing."""
        if rg not in self.row_groups:
            raise PolicyError(f"there is no row group {rg!r}")
        if rg in self._groups or rg in self._finished:
            return NO_DELTA
        group = self._groups[rg] = RowGroup(rg, self.row_groups[rg], self.graph)
        for name in self.graph.order:
            column = self.graph.columns[name]
            if not column.upstreams:
                for row in [None] if column.whole else range(group.size):
                    self._ready(group, name, row)
        return self._delta()

    def mark_cell_complete(self, column: str, rg: int, row: int) -> FrontierDelta:
        """A cell is there. Nothing for a repeat, a dropped row or a row group that was compacted."""
        group = self._group(column, rg, row, whole=False)
        if group is None or group.dropped[row] or group.columns[column].done[row]:
            return NO_DELTA
        self._complete_cell(group, column, row)
        return self._delta()

    def mark_range_complete(self, column: str, rg: int) -> FrontierDelta:
        """The whole column of a row group is there (of a cell column: all its live rows)."""
        group = self._group(column, rg, 0, whole=None)
        if group is None or group.columns[column].complete:
            return NO_DELTA
        if self.graph.columns[column].whole:
            self._close(group, column, None)
            self._complete_column(group, column)
        else:
            done = group.columns[column].done
            for row in range(group.size):
                if not done[row] and not group.dropped[row]:
                    self._complete_cell(group, column, row)
        return self._delta()

    def drop_row(self, rg: int, row: int) -> FrontierDelta:
        """Give a row up: its open cells are removed, and batches that waited for it alone become ready."""
        group = self._group(self.graph.order[0], rg, row, whole=None)
        if group is None or group.dropped[row]:
            return NO_DELTA
        group.dropped[row] = 1
        group.live -= 1
        cells = [name for name in self.graph.order if not self.graph.columns[name].whole]
        for name in cells:
            state = group.columns[name]
            state.count -= state.done[row]
            self._close(group, name, row, report=True)
        if not group.live:
            self._close_all(group)
            return self._delta()
        for name in cells:
            state = group.columns[name]
            if not state.complete and state.count == group.live:
                self._complete_column(group, name)
        return self._delta()

    def _group(self, column: str, rg: int, row: int, *, whole: bool | None) -> RowGroup | None:
        known = self.graph.columns.get(column)
        if known is None or (whole is not None and known.whole != whole):
            raise PolicyError(f"the pipeline has no {'cell ' if whole is False else ''}column {column!r}")
        if rg not in self.row_groups or not 0 <= row < self.row_groups[rg]:
            raise PolicyError(f"there is no row {row!r} in row group {rg!r}")
        group = self._groups.get(rg)
        if group is None and rg not in self._finished:
            raise PolicyError(f"row group {rg!r} was not opened")
        return group

    def _complete_cell(self, group: RowGroup, column: str, row: int) -> None:
        state = group.columns[column]
        state.done[row] = 1
        state.count += 1
        self._close(group, column, row)
        for name in self.graph.downstream[column]:
            if self.graph.columns[name].whole:
                continue
            below = group.columns[name]
            below.missing[row] -= 1
            if not below.missing[row]:
                if below.whole_left:
                    below.parked.append(row)
                else:
                    self._ready(group, name, row)
        if state.count == group.live:
            self._complete_column(group, column)

    def _complete_column(self, group: RowGroup, column: str) -> None:
        """Complete columns stay so: dropping rows takes nothing from them."""
        group.columns[column].complete = True
        group.columns_left -= 1
        whole = self.graph.columns[column].whole
        for name in self.graph.downstream[column]:
            below_whole, below = self.graph.columns[name].whole, group.columns[name]
            if not whole and not below_whole:
                continue
            below.whole_left -= 1
            if below.whole_left:
                continue
            if below_whole:
                self._ready(group, name, None)
                continue
            rows, below.parked = below.parked, []
            for row in sorted(rows):
                self._ready(group, name, row)

    def _ready(self, group: RowGroup, name: str, row: int | None) -> None:
        if row is not None and group.dropped[row]:
            return
        task = Task(name, group.id, row, self.graph.columns[name].kind)
        key = task_id(task)
        self._frontier[key] = task
        self._added.append(task)

    def _close(self, group: RowGroup, name: str, row: int | None, *, report: bool = False) -> None:
        """A task is done or unwanted."""
        task = Task(name, group.id, row, self.graph.columns[name].kind)
        key = task_id(task)
        ready, queued = self._frontier.pop(key, None), self._enqueued.pop(key, None)
        if ready is not None or (report and queued is not None):
            self._removed.append(task)

    def _close_all(self, group: RowGroup) -> None:
        for name in self.graph.order:
            if self.graph.columns[name].whole:
                self._close(group, name, None, report=True)

    def _delta(self) -> FrontierDelta:
        added, removed = tuple(sorted(self._added, key=self.position)), tuple(sorted(self._removed, key=self.position))
        self._added.clear()
        self._removed.clear()
        return FrontierDelta(added, removed)

    # -- the frontier -------------------------------------------------------------------------------------------------------------------

    def position(self, task: Task) -> tuple[int, int, int]:
        """The order of tasks: row group, column, row; a whole column before its rows."""
        return task.row_group, self.graph.index[task.column], -1 if task.row_index is None else task.row_index

    def ready_frontier(self) -> list[Task]:
        """Ready tasks not yet enqueued, in order. O(n log n) in their number."""
        return sorted(self._frontier.values(), key=self.position)

    def mark_enqueued(self, ids: Iterable[str]) -> None:
        """These were taken over by a queue: they leave the frontier."""
        for key in ids:
            task = self._frontier.pop(key, None)
            if task is not None:
                self._enqueued[key] = task

    def readd(self, task: Task) -> bool:
        """An enqueued task is to be tried again; False, and nothing done, for any other."""
        key = task_id(task)
        if self._enqueued.pop(key, None) is None:
            return False
        self._frontier[key] = task
        return True

    # -- row groups -----------------------------------------------------------------------------------------------------------------------

    def is_complete(self, rg: int) -> bool:
        """Do all live rows have all columns?"""
        if rg in self._finished:
            return self._finished[rg][0]
        group = self._groups.get(rg)
        return group is not None and group.complete

    def dropped(self, rg: int) -> bytes:
        """A flag per row."""
        if rg in self._finished:
            return self._finished[rg][1]
        group = self._groups.get(rg)
        return bytes(self.row_groups[rg]) if group is None else bytes(group.dropped)

    def compact(self, rg: int) -> None:
        """Forget all of a row group but whether it is complete and which rows were dropped."""
        group = self._groups.pop(rg, None)
        if group is None:
            return
        self._finished[rg] = (group.complete, bytes(group.dropped))
        for open_tasks in (self._frontier, self._enqueued):
            for key in [k for k, t in open_tasks.items() if t.row_group == rg]:
                del open_tasks[key]
