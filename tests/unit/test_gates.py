"""Gates together, in a control: their order, what comes back after a refusal, and that everything is settled once."""

from __future__ import annotations

from typing import Any

import pytest

from windtunnel.effects import Close, Dispatch, Reject
from windtunnel.errors import ConfigError, ConfigValueError
from windtunnel.events import Arrived, Cancelled, Commanded, Failed, Finished, FirstToken, ReplicaGone, ReplicaReady, Request, Woke
from windtunnel.lab.build import build_control
from windtunnel.lab.control_spec import ControlSpec
from windtunnel.policy.admission.denial import Denial, make_denial
from windtunnel.policy.admission.gates import Gate, Gates, Used, reserved_tokens_of, used_tokens_of
from windtunnel.policy.admission.quota import QuotaGate
from windtunnel.policy.admission.retry_budget import RetryBudget
from windtunnel.policy.admission.token_budget import TokenBudget
from windtunnel.policy.control import Control
from windtunnel.policy.param import PoolFacts

POOL = PoolFacts("chat", slots=1)


def request(n: int, tenant: str = "a", *, tokens: int | None = 10, most: int | None = 10, attempt: int = 1, **more: Any) -> Request:
    return Request(f"r{n}", tenant, "", 0, 0.0, tokens, most, attempt=attempt, **more)


def control_of(ready: bool = True, pools: tuple[PoolFacts, ...] = (POOL,), **spec: Any) -> Control:
    control = build_control(ControlSpec.model_validate(spec), pools)
    if ready:
        for pool in pools:
            control.handle(ReplicaReady(f"{pool.name}-0", pool.name, slots=1), 0.0)
    return control


def gates_of(control: Control, n: int = 0) -> dict[str, Any]:
    gates = control.lanes[n].gates
    assert gates is not None
    return {type(g).__name__: g for g in gates.gates}


def only(effects: Any, kind: type[Any]) -> Any:
    found = [e for e in effects if isinstance(e, kind)]
    assert len(found) == 1, effects
    return found[0]


def done(n: int, output: int | None = 5, replica: str = "chat-0", dispatch: int = 1) -> Finished:
    return Finished(f"r{n}", dispatch, replica, output, 10, 0, 0.0, 0.0)


class Spy(Gate):
    """Writes down what it is told."""

    def __init__(self, name: str, log: list[str], denial: Denial | None = None) -> None:
        self.name, self.log, self.denial = name, log, denial

    def refusal(self, request: Request, now: float) -> Denial | None:
        self.log.append(f"{self.name}?")
        return self.denial

    def take(self, request: Request, now: float) -> None:
        self.log.append(f"{self.name}+")

    def give_back(self, request: Request, now: float) -> None:
        self.log.append(f"{self.name}-")


def test_LM_13_a_refusal_takes_nothing_from_anyone() -> None:
    log: list[str] = []
    no = make_denial("intake", "band")
    gates = Gates([Spy("a", log), Spy("b", log, no), Spy("c", log)])
    assert gates.check(request(1), 0.0) is no
    assert log == ["a?", "b?"]
    log.clear()
    gates = Gates([Spy("a", log), Spy("b", log)])
    assert gates.check(request(1), 0.0) is None
    gates.give_back(request(1), 0.0)
    assert log == ["a?", "b?", "a+", "b+", "b-", "a-"], "given back in reverse"


def test_KC_4_a_recovered_request_is_charged_and_never_refused() -> None:
    log: list[str] = []
    gates = Gates([Spy("a", log, make_denial("intake", "band"))])
    assert gates.check(request(1, recovered=True), 0.0) is None
    assert log == ["a+"]


def test_LM_13_gates_stand_in_their_order_whatever_the_file_says() -> None:
    kinds = ("token_budget", "breaker", "throttle", "bands", "retry_budget", "gcra")
    control = control_of(admission={"gates": [{"kind": k} for k in kinds]}, tenants={"a": {"quota": {"concurrent": 1}, "budget": {"tokens": 50}}})
    assert list(gates_of(control)) == ["QuotaGate", "BudgetGate", "RateGate", "RetryBudget", "Bands", "Throttle", "BreakerDoor", "TokenBudget"]
    assert control.lanes[0].admission.breaker is not None
    assert "first_token" in control.needs


def test_gates_cost_nothing_where_there_are_none() -> None:
    assert control_of().lanes[0].gates is None
    lane = control_of(admission={"gates": [{"kind": "breaker"}]}).lanes[0]
    assert lane.gates is None and lane.admission.breaker is not None
    assert "first_token" not in control_of(admission={"gates": [{"kind": "gcra"}]}).needs


def test_a_gate_of_each_kind_at_most_and_bad_numbers_are_named() -> None:
    with pytest.raises(ConfigValueError, match="at most one gate of kind gcra"):
        control_of(admission={"gates": [{"kind": "gcra"}, {"kind": "gcra"}]})
    with pytest.raises(Exception, match="expected a value > 0"):
        ControlSpec.model_validate({"admission": {"gates": [{"kind": "gcra", "rate_per_s": 0}]}})
    with pytest.raises(Exception, match="concurrent"):
        ControlSpec.model_validate({"tenants": {"a": {"quota": {"concurrent": 1.5}}}})
    assert issubclass(ConfigValueError, ConfigError)


def test_LM_7_quota_in_a_control() -> None:
    control = control_of(tenants={"default": {"quota": {"concurrent": 2, "tokens_per_min": 60_000}}})
    account = gates_of(control)["QuotaGate"].quotas.account("a", 0.0)
    assert isinstance(only(control.handle(Arrived(request(1)), 0.0), Dispatch), Dispatch)
    control.handle(Arrived(request(2)), 0.0)
    refused = only(control.handle(Arrived(request(3)), 0.0), Reject)
    assert (refused.denial.reason, refused.denial.stage, refused.state, refused.outcome) == (
        "quota_concurrent", "intake", "rejected", "rate_limited")
    assert (account.active, account.held) == (2, 40)
    control.handle(done(1), 1.0)
    assert (account.active, account.held, account.spent) == (1, 20, 15)
    control.handle(done(2, None), 2.0)
    assert (account.active, account.held, account.spent) == (0, 0, 35), "unknown output: what was reserved"
    control.check()


def test_LM_7_a_refusal_of_the_queue_gives_everything_back() -> None:
    control = control_of(queue={"kind": "fifo", "bounded": {"capacity": 1, "capacity_by_class": {"interactive": 1, "batch": 1}}},
                         tenants={"a": {"quota": {"concurrent": 9, "requests_per_s": 3}}}, admission={"gates": [{"kind": "retry_budget"}]})
    account = gates_of(control)["QuotaGate"].quotas.account("a", 0.0)
    for n in (1, 2):
        control.handle(Arrived(request(n)), 0.0)
    for n in range(3, 20):
        refused = only(control.handle(Arrived(request(n)), 0.0), Reject)
        assert refused.denial.reason == "queue_full", "the third of this second is given back each time"
        assert (account.active, account.held) == (2, 40)
    assert len(gates_of(control)["RetryBudget"]._originals) == 2
    control.check()


def test_LM_7_a_request_that_is_stopped_holds_its_quota_until_the_engine_has_let_go() -> None:
    control = control_of(tenants={"a": {"quota": {"concurrent": 1}}})
    gate = gates_of(control)["QuotaGate"]
    control.handle(Arrived(request(1)), 0.0)
    control.handle(Cancelled("r1"), 1.0)
    assert set(gate.held) == {"r1"}
    assert only(control.handle(Arrived(request(2)), 1.0), Reject).denial.reason == "quota_concurrent"
    control.handle(Failed("r1", 1, "chat-0", "local_cancelled", "cancelled", output_tokens=3), 2.0)
    assert set(gate.held) == set() and gate.quotas.account("a", 2.0).spent == 13
    assert isinstance(only(control.handle(Arrived(request(3)), 2.0), Dispatch), Dispatch)


@pytest.mark.parametrize("how", ["cancelled", "stopped", "gone", "failed", "deadline"])
def test_LM_7_every_end_settles_once(how: str) -> None:
    control = control_of(tenants={"a": {"quota": {"concurrent": 5}, "budget": {"tokens": 1000}}},
                         admission={"gates": [{"kind": "gcra", "unit": "tokens", "rate_per_s": 1000, "burst": 1000}, {"kind": "token_budget"}]})
    gates = gates_of(control)
    for n in (1, 2):
        control.handle(Arrived(request(n, deadline_s=5.0 if how == "deadline" else None)), 0.0)
    assert all(set(gates[g].held) == {"r1", "r2"} for g in ("QuotaGate", "BudgetGate", "TokenBudget"))
    if how == "cancelled":
        control.handle(Cancelled("r2"), 1.0)
    elif how == "deadline":
        control.handle(Woke("queue"), 5.0)
    elif how == "stopped":
        control.handle(Commanded("stop"), 1.0)
    elif how == "gone":
        control.handle(ReplicaGone("chat-0", "gone"), 1.0)
    if how != "gone":
        control.handle(Failed("r1", 1, "chat-0", "provider_failure", "boom"), 6.0)
    if how == "failed":
        control.handle(done(2), 7.0)
    control.check()
    assert control.open_count == 0
    assert all(not gates[g].held for g in ("QuotaGate", "BudgetGate", "TokenBudget"))
    account, purse = gates["QuotaGate"].quotas.account("a", 9.0), gates["BudgetGate"].purse(request(1))
    spent = 15 if how == "failed" else 0
    assert (account.active, account.held, account.spent, purse.held, purse.spent, gates["TokenBudget"].queued) == (0, 0, spent, 0, spent, 0)
    assert gates["RateGate"]._bucket(request(1), 0.0).wait_s(1000.0, 0.0) == pytest.approx(spent / 1000, abs=1e-6)


def test_LM_9_own_retries_need_the_budget_too() -> None:
    settings = {"attempts": 3}
    for budget, dispatches in (({"kind": "retry_budget", "ratio": 0.0}, 1), ({"kind": "retry_budget", "ratio": 1.0}, 2)):
        control = control_of(settings=settings, admission={"gates": [budget]})
        control.handle(Arrived(request(1)), 0.0)
        effects = list(control.handle(Failed("r1", 1, "chat-0", "provider_failure", "boom"), 1.0))
        if dispatches == 2:
            effects = list(control.handle(Failed("r1", only(effects, Dispatch).dispatch, "chat-0", "provider_failure", "boom"), 2.0))
        closed = only(effects, Close)
        assert (closed.state, closed.outcome) == ("failed", "provider_failure")
        assert control.open_count == 0
    fresh = control_of(admission={"gates": [{"kind": "retry_budget"}]})
    refused = only(fresh.handle(Arrived(request(1, attempt=2)), 0.0), Reject)
    assert (refused.denial.reason, refused.denial.retriable) == ("retry_budget", False)


def test_LM_5_the_first_token_frees_the_queue_of_prompts() -> None:
    control = control_of(admission={"gates": [{"kind": "token_budget", "prefill_tokens_per_s": 100, "ttft_slo_s": 1.0}]})
    gate = gates_of(control)["TokenBudget"]
    control.handle(Arrived(request(1, tokens=100)), 0.0)
    refused = only(control.handle(Arrived(request(2, tokens=1)), 0.0), Reject)
    assert refused.denial.reason == "deadline_infeasible" and refused.denial.diagnostics["queued_tokens"] == 100
    control.handle(FirstToken("r1", 1, "chat-0"), 1.0)
    assert gate.queued == 0
    control.handle(Arrived(request(3, tokens=1)), 1.0)
    assert control.waiting() == 1


def test_DN_2_a_gate_that_knows_no_time_tells_the_lanes() -> None:
    control = control_of(admission={"gates": [{"kind": "token_budget", "prefill_tokens_per_s": 100, "ttft_target_s": 1.0}]})
    now = 0.0
    for n in range(40):
        control.handle(Arrived(request(n, tokens=1)), now)
        now += 0.5
        control.handle(done(n), now)
    refused = only(control.handle(Arrived(request(99, tokens=101)), now), Reject)
    assert (refused.denial.reason, refused.denial.retry_after_s) == ("token_budget", pytest.approx(0.5, rel=0.1))


def test_LM_12_an_open_breaker_refuses_after_the_quota_and_before_the_token_budget() -> None:
    control = control_of(tenants={"a": {"quota": {"concurrent": 1}}}, admission={
        "gates": [{"kind": "breaker", "min_outcomes": 1}, {"kind": "token_budget", "prefill_tokens_per_s": 1, "ttft_slo_s": 1}]})
    control.handle(Arrived(request(1, tokens=0)), 0.0)
    control.handle(Failed("r1", 1, "chat-0", "provider_failure", "boom"), 0.0)
    refused = only(control.handle(Arrived(request(2)), 1.0), Reject)
    assert (refused.denial.reason, refused.denial.retry_after_s) == ("breaker_open", pytest.approx(29.0))
    assert not gates_of(control)["QuotaGate"].held


def test_quotas_hold_over_all_lanes_and_token_budgets_in_each() -> None:
    pools = (PoolFacts("x", model="mx"), PoolFacts("y", model="my"))
    control = control_of(pools=pools, tenants={"a": {"quota": {"concurrent": 1}}}, admission={"gates": [
        {"kind": "token_budget"}, {"kind": "gcra"}, {"kind": "retry_budget"}, {"kind": "bands"}, {"kind": "breaker"}]})
    x, y = gates_of(control, 0), gates_of(control, 1)
    assert [x[k] is y[k] for k in x] == [True, True, True, False, False, False]
    control.handle(Arrived(Request("r1", "a", "mx", 0, 0.0, 1, 1)), 0.0)
    assert only(control.handle(Arrived(Request("r2", "a", "my", 0, 0.0, 1, 1)), 0.0), Reject).denial.reason == "quota_concurrent"
    control.check()
    assert isinstance(x["QuotaGate"], QuotaGate) and isinstance(x["RetryBudget"], RetryBudget) and isinstance(x["TokenBudget"], TokenBudget)


def test_LM_7_kv_bytes_need_a_model_whose_size_is_known() -> None:
    quota = {"default": {"quota": {"kv_bytes": 1e9}}}
    gate = gates_of(control_of(pools=(PoolFacts("x", model="Llama-3.1-8B"),), tenants=quota))["QuotaGate"]
    assert gate.kv_bytes_per_token == 131_072.0
    for pools, said in (((POOL,), "are not known"), ((PoolFacts("x", model="a"), PoolFacts("y", model="b")), "pools of one model")):
        with pytest.raises(ConfigValueError, match=rf"control.tenants.default.quota.kv_bytes: .*{said}"):
            control_of(pools=pools, tenants=quota)


def test_reserved_and_used_tokens() -> None:
    assert [reserved_tokens_of(r) for r in (request(1), request(1, tokens=None), request(1, most=None), request(1, tokens=0, most=0))] == [
        20, 1034, 266, 256]
    assert reserved_tokens_of(request(1, most=None, expected_tokens=7)) == 17
    used = [Used("success", 0.0, 4, 3), Used("success", 0.0, None, 3), Used("success", 0.0, 4, None), Used("", 9.0, 4, 3)]
    assert [used_tokens_of(request(1), u) for u in used] == [7, 13, 20, 0]
