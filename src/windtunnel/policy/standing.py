"""How a request stands that has not ended: its place, and when it may start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from windtunnel.errors import PolicyClockError
from windtunnel.policy.lane import UNKNOWN_SLOTS_CAP, Lane
from windtunnel.policy.open_request import RUNNING, WAITING
from windtunnel.policy.queueing.ranked import RankedQueue

if TYPE_CHECKING:
    from windtunnel.policy.control import Control

SERVICE_S_PRIOR = 1.0  # what a request is taken to need before any has been completed


@dataclass(frozen=True, slots=True)
class Standing:
    """position: waiting requests of its lane in more urgent classes, and those before it in its own; 0 is next. predicted_start_s: run s at
    which these are done at the measured rate of completions (source `measured`), or at that of the slots with a second each (`prior`).

    Position and prediction are None for a request that does not wait. closing: it has ended, its engine has not let go yet.
    """

    state: Literal["waiting", "running", "closing"]
    position: int | None = None
    predicted_start_s: float | None = None
    source: Literal["measured", "prior"] | None = None


def standing_of(control: Control, request_id: Any, now: float, last: float) -> Standing | None:
    """None for a request that is not open. Changes no decision; the first question about a lane begins to keep places there, O(waiting)."""
    if now < last:
        raise PolicyClockError(f"standing was called with now={now!r} after {last!r}")
    opened = control.flow.open.get(request_id) if isinstance(request_id, str) else None
    if opened is None:
        return None
    if opened.state != WAITING:
        return Standing("running" if opened.state == RUNNING else "closing")
    position = _ranked(control, opened.lane).position(request_id)
    assert position is not None
    rate_per_s = opened.lane.admission.completion_rate(opened.lane.resource, now)
    if rate_per_s:
        return Standing("waiting", position, now + position / rate_per_s, "measured")
    slots = control.fleet.slots(opened.lane.pools) or UNKNOWN_SLOTS_CAP
    return Standing("waiting", position, now + position * SERVICE_S_PRIOR / slots, "prior")


def _ranked(control: Control, lane: Lane) -> RankedQueue:
    queue = lane.queue
    if not isinstance(queue, RankedQueue):
        waiting = sorted((o.item for o in control.flow.open.values() if o.lane is lane and o.state == WAITING), key=lambda i: i.arrived_at)
        queue = lane.queue = RankedQueue(queue, waiting)
    return queue
