"""Named compositions of policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from windtunnel.policy.admission.aimd import Aimd
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.control import Control
from windtunnel.policy.lane import Lane
from windtunnel.policy.param import BuildContext, PoolFacts
from windtunnel.policy.queueing.bounded import BoundedQueue
from windtunnel.policy.queueing.fair import FairTaskQueue
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.least import LeastOutstanding
from windtunnel.policy.settings import ControlSettings


def default_control(pools: Sequence[str], *, initial_limit: int | None = None, cap: int | None = None,
                    tenants: Mapping[str, float] | None = None, settings: ControlSettings | None = None,
                    wants: frozenset[str] = frozenset()) -> Control:
    """The default preset: fair queue (bounded: 256 in all, 128 per class), AIMD limit, least outstanding requests, no planner.

    The limit starts at and is capped by the slots of the ready replicas (64 while unknown), unless `initial_limit` or `cap` say otherwise.
    One lane over all `pools`.
    """
    context = BuildContext(tenants=dict(tenants or {}), pools=tuple(PoolFacts(p) for p in pools), wants=wants)
    admission = RequestAdmission(Aimd(initial_limit=initial_limit).build(context), wants=wants)
    lane = Lane(pools[0], queue=BoundedQueue(FairTaskQueue()), admission=admission, router=LeastOutstanding(), pools=tuple(pools),
                cap="slots" if cap is None else cap)
    return Control(lanes=(lane,), fleet=Fleet(), tenants=tenants, settings=settings, wants=wants)
