"""What the pipeline asks its driver, and what the driver sends back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from windtunnel.policy.planning.contract import PredictResponse, Stage, StageRequest, StageResponse

CallErrorKind = Literal["timeout", "connection", "unknown_method", "serialization", "raised", "contract", "cut"]
Response = StageResponse | PredictResponse


@dataclass(frozen=True, slots=True)
class CallError:
    """Why a call gave no answer. `cut`: stopped because the tick was over; that is no fault of the plugin."""

    kind: CallErrorKind
    message: str = ""


@dataclass(slots=True)
class Call:
    """One question to one plugin; `target` is its object or client, for the driver only (no part of the log).

    generation: of the plugin's registration; an answer to an older one is dropped. transport: "inline" or "async" (in process),
    else the scheme of its endpoint.
    """

    plugin_id: str
    generation: int
    stage: Stage
    request: StageRequest
    timeout_s: float
    transport: str
    target: Any = field(default=None, compare=False, repr=False)

    def as_plain(self) -> dict[str, Any]:
        """For the log: without what answers it, and without the context, which follows from the events."""
        return {"plugin_id": self.plugin_id, "generation": self.generation, "stage": self.stage.value, "timeout_s": self.timeout_s,
                "transport": self.transport, "tick_at": self.request.tick_at}


@dataclass(slots=True)
class Gather:
    """Ask all `calls` at once; no answer is waited for beyond `deadline_at` (run seconds)."""

    gather_id: int
    calls: tuple[Call, ...]
    deadline_at: float


@dataclass(slots=True)
class Answer:
    """A response, or an error, of one plugin. Times are run seconds; None for calls answered inline."""

    plugin_id: str
    response: Response | None = None
    error: CallError | None = None
    started_at: float | None = None
    finished_at: float | None = None

    def as_plain(self) -> dict[str, Any]:
        """For the log."""
        from windtunnel.policy.planning.plain import answer_plain

        return answer_plain(self)


@dataclass(slots=True)
class Answers:
    """The answers to a Gather, in the order of its calls."""

    gather_id: int
    items: tuple[Answer, ...]
    now: float
