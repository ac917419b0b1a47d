"""The life of a replica: boot stages, the node it runs on, and what is kept warm for the next one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from windtunnel.policy.param import check_number
from windtunnel.sim.engine import SimEngine
from windtunnel.sim.pipelined import PipelineEngine
from windtunnel.sim.service import Station
from windtunnel.sources.dist import Dist
from windtunnel.sources.seeding import generator

if TYPE_CHECKING:
    from windtunnel.sim.fleet_config import Pool

REQUESTED, PROVISIONING, BOOTING, READY, DRAINING, GONE = "requested", "provisioning", "booting", "ready", "draining", "gone"
STAGES = ("node_s", "image_s", "weights_s", "compile_s")
TAKEN = ("spot",)  # reasons for which the node itself is gone


@dataclass(frozen=True, slots=True)
class Startup:
    """Seconds of each boot stage of a replica ordered during the run: a number, or a distribution drawn once per replica.

    cache_s: a node that served the pool until at most so long ago still has image and weights: only node and compile are left.
    """

    node_s: float | Dist = 0.0
    image_s: float | Dist = 0.0
    weights_s: float | Dist = 0.0
    compile_s: float | Dist = 0.0
    cache_s: float = 0.0

    def __post_init__(self) -> None:
        check_number("cache_s", self.cache_s, lo=0.0)
        for stage in STAGES:
            if not isinstance(given := getattr(self, stage), Dist):
                check_number(stage, given, lo=0.0)

    def draw(self, seed: int, path: str, replication: int, *, warm: bool) -> tuple[float, ...]:
        """Seconds per stage of one replica; a warm node draws the same, so that it changes nobody else's draws."""
        rng = generator(seed, path, replication)
        stages = [getattr(self, stage) for stage in STAGES]
        drawn = [float(s.sample(rng, 1)[0]) if isinstance(s, Dist) else float(s) for s in stages]
        return (drawn[0], 0.0, 0.0, drawn[3]) if warm else tuple(drawn)


class SimReplica:
    """One life of a replica: its engine, its state and the times at which the state changed (run s)."""

    __slots__ = ("boot", "engine", "gone_reason", "name", "ordinal", "pool", "promised", "requests", "stage_n", "state", "times", "version")

    def __init__(self, name: str, pool: Pool, ordinal: int, engine: SimEngine | PipelineEngine | Station) -> None:
        self.name, self.pool, self.ordinal, self.engine = name, pool, ordinal, engine
        self.state, self.version, self.requests, self.gone_reason = REQUESTED, 0, 0, ""
        self.times: dict[str, float] = {}
        self.boot: tuple[float, ...] = ()
        self.stage_n = 0
        self.promised = 0  # requests that others prefill for it, until they end

    @property
    def idle(self) -> bool:
        """Is nothing on it, and nothing on its way to it?"""
        return self.engine.idle and not self.promised

    @property
    def pending(self) -> bool:
        return self.state in (REQUESTED, PROVISIONING, BOOTING)

    @property
    def on_node(self) -> bool:
        """Does it hold GPUs?"""
        return self.state not in (REQUESTED, GONE)


def scale_down_order(replicas: Iterable[SimReplica]) -> list[SimReplica]:
    """Who goes first on a scale-down: the newest that is not ready yet, then the least busy, ties newest."""
    def key(replica: SimReplica) -> tuple[int, int, int]:
        return (0, 0, -replica.ordinal) if replica.pending else (1, replica.engine.load, -replica.ordinal)

    return sorted(replicas, key=key)


class Nodes:
    """GPUs in use, and the nodes that were left warm. max_gpus None: as many as are asked for. withheld: > 0 for a pool that none can be
    had for."""

    def __init__(self, max_gpus: int | None) -> None:
        self.max_gpus, self.used = max_gpus, 0
        self.withheld: dict[str, int] = {}
        self._warm: dict[str, list[float]] = {}  # by pool: when each node was left, ascending

    def take(self, pool: Pool) -> bool:
        """Are there GPUs for one more replica of the pool? Then they are its own."""
        if self.withheld.get(pool.name):
            return False
        if self.max_gpus is not None and self.used + pool.gpus_per_replica > self.max_gpus:
            return False
        self.used += pool.gpus_per_replica
        return True

    def warm(self, pool: Pool, now: float) -> bool:
        """Is a node left that still has the model? The one left last is taken."""
        left = self._warm.get(pool.name)
        if not left or now - left[-1] > pool.startup.cache_s:
            return False
        left.pop()
        return True

    def give(self, replica: SimReplica, now: float) -> None:
        """A replica is gone: its GPUs are free, and its node stays warm if it had served and was not taken away."""
        self.used -= replica.pool.gpus_per_replica
        if "ready_s" in replica.times and replica.gone_reason not in TAKEN and replica.pool.startup.cache_s > 0:
            self._warm.setdefault(replica.pool.name, []).append(now)
