"""A `planner:` block and the pools of a fleet, made into a planner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from windtunnel.errors import PlannerConfigError
from windtunnel.events import Request
from windtunnel.lab.planner_config import PlannerSpec
from windtunnel.policy.param import PoolFacts
from windtunnel.policy.planning.perf_model import PerfModel
from windtunnel.policy.planning.pool_states import PoolFrame
from windtunnel.policy.planning.settings import ROLES
from windtunnel.policy.planning.shell import PipelinePlanner


def build_pipeline_planner(spec: PlannerSpec, pools: Sequence[PoolFacts], *, wants: frozenset[str] = frozenset(),
                           perf_model: PerfModel | None = None, slo: Mapping[str, float] | None = None) -> PipelinePlanner:
    """A fresh planner over the pools whose roles its mode sizes; their counts at the start are those of the fleet, and so is all
    that the block leaves out. slo: bounds by column, for a block without its own.

    Raises PlannerConfigError if a role has no pool, or several.
    """
    facts = {role: _pool_of(spec, role, pools) for role in ROLES[spec.mode]}
    settings = spec.settings(facts, slo)
    builtins, more = spec.parts(settings, perf_model, facts)
    frames = {}
    for role, known in facts.items():
        fixed = settings.pools[role]
        frames[role] = PoolFrame(settings.component(role), known.name, role, fixed.gpus, fixed.boot_s, known.replicas)
    names, models = {f.name for f in facts.values()}, {f.model for f in facts.values()}
    alone = {p.model for p in pools} == models
    mine: Callable[[Request], bool] | None = None if alone else lambda r: r.pool in names or (r.pool is None and r.model in models)
    planner = PipelinePlanner(settings, (*builtins.attached, *more), frames, mine=mine, wants=wants, roster=spec.roster(settings))
    planner.outside = spec.outside()
    return planner


def _pool_of(spec: PlannerSpec, role: str, pools: Sequence[PoolFacts]) -> PoolFacts:
    """The fleet's pool of that role: the one that the block names, or the only one."""
    entry = spec.pools.get(role)
    fitting = [p for p in pools if p.role == role]
    named = [p for p in fitting if entry is not None and p.name == entry.component]
    fitting = named or fitting
    if len(fitting) != 1:
        known = ", ".join(f"{p.name} ({p.role})" for p in pools)
        raise PlannerConfigError(f"planner.pools.{role}: expected one pool of role {role}, the fleet has {known}; name one as component")
    return fitting[0]
