"""How requests end: the one table from what happened to the terminal state and the request's outcome.

Two outcomes, usually equal: the *lease* outcome (what limits and breakers see) and the *request* outcome (what tables show).
"""

from __future__ import annotations

from windtunnel.events import fact

COMPLETED, FAILED, CANCELLED = "completed", "failed", "cancelled"
REJECTED, TIMED_OUT, ABANDONED = "rejected", "timed_out", "abandoned"
STATES = (COMPLETED, FAILED, CANCELLED, REJECTED, TIMED_OUT, ABANDONED)


@fact
class End:
    """state: terminal state; outcome: request outcome; again: another attempt may help (if no token was out)."""

    state: str
    outcome: str
    again: bool = False


_BY_LEASE_OUTCOME = {
    "success": End(COMPLETED, "success"),
    "rate_limited": End(FAILED, "rate_limited", True),
    "provider_failure": End(FAILED, "provider_failure", True),
    "provider_timeout": End(FAILED, "provider_timeout"),
    "local_cancelled": End(CANCELLED, "local_cancelled"),
    "local_timeout": End(CANCELLED, "local_timeout"),
    "unexpected_exception": End(FAILED, "unexpected_exception"),
}
# A client's mistake must neither cut limits nor open a breaker, so its lease ends local_cancelled; the request has failed.
_CLIENT_MISTAKES = frozenset({"invalid_request", "context_length_exceeded", "kv_capacity_exceeded"})
_MISTAKE = End(FAILED, "unexpected_exception")
_LATE = End(FAILED, "local_timeout")

_REFUSED = End(REJECTED, "rate_limited")
_BY_DENIAL = {
    "queue_timeout": End(TIMED_OUT, "rate_limited"),
    "queue_delay": End(TIMED_OUT, "rate_limited"),
    "deadline_passed": End(TIMED_OUT, "local_timeout"),
    "deadline_infeasible": End(REJECTED, "rate_limited"),
    "cancellation": End(ABANDONED, "local_cancelled"),
}


def outcome_of(lease_outcome: str, reason: str = "") -> End:
    """How a dispatched request ends when its last attempt ended with `lease_outcome` because of `reason`."""
    if lease_outcome == "local_cancelled" and reason in _CLIENT_MISTAKES:
        return _MISTAKE
    if reason == "deadline_passed":
        return _LATE
    return _BY_LEASE_OUTCOME.get(lease_outcome) or _BY_LEASE_OUTCOME["unexpected_exception"]


def outcome_of_denial(reason: str) -> End:
    """How a request ends that was never dispatched, by the denial's reason."""
    return _BY_DENIAL.get(reason, _REFUSED)
