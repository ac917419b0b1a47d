"""The right to run one attempt."""

from __future__ import annotations

from windtunnel.events import fact
from windtunnel.policy.admission.resource import ResourceKey


@fact
class RequestLease:
    """The right to run one attempt. admitted_limit, effective_max, epoch: of the limit when it was granted."""

    lease_id: str
    resource: ResourceKey
    acquired_at: float
    admitted_limit: int
    effective_max: int
    epoch: int
    generation: str
