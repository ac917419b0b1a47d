"""What tenants and sessions may use: reserved before the queue, settled once, nothing lost on the way."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from windtunnel.errors import ConfigValueError
from windtunnel.events import Request
from windtunnel.policy.admission import budget as budget_module
from windtunnel.policy.admission import quota as quota_module
from windtunnel.policy.admission.budget import Budget, BudgetGate
from windtunnel.policy.admission.denial import Denial
from windtunnel.policy.admission.gates import Gate, Used
from windtunnel.policy.admission.quota import Need, QuotaGate, Quotas, Reservation, TenantQuota
from windtunnel.policy.admission.token_budget import TokenBudget, TokenBudgetGate
from windtunnel.policy.param import BuildContext
from windtunnel.policy.routing.turns import TurnRef


def request(n: int = 1, tenant: str = "a", *, tokens: int | None = 10, most: int | None = 10, session: str | None = None,
            deadline_s: float | None = None) -> Request:
    turn = None if session is None else TurnRef(session, 0, None)
    return Request(f"r{n}", tenant, "m", 0, 0.0, tokens, most, turn=turn, deadline_s=deadline_s)


def admit(gate: Gate, r: Request, now: float = 0.0) -> Denial | None:
    denial = gate.refusal(r, now)
    if denial is None:
        gate.take(r, now)
    return denial


def reserved(quotas: Quotas, tenant: str, tokens: int, now: float = 0.0, kv_bytes: float | None = None) -> Reservation:
    made = quotas.reserve(tenant, Need(tokens, kv_bytes), now)
    assert isinstance(made, Reservation)
    return made


def refused(quotas: Quotas, tenant: str, tokens: int, now: float = 0.0, kv_bytes: float | None = None) -> Denial:
    denial = quotas.reserve(tenant, Need(tokens, kv_bytes), now)
    assert isinstance(denial, Denial) and denial.stage == "intake"
    return denial


# -- quotas ---------------------------------------------------------------------------------------------------------------------


def test_LM_7_all_or_nothing_and_the_first_that_fails_is_named() -> None:
    quotas = Quotas({"a": TenantQuota(concurrent=1, tokens_per_min=600.0, kv_bytes=1000.0, requests_per_s=1.0)})
    first = reserved(quotas, "a", 300, kv_bytes=600.0)
    denied = refused(quotas, "a", 400, kv_bytes=600.0)
    assert denied.reason == "quota_concurrent" and denied.diagnostics is not None
    assert denied.diagnostics["lacking"] == ["quota_concurrent", "quota_tokens", "quota_kv", "quota_rps"]
    assert denied.retry_after_s is None, "nobody knows when a place is free"
    account = quotas.account("a", 0.0)
    assert (account.active, account.held, account.held_kv) == (1, 300, 600.0), "a refusal takes nothing"
    assert quotas.settle(first, 300, 0.0) == "settled"
    denied = refused(quotas, "a", 400, kv_bytes=100.0)
    assert (denied.reason, denied.retry_after_s) == ("quota_tokens", pytest.approx(10.0)), "the slowest of tokens (10 s) and requests (1 s)"
    assert isinstance(quotas.reserve("a", Need(400), 10.0), Reservation)


def test_LM_7_unused_tokens_slot_and_bytes_come_back_once() -> None:
    quotas = Quotas({"default": TenantQuota(concurrent=2, tokens_per_min=1000.0, kv_bytes=100.0)})
    r = reserved(quotas, "x", 1000, kv_bytes=100.0)
    assert refused(quotas, "x", 1).reason == "quota_tokens"
    assert [quotas.settle(r, 250, 1.0), quotas.settle(r, 250, 1.0), quotas.give_back(r, 1.0)] == ["settled", "duplicate", "duplicate"]
    account = quotas.account("x", 1.0)
    assert (account.reserved, account.refunded, account.spent, account.held, account.active, account.held_kv) == (1000, 750, 250, 0, 0, 0.0)
    assert isinstance(quotas.reserve("x", Need(750), 1.0), Reservation)


def test_LM_7_unknown_tenants_have_accounts_of_their_own_and_no_quota_means_no_bound() -> None:
    quotas = Quotas({"default": TenantQuota(concurrent=1), "vip": TenantQuota()})
    for tenant in ("x", "y"):
        reserved(quotas, tenant, 10**12)
        assert refused(quotas, tenant, 1).reason == "quota_concurrent"
    for _ in range(50):
        reserved(quotas, "vip", 10**12)
    free = Quotas({"vip": TenantQuota(concurrent=1)})
    for _ in range(50):
        reserved(free, "anybody", 10**12)


def test_LM_7_what_can_never_be_is_not_retriable() -> None:
    quotas = Quotas({"a": TenantQuota(tokens_per_min=100.0), "b": TenantQuota(kv_bytes=10.0)})
    for denied in (refused(quotas, "a", 101), refused(quotas, "b", 1, kv_bytes=11.0)):
        assert (denied.reason, denied.retriable, denied.retry_after_s) == ("exceeds_burst", False, None)
    reserved(quotas, "b", 1, kv_bytes=None)
    reserved(quotas, "b", 1, kv_bytes=10.0)
    assert refused(quotas, "b", 1, kv_bytes=0.1).reason == "quota_kv"


def test_LM_7_a_place_is_due_when_the_tenants_own_requests_complete() -> None:
    quotas = Quotas({"a": TenantQuota(concurrent=1)})
    for n in range(200):
        r = reserved(quotas, "a", 1, 0.5 * n)
        quotas.settle(r, 1, 0.5 * n + 0.4)
    reserved(quotas, "a", 1, 100.0)
    assert refused(quotas, "a", 1, 100.0).retry_after_s == pytest.approx(0.5, rel=0.1)


def test_LM_7_what_never_left_the_door_is_no_request_of_this_second() -> None:
    quotas = Quotas({"a": TenantQuota(requests_per_s=1.0)})
    assert quotas.give_back(reserved(quotas, "a", 5), 0.0) == "settled"
    r = reserved(quotas, "a", 5)
    assert quotas.settle(r, 0, 0.0) == "settled"
    assert refused(quotas, "a", 5).reason == "quota_rps", "one that waited and left is one"
    assert quotas.account("a", 0.0).rate.per_s(0.0) is None


def test_LM_7_used_beyond_the_reservation_is_reserved_and_spent_at_once() -> None:
    quotas = Quotas({"a": TenantQuota(tokens_per_min=1000.0)})
    quotas.settle(reserved(quotas, "a", 100), 700, 0.0)
    account = quotas.account("a", 0.0)
    assert (account.reserved, account.refunded, account.spent, account.held) == (700, 0, 700, 0)
    assert refused(quotas, "a", 301).reason == "quota_tokens"


def test_LM_7_idle_accounts_are_forgotten_only_if_new_ones_would_decide_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota_module, "ACCOUNTS_KEPT", 4)
    quotas = Quotas({"default": TenantQuota(tokens_per_min=60.0, concurrent=1)})
    held = reserved(quotas, "holder", 1)
    quotas.settle(reserved(quotas, "owing", 60), 60, 0.0)
    for n in range(40):
        quotas.settle(reserved(quotas, f"t{n}", 1, float(n)), 1, float(n))
    assert len(quotas.accounts) <= 12
    assert refused(quotas, "holder", 1, 40.0).reason == "quota_concurrent"
    assert refused(quotas, "owing", 60, 40.0).reason == "quota_tokens"
    assert quotas.settle(held, 1, 40.0) == "settled"


def test_LM_7_the_gate_reserves_input_and_the_most_it_may_generate() -> None:
    gate = QuotaGate({"default": TenantQuota(tokens_per_min=100_000.0, kv_bytes=1e6)}, kv_bytes_per_token=10.0)
    plain, unknown = request(1, tokens=30, most=70), request(2, tokens=None, most=None)
    assert admit(gate, plain) is None and admit(gate, unknown) is None
    account = gate.quotas.account("a", 0.0)
    assert (account.held, account.held_kv) == (100 + 1280, 13_800.0), "unknown counts are nominal: 1024 in, 256 out"
    assert set(gate.held) == {"r1", "r2"}
    gate.settle(plain, Used("success", 0.0, 30, 5), 1.0)
    gate.settle(unknown, Used("provider_failure", 0.0), 1.0)
    assert (account.held, account.spent, set(gate.held)) == (0, 35 + 1280, set()), "unknown use is what was reserved"


# -- budgets --------------------------------------------------------------------------------------------------------------------


def test_LM_8_a_session_budget() -> None:
    """Budget 100 tokens, requests of at most 40: two are in, the third waits for what the first gives back."""
    gate = BudgetGate({"a": Budget(tokens=100)})
    one, two, three, four = (request(n, tokens=0, most=40, session="s") for n in range(1, 5))
    assert [admit(gate, r) for r in (one, two)] == [None, None]
    denied = admit(gate, three)
    assert denied is not None and (denied.reason, denied.retriable, denied.retry_after_s) == ("budget", False, None)
    gate.settle(one, Used("success", 0.0, 0, 10), 1.0)
    purse = gate.purse(one)
    assert purse is not None and (purse.tokens_left, purse.held, purse.spent) == (50, 40, 10)
    assert admit(gate, three) is None
    assert admit(gate, four) is not None
    for r in (two, three):
        gate.settle(r, Used("", 0.0), 1.0)
    assert (purse.held, purse.spent, purse.active, len(gate.held)) == (0, 10, 0, 0)


def test_LM_8_sessions_of_a_tenant_are_apart_and_what_has_none_shares_one() -> None:
    gate = BudgetGate({"a": Budget(tokens=20), "default": Budget(tokens=50)})
    assert admit(gate, request(1, session="s")) is None and admit(gate, request(2, session="t")) is None
    assert admit(gate, request(3, session="s")) is not None
    assert admit(gate, request(4)) is None and admit(gate, request(5)) is not None
    assert [admit(gate, request(n, "b", session="s")) is None for n in (6, 7, 8)] == [True, True, False]
    assert admit(BudgetGate({"a": Budget(tokens=1)}), request(9, "somebody")) is None, "no budget, no bound"


def test_LM_8_seconds_count_from_dispatch_to_end_and_money_by_its_prices() -> None:
    gate = BudgetGate({"a": Budget(seconds=10.0, usd=0.5, usd_per_1k_input=1.0, usd_per_1k_output=10.0)})
    r = request(1, tokens=100, most=20)
    assert admit(gate, r, 0.0) is None
    gate.dispatched(r, 5.0, 5.0)
    gate.settle(r, Used("success", 5.0, 100, 10), 12.0)
    purse = gate.purse(r)
    assert purse is not None and (purse.spent_s, purse.spent_usd) == (7.0, pytest.approx(0.2))
    poor = admit(gate, request(2, tokens=100, most=21), 12.0)
    assert poor is not None and poor.diagnostics is not None and poor.diagnostics["lacking"] == ["usd"]
    slow = request(3, tokens=1, most=1)
    assert admit(gate, slow, 12.0) is None
    gate.dispatched(slow, 0.0, 12.0)
    gate.settle(slow, Used("local_cancelled", 0.0, 0, 0), 15.0)
    late = admit(gate, slow, 15.0)
    assert late is not None and late.diagnostics is not None and late.diagnostics["lacking"] == ["seconds"]


def test_LM_8_the_longest_unused_sessions_are_forgotten_but_none_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_module, "SESSIONS_KEPT", 4)
    gate = BudgetGate({"a": Budget(tokens=30)})
    assert admit(gate, request(0, session="held")) is None
    for n in range(1, 30):
        r = request(n, session=f"s{n}")
        assert admit(gate, r) is None
        gate.settle(r, Used("success", 0.0, 10, 10), 0.0)
    assert len(gate.purses) <= 6
    assert admit(gate, request(99, session="held")) is not None


# -- token budget ---------------------------------------------------------------------------------------------------------------


def busy(**more: float) -> TokenBudget:
    gate = TokenBudget(TokenBudgetGate(prefill_tokens_per_s=10_000.0, **more))
    for n in range(3):
        assert admit(gate, request(n, tokens=4000)) is None
    assert gate.queued == 12_000
    return gate


def test_LM_5_refused_before_any_work_if_the_first_token_would_be_late() -> None:
    gate = TokenBudget(TokenBudgetGate(prefill_tokens_per_s=10_000.0, ttft_slo_s=1.5))
    for n in range(3):
        gate.take(request(n, tokens=4000), 0.0)
    denied = admit(gate, request(4, tokens=4000))
    assert denied is not None and (denied.reason, denied.retriable) == ("deadline_infeasible", False)
    assert denied.diagnostics is not None and denied.diagnostics["ttft_s"] == pytest.approx(1.6)
    assert admit(gate, request(5, tokens=3000)) is None, "1.5 s is in time"


def test_LM_5_slack_transfer_and_deadlines() -> None:
    assert admit(busy(ttft_slo_s=1.5, slack=1.1), request(9, tokens=4000)) is None
    assert admit(busy(ttft_slo_s=1.6, transfer_s=0.1), request(9, tokens=4000)) is not None
    assert admit(busy(), request(9, tokens=4000, deadline_s=1.6)) is None
    assert admit(busy(), request(9, tokens=4000, deadline_s=1.59)) is not None
    assert admit(busy(), request(9, tokens=10**9)) is None, "no bound, no refusal"


def test_LM_5_a_queue_bounded_in_tokens() -> None:
    gate = busy(ttft_target_s=1.3)
    denied = admit(gate, request(9, tokens=1001))
    assert denied is not None and (denied.reason, denied.retriable) == ("token_budget", True)
    assert admit(gate, request(9, tokens=1000)) is None


def test_GN_7_an_unknown_rate_admits() -> None:
    gate = TokenBudget(TokenBudgetGate(ttft_slo_s=0.001))
    assert gate.ttft_s(10) is None
    for n in range(50):
        assert admit(gate, request(n, tokens=10**6)) is None


def test_LM_5_the_rate_is_measured_while_prompts_wait_and_tokens_leave_at_the_first_token() -> None:
    gate, now = TokenBudget(TokenBudgetGate(ttft_slo_s=100.0)), 0.0
    for n in range(40):
        both = [request(2 * n + k, tokens=500) for k in range(2)]
        for r in both:
            assert admit(gate, r, now) is None
            gate.dispatched(r, 0.0, now)
        assert gate.queued == 1000
        for k, r in enumerate(both):
            gate.first_token(r, now + 0.1 * (k + 1))
        now += 5.0
        for r in both:
            gate.first_token(r, now)
            gate.settle(r, Used("success", 0.0, 500, 1), now)
        assert (gate.queued, len(gate.held)) == (0, 0)
    assert gate.prefill_tokens_per_s == pytest.approx(5000.0), "1000 tokens in 0.2 s; the time between counts for nothing"
    waiting = request(999, tokens=70)
    gate.take(waiting, now)
    gate.first_token(waiting, now)
    assert gate.queued == 70, "never dispatched, no first token"
    gate.settle(waiting, Used("", 1.0), now)
    assert (gate.queued, gate.rate.per_s) == (0, pytest.approx(5000.0))


def test_LM_5_the_scenarios_bound_is_the_default() -> None:
    context = BuildContext(slo={"ttft_s": 2.5})
    assert TokenBudgetGate().build(context).ttft_slo_s == 2.5
    assert TokenBudgetGate(ttft_slo_s=1.0).build(context).ttft_slo_s == 1.0
    assert TokenBudgetGate().build(BuildContext()).ttft_slo_s is None


BAD: list[tuple[Callable[..., object], dict[str, object]]] = [
    (TenantQuota, {"concurrent": 0}), (TenantQuota, {"concurrent": 1.5}), (TenantQuota, {"tokens_per_min": 0}), (TenantQuota, {"kv_bytes": -1.0}),
    (TenantQuota, {"requests_per_s": math.inf}), (Budget, {"tokens": 0}), (Budget, {"seconds": 0.0}), (Budget, {"usd": math.nan}),
    (Budget, {"usd_per_1k_input": -1.0}), (Budget, {"usd_per_1k_output": True}), (TokenBudgetGate, {"slack": 0.0}),
    (TokenBudgetGate, {"transfer_s": -0.1}), (TokenBudgetGate, {"ttft_slo_s": 0.0}), (TokenBudgetGate, {"prefill_tokens_per_s": math.inf}),
]


@pytest.mark.parametrize(("make", "given"), BAD)
def test_GN_4_bad_values_are_refused(make: Callable[..., object], given: dict[str, object]) -> None:
    with pytest.raises(ConfigValueError, match=next(iter(given))):
        make(**given)
