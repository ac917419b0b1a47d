"""What to do: the effects that `Control` hands to a world. A world carries them out in order, after `handle` returned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from windtunnel.events import Request, fact

if TYPE_CHECKING:
    from windtunnel.policy.admission.denial import Denial


@fact
class Dispatch:
    """Send an attempt of a request to a replica. dispatch counts a request's attempts from 1; a refusal comes back as `Failed`.

    predicted_start_s: run second at which it was expected to start when it was queued; None: it did not wait, or no rate was known.
    """

    request: Request
    dispatch: int
    replica: str
    lease_id: str
    reason: str
    prefill: str | None = None
    epoch: int = 0
    matched_blocks: int | None = None
    score: float | None = None
    predicted_start_s: float | None = None


@fact
class Reject:
    """The request was never dispatched and has ended. state: rejected, timed_out or abandoned."""

    request_id: str
    denial: Denial
    state: str
    outcome: str


@fact
class Close:
    """The request was dispatched at least once and ended without success. state: failed or cancelled."""

    request_id: str
    state: str
    outcome: str
    reason: str
    retry_after_s: float | None = None


@fact
class Cancel:
    """Stop an attempt; the world answers with Failed(local_cancelled) when the engine has let go."""

    request_id: str
    dispatch: int
    replica: str
    reason: str


@fact
class ScaleTo:
    """Absolute, idempotent targets by pool: ((pool, replicas), ...)."""

    plan_id: int
    targets: tuple[tuple[str, int], ...]
    decision_id: str = ""
    reason: str = ""


@fact
class Drain:
    """No new work for a replica; it is gone when empty or at `deadline_at`. `undo` brings it back."""

    replica: str
    deadline_at: float | None = None
    reason: str = ""
    undo: bool = False


@fact
class WakeAt:
    """Send Woke(key) at `at`; a second one with the same key replaces the first, `at=None` cancels it."""

    at: float | None
    key: str


@fact
class Ask:
    """Answer all calls, then send Answered(gather_id)."""

    gather_id: int
    calls: tuple[Any, ...]
    deadline_at: float


@fact
class Note:
    """For the recorder only. stream: scheduler, request, routing, session, planner or fleet."""

    kind: str
    stream: str
    sequence: int = 0
    ids: tuple[str, ...] = ()
    reason: str = ""
    data: Mapping[str, Any] | None = None


Effect = Dispatch | Reject | Close | Cancel | ScaleTo | Drain | WakeAt | Ask | Note
NOTHING: tuple[Effect, ...] = ()
