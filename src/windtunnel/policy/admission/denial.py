"""Why a request was not let in, what to tell its client, and when trying again makes sense."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from windtunnel.events import fact


class Reason(StrEnum):
    """The closed list of reasons; free text belongs into a denial's diagnostics."""

    QUEUE_FULL = "queue_full"
    SHED_LOW_PRIORITY = "shed_low_priority"
    NO_CAPACITY = "no_capacity"
    QUEUED_WAITERS_AHEAD = "queued_waiters_ahead"
    TOKEN_BUDGET = "token_budget"
    QUEUE_FULL_DROP_LRU = "queue_full_drop_lru"
    QUEUE_TIMEOUT = "queue_timeout"
    QUEUE_DELAY = "queue_delay"
    BAND = "band"
    COOLDOWN = "cooldown"
    RATE_LIMIT = "rate_limit"
    QUOTA_CONCURRENT = "quota_concurrent"
    QUOTA_TOKENS = "quota_tokens"
    QUOTA_KV = "quota_kv"
    QUOTA_RPS = "quota_rps"
    BUDGET = "budget"
    RETRY_BUDGET = "retry_budget"
    EXCEEDS_BURST = "exceeds_burst"
    DEADLINE_PASSED = "deadline_passed"
    DEADLINE_INFEASIBLE = "deadline_infeasible"
    BREAKER_OPEN = "breaker_open"
    HARD_POLICY_DENIAL = "hard_policy_denial"
    SHUTDOWN = "shutdown"
    STOPPED = "stopped"
    NO_REPLICA = "no_replica"
    NONE_READY = "none_ready"
    ALL_DRAINING = "all_draining"
    ALL_EJECTED = "all_ejected"
    NO_PREFILL_REPLICA = "no_prefill_replica"
    NO_DECODE_REPLICA = "no_decode_replica"
    ALL_FULL = "all_full"
    BOUND_FULL = "bound_full"
    SESSION_TURNS = "session_turns"
    GROUP_CAP = "group_cap"
    BORROW_DEBT = "borrow_debt"
    POLICY_DENIAL = "policy_denial"
    CANCELLATION = "cancellation"


_R = Reason
_HTTP = {
    "ADMISSION_REJECT": 429, "QUEUE_FULL_DROP_LRU": 429, "DEADLINE_UNMET": 400, "POOL_UNAVAILABLE": 503, "POOL_UNREADY": 503,
    "CANCELLED": 499, "": 500,
}


def _table() -> dict[str, tuple[str, bool]]:
    """reason -> (code, retriable)."""
    rows: tuple[tuple[str, bool, tuple[Reason, ...]], ...] = (
        ("ADMISSION_REJECT", True, (
            _R.QUEUE_FULL, _R.SHED_LOW_PRIORITY, _R.NO_CAPACITY, _R.QUEUED_WAITERS_AHEAD, _R.TOKEN_BUDGET, _R.QUEUE_TIMEOUT, _R.QUEUE_DELAY,
            _R.BAND, _R.COOLDOWN, _R.RATE_LIMIT, _R.QUOTA_CONCURRENT, _R.QUOTA_TOKENS, _R.QUOTA_KV, _R.QUOTA_RPS, _R.ALL_FULL, _R.BOUND_FULL)),
        ("QUEUE_FULL_DROP_LRU", True, (_R.QUEUE_FULL_DROP_LRU,)),
        ("ADMISSION_REJECT", False, (_R.BUDGET, _R.RETRY_BUDGET, _R.EXCEEDS_BURST, _R.SESSION_TURNS)),
        ("DEADLINE_UNMET", False, (_R.DEADLINE_PASSED, _R.DEADLINE_INFEASIBLE)),
        ("POOL_UNAVAILABLE", True, (_R.BREAKER_OPEN, _R.HARD_POLICY_DENIAL, _R.SHUTDOWN, _R.STOPPED, _R.NO_REPLICA)),
        ("POOL_UNREADY", True, (_R.NONE_READY, _R.ALL_DRAINING, _R.ALL_EJECTED, _R.NO_PREFILL_REPLICA, _R.NO_DECODE_REPLICA)),
        ("CANCELLED", False, (_R.CANCELLATION,)),
        ("", False, (_R.GROUP_CAP, _R.BORROW_DEBT, _R.POLICY_DENIAL)),
    )
    return {str(reason): (code, retriable) for code, retriable, reasons in rows for reason in reasons}


TABLE = _table()
SOON_S = {str(r): 1.0 for r in (_R.HARD_POLICY_DENIAL, _R.SHUTDOWN, _R.STOPPED)}  # nothing measurable tells when: a second
EPSILON = 1e-9  # binary floats must not move a rounded wait
LONGEST_S = 300


@fact
class Denial:
    """stage: intake, queue, task, request, route or engine. retry_after_s None: not known, or not worth retrying."""

    stage: str
    reason: str
    code: str
    retriable: bool
    retry_after_s: float | None = None
    available_at: float | None = None
    policy_label: str = ""
    resource: str = ""
    diagnostics: Mapping[str, Any] | None = None


def make_denial(stage: str, reason: str, *, now: float | None = None, retry_after_s: float | None = None, available_at: float | None = None,
                resource: str = "", diagnostics: Mapping[str, Any] | None = None) -> Denial:
    """A denial with code and retriability from the one table. `available_at` (run s) gives `retry_after_s` when `now` is known.

    Raises KeyError for a reason outside the table: it is a closed list.
    """
    code, retriable = TABLE[reason]
    if retry_after_s is None and available_at is not None and now is not None:
        retry_after_s = max(0.0, available_at - now)
    if retry_after_s is None:
        retry_after_s = SOON_S.get(reason)
    return Denial(stage, str(reason), code, retriable, retry_after_s if retriable else None, available_at, "", resource, diagnostics)


def http_status(denial: Denial) -> int:
    """429 means contended, 503 means nothing there."""
    return _HTTP[denial.code]


def retry_after_headers(denial: Denial) -> dict[str, str]:
    """`Retry-After` (whole seconds, 1 to 300) and `X-Backoff-Ms`; empty where retrying cannot help. A wait that is no number is unknown."""
    if not denial.retriable:
        return {}
    wait_s = denial.retry_after_s
    if wait_s is not None and not math.isfinite(wait_s):
        wait_s = None if math.isnan(wait_s) or wait_s < 0 else float(LONGEST_S)
    headers = {"Retry-After": str(min(LONGEST_S, max(1, math.ceil((wait_s or 1) - EPSILON))))}
    if wait_s is not None:
        headers["X-Backoff-Ms"] = str(max(0, math.ceil(1000 * wait_s - EPSILON)))
    return headers
