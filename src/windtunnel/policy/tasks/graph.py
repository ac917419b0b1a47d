"""The columns of a pipeline and who needs whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from windtunnel.errors import ConfigPipelineError
from windtunnel.policy.tasks.task import TASK_TYPES, TaskType


@dataclass(frozen=True, slots=True)
class Column:
    """strategy: one task per row (`cell`) or one per row group (`full_column`); upstreams: columns that must be there before.

    task_type: of a full column's tasks; left out: from_scratch for a root, batch for all others.
    """

    name: str
    strategy: Literal["cell", "full_column"] = "cell"
    upstreams: tuple[str, ...] = ()
    task_type: TaskType | None = None

    @property
    def whole(self) -> bool:
        return self.strategy == "full_column"

    @property
    def kind(self) -> TaskType:
        """The type of this column's tasks."""
        if not self.whole:
            return "cell"
        return self.task_type or ("batch" if self.upstreams else "from_scratch")


class Graph:
    """Columns in topological order (ties as given). Raises ConfigPipelineError for a cycle, an unknown or a repeated column."""

    def __init__(self, columns: Iterable[Column]) -> None:
        given = list(columns)
        self.columns: dict[str, Column] = {c.name: c for c in given}
        if not given:
            raise ConfigPipelineError("expected at least one column, got none")
        _check(given, self.columns)
        self.order = tuple(_topological(given))
        self.index: Mapping[str, int] = {name: i for i, name in enumerate(self.order)}
        downstream: dict[str, list[str]] = {name: [] for name in self.order}
        for name in self.order:
            for upstream in self.columns[name].upstreams:
                downstream[upstream].append(name)
        self.downstream: Mapping[str, tuple[str, ...]] = {name: tuple(d) for name, d in downstream.items()}


def _check(given: list[Column], by_name: Mapping[str, Column]) -> None:
    if len(by_name) < len(given):
        twice = next(c.name for i, c in enumerate(given) if c.name in {d.name for d in given[:i]})
        raise ConfigPipelineError(f"two columns are named {twice!r}; give each its own name")
    for column in given:
        if column.strategy not in ("cell", "full_column"):
            raise ConfigPipelineError(f"column {column.name!r}: expected strategy cell or full_column, got {column.strategy!r}")
        if column.task_type is not None and (not column.whole or column.task_type not in TASK_TYPES or column.task_type == "cell"):
            raise ConfigPipelineError(f"column {column.name!r}: the task type {column.task_type!r} does not fit its strategy")
        unknown = next((u for u in column.upstreams if u not in by_name), None)
        if unknown is not None:
            raise ConfigPipelineError(f"column {column.name!r} needs {unknown!r}, which is no column of the pipeline")
        if len(set(column.upstreams)) < len(column.upstreams):
            raise ConfigPipelineError(f"column {column.name!r} names an upstream column twice")


def _topological(given: list[Column]) -> list[str]:
    order: list[str] = []
    done: set[str] = set()
    left = list(given)
    while left:
        ready = [c for c in left if done.issuperset(c.upstreams)]
        if not ready:
            raise ConfigPipelineError(f"these columns need each other in a circle: {', '.join(c.name for c in left)}")
        order += [c.name for c in ready]
        done.update(order)
        left = [c for c in left if c.name not in done]
    return order
