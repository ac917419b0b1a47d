"""How a pipeline's tasks are scheduled."""

from __future__ import annotations

from dataclasses import dataclass, field

from windtunnel.policy.param import check_number
from windtunnel.policy.tasks.bounded_borrow import BoundedBorrow
from windtunnel.policy.tasks.decision import TaskAdmissionPolicy
from windtunnel.policy.tasks.retry import SALVAGE_ROUNDS


@dataclass(frozen=True, slots=True)
class TaskSchedulerConfig:
    """starved_after_s: a task that an endpoint turned away for this long, without one success there, is given up; None: never.

    A pipeline on an endpoint that only says 429 ends because of it.
    """

    policy: TaskAdmissionPolicy = field(default_factory=BoundedBorrow)
    max_concurrent_row_groups: int = 3
    adaptive_row_groups: bool = False
    buffer_size: int = 1000
    max_in_flight_tasks: int = 1024
    request_pressure_advisory: bool = True
    salvage_rounds: int = SALVAGE_ROUNDS
    starved_after_s: float | None = 600.0
    early_stop: bool = True

    def __post_init__(self) -> None:
        for name in ("max_concurrent_row_groups", "buffer_size", "max_in_flight_tasks"):
            check_number(name, getattr(self, name), lo=1, whole=True)
        check_number("salvage_rounds", self.salvage_rounds, lo=0, whole=True)
        if self.starved_after_s is not None:
            check_number("starved_after_s", self.starved_after_s, above=0.0)
