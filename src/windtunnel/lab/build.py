"""From the checked parts of a scenario to live objects: control, source, simulated fleet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from windtunnel.errors import ConfigInfeasibleError, ConfigValueError
from windtunnel.lab import locate
from windtunnel.lab.control_spec import ControlSpec
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.control import Control
from windtunnel.policy.lane import Lane
from windtunnel.policy.param import BuildContext, PoolFacts
from windtunnel.policy.planning.planner import Planner
from windtunnel.policy.queueing.fair import Queue
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.sim.fleet import FleetConfig
from windtunnel.sources.seeding import PolicyRng
from windtunnel.sources.source import Source


def build_control(spec: ControlSpec, pools: Sequence[PoolFacts], *, slo: Mapping[str, Any] | None = None, seed: int = 0, replication: int = 0,
                  wants: frozenset[str] = frozenset()) -> Control:
    """A fresh control with one lane per model over `pools`; the same for a simulated and for a live world.

    seed, replication: of the run; each policy draws from its own generator. wants: note streams that are recorded.
    """
    full = spec.resolved()
    if not pools:
        raise ConfigValueError("fleet.pools", "expected at least one pool")
    tenants = {name: tenant.weight for name, tenant in full.tenants.items()}
    models: dict[str, list[PoolFacts]] = {}
    for pool in pools:
        models.setdefault(pool.model, []).append(pool)

    def context(path: str, of: Sequence[PoolFacts]) -> BuildContext:
        return BuildContext(PolicyRng(seed, path, replication), tenants, tuple(of), _flat(slo or {}), wants)

    scrape_s, fleet = None, Fleet()
    del scrape_s
    lanes = [_lane(full, of, lambda part, of=of: context(f"control/{of[0].name}/{part}", of), wants) for of in models.values()]
    planner = None
    if full.planner is not None:
        planner = _planner(full.planner.config(), pools, context("control/planner", pools))
    return Control(lanes=lanes, fleet=fleet, tenants=tenants, planner=planner, settings=full.settings.config(), wants=wants)


def _lane(spec: ControlSpec, pools: Sequence[PoolFacts], context: Any, wants: frozenset[str]) -> Lane:
    assert spec.admission is not None
    limit = spec.admission.limit.config()
    breakers = [gate.config() for gate in spec.admission.gates or () if gate.kind == "breaker"]
    if len(breakers) > 1:
        raise ConfigValueError("control.admission.gates", "expected at most one gate of kind breaker")
    admission = RequestAdmission(limit.build(context("limit")), breaker=breakers[0] if breakers else None, wants=wants)
    model = pools[0].model
    return Lane(pools[0].name, queue=_queue(spec.queue, context("queue")), admission=admission, router=spec.routing.config().build(context("routing")),
                pools=tuple(p.name for p in pools), models=frozenset({model} if model else ()), cap=_cap(spec.admission.limit))


def _queue(spec: Any, context: BuildContext) -> Queue:
    """The queue inside its wrappers, the outermost last."""
    from windtunnel.lab import registry

    queue: Queue = spec.config().build(context)
    for name in reversed(registry.wrappers("queue")):
        wrapper = getattr(spec, name, None)
        if wrapper is not None:
            queue = wrapper.config().wrap(queue, context)
    return queue


def _cap(limit: Any) -> Any:
    """The ceiling of a lane's limit: none for `none`, its own number for `fixed`, else the slots of the ready replicas."""
    if limit.kind == "none":
        return None
    return limit.limit if limit.kind == "fixed" else "slots"


def _planner(config: Any, pools: Sequence[PoolFacts], context: BuildContext) -> Planner:
    planner = config.build(context)
    return planner  # type: ignore[no-any-return]


def _flat(slo: Mapping[str, Any]) -> dict[str, float]:
    """Bounds by column; with bounds per class, the interactive ones."""
    chosen = slo.get("interactive", slo) if any(isinstance(v, Mapping) for v in slo.values()) else slo
    return {k: float(v) for k, v in chosen.items() if isinstance(v, (int, float))}


def pool_facts(fleet: FleetConfig) -> tuple[PoolFacts, ...]:
    """What policies may know of a simulated fleet before the run."""
    return tuple(PoolFacts(p.name, p.role, p.model, p.replicas, p.gpus_per_replica, p.slots, None, p.min, p.max) for p in fleet.pools.values())


def build_fleet(spec: Any, base: Path) -> FleetConfig:
    """The simulated fleet; ConfigInfeasibleError with the arithmetic for a pool that cannot run."""
    from windtunnel.lab.build_fleet import build_pool

    pools = {}
    for name, pool in spec.pools.items():
        try:
            pools[name] = build_pool(name, pool, base)
        except ConfigInfeasibleError as error:
            error.message = f"fleet.pools.{name}: {error.message}"
            raise
    return FleetConfig(pools, spec.network_s)


def build_source(spec: Any, base: Path, seed: int, *, replication: int = 0, duration_s: float | None = None, model: str = "",
                 live: bool = False) -> Source:
    """A fresh source. duration_s: no arrivals at or after it; model: what requests without one ask for; live: with prompt texts."""
    from windtunnel.lab.build_source import source_of

    return source_of(spec, base, seed, replication=replication, duration_s=duration_s, model=model, live=live)


__all__ = ["build_control", "build_fleet", "build_source", "locate", "pool_facts"]
