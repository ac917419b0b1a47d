"""From the plugins' answers to the plan: propose, constrain, boundary; prefill and decode of one GPU each, 8 GPUs, minima 1."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from windtunnel.policy.planning.boundary import Fitted, Limits, PoolNow, fit_plan
from windtunnel.policy.planning.budget_constrain import BudgetConstrain
from windtunnel.policy.planning.contract import (
    ComponentTarget,
    ObservationData,
    Override,
    OverrideType,
    PipelineContext,
    PoolState,
    Reject,
    ScalingProposal,
    Stage,
    StageRequest,
    StageResponse,
    WorkerState,
)
from windtunnel.policy.planning.load import LoadPropose
from windtunnel.policy.planning.merge import Ballot, MergeOutcome, type_aware_merge
from windtunnel.policy.planning.settings import PlannerSettings
from windtunnel.policy.planning.settings_blocks import BudgetSettings, PoolSettings, StabiliseSettings
from windtunnel.policy.planning.sizing import Sizing
from windtunnel.policy.planning.stabilise import Stabilise

KINDS = {"=": OverrideType.SET, ">": OverrideType.AT_LEAST, "<": OverrideType.AT_MOST}
NAMES = {"p": "prefill", "d": "decode"}


def says(text: str, final: bool = False) -> StageResponse:
    """ "p>5 d=3": at least 5 prefill, 3 decode."""
    return StageResponse(Override(tuple(ComponentTarget(NAMES[t[0]], int(t[2:]), KINDS[t[1]]) for t in text.split())), final)


@dataclass
class Service:
    """Both pools, and the built-in constraints."""

    ready: tuple[int, int] = (4, 4)
    expected: tuple[int, int] = (4, 4)
    stabilise: bool = False
    settings: PlannerSettings = field(init=False)

    def __post_init__(self) -> None:
        self.settings = PlannerSettings(mode="disagg", pools={"prefill": PoolSettings(), "decode": PoolSettings()},
                                        budget=BudgetSettings(max_gpus=8), stabilise=StabiliseSettings(self.stabilise))
        sizing = Sizing(self.settings)
        self.constraints = [("builtin_budget_constrain", BudgetConstrain(self.settings, sizing))]
        self.stabiliser = Stabilise(self.settings, sizing)
        if self.stabilise:
            self.constraints.append(("builtin_stabilise", self.stabiliser))  # type: ignore[arg-type]

    def states(self) -> dict[str, PoolState]:
        return {name: PoolState(ready, expected, expected - ready) for name, ready, expected in
                zip(NAMES.values(), self.ready, self.expected, strict=True)}

    def tick(self, *proposals: Ballot, at: float = 5.0) -> tuple[MergeOutcome, MergeOutcome, Fitted]:
        base = dict(zip(NAMES.values(), self.expected, strict=True))
        proposed = type_aware_merge(proposals, base)
        assert proposed.proposal is not None
        ctx = PipelineContext("t", "d", ObservationData(None, None, WorkerState(self.states())), None, proposed.proposal)
        answers = [Ballot(name, 100, plugin.constrain(StageRequest(ctx, Stage.CONSTRAIN, at, at))) for name, plugin in self.constraints]
        flow = {t.component: t.replicas for t in proposed.proposal.targets}
        constrained = type_aware_merge(answers, flow, set_allowed=False)
        assert constrained.proposal is not None
        pools = {name: PoolNow(n, starting=n - ready) for (name, n), ready in zip(base.items(), self.ready, strict=True)}
        plan = {t.component: t.replicas for t in constrained.proposal.targets}
        return proposed, constrained, fit_plan(plan, pools, Limits(max_gpus=8), tick_at=at)


def counts(proposal: ScalingProposal | None) -> dict[str, int | None]:
    assert proposal is not None
    return {t.component[0]: t.replicas for t in proposal.targets}


LOAD = Ballot("builtin_load_propose", 10, says("p=3 d=5"))


def test_PL_610_floor_against_a_step_down_is_held_at_the_ceiling() -> None:
    proposed, _, fitted = Service().tick(LOAD, Ballot("builtin_throughput_propose", 20, says("p>5 d>3")))
    assert counts(proposed.proposal) == {"p": 5, "d": 5}
    assert [(c.component, c.bound, c.plugin_id) for c in proposed.clamped] == [("prefill", "floor", "builtin_throughput_propose")]
    assert dict(fitted.plan) == {"prefill": 4, "decode": 4}
    assert fitted.reasons["prefill"] == ("gpu_budget_guard_hold",)


def test_PL_610_opposing_moves_pass_at_the_ceiling() -> None:
    *_, fitted = Service().tick(LOAD, Ballot("builtin_throughput_propose", 20, says("p>3 d>3")))
    assert dict(fitted.plan) == {"prefill": 3, "decode": 5}


def test_PL_610_a_cooldown_breaks_the_pair_and_the_budget_holds_it() -> None:
    service = Service((3, 4), (3, 4), stabilise=True)
    service.tick(at=5.0)
    service.ready = service.expected = (4, 4)
    service.tick(at=10.0)
    _, constrained, fitted = service.tick(LOAD, Ballot("builtin_throughput_propose", 20, says("p>3 d>3")), at=30.0)
    assert counts(constrained.proposal) == {"p": 4, "d": 5}
    assert service.stabiliser.reasons["prefill"] == "cooldown"
    assert dict(fitted.plan) == {"prefill": 4, "decode": 4}


def test_PL_610_nothing_external_passes_the_budget() -> None:
    proposed, _, fitted = Service().tick(Ballot("external", 1, says("p=6", final=True)), LOAD)
    assert proposed.used_final_from == "external" and proposed.ignored == ("builtin_load_propose",)
    assert counts(proposed.proposal) == {"p": 6, "d": 4}
    assert dict(fitted.plan) == {"prefill": 4, "decode": 4}


def test_PL_610_nobody_knows_anything_nothing_changes() -> None:
    service = Service()
    load = LoadPropose(service.settings, Sizing(service.settings))
    ctx = PipelineContext("t", "d", ObservationData(None, None, WorkerState(service.states())))
    answer = load.propose(StageRequest(ctx, Stage.PROPOSE, 5.0, 5.0))
    assert load.reasons == {"prefill": "no_fpm_data", "decode": "no_fpm_data"}
    *_, fitted = service.tick(Ballot("builtin_load_propose", 10, answer))
    assert dict(fitted.plan) == {"prefill": 4, "decode": 4} and fitted.reasons["decode"] == ("unchanged",)


def test_PL_610_a_rejection_short_circuits() -> None:
    outcome = type_aware_merge([Ballot("freeze", 100, StageResponse(Reject("freeze")))], {"prefill": 4, "decode": 4}, set_allowed=False)
    assert (outcome.proposal, outcome.short_circuit_reason) == (None, "freeze: freeze")


@pytest.mark.parametrize("ballots", [(), (Ballot("builtin_throughput_propose", 20, says("p>5")),)])
def test_PL_610_what_is_starting_is_not_cancelled(ballots: tuple[Ballot, ...]) -> None:
    *_, fitted = Service((4, 1), (6, 1)).tick(*ballots)
    assert dict(fitted.plan) == {"prefill": 6, "decode": 1}
