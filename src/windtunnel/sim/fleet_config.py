"""What a simulated fleet is made of: pools of replicas alike, and the way to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import check_number
from windtunnel.sim.agenda import Agenda
from windtunnel.sim.engine import SimEngine
from windtunnel.sim.engine_config import EngineConfig
from windtunnel.sim.lifecycle import Startup
from windtunnel.sim.lora import lora_engine
from windtunnel.sim.pipelined import PipelineEngine
from windtunnel.sim.scrape import ScrapeModel
from windtunnel.sim.service import ServiceConfig, Station, service_engine
from windtunnel.sim.stepmodels.model import StepModel
from windtunnel.sim.transfer import KvLink

ReplicaEngine = SimEngine | PipelineEngine | Station


@dataclass(frozen=True, slots=True)
class Pool:
    """Replicas alike in model, engine and GPU. `replicas` serve from the start; ScaleTo moves between `min` and `max`."""

    name: str
    model: str
    gpu: str
    engine: EngineConfig | ServiceConfig
    step_model: StepModel
    replicas: int = 1
    min: int = 0
    max: int | None = None
    tp: int = 1
    pp: int = 1
    role: str = "agg"
    startup: Startup = field(default_factory=Startup)
    gpus_per_replica: int = 1
    price_usd_per_hour: float | None = None
    spot: bool = False
    weight: float = 1.0
    power_w: float | None = None
    idle_w: float | None = None
    scrape: ScrapeModel = field(default_factory=ScrapeModel)
    drain_timeout_s: float = 120.0
    provenance: str = ""
    link: KvLink | None = None  # of pools that share requests with others
    kv_bytes_per_token: float | None = None

    def __post_init__(self) -> None:
        for name in ("replicas", "min"):
            check_number(f"{self.name}.{name}", getattr(self, name), lo=0, whole=True)
        if getattr(self.engine, "lora", None) is not None and (self.pp > 1 or self.link is not None):
            raise ConfigValueError(f"{self.name}.engine.lora", "adapters need pp 1 and a pool of role agg that shares no requests")
        if self.max is not None and self.max < max(self.min, self.replicas):
            raise ConfigValueError(f"{self.name}.max", f"{self.max} is below replicas {self.replicas} or min {self.min}")

    @property
    def slots(self) -> int:
        return self.engine.max_num_seqs

    @property
    def timing(self) -> str:
        """`provenance`, with the state that the step model is in by now: a run may have asked it beyond what was measured."""
        beyond = getattr(self.step_model, "beyond", "")
        return f"{self.provenance.replace(' | calibrated', '')} | extrapolated: {beyond}" if beyond else self.provenance

    @property
    def kv_tokens(self) -> int | None:
        blocks = self.engine.num_blocks
        return None if blocks is None or isinstance(self.engine, ServiceConfig) else blocks * self.engine.block_size


@dataclass(frozen=True, slots=True)
class FleetConfig:
    """The simulated fleet: pools by name. network_s: one way between control and engine; max_gpus: all that can be had (None: no bound)."""

    pools: Mapping[str, Pool]
    network_s: float = 0.0
    max_gpus: int | None = None

    def __post_init__(self) -> None:
        if self.max_gpus is None:
            return
        check_number("max_gpus", self.max_gpus, lo=1, whole=True)
        first = sum(p.replicas * p.gpus_per_replica for p in self.pools.values())
        if first > self.max_gpus:
            raise ConfigValueError("max_gpus", f"{self.max_gpus} is below the {first} GPUs that serve from the start")


def engine_of(pool: Pool, name: str, agenda: Agenda, options: dict[str, Any]) -> ReplicaEngine:
    """The engine of a replica of the pool. options: its callbacks and switches, and `rng` where it draws."""
    if isinstance(pool.engine, ServiceConfig):
        for engine_only in ("on_report", "fpm_interval_s"):
            options.pop(engine_only, None)
        return service_engine(name, pool.engine, agenda, **options)
    if pool.engine.lora is not None:
        return lora_engine(name, pool.engine, pool.step_model, agenda, **options)
    if pool.pp > 1:
        return PipelineEngine(name, pool.engine, pool.step_model, agenda, pool.pp, **options)
    return SimEngine(name, pool.engine, pool.step_model, agenda, **options)
