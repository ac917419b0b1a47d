"""Every limit, gate, queue and preset by name: a flight under overload keeps its books and replays exactly."""

from __future__ import annotations

from typing import Any

import pytest

from windtunnel import Run, Scenario, replay
from windtunnel.lab import registry
from windtunnel.lab.control_spec import PRESETS
from windtunnel.lab.replay import ReplayResult

TIGHT: dict[str, dict[str, Any]] = {
    "gcra": {"rate_per_s": 2000, "burst": 4000, "unit": "tokens"}, "token_budget": {"ttft_slo_s": 0.3}, "bands": {"overload_s": 0.005},
    "retry_budget": {}, "throttle": {}, "breaker": {},
}


def flown(control: dict[str, Any]) -> tuple[Run, ReplayResult]:
    """A run under overload whose books are checked at every event, and how far its replay agrees."""
    scenario = Scenario.load("overload").with_({"duration_s": 10.0, "warmup_s": 0.0, "source.rate_rps": 70, "control": control})
    run = scenario.run(record="full", check=True)
    return run, replay(run)


@pytest.mark.parametrize("kind", sorted(registry.kinds("admission.limit")))
def test_RG_2_every_limit_flies_and_replays(kind: str) -> None:
    run, agreed = flown({"admission": {"limit": {"kind": kind}}})
    assert agreed.events >= 200 and agreed.effects >= 200
    assert run.complete and run.summary().values["completed"] > 0


@pytest.mark.parametrize("kind", sorted(registry.kinds("admission.gates")))
def test_RG_2_every_gate_flies_and_replays(kind: str) -> None:
    run, agreed = flown({"admission": {"gates": [{"kind": kind, **TIGHT.get(kind, {})}]}})
    assert agreed.events >= 200 and agreed.effects >= 200 and run.summary().values["completed"] > 0
    refused = set(run.requests["reason"].dropna())
    expected = {"gcra": "rate_limit", "token_budget": "deadline_infeasible", "bands": "band"}.get(kind)
    assert expected is None or expected in refused


def test_RG_2_quotas_and_budgets_of_tenants() -> None:
    run, agreed = flown({"tenants": {"default": {"quota": {"concurrent": 40, "tokens_per_min": 60_000}, "budget": {"tokens": 20_000}}},
                 "admission": {"gates": [{"kind": kind} for kind in sorted(registry.kinds("admission.gates"))]}})
    assert agreed.events >= 200 and agreed.effects >= 200 and run.summary().values["completed"] > 0
    refused = set(run.requests["reason"].dropna())
    assert refused & {"quota_concurrent", "quota_tokens", "budget"}


QUEUES: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind} for kind in sorted(registry.kinds("queue"))},
    "classes strict": {"kind": "classes", "mode": "strict"}, "classes strict, fair inside": {"kind": "classes", "mode": "strict", "inside": "fair"},
    "classes by weight, fair inside": {"kind": "classes", "inside": "fair"}, "classes ageing": {"kind": "classes", "mode": "ageing"},
    "fair by tokens and deadline": {"kind": "fair", "cost": "tokens", "inside": "edf"}, "vtc that predicts": {"kind": "vtc", "predict": True},
    "lifo that sheds": {"kind": "adaptive_lifo", "controlled_delay": True, "interval_s": 0.5, "target_s": 0.1},
    "all wrappers": {"kind": "fair", "bounded": {"capacity": 20}, "deadline_drop": {"min_service_s": 0.1},
                     "codel": {"target_s": 0.1, "interval_s": 0.5}},
}
BUSY = {"duration_s": 5.0, "warmup_s": 0.0, "source.rate_rps": 70, "source.tenants": {"a": 1, "b": 3},
        "source.priorities": {"interactive": 2, "batch": 1}, "control.admission.limit": {"kind": "fixed", "limit": 24}}


@pytest.mark.parametrize("name", QUEUES)
def test_RG_2_every_queue_flies_and_replays(name: str) -> None:
    scenario = Scenario.load("overload").with_({**BUSY, "control.queue": QUEUES[name], "control.tenants": {"b": {"weight": 2.0}}})
    run = scenario.run(record="full", check=True)
    agreed = replay(run)
    assert agreed.events >= 200 and agreed.effects >= 200
    waited = run.requests["control_queue_s"].dropna()
    assert (run.requests["outcome"] == "success").sum() > 20 and (waited > 0.1).any(), "they did wait"


@pytest.mark.parametrize("preset", PRESETS)
def test_RG_2_every_preset_flies_and_replays(preset: str) -> None:
    run, agreed = flown({"preset": preset})
    assert agreed.events >= 200 and agreed.effects >= 200 and run.summary().values["completed"] > 0
