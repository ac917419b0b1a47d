"""What a task of a pipeline does: requests to a model, then local work; and what the end of a request means for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from windtunnel.effects import Close, Reject
from windtunnel.events import Request
from windtunnel.policy.param import check_number
from windtunnel.policy.tasks.graph import Column
from windtunnel.policy.tasks.messages import StartTask
from windtunnel.policy.tasks.task import SchedulingMetadata
from windtunnel.sources.dist import Dist, dist_of

PROVIDER = "fleet"
Failure = tuple[str, str | None, float | None]  # outcome, kind, seconds to wait


@dataclass(frozen=True, slots=True)
class Program:
    """What a task of a column does: `requests` to `model` (0: none), one after the other or all at once, then local work.

    input_tokens, output_tokens: per request; local_s: seconds of local work. A column without a model makes no request.
    """

    column: Column
    model: str | None = None
    requests: int = 1
    parallel: bool = False
    input_tokens: Dist | float | Mapping[str, Any] = 256.0
    output_tokens: Dist | float | Mapping[str, Any] = 64.0
    local_s: Dist | float | Mapping[str, Any] = 0.0

    def __post_init__(self) -> None:
        name = self.column.name
        check_number(f"columns.{name}.requests", self.requests, lo=0, whole=True)
        for key in ("input_tokens", "output_tokens", "local_s"):
            object.__setattr__(self, key, dist_of(getattr(self, key), f"columns.{name}.{key}"))

    @property
    def calls(self) -> int:
        return self.requests if self.model else 0


@dataclass(slots=True)
class Work:
    """A started task. left: lengths of requests not yet sent; open: number in the program by request; again: how many wait to be sent
    again; got: output tokens by number."""

    start: StartTask
    program: Program
    left: deque[tuple[int, int, int]]
    local_s: float
    inputs: tuple[int, ...]
    got: dict[int, int | None] = field(default_factory=dict)
    open: dict[str, tuple[int, Request]] = field(default_factory=dict)
    again: int = 0
    times: dict[str, float] = field(default_factory=dict)
    failed: Failure | None = None

    @property
    def busy(self) -> bool:
        return bool(self.open) or self.again > 0

    def fail(self, failed: Failure) -> None:
        """Nothing more is sent."""
        self.failed, self.again = failed, 0
        self.left.clear()


def metadata_of(program: Program, weights: Mapping[str, float]) -> SchedulingMetadata:
    """A model's columns weigh as much as the model may have tasks at once; local work weighs 1."""
    if not program.calls or program.model is None:
        return SchedulingMetadata()
    return SchedulingMetadata("model", ("model", PROVIDER, program.model, "chat"), float(weights[program.model]))


def failure(what: Reject | Close) -> Failure:
    """Outcome, kind and retry time of a task whose request ended so."""
    outcome = what.outcome
    if isinstance(what, Reject) and what.state == "timed_out":
        outcome = "request_admission_timeout"
    elif outcome == "local_timeout":
        outcome = "provider_timeout"
    return outcome, None, retry_after(what)


def retry_after(what: Reject | Close) -> float | None:
    """Seconds until trying again makes sense, as the end of a request says."""
    return what.denial.retry_after_s if isinstance(what, Reject) else what.retry_after_s
