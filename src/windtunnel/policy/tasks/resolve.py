"""From a column's metadata to the group it shares in and the resources its tasks ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import floor
from typing import Any

from windtunnel.errors import ConfigSchedulingError
from windtunnel.policy.param import check_number
from windtunnel.policy.queueing.item import Group
from windtunnel.policy.tasks.task import SUBMISSION, SchedulableTask, SchedulingMetadata, Task, check_amounts, task_id

LLM_WAIT = "llm_wait"
EPSILON = 1e-9
# Generation kinds that become requests, and the traffic class of those.
REQUEST_DOMAINS: Mapping[str, str] = {"chat": "chat", "chat_completion": "chat", "embedding": "embedding", "image": "image"}


@dataclass(frozen=True, slots=True)
class Generator:
    """A column's generator as the resolver sees it. outputs: the columns it writes; metadata: checked, or raw fields still to check."""

    outputs: tuple[str, ...]
    metadata: SchedulingMetadata | Mapping[str, Any] = field(default_factory=SchedulingMetadata)
    fallback: SchedulingMetadata | None = None


class Resolver:
    """Groups, resources and limits of a pipeline's columns, resolved once.

    in_flight_cap: tasks at models at once (the limit of `llm_wait`, and the largest limit of a group); request_limits: instead of
    the smallest weight among an endpoint's generators. fallbacks: what was wrong with a column whose fallback was taken, by column.
    Raises ConfigSchedulingError for bad metadata without a fallback.
    """

    def __init__(self, generators: Mapping[str, Generator], in_flight_cap: int = 1024,
                 request_limits: Mapping[str, int] | None = None) -> None:
        check_number("in_flight_cap", in_flight_cap, lo=1, whole=True)
        check_amounts("request_limits", request_limits or {})
        self.in_flight_cap = in_flight_cap
        self.fallbacks: dict[str, ConfigSchedulingError] = {}
        self.metadata = {column: self._checked(column, g) for column, g in generators.items()}
        self._groups = {column: self._group(self.metadata[column], g.outputs) for column, g in generators.items()}
        self._resources = {column: _resources(m) for column, m in self.metadata.items()}
        self.limits = self._limits(request_limits or {})

    def _checked(self, column: str, generator: Generator) -> SchedulingMetadata:
        given = generator.metadata
        try:
            return given if isinstance(given, SchedulingMetadata) else SchedulingMetadata(**given)
        except ConfigSchedulingError as error:
            error.where = error.where or column
            if generator.fallback is None:
                raise
            self.fallbacks[column] = error
            return generator.fallback

    def _group(self, metadata: SchedulingMetadata, outputs: Sequence[str]) -> Group:
        key = "/".join(part.replace("%", "%25").replace("/", "%2F") for part in (*metadata.identity, *outputs))
        if metadata.kind == "local":
            return Group(key, metadata.weight)
        limit = min(max(1, floor(2 * metadata.weight + EPSILON)), self.in_flight_cap)
        return Group(key, metadata.weight, limit)

    def _limits(self, given: Mapping[str, int]) -> dict[str, int]:
        limits = {LLM_WAIT: self.in_flight_cap} if any(m.kind != "local" for m in self.metadata.values()) else {}
        smallest: dict[str, float] = {}
        for metadata in self.metadata.values():
            key = request_resource(metadata)
            if key is not None:
                smallest[key] = min(metadata.weight, smallest.get(key, metadata.weight))
        limits.update({key: max(1, floor(weight + EPSILON)) for key, weight in smallest.items()})
        return limits | dict(given)

    def group(self, column: str) -> Group:
        return self._groups[column]

    def task(self, task: Task) -> SchedulableTask:
        """The task with its group and what it asks for."""
        column = task.column
        return SchedulableTask(task_id(task), task, self._groups[column], self._resources[column], request_resource(self.metadata[column]))


def request_resource(metadata: SchedulingMetadata) -> str | None:
    """`request:<provider>/<model>` of a kind that becomes requests, else None."""
    if metadata.kind != "model" or metadata.identity[3] not in REQUEST_DOMAINS:
        return None
    return f"request:{metadata.identity[1]}/{metadata.identity[2]}"


def _resources(metadata: SchedulingMetadata) -> dict[str, int]:
    if metadata.kind == "local":
        return {SUBMISSION: 1}
    resource = request_resource(metadata)
    return {SUBMISSION: 1, LLM_WAIT: 1} | ({} if resource is None else {resource: 1})
