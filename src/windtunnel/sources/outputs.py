"""What a pipeline made, as one hash per column: equal in every world that did the same work."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from windtunnel.policy.tasks.frontier import CompletionTracker
from windtunnel.policy.tasks.task import Task


class Outputs:
    """Values of tasks that succeeded: input tokens asked for and output tokens received, request by request of the task."""

    def __init__(self) -> None:
        self._values: dict[Task, bytes] = {}

    def made(self, task: Task, inputs: Sequence[int], got: Sequence[int | None]) -> None:
        self._values[task] = hashlib.sha256(repr((tuple(inputs), tuple(got))).encode()).digest()

    def hashes(self, tracker: CompletionTracker) -> dict[str, str]:
        """SHA-256 per column over its cells in stable order and the columns it needs; dropped rows are left out."""
        cells: dict[str, list[bytes]] = {name: [] for name in tracker.graph.order}
        for task in sorted(self._values, key=tracker.position):
            row = task.row_index
            if row is None or not tracker.dropped(task.row_group)[row]:
                cells[task.column].append(f"{task.row_group}/{row}:".encode() + self._values[task])
        made: dict[str, bytes] = {}
        for name in tracker.graph.order:  # what a column is made of counts, too
            upstreams = [made[u] for u in tracker.graph.columns[name].upstreams]
            made[name] = hashlib.sha256(b"\0".join([name.encode("utf-8", "surrogatepass"), *upstreams, *cells[name]])).digest()
        return {name: digest.hex() for name, digest in made.items()}
