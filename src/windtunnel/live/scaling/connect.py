"""The connector of a live fleet, made from its file."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from windtunnel.effects import ScaleTo
from windtunnel.live.fleet import LiveFleet, LivePool
from windtunnel.live.scaling.exec import ExecLauncher
from windtunnel.live.scaling.managed import Launcher, ManagedScaler
from windtunnel.live.scaling.scaler import NoScaler, Roster, Scaler
from windtunnel.live.scaling.virtual import VirtualLauncher

FIRST_PLAN = 0  # before any plan of a planner


async def connect(fleet: LiveFleet, roster: Roster, *, real: bool) -> Scaler:
    """Start the replicas that the fleet begins with, and return what changes their number; `NoScaler` if no pool has a connector.

    real: False replaces every process and pod by a stand-in, so that a dry run starts nothing.
    """
    clustered = [name for name, pool in fleet.pools.items() if pool.scaling is not None and pool.scaling.kind == "kubernetes"]
    if clustered and real:
        return await _cluster(fleet, clustered, roster)
    launchers = {name: _launcher(name, pool, real=real) for name, pool in fleet.pools.items() if pool.scaling is not None}
    if not launchers:
        return NoScaler()
    timeouts = [pool.scaling.drain_timeout_s for pool in fleet.pools.values() if pool.scaling is not None]
    scaler = ManagedScaler(launchers, roster, drain_timeout_s=max(timeouts))
    first = tuple((name, pool.scaling.replicas) for name, pool in fleet.pools.items() if pool.scaling is not None)
    await scaler.apply(ScaleTo(FIRST_PLAN, first))
    return scaler


async def _cluster(fleet: LiveFleet, names: list[str], roster: Roster) -> Scaler:
    from windtunnel.live.scaling.kubernetes import KubePool, KubernetesScaler

    pools, namespace = {}, "default"
    for name in names:
        pool, how = fleet.pools[name], fleet.pools[name].scaling
        assert how is not None
        namespace = how.namespace
        pools[name] = KubePool(how.deployment, how.port, pool.engine, pool.model, pool.role, pool.slots)
    made = KubernetesScaler(pools, roster, service=fleet.name, identity=f"{socket.gethostname()}-{os.getpid()}", namespace=namespace)
    await made.begin()
    return made


def _launcher(name: str, pool: LivePool, *, real: bool) -> Launcher:
    how = pool.scaling
    assert how is not None
    if how.kind != "exec" or not real:
        return VirtualLauncher(name, model=pool.model, role=pool.role, slots=pool.slots)
    return ExecLauncher(name, how.command, engine=pool.engine, url=how.url, model=pool.model, role=pool.role, slots=pool.slots,
                        options=pool.options, kill_grace_s=how.kill_grace_s, logs=None if how.logs is None else Path(how.logs))
