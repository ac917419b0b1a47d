"""Broken connections: a request that never got its answer is sent again a few times, before anybody hears of a failure.

Which ones, how often and after what wait: as the transport of DataDesigner 0.9.7 does it. A 429 is not among them: that the endpoint
has no room concerns the whole task, which then waits without a place.
"""

from __future__ import annotations

from windtunnel.effects import Close, Reject
from windtunnel.policy.param import check_number

RETRIES = 3
BASE_S, MAX_S = 2.0, 60.0
BROKEN = frozenset({
    "http_502", "http_503", "http_504", "engine_unavailable",
    "connection_refused", "connect_timeout", "connection_reset", "eof_without_end", "replica_gone", "crash", "down",
})


class TransportRetry:
    """retries: at most so many submissions after the first one; 0: none."""

    def __init__(self, retries: int = RETRIES) -> None:
        check_number("transport_retries", retries, lo=0, whole=True)
        self.retries = retries

    def wait_s(self, what: Reject | Close, attempt: int) -> float | None:
        """Seconds until submission `attempt` (from 1) is made again: 2, 4, 8, ... at most 60; None: it is not."""
        if not isinstance(what, Close) or what.outcome != "provider_failure" or what.reason not in BROKEN or attempt > self.retries:
            return None
        return float(min(MAX_S, BASE_S * 2.0 ** min(attempt - 1, 10)))
