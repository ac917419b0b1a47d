"""From the checked parts of a scenario to live objects: control, source, simulated fleet."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from windtunnel.errors import ConfigError, ConfigInfeasibleError, ConfigValueError
from windtunnel.lab import registry
from windtunnel.lab.build_gates import lane_breaker, lane_gates, shared_gates
from windtunnel.lab.control_spec import ControlSpec
from windtunnel.lab.planner_outside import without_addresses
from windtunnel.lab.recorder import wants_of
from windtunnel.policy.admission.gates import Gate
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.control import Control
from windtunnel.policy.lane import Lane
from windtunnel.policy.param import BuildContext, PoolFacts
from windtunnel.policy.queueing.fair import Queue
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.pairs import sides_of
from windtunnel.sim.catalog import SHIPPED, Catalog
from windtunnel.sim.engine import EngineConfig
from windtunnel.sim.fault_config import Fault, surges_of
from windtunnel.sim.fleet_config import FleetConfig
from windtunnel.sim.pd import pairs_of
from windtunnel.sources.seeding import PolicyRng
from windtunnel.sources.source import Source


def build_control(spec: ControlSpec, pools: Sequence[PoolFacts], *, slo: Mapping[str, Any] | None = None, seed: int = 0,
                  replication: int = 0, wants: frozenset[str] = frozenset()) -> Control:
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

    shared = shared_gates(full, lambda part: context(f"control/{part}", pools), pools)

    def lane(of: Sequence[PoolFacts]) -> Lane:
        return _lane(full, of, lambda part: context(f"control/{of[0].name}/{part}", of), wants, shared)

    settings: Any = full.settings
    planner = None if full.planner is None else full.planner.config().build(context("control/planner", pools))
    fleet = Fleet(**full.ledger.model_dump())
    return Control(lanes=[lane(of) for of in models.values()], fleet=fleet, tenants=tenants, planner=planner, settings=settings.config(),
                   wants=wants)


def header_spec(spec: ControlSpec, pools: Sequence[PoolFacts], slo: Mapping[str, Any]) -> dict[str, Any]:
    """What a log's header holds of a control, as plain data: enough to build an equal one. No addresses."""
    plain = spec.resolved().model_dump(mode="json")
    if plain.get("planner"):
        plain["planner"] = without_addresses(plain["planner"])
    return {**plain, "pools": [asdict(p) for p in pools], "slo": dict(slo)}


def control_from_header(header: Mapping[str, Any], spec: ControlSpec | None = None) -> Control:
    """A fresh control equal to the one that wrote a log, or with another `spec` over the same pools.

    Raises ConfigError if the header does not say enough.
    """
    data = dict(header.get("control") or {})
    if "pools" not in data:
        raise ConfigError("the log's header does not say how to build its control", hint="give replay a control")
    pools, slo = [PoolFacts(**p) for p in data.pop("pools")], data.pop("slo", {})
    if spec is None:
        registry.refuse_imports(data)
        spec = ControlSpec.model_validate_json(json.dumps(data), strict=True)
    return build_control(spec, pools, slo=slo, seed=int(header["seed"]), replication=int(header["replication"]), wants=wants_of(header["level"]))


def _lane(spec: ControlSpec, pools: Sequence[PoolFacts], context: Callable[[str], BuildContext], wants: frozenset[str],
          shared: dict[str, Gate]) -> Lane:
    """One model service over its pools."""
    assert spec.admission is not None and spec.queue is not None and spec.routing is not None  # of a resolved spec
    limit: Any = spec.admission.limit
    admission = RequestAdmission(limit.config().build(context("limit")), breaker=lane_breaker(spec, context), wants=wants)
    name, model = pools[0].name, pools[0].model
    sides = _sides(spec.routing, pools)
    return Lane(name, queue=_queue(spec.queue, context("queue")), admission=admission,
                router=spec.routing.config().build(context("routing")), pools=tuple(p.name for p in pools),
                models=frozenset({model} if model else ()), cap=_cap(limit),
                gates=lane_gates(spec, shared, admission, name, context),
                signal=spec.admission.signal or "ttft", sides=sides)


def _sides(routing: Any, pools: Sequence[PoolFacts]) -> tuple[tuple[str, ...], ...]:
    """Pools of which each group must have a replica. Pools that share requests need a router that gives pairs."""
    first, second = sides_of(tuple(pools))
    if not first:
        return ()
    if getattr(routing, "kind", "pairs") != "pairs" and ":" not in routing.kind:
        raise ConfigValueError("control.routing.kind", f"expected pairs: pool {first[0].name} has role prefill, got {routing.kind}",
                               hint="write routing: {kind: pairs}")
    return tuple(p.name for p in first), tuple(p.name for p in second)


def _queue(spec: Any, context: BuildContext) -> Queue:
    """The queue inside its wrappers, the outermost last."""
    queue: Queue = spec.config().build(context)
    for name in reversed(list(registry.wrappers("queue"))):
        wrapper = getattr(spec, name, None)
        if wrapper is not None:
            queue = wrapper.config().wrap(queue, context)
    return queue


def _cap(limit: Any) -> Any:
    """The ceiling of a lane's limit: none for `none`, its own number for `fixed`, else the slots of the ready replicas."""
    if limit.kind == "none":
        return None
    return limit.limit if limit.kind == "fixed" else "slots"


def _flat(slo: Mapping[str, Any]) -> dict[str, float]:
    """Bounds by column; with bounds per class, the interactive ones."""
    chosen = slo.get("interactive", slo) if any(isinstance(v, Mapping) for v in slo.values()) else slo
    return {k: float(v) for k, v in chosen.items() if isinstance(v, (int, float))}


def pool_facts(fleet: FleetConfig, *, steps: bool = False) -> tuple[PoolFacts, ...]:
    """What policies may know of a simulated fleet before the run; steps: also samples of its engines' step times."""
    from windtunnel.lab.build_pool import engine_limits, known_steps, mean_boot_s

    return tuple(PoolFacts(p.name, p.role, p.model, p.replicas, p.gpus_per_replica, p.slots, mean_boot_s(p.startup), p.min, p.max,
                           engine_limits(p), known_steps(p) if steps else (), p.kv_bytes_per_token)
                 for p in fleet.pools.values())


def build_fleet(spec: Any, base: Path, catalog: Catalog = SHIPPED, *, hash_tokens: int | None = None) -> FleetConfig:
    """The simulated fleet; ConfigInfeasibleError with the arithmetic for a pool that cannot run.

    hash_tokens: of the traffic's prefix hashes, for engines that do not say theirs; else their caches could use none of them.
    """
    from windtunnel.lab.build_pool import build_pool, with_auto_weights, with_hashes

    split = {pool.model for pool in spec.pools.values() if pool.role != "agg"}
    pools = {}
    for name, pool in spec.pools.items():
        try:
            pools[name] = with_hashes(build_pool(name, pool, base, split=pool.model in split, catalog=catalog), hash_tokens)
        except ConfigError as error:
            error.message = f"fleet.pools.{name}: {error.message}"
            raise
    pools = with_auto_weights(pools, [name for name, pool in spec.pools.items() if pool.weight == "auto"])
    fleet = FleetConfig(pools, spec.network_s, spec.max_gpus)
    pairs_of(fleet)
    return fleet


def refuse_unread(fleet: FleetConfig, *, labelled: bool, timed: bool) -> None:
    """ConfigValueError for adapters (labelled) or seconds of work (timed) of requests that no pool of the fleet would look at."""
    if timed and all(isinstance(pool.engine, EngineConfig) for pool in fleet.pools.values()):
        raise ConfigValueError("source.service_s", "no pool serves in seconds", hint="write service: {servers: 1} in the pool, or leave it out")
    lora = [getattr(pool.engine, "lora", None) for pool in fleet.pools.values()]
    if labelled and not any(one is not None and one.by == "label" for one in lora):
        raise ConfigValueError("source.adapters", "no pool reads them", hint="write engine.lora: {by: label} in the pool, or leave them out")


def refuse_unreachable(fleet: FleetConfig, asked: frozenset[str] | None) -> None:
    """ConfigInfeasibleError for a pool whose model nobody asks for, and for requests that no pool can answer. None: not known before."""
    served = {pool.model for pool in fleet.pools.values()}
    if asked is None:
        return
    for name, pool in fleet.pools.items():
        if pool.model not in asked:
            raise ConfigInfeasibleError(f"fleet.pools.{name}: no request asks for {pool.model}; the source asks for {', '.join(sorted(asked))}",
                                        hint="give a source the model, or leave the pool out")
    stray = sorted(asked - served)
    if stray:
        raise ConfigInfeasibleError(f"source: no pool serves the model {stray[0]}; there are {', '.join(sorted(served))}")


def build_source(spec: Any, base: Path, seed: int, *, replication: int = 0, duration_s: float | None = None, model: str = "",
                 live: bool = False, faults: Sequence[Fault] = (), wants: frozenset[str] = frozenset()) -> Source:
    """A fresh source. duration_s: no arrivals at or after it; model: what requests without one ask for; live: with prompt texts.

    faults: of these, `load` multiplies or thins the arrivals. wants: note streams that are recorded.
    """
    from windtunnel.lab.build_source import Setting, source_of

    surges = surges_of(faults, seed=seed, replication=replication, until_s=duration_s)
    try:
        return source_of(spec, Setting(base, seed, replication, duration_s, model, live, tuple(surges), "scheduler" in wants))
    except ConfigValueError as error:
        if not error.message.startswith(("source", "faults")):
            error.message = f"source.{error.message}"
        raise

