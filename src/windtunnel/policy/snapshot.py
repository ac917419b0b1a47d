"""Pure reads of a `Control`: its view, and the check that its books balance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from windtunnel.errors import PolicyError
from windtunnel.policy.open_request import CLOSING, WAITING, OpenRequest
from windtunnel.policy.view import Counts, Deadlines, LaneView, View

if TYPE_CHECKING:
    from windtunnel.policy.control import Control
    from windtunnel.policy.lane import Lane

TENANTS_SHOWN = 256


def view_of(control: Control, wakes: Mapping[str, float], now: float) -> View:
    """A frozen snapshot with plain values only."""
    open_, tallies = control.flow.open, control.flow.tallies
    counts = {key: tally.counts() for key, tally in tallies.items()}
    by_class: dict[int, Counts] = {}
    by_tenant: dict[str, Counts] = {}
    for (tenant, priority), c in counts.items():
        by_class[priority] = by_class.get(priority, Counts()) + c
        by_tenant[tenant] = by_tenant.get(tenant, Counts()) + c
    top = dict(sorted(by_tenant.items(), key=lambda kv: (-kv[1].arrivals, kv[0]))[:TENANTS_SHOWN])
    waiting = [o for o in open_.values() if o.state == WAITING]
    return View(
        now, control.seq, reduce(add, counts.values(), Counts()), by_class, top, tuple(_lane(lane, waiting, now) for lane in control.lanes),
        control.fleet.view(now), control.planner.view() if control.planner else None, dict(wakes), control.late_events,
        _deadlines(control), control.flow.cancel_forced, {replica: len(held) for replica, held in control.flow.quarantined.items()},
        control.flow.preempted,
    )


def _deadlines(control: Control) -> dict[int, Deadlines]:
    """By class; a request that is open is not decided."""
    undecided = Counter(o.request.priority for o in control.flow.open.values() if o.request.deadline_s is not None and o.state != CLOSING)
    ended: Counter[int] = Counter()
    met: Counter[int] = Counter()
    for (_, priority), tally in control.flow.tallies.items():
        ended[priority] += tally.deadlines
        met[priority] += tally.deadlines_met
    return {priority: Deadlines(n - undecided[priority], met[priority]) for priority, n in ended.items() if n > undecided[priority]}


def _lane(lane: Lane, waiting: list[OpenRequest], now: float) -> LaneView:
    mine = [o for o in waiting if o.lane is lane]
    return LaneView(
        lane.name, len(mine), Counter(o.request.tenant for o in mine), Counter(o.request.priority for o in mine),
        now - min(o.item.arrived_at for o in mine) if mine else None, lane.admission.snapshot(lane.resource, now),
    )


def check(control: Control) -> None:
    """Requests, leases and ledger agree; PolicyError names the first sum that does not."""
    open_, tallies = control.flow.open, control.flow.tallies
    for (tenant, priority), tally in tallies.items():
        if not tally.counts().balanced:
            raise PolicyError(f"requests of tenant {tenant!r}, class {priority} are not conserved: {tally.counts()}")
        if not tally.counts().plausible:
            raise PolicyError(f"requests of tenant {tenant!r}, class {priority} are miscounted: {tally.counts()}")
    for lane in control.lanes:
        mine = [o for o in open_.values() if o.lane is lane]
        waiting = sum(o.state == WAITING for o in mine)
        if waiting != len(lane.queue):
            raise PolicyError(f"lane {lane.name!r}: {waiting} requests wait, its queue holds {len(lane.queue)}")
        held = len(mine) - waiting
        if held != lane.admission.in_flight(lane.resource):
            raise PolicyError(f"lane {lane.name!r}: {held} attempts run, {lane.admission.in_flight(lane.resource)} leases are out")
    _check_gates(control)
    running = sum(o.state != CLOSING and o.state != WAITING for o in open_.values())
    active = sum(t.active for t in tallies.values())
    requeued = sum(o.state == WAITING and o.dispatches > 0 for o in open_.values())
    if active != running + requeued:
        raise PolicyError(f"{active} requests count as active, {running} run and {requeued} wait for another attempt")


def _check_gates(control: Control) -> None:
    """Every open request is held by the gates of its lane exactly once, and nothing else is."""
    gates = {id(gate): gate for lane in control.lanes if lane.gates is not None for gate in lane.gates.gates}
    for gate in gates.values():
        held: Iterable[str] | None = getattr(gate, "held", None)
        if held is None:
            continue
        mine = {i for i, o in control.flow.open.items() if o.lane.gates is not None and gate in o.lane.gates.gates}
        if not set(held) <= mine:
            raise PolicyError(f"{type(gate).__name__} holds what requests took that have ended: {sorted(set(held) - mine)[:4]}")
        gate.audit()
