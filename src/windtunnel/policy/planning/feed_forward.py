"""Replicas for a rate and a backlog: n = ceil((λ + max(0, Q - Q*) / T_drain) / (ρ·μ)).

The backlog is a rate that is added, never a ratio that multiplies: a ratio on a queue grows with every replica that is still starting.
"""

from __future__ import annotations

from math import ceil

LEAST_DRAIN_S = 60.0


def replicas_needed(rate_rps: float, waiting: float, fits: float, drain_s: float, utilisation: float, capacity_rps: float,
                    least: int = 0) -> int:
    """For `rate_rps` plus what waits beyond `fits`, worked off in drain_s, with replicas loaded to `utilisation` of capacity_rps."""
    return max(least, ceil_safe((rate_rps + max(0.0, waiting - fits) / drain_s) / (utilisation * capacity_rps)))


def drain_time_s(boot_s: float) -> float:
    """In which a backlog is worked off unless that is set: long enough for replicas ordered for it to have come."""
    return max(LEAST_DRAIN_S, 2 * boot_s)


def ceil_safe(x: float) -> int:
    """Binary floats must not buy a replica."""
    return ceil(x - 1e-9)
