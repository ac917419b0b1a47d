"""The door of a single engine: so many at once, the others refused or in line (a fixed limit with waiters)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from windtunnel.errors import ConfigValueError
from windtunnel.policy.admission.denial import Denial, make_denial
from windtunnel.policy.admission.endpoints import RequestAdmissionConfig
from windtunnel.policy.admission.lease import RequestLease
from windtunnel.policy.admission.limit import Fixed
from windtunnel.policy.admission.request import ReleaseReason
from windtunnel.policy.admission.resource import PressureSnapshot
from windtunnel.policy.admission.waiters import AlreadyGranted, Expired, Granted, RequestItem, UnknownWaiter, WaiterCancelled, Waiting
from windtunnel.policy.admission.waiting import WaitingAdmission
from windtunnel.policy.param import BuildContext, Param, check_number

MODES = ("reject", "queue")
DOOR = "slots"


@dataclass(frozen=True, slots=True)
class SlotGate:
    """Config. mode queue: first come, first served, at most `queue_max_wait_s` and `queue_max_depth` of them (None: no bound)."""

    max_concurrent: Annotated[int, Param(1, 1024, 1, "requests", "slots", "at once", "log")] = 1
    mode: Annotated[Literal["reject", "queue"], Param(choices=MODES, label="when full", help="refuse, or let wait")] = "reject"
    queue_max_wait_s: Annotated[float | None, Param(0.1, 600, 0.1, "s", "wait at most", "then refused", "log")] = None
    queue_max_depth: Annotated[int | None, Param(0, 10_000, 1, "requests", "line at most", "more are refused at once")] = None

    def __post_init__(self) -> None:
        check_number("max_concurrent", self.max_concurrent, lo=1, whole=True)
        if self.mode not in MODES:
            raise ConfigValueError("mode", f"expected one of {', '.join(MODES)}, got {self.mode!r}")
        if self.queue_max_wait_s is not None:
            check_number("queue_max_wait_s", self.queue_max_wait_s, lo=0.0)
        if self.queue_max_depth is not None:
            check_number("queue_max_depth", self.queue_max_depth, lo=0, whole=True)

    def build(self, ctx: BuildContext) -> Slots:
        return Slots(self, wants=ctx.wants)


class Slots:
    """A slot is a lease: its owner leaves once, on every way out, and after a disconnect only when the engine has let go.

    Call `drain` at the same `now` after leave and cancel, and at `next_deadline()`.
    """

    def __init__(self, config: SlotGate, *, generation: str = "g0", wants: frozenset[str] = frozenset()) -> None:
        self.config = config
        own = RequestAdmissionConfig(Fixed(config.max_concurrent), default_queue_wait_timeout_s=config.queue_max_wait_s)
        self.admission = WaitingAdmission(own, generation=generation, wants=wants)
        self.admission.register(DOOR, config.max_concurrent, float("-inf"))

    def enter(self, now: float, context: Any = None) -> RequestLease | Waiting | Denial:
        """A slot, a place in line, or `no_capacity` (mode reject), `queue_full`, `queue_timeout` (it would not wait), `shutdown`."""
        admission, config = self.admission, self.config
        if config.mode == "reject":
            return admission.try_acquire(DOOR, now)
        full = config.queue_max_depth is not None and admission.waiting >= config.queue_max_depth
        if full and isinstance(denial := admission.try_acquire(DOOR, now), Denial):
            return denial if denial.reason == "shutdown" else self._queue_full(now)
        if full:
            return denial
        return admission.enqueue(RequestItem(DOOR, context=context), now)

    def _queue_full(self, now: float) -> Denial:
        rate_rps = self.admission.completion_rate(DOOR, now)
        return make_denial("queue", "queue_full", retry_after_s=1.0 / rate_rps if rate_rps else None, resource=DOOR)

    def leave(self, lease: RequestLease, outcome: str, now: float) -> ReleaseReason:
        """Give the slot back; a second time, or somebody else's, changes nothing."""
        return self.admission.release(lease, outcome, now)

    def cancel(self, waiter_id: str, now: float) -> WaiterCancelled | AlreadyGranted | UnknownWaiter:
        return self.admission.cancel(waiter_id, now)

    def drain(self, now: float) -> list[Granted | Expired]:
        return self.admission.drain(now)

    def next_deadline(self) -> float | None:
        return self.admission.next_deadline()

    def shutdown(self, now: float) -> list[Expired]:
        return self.admission.shutdown(now)

    def snapshot(self, now: float) -> PressureSnapshot:
        return self.admission.snapshot(DOOR, now)
