"""Knobs of `Control` itself: attempts, patience and watchdogs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import Param, check_number

PREEMPTION = ("disabled", "soft", "hard")


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """attempts: dispatches per request, redispatch only before the first token. Fields in seconds: None = off.

    preemption: what a more urgent request may take. soft: places in a full queue, where its bound says shed_low_priority; hard: places of
    running requests too, at most max_preemptions_per_min in all and 2 per request, which start anew; disabled: neither.

    hold_unready_s: longest wait for a first replica; queue_wait_timeout_s: longest wait in the queue; cancel_late: stop a request
    whose deadline passes before its first token; first_token_s, idle_s, wall_s: watchdogs of one attempt (idle_s: longest pause after the
    first token; progress may be told every 32 tokens only); cancellation_deadline_s: then the slot of a cancelled attempt is in quarantine.
    """

    attempts: Annotated[int, Param(1, 5, 1, label="attempts", help="dispatches per request, the first included")] = 1
    hold_unready_s: Annotated[float | None, Param(0, 600, 1, "s", "hold unready", "longest wait for a replica that is not ready yet")] = None
    queue_wait_timeout_s: Annotated[float | None, Param(0.1, 300, 0.1, "s", "queue timeout", "longest wait in the queue")] = None
    cancel_late: Annotated[bool, Param(label="cancel late", help="stop requests whose deadline passed before the first token")] = False
    first_token_s: Annotated[float | None, Param(0.1, 300, 0.1, "s", "first-token watchdog", "longest wait of an attempt for its first token")] = None
    idle_s: Annotated[float | None, Param(0.1, 300, 0.1, "s", "idle watchdog", "longest pause of a stream; more than 32 tokens take")] = None
    wall_s: Annotated[float | None, Param(1, 3600, 1, "s", "wall watchdog", "longest life of an attempt")] = None
    cancellation_deadline_s: Annotated[float | None, Param(0.1, 60, 0.1, "s", "cancellation deadline",
                                                           "time for an engine to end a cancelled attempt, before its slot is in quarantine")] = 5.0

    preemption: Annotated[Literal["disabled", "soft", "hard"], Param(
        choices=PREEMPTION, label="pre-emption", help="of less urgent requests: none, those that wait (soft), running ones too (hard)")] = "soft"
    max_preemptions_per_min: Annotated[int, Param(0, 600, 1, "requests/min", "pre-emptions", "running requests stopped per minute (hard)")] = 60

    def __post_init__(self) -> None:
        check_number("attempts", self.attempts, lo=1, whole=True)
        check_number("max_preemptions_per_min", self.max_preemptions_per_min, lo=0, whole=True)
        if self.preemption not in PREEMPTION:
            raise ConfigValueError("preemption", f"expected one of {', '.join(PREEMPTION)}, got {self.preemption!r}")
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name.endswith("_s") and value is not None:
                check_number(f.name, value, lo=0.0)
