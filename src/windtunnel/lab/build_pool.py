"""From a pool of a scenario to a simulated pool: step model, KV capacity, boot stages, price."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from windtunnel.errors import ConfigInfeasibleError
from windtunnel.lab.dist_spec import build_dist
from windtunnel.lab.fleet_spec import STARTUPS, PoolSpec, RooflineSpec, StartupSpec, VidurSpec
from windtunnel.sim.capacity import kv_blocks, refuse_infeasible
from windtunnel.sim.catalog import BYTES, Architecture, Gpu, gpu, model
from windtunnel.sim.engine import EngineConfig
from windtunnel.sim.fleet import Pool, Startup
from windtunnel.sim.stepmodels.model import StepModel
from windtunnel.sim.stepmodels.roofline import Roofline
from windtunnel.sim.stepmodels.vidur import VidurRoofline


def build_pool(name: str, spec: PoolSpec, base: Path) -> Pool:
    """The pool; ConfigInfeasibleError, with the sum, if the model does not fit."""
    arch, card = model(spec.model), gpu(spec.gpu)
    profile: Any = spec.profile
    dtype, kv_dtype = (profile.dtype, profile.kv_dtype) if isinstance(profile, RooflineSpec) else ("bf16", "bf16")
    service: Any = spec.service
    engine = _engine(spec, arch, card, dtype, kv_dtype) if service is None else service.config()
    step_model = _step_model(spec, arch, card)
    price = spec.price.usd_per_hour if spec.price is not None else card.usd_per_hour
    return Pool(
        name=name, model=spec.model, gpu=spec.gpu, engine=engine, step_model=step_model, replicas=spec.replicas, min=spec.min, max=spec.max,
        tp=spec.tp, role=spec.role, startup=_startup(spec.startup, arch, dtype, spec.tp, base), gpus_per_replica=spec.tp,
        price_usd_per_hour=price, weight=spec.weight, scrape_interval_s=spec.scrape.interval_s, drain_timeout_s=spec.drain_timeout_s,
        provenance=f"{_provenance(spec, step_model)} | kv_capacity {_capacity(spec)}")


def _engine(spec: PoolSpec, arch: Architecture, card: Gpu, dtype: str, kv_dtype: str) -> EngineConfig:
    """The engine, with as many KV blocks as fit unless the file says how many."""
    given: Any = spec.engine
    config: EngineConfig = given.config()
    if config.preemption == "swap":  # every rank swaps its share over its own PCIe
        config = dataclasses.replace(config, pcie_bw=config.pcie_bw or card.pcie_bw * spec.tp,
                                     kv_bytes_per_token=config.kv_bytes_per_token or float(arch.kv_bytes_per_token(kv_dtype)))
    if config.num_blocks is not None:
        return config
    refuse_infeasible(arch, card, tp=spec.tp, dtype=dtype, kv_dtype=kv_dtype, block_size=config.block_size,
                      max_model_len=config.max_model_len, max_num_batched_tokens=config.max_num_batched_tokens,
                      max_num_seqs=config.max_num_seqs)
    blocks = kv_blocks(arch, card, tp=spec.tp, dtype=dtype, kv_dtype=kv_dtype, block_size=config.block_size)
    return dataclasses.replace(config, num_blocks=blocks)


def _step_model(spec: PoolSpec, arch: Architecture, card: Gpu) -> StepModel:
    profile: Any = spec.profile
    if isinstance(profile, RooflineSpec):
        return Roofline(arch, card, tp=spec.tp, dtype=profile.dtype, kv_dtype=profile.kv_dtype)
    if isinstance(profile, VidurSpec):
        if (spec.model, spec.gpu, spec.tp) != VIDUR_SERVES:
            raise ConfigInfeasibleError("the profile vidur is of Llama-3-8B on one h100_sxm only", hint="use profile: {kind: roofline}")
        return VidurRoofline()
    made: StepModel = profile.config()
    return made


VIDUR_SERVES = ("Llama-3-8B", "h100_sxm", 1)


def _startup(spec: StartupSpec, arch: Architecture, dtype: str, tp: int, base: Path) -> Startup:
    """Stages that are given, else the preset's; weights take weights bytes per GPU / load_bw."""
    stages: dict[str, Any] = {"node_s": 0.0, "image_s": 0.0, "weights_s": arch.params * BYTES[dtype] / tp / spec.load_bw, "compile_s": 0.0}
    stages |= STARTUPS[spec.preset]
    for stage in spec.stages:
        given = getattr(spec, stage)
        if given is not None:
            stages[stage] = float(given) if isinstance(given, float) else build_dist(given, base, f"startup.{stage}")
    return Startup(**stages)


def mean_boot_s(startup: Startup) -> float:
    """Expected seconds from asking for a replica to its being ready."""
    stages = (startup.node_s, startup.image_s, startup.weights_s, startup.compile_s)
    return sum(s if isinstance(s, (int, float)) else s.expected() for s in stages)


def _capacity(spec: PoolSpec) -> str:
    given: Any = spec.engine
    return "computed" if given.num_blocks is None else "given"


def _provenance(spec: PoolSpec, step_model: StepModel) -> str:
    known = step_model.provenance
    named = known if known.gpu else dataclasses.replace(known, model=spec.model, gpu=f"{spec.gpu}×{spec.tp}", source=known.model)
    return str(named)
