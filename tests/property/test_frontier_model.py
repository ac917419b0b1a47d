"""The dependency frontier against a model that rescans every row each time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from windtunnel.errors import ConfigPipelineError, PolicyError
from windtunnel.policy.tasks.frontier import CompletionTracker, FrontierDelta
from windtunnel.policy.tasks.graph import Column, Graph
from windtunnel.policy.tasks.task import Task, task_id


class Rescan:
    """Ready = wanted, not there yet, all upstreams there; found by looking at everything."""

    def __init__(self, graph: Graph, sizes: dict[int, int]) -> None:
        self.graph, self.sizes = graph, sizes
        self.cells: set[tuple[str, int, int]] = set()
        self.wholes: set[tuple[str, int]] = set()
        self.dropped: set[tuple[int, int]] = set()
        self.open: set[int] = set()

    def rows(self, rg: int) -> list[int]:
        return [row for row in range(self.sizes[rg]) if (rg, row) not in self.dropped]

    def column_there(self, name: str, rg: int) -> bool:
        if self.graph.columns[name].whole:
            return (name, rg) in self.wholes
        return all((name, rg, row) in self.cells for row in self.rows(rg))

    def ready(self) -> list[Task]:
        found = []
        for rg in sorted(self.open):
            for name in self.graph.order if self.rows(rg) else ():
                column = self.graph.columns[name]
                for row in [None] if column.whole else self.rows(rg):
                    if ((name, rg) in self.wholes) if row is None else ((name, rg, row) in self.cells):
                        continue
                    if all((u, rg, row) in self.cells if row is not None and not self.graph.columns[u].whole else self.column_there(u, rg)
                           for u in column.upstreams):
                        found.append(Task(name, rg, row, column.kind))
        return found


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    columns: list[Column] = []
    for n in range(draw(st.integers(1, 6))):
        upstreams = draw(st.lists(st.sampled_from([c.name for c in columns]), unique=True, max_size=3)) if columns else []
        columns.append(Column(f"c{n}", draw(st.sampled_from(["cell", "full_column"])), tuple(upstreams)))
    return Graph(draw(st.permutations(columns)))


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(graph=graphs(), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3), data=st.data())
def test_TS_3_and_4_equal_to_a_rescan(graph: Graph, sizes: list[int], data: st.DataObject) -> None:
    plan = dict(enumerate(sizes))
    tracker, model = CompletionTracker(graph, plan), Rescan(graph, plan)
    enqueued: dict[str, Task] = {}
    for _ in range(data.draw(st.integers(1, 40))):
        before = set(tracker.ready_frontier())
        action = data.draw(st.sampled_from(["open", "finish", "finish", "finish", "drop", "enqueue", "readd"]))
        delta = FrontierDelta()
        if action == "open":
            rg = data.draw(st.sampled_from(sorted(plan)))
            delta = tracker.add_root_tasks(rg)
            model.open.add(rg)
        elif action == "finish" and (ready := model.ready()):
            task = data.draw(st.sampled_from(ready))
            if task.row_index is None:
                delta = tracker.mark_range_complete(task.column, task.row_group)
                model.wholes.add((task.column, task.row_group))
                assert tracker.mark_range_complete(task.column, task.row_group) == FrontierDelta()
            else:
                delta = tracker.mark_cell_complete(task.column, task.row_group, task.row_index)
                model.cells.add((task.column, task.row_group, task.row_index))
                assert tracker.mark_cell_complete(task.column, task.row_group, task.row_index) == FrontierDelta()
            enqueued.pop(task_id(task), None)
        elif action == "drop" and model.open:
            rg = data.draw(st.sampled_from(sorted(model.open)))
            row = data.draw(st.integers(0, plan[rg] - 1))
            delta = tracker.drop_row(rg, row)
            model.dropped.add((rg, row))
            for task in delta.removed:
                enqueued.pop(task_id(task), None)
        elif action == "enqueue":
            taken = [t for t in tracker.ready_frontier() if data.draw(st.booleans())]
            tracker.mark_enqueued([task_id(t) for t in taken] + ["task-unknown"])
            enqueued.update({task_id(t): t for t in taken})
            before -= set(taken)
        elif action == "readd" and enqueued:
            task = data.draw(st.sampled_from(sorted(enqueued.values(), key=tracker.position)))
            assert tracker.readd(task) and not tracker.readd(task)
            del enqueued[task_id(task)]
            before.add(task)
        expected = [t for t in model.ready() if task_id(t) not in enqueued]
        assert tracker.ready_frontier() == expected
        assert set(expected) == (before - set(delta.removed)) | set(delta.added)
        for rg in model.open:
            assert tracker.is_complete(rg) == (not model.rows(rg) or all(model.column_there(name, rg) for name in graph.order))


def tracker_of(*columns: Column, **plan: int) -> CompletionTracker:
    return CompletionTracker(Graph(columns), {int(k[1:]): v for k, v in plan.items()} or {0: 2})


@pytest.mark.parametrize("columns", [
    [Column("a", "cell", ("b",)), Column("b", "cell", ("a",))], [Column("a", "cell", ("a",))], [Column("a", "cell", ("x",))],
    [Column("a"), Column("a")], [], [Column("a", "rows")], [Column("a"), Column("b", "cell", ("a", "a"))],  # type: ignore[arg-type]
    [Column("a", "cell", (), "batch")],
])
def test_TS_1_bad_graphs(columns: list[Column]) -> None:
    with pytest.raises(ConfigPipelineError):
        Graph(columns)


@pytest.mark.parametrize("size", [0, -1, True, 1.5, "3"])
def test_TS_1_bad_sizes(size: Any) -> None:
    with pytest.raises(ConfigPipelineError):
        CompletionTracker(Graph([Column("a")]), {0: size})


def test_TS_2_roots() -> None:
    tracker = tracker_of(Column("seed", "full_column"), Column("x"), r0=2, r7=1)
    assert tracker.add_root_tasks(0).added == (Task("seed", 0, None, "from_scratch"), Task("x", 0, 0, "cell"), Task("x", 0, 1, "cell"))
    assert tracker.add_root_tasks(0) == FrontierDelta()
    with pytest.raises(PolicyError):
        tracker.add_root_tasks(3)
    for call in (lambda: tracker.mark_cell_complete("nobody", 0, 0), lambda: tracker.mark_cell_complete("x", 0, 2),
                 lambda: tracker.mark_cell_complete("seed", 0, 0), lambda: tracker.mark_cell_complete("x", 7, 0)):
        with pytest.raises(PolicyError):
            call()


def test_TS_3_dropping_the_last_missing_row_readies_the_batch() -> None:
    tracker = tracker_of(Column("x"), Column("all", "full_column", ("x",)), Column("y", "cell", ("x", "all")), r0=3)
    tracker.add_root_tasks(0)
    tracker.mark_cell_complete("x", 0, 0)
    assert tracker.mark_cell_complete("x", 0, 1) == FrontierDelta((), (Task("x", 0, 1, "cell"),))
    delta = tracker.drop_row(0, 2)
    assert delta == FrontierDelta((Task("all", 0, None, "batch"),), (Task("x", 0, 2, "cell"),))
    assert tracker.mark_range_complete("all", 0).added == (Task("y", 0, 0, "cell"), Task("y", 0, 1, "cell"))
    tracker.drop_row(0, 0)
    assert tracker.drop_row(0, 1).removed == (Task("y", 0, 1, "cell"),) and tracker.is_complete(0)


def test_TS_4_compact_keeps_completion_and_the_drop_mask() -> None:
    tracker = tracker_of(Column("x"), r0=2)
    tracker.add_root_tasks(0)
    tracker.drop_row(0, 1)
    tracker.mark_cell_complete("x", 0, 0)
    tracker.compact(0)
    tracker.compact(0)
    assert tracker.is_complete(0) and tracker.dropped(0) == b"\x00\x01"
    assert tracker.mark_cell_complete("x", 0, 0) == tracker.drop_row(0, 0) == tracker.add_root_tasks(0) == FrontierDelta()
    assert tracker.ready_frontier() == []


def test_TS_5_a_mark_touches_no_other_row() -> None:
    """100 000 rows, marked one by one, in well under the time of one rescan each (1e10 steps)."""
    rows = 100_000
    tracker = tracker_of(Column("x"), Column("y", "cell", ("x",)), Column("all", "full_column", ("y",)), r0=rows)
    tracker.add_root_tasks(0)
    for row in range(0, rows, 50):
        assert len(tracker.mark_cell_complete("x", 0, row).added) == 1
    assert len(tracker.ready_frontier()) == rows
