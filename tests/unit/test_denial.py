"""The table of denials, and what a client is told."""

from __future__ import annotations

import math

import pytest

from windtunnel.policy.admission.completion_rate import CompletionRate
from windtunnel.policy.admission.denial import Denial, Reason, http_status, make_denial, retry_after_headers

CONTENDED = ("queue_full shed_low_priority no_capacity queued_waiters_ahead token_budget queue_timeout queue_delay band cooldown rate_limit "
             "quota_concurrent quota_tokens quota_kv quota_rps all_full bound_full")


@pytest.mark.parametrize(("reasons", "code", "status", "retriable"), [
    (CONTENDED, "ADMISSION_REJECT", 429, True),
    ("queue_full_drop_lru", "QUEUE_FULL_DROP_LRU", 429, True),
    ("budget retry_budget exceeds_burst session_turns", "ADMISSION_REJECT", 429, False),
    ("deadline_passed deadline_infeasible", "DEADLINE_UNMET", 400, False),
    ("breaker_open hard_policy_denial shutdown stopped no_replica", "POOL_UNAVAILABLE", 503, True),
    ("none_ready all_draining all_ejected no_prefill_replica no_decode_replica", "POOL_UNREADY", 503, True),
    ("cancellation", "CANCELLED", 499, False),
])
def test_DN_1_the_table(reasons: str, code: str, status: int, retriable: bool) -> None:
    for reason in reasons.split():
        denial = make_denial("queue", reason)
        assert (denial.code, http_status(denial), denial.retriable, denial.reason) == (code, status, retriable, reason)


def test_DN_1_every_reason_has_a_row_and_the_list_is_closed() -> None:
    assert {make_denial("task", r).reason for r in Reason} == {str(r) for r in Reason}
    with pytest.raises(KeyError):
        make_denial("queue", "because")


def test_DN_1_when_to_come_back() -> None:
    assert make_denial("request", "cooldown", now=30.9, available_at=31.0).retry_after_s == pytest.approx(0.1)
    assert make_denial("request", "cooldown", now=32.0, available_at=31.0).retry_after_s == 0.0
    assert [make_denial("intake", r).retry_after_s for r in ("hard_policy_denial", "shutdown", "stopped")] == [1.0, 1.0, 1.0]
    assert make_denial("queue", "deadline_passed", retry_after_s=4.0).retry_after_s is None, "retrying cannot help"
    assert make_denial("queue", "queue_full").retry_after_s is None


@pytest.mark.parametrize(("wait_s", "expected"), [
    (2.75, {"Retry-After": "3", "X-Backoff-Ms": "2750"}),
    (0.1, {"Retry-After": "1", "X-Backoff-Ms": "100"}),
    (0.07, {"Retry-After": "1", "X-Backoff-Ms": "70"}),
    (0.0, {"Retry-After": "1", "X-Backoff-Ms": "0"}),
    (3.0, {"Retry-After": "3", "X-Backoff-Ms": "3000"}),
    (1e9, {"Retry-After": "300", "X-Backoff-Ms": "1000000000000"}),
    (None, {"Retry-After": "1"}), (math.nan, {"Retry-After": "1"}), (math.inf, {"Retry-After": "300", "X-Backoff-Ms": "300000"}),
])
def test_DN_2_headers(wait_s: float | None, expected: dict[str, str]) -> None:
    assert retry_after_headers(make_denial("queue", "queue_timeout", retry_after_s=wait_s)) == expected


def test_DN_2_no_headers_where_retrying_cannot_help() -> None:
    assert retry_after_headers(make_denial("intake", "deadline_infeasible")) == {}
    assert isinstance(make_denial("intake", "budget"), Denial)


def test_DN_2_completion_rate_is_unbiased_and_knows_when_it_knows_nothing() -> None:
    rate = CompletionRate()
    assert rate.per_s(0.0) is None
    rate.completed(0.0)
    assert (rate.per_s(0.0), rate.per_s(1.0)) == (None, None), "one completion is no rate"
    seen = []
    for n in range(1, 400):
        rate.completed(n * 0.25)
        seen.append(rate.per_s(n * 0.25))
    assert all(r is not None and 3.99 < r < 5.0 for r in seen) and seen[-1] == pytest.approx(4.0, rel=0.02)
    at = 399 * 0.25
    half = rate.per_s(at + 10.0)
    assert half == pytest.approx(4.0 / math.e, rel=0.02)
    assert rate.per_s(at + 51.0) is None, "an old rate is no promise"


def test_DN_2_completion_rate_follows_within_its_window() -> None:
    rate, now = CompletionRate(10.0), 0.0
    for gap, count in ((1.0, 60), (0.1, 400)):
        for _ in range(count):
            now += gap
            rate.completed(now)
    assert rate.per_s(now) == pytest.approx(10.0, rel=0.05)
