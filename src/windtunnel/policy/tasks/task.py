"""A task of a batch pipeline: one cell, one batch or one processor of a row group."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from windtunnel.errors import ConfigSchedulingError, ConfigValueError
from windtunnel.policy.param import check_number
from windtunnel.policy.queueing.item import Group

TaskType = Literal["from_scratch", "cell", "batch", "pre_batch_processor", "post_batch_processor"]
TASK_TYPES: tuple[str, ...] = get_args(TaskType)
KINDS: Mapping[str, int] = {"local": 2, "model": 4, "custom_model": 4}  # kind -> parts of its identity
SUBMISSION = "submission"


class Task(NamedTuple):
    """What is to be made. row_index None: the whole row group at once."""

    column: str
    row_group: int
    row_index: int | None
    task_type: TaskType


def task_id(task: Task) -> str:
    """Stable over runs and machines: "task-" and 16 hex digits of SHA-1 over the four values joined by NUL."""
    text = f"{task.column}\0{task.row_group}\0{task.row_index}\0{task.task_type}"
    return "task-" + hashlib.sha1(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class SchedulingMetadata:
    """What a column's generator says of itself.

    identity: ("local", name), ("model", provider, model, generation_kind) or ("custom_model", namespace, name, version).
    Raises ConfigSchedulingError with code invalid_kind, invalid_identity or invalid_weight.
    """

    kind: str = "local"
    identity: tuple[str, ...] = ("local", "default")
    weight: float = 1.0
    diagnostics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in KINDS:
            raise ConfigSchedulingError("invalid_kind", f"kind: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        identity = self.identity
        well = isinstance(identity, tuple) and len(identity) == KINDS[self.kind] and all(isinstance(p, str) and p for p in identity)
        if not well or identity[0] != self.kind:
            shape = f'("{self.kind}", …) of {KINDS[self.kind]} non-empty texts'
            raise ConfigSchedulingError("invalid_identity", f"identity: expected {shape}, got {identity!r}")
        try:
            check_number("weight", self.weight, above=0.0)
        except ConfigValueError as error:
            raise ConfigSchedulingError("invalid_weight", error.message) from None


@dataclass(frozen=True, slots=True)
class SchedulableTask:
    """A task with its group and what it asks for. resources: amounts >= 1 by name, in the order in which they are checked."""

    task_id: str
    payload: Task
    group: Group
    resources: Mapping[str, int] = field(default_factory=lambda: {SUBMISSION: 1})
    request_resource_key: str | None = None

    def __post_init__(self) -> None:
        check_amounts("resources", self.resources)
        if not self.resources:
            raise ConfigValueError("resources", "expected at least one resource, got none")


def check_amounts(where: str, amounts: Mapping[str, int]) -> None:
    """Raise ConfigValueError unless each name is a non-empty text and each amount an int >= 1."""
    for name, amount in amounts.items():
        if not isinstance(name, str) or not name:
            raise ConfigValueError(where, f"expected non-empty texts as names, got {name!r}")
        check_number(f"{where}.{name}", amount, lo=1, whole=True)
