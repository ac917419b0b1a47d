"""From the gates of a scenario to live ones: in their order, those for all lanes made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from windtunnel.errors import ConfigUnknownModelError, ConfigValueError
from windtunnel.lab.control_spec import ControlSpec
from windtunnel.policy.admission.breaker import Breaker, BreakerDoor
from windtunnel.policy.admission.budget import BudgetGate
from windtunnel.policy.admission.gates import ORDER, Gate, Gates
from windtunnel.policy.admission.quota import QuotaGate
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.param import BuildContext, PoolFacts
from windtunnel.sim import catalog

FOR_ALL_LANES = ("gcra", "retry_budget")
Context = Callable[[str], BuildContext]


def shared_gates(spec: ControlSpec, context: Context, pools: Sequence[PoolFacts] = ()) -> dict[str, Gate]:
    """The gates that all lanes pass together, by kind: quotas and budgets of the tenants, the rate, the retry budget."""
    gates: dict[str, Gate] = {}
    quotas, budgets = _of_tenants(spec, "quota"), _of_tenants(spec, "budget")
    if quotas:
        by_kv = [name for name, quota in quotas.items() if quota.kv_bytes is not None]
        gates["quota"] = QuotaGate(quotas, _kv_bytes_per_token(pools, by_kv[0]) if by_kv else None)
    if budgets:
        gates["budget"] = BudgetGate(budgets)
    for kind, block in _blocks(spec).items():
        if kind in FOR_ALL_LANES:
            gates[kind] = block.config().build(context(kind))
    return gates


def _of_tenants(spec: ControlSpec, part: str) -> dict[str, Any]:
    """The tenants' configs of one kind, where they have one."""
    blocks = {name: getattr(tenant, part) for name, tenant in spec.tenants.items()}
    return {name: block.config() for name, block in blocks.items() if block is not None}


def _kv_bytes_per_token(pools: Sequence[PoolFacts], tenant: str) -> float:
    """Of the one model of all pools, as they know it or else as the shipped catalogue says in bf16; ConfigValueError where that is not known,
    since the quota would bound nothing."""
    models = sorted({pool.model for pool in pools})
    where = f"control.tenants.{tenant}.quota.kv_bytes"
    if len(models) != 1:
        raise ConfigValueError(where, f"expected pools of one model, got {', '.join(models) or 'none'}: a token of each takes other bytes")
    known = {pool.kv_bytes_per_token for pool in pools if pool.kv_bytes_per_token is not None}
    if len(known) > 1:
        raise ConfigValueError(where, f"a token takes {' or '.join(f'{size:g}' for size in sorted(known))} bytes, by pool; give them one kv_dtype")
    try:
        return next(iter(known)) if known else catalog.model(models[0]).kv_bytes_per_token()
    except ConfigUnknownModelError:
        raise ConfigValueError(where, f'the bytes per token of model "{models[0]}" are not known') from None


def lane_breaker(spec: ControlSpec, context: Context) -> Breaker | None:
    """The lane's own breaker, if the scenario has one."""
    block = _blocks(spec).get("breaker")
    breaker: Breaker | None = None if block is None else block.config().build(context("breaker"))
    return breaker


def lane_gates(spec: ControlSpec, shared: dict[str, Gate], admission: RequestAdmission, resource: str, context: Context) -> Gates | None:
    """All gates of one lane, in order; None if there is none but a breaker."""
    gates = dict(shared)
    for kind, block in _blocks(spec).items():
        if kind not in FOR_ALL_LANES and kind != "breaker":
            gates[kind] = block.config().build(context(kind))
    if not gates:
        return None
    if admission.breaker is not None:
        gates["breaker"] = BreakerDoor(admission, resource)
    return Gates(gates[kind] for kind in sorted(gates, key=_place))


def _place(kind: str) -> tuple[int, str]:
    return (ORDER.index(kind) if kind in ORDER else len(ORDER), kind)


def _blocks(spec: ControlSpec) -> dict[str, Any]:
    """The scenario's gates by kind, each at most once."""
    assert spec.admission is not None  # of a resolved spec
    blocks: dict[str, Any] = {}
    for gate in spec.admission.gates or ():
        if gate.kind in blocks:
            raise ConfigValueError("control.admission.gates", f"expected at most one gate of kind {gate.kind}")
        blocks[gate.kind] = gate
    return blocks
