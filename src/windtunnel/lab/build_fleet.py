"""From the checked `fleet` part of a scenario to simulated pools: step model, KV capacity, boot stages, price."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from windtunnel.lab.fleet_spec import STARTUPS
from windtunnel.sim.capacity import kv_blocks, refuse_infeasible
from windtunnel.sim.catalog import BYTES, Architecture, Gpu, gpu, model
from windtunnel.sim.engine import EngineConfig
from windtunnel.sim.fleet import Pool, Startup
from windtunnel.sim.stepmodels.model import StepModel
from windtunnel.sim.stepmodels.roofline import Roofline
from windtunnel.sim.stepmodels.vidur import VidurRoofline


def build_pool(name: str, spec: Any, base: Path) -> Pool:
    """One pool; ConfigInfeasibleError with the arithmetic if the model does not fit. base: folder of the scenario's files."""
    arch, chip, profile = model(spec.model), gpu(spec.gpu), spec.profile
    dtype, kv_dtype = getattr(profile, "dtype", "bf16"), getattr(profile, "kv_dtype", "bf16")
    engine: EngineConfig = spec.engine.config()
    refuse_infeasible(arch, chip, tp=spec.tp, dtype=dtype, kv_dtype=kv_dtype, block_size=engine.block_size, max_model_len=engine.max_model_len,
                      max_num_batched_tokens=engine.max_num_batched_tokens, max_num_seqs=engine.max_num_seqs)
    capacity = "given"
    if engine.num_blocks is None:
        blocks = kv_blocks(arch, chip, tp=spec.tp, dtype=dtype, kv_dtype=kv_dtype, block_size=engine.block_size)
        engine, capacity = _with_blocks(engine, blocks), "computed"
    step_model = _step_model(profile, arch, chip, spec.tp)
    price = spec.price.usd_per_hour if spec.price is not None else chip.usd_per_hour
    return Pool(
        name=name, model=spec.model, gpu=spec.gpu, engine=engine, step_model=step_model, replicas=spec.replicas, min=spec.min, max=spec.max,
        tp=spec.tp, role=spec.role, startup=_startup(spec.startup, arch, dtype, spec.tp), gpus_per_replica=spec.tp,
        price_usd_per_hour=None if price is None else price * spec.tp, weight=spec.weight, scrape_interval_s=spec.scrape.interval_s,
        drain_timeout_s=spec.drain_timeout_s, provenance=f"{step_model.provenance} | kv_capacity {capacity}",
    )


def _with_blocks(engine: EngineConfig, blocks: int) -> EngineConfig:
    from dataclasses import replace

    return replace(engine, num_blocks=blocks)


def _step_model(profile: Any, arch: Architecture, chip: Gpu, tp: int) -> StepModel:
    if profile.kind == "roofline":
        return Roofline(arch, chip, tp, profile.dtype, profile.kv_dtype)
    if profile.kind == "vidur":
        return VidurRoofline()
    made: StepModel = profile.config()
    return made


def _startup(spec: Any, arch: Architecture, dtype: str, tp: int) -> Startup:
    """The preset's stages, then what is given; weights take bytes / load_bw."""
    stages: dict[str, Any] = {"weights_s": arch.params * BYTES[dtype] / tp / spec.load_bw, **STARTUPS[spec.preset]}
    for stage in spec.stages:
        given = getattr(spec, stage)
        if given is not None:
            stages[stage] = given if isinstance(given, (int, float)) else given.config()
    return Startup(**stages)
