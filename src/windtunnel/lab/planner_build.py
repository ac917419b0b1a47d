"""A `planner:` block and the pools of a fleet, made into a planner."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from windtunnel.errors import PlannerConfigError
from windtunnel.events import Request
from windtunnel.lab.planner_config import PlannerSpec
from windtunnel.policy.param import PoolFacts
from windtunnel.policy.planning.perf_model import PerfModel
from windtunnel.policy.planning.pool_states import PoolFrame
from windtunnel.policy.planning.shell import PipelinePlanner


def build_pipeline_planner(spec: PlannerSpec, pools: Sequence[PoolFacts], *, wants: frozenset[str] = frozenset(),
                           perf_model: PerfModel | None = None) -> PipelinePlanner:
    """A fresh planner over the pools whose roles its mode sizes; their counts at the start are those of the fleet.

    Raises PlannerConfigError if a role has no pool, or several.
    """
    settings = spec.settings()
    builtins, more = spec.build(perf_model)
    frames, names, models = {}, set(), set()
    for role in settings.roles:
        component, fixed = settings.component(role), settings.pools[role]
        fitting = [p for p in pools if p.role == role and (fixed.component is None or p.name == fixed.component)]
        fitting = fitting or [p for p in pools if p.role == role]
        if len(fitting) != 1:
            known = ", ".join(f"{p.name} ({p.role})" for p in pools)
            raise PlannerConfigError(f"planner.pools.{role}: expected one pool of role {role}, the fleet has {known}")
        [facts] = fitting
        boot_s = fixed.boot_s if facts.boot_s is None else facts.boot_s
        frames[role] = PoolFrame(component, facts.name, role, fixed.gpus, boot_s, facts.replicas)
        names.add(facts.name)
        models.add(facts.model)
    alone = {p.model for p in pools} == models
    mine: Callable[[Request], bool] | None = None if alone else lambda r: r.pool in names or (r.pool is None and r.model in models)
    planner = PipelinePlanner(settings, (*builtins.attached, *more), frames, mine=mine, wants=wants, roster=spec.roster())
    planner.outside = spec.outside()
    return planner
