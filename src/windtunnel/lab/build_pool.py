"""From a pool of a scenario to a simulated pool: step model, KV capacity, boot stages, price."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from windtunnel.errors import ConfigFileError, ConfigInfeasibleError, ConfigValueError
from windtunnel.lab.calibrate.profile import Profile, load_profile
from windtunnel.lab.dist_spec import build_dist
from windtunnel.lab.fleet_spec import (
    STARTUPS,
    CalibratedSpec,
    EngineSpec,
    MeasuredSpec,
    OperatorsSpec,
    PoolSpec,
    RooflineSpec,
    StartupSpec,
    TableSpec,
    VidurSpec,
)
from windtunnel.lab.locate import data_file
from windtunnel.sim.capacity import kv_blocks, refuse_infeasible
from windtunnel.sim.catalog import BYTES, SHIPPED, Architecture, Catalog, Gpu
from windtunnel.sim.engine import EngineConfig, HostCosts
from windtunnel.sim.fleet_config import Pool
from windtunnel.sim.lifecycle import Startup
from windtunnel.sim.pipeline_group import Piped
from windtunnel.sim.scrape import ScrapeModel
from windtunnel.sim.service import ServiceConfig
from windtunnel.sim.stepmodels.model import Batch, StepModel
from windtunnel.sim.stepmodels.operators import Operators
from windtunnel.sim.stepmodels.roofline import Roofline
from windtunnel.sim.stepmodels.tables import Tables
from windtunnel.sim.stepmodels.tables_aic import AicTables
from windtunnel.sim.stepmodels.tables_llmservingsim import LlmServingSimTables
from windtunnel.sim.stepmodels.vidur import VidurRoofline
from windtunnel.sim.transfer import KvLink

TYPICAL_CONTEXT = 1024  # tokens of a request in the samples of step times


def build_pool(name: str, spec: PoolSpec, base: Path, *, split: bool = False, catalog: Catalog = SHIPPED) -> Pool:
    """The pool; ConfigInfeasibleError, with the sum, if the model does not fit. split: it shares requests with other pools of its model."""
    spec = _as_measured(spec, base)
    arch, card = catalog.model(spec.model), catalog.gpu(spec.gpu)
    measured = _measured(spec, base)
    dtype, kv_dtype = _dtypes(spec, measured)
    service: Any = spec.service
    engine = _engine(spec, arch, card, dtype, kv_dtype, measured) if service is None else service.config()
    link = None
    if split and isinstance(engine, EngineConfig):
        engine = dataclasses.replace(engine, role="prefill" if spec.role == "prefill" else "decode")
        link = KvLink(spec.link_bw or card.inter_bw, float(arch.kv_bytes_per_token(kv_dtype)), spec.link_latency_s,
                      arch.layers if spec.layerwise else None)
    step_model = _step_model(spec, arch, card, measured, base)
    if spec.pp > 1:  # a hop leaves the node where the stages of a replica do not fit into one
        hop_bw = card.intra_bw if spec.tp * spec.pp <= card.gpus_per_node else card.inter_bw
        step_model = Piped(step_model, spec.pp, 2.0 * arch.hidden, hop_bw)
    listed = card.spot_usd_per_hour if spec.spot else card.usd_per_hour
    price = spec.price.usd_per_hour if spec.price is not None else listed
    return Pool(
        name=name, model=spec.model, gpu=spec.gpu, engine=engine, step_model=step_model, replicas=spec.replicas, min=spec.min, max=spec.max,
        tp=spec.tp, pp=spec.pp, role=spec.role, startup=_startup(spec.startup, arch, dtype, spec.tp * spec.pp, base),
        gpus_per_replica=spec.tp * spec.pp, price_usd_per_hour=price, spot=spec.spot, power_w=card.power_w, idle_w=card.idle_w,
        scrape=_scrape(spec, base),
        weight=1.0 if spec.weight == "auto" else spec.weight, drain_timeout_s=spec.drain_timeout_s, link=link,
        provenance=_timing(spec, step_model, measured), kv_bytes_per_token=float(arch.kv_bytes_per_token(kv_dtype)))


def _as_measured(spec: PoolSpec, base: Path) -> PoolSpec:
    """The pool with the step times of a measured engine, and with its settings where the scenario gives none of its own."""
    given: Any = spec.profile
    if not isinstance(given, MeasuredSpec):
        return spec
    path = data_file(given.path, base)
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
        profile = TableSpec(**found["profile"])
        engine = EngineSpec(**{**found.get("engine", {}), **spec.engine.model_dump(exclude_unset=True)})  # type: ignore[attr-defined]
    except OSError as error:
        raise ConfigFileError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        hint = "it is written by: windtunnel calibrate --out FILE"
        raise ConfigFileError(f"not a measured profile: {' '.join(str(error).split())[:200]}", where=str(path), hint=hint) from error
    return spec.model_copy(update={"profile": profile, "engine": engine})


def _measured(spec: PoolSpec, base: Path) -> Profile | None:
    """The calibrated profile, refused if it was measured on something else unless the file says `anyway`."""
    given: Any = spec.profile
    if not isinstance(given, CalibratedSpec):
        return None
    found = load_profile(given.name, base)
    if not given.anyway:
        found.serves(spec.model, spec.gpu, spec.tp)
    return found


def _dtypes(spec: PoolSpec, measured: Profile | None) -> tuple[str, str]:
    given: Any = spec.profile
    if measured is not None:
        return measured.prior.dtype, measured.prior.kv_dtype
    return (given.dtype, given.kv_dtype) if isinstance(given, (RooflineSpec, OperatorsSpec)) else ("bf16", "bf16")


def _ep(spec: PoolSpec, measured: Profile | None) -> int:
    given: Any = spec.profile
    if measured is not None:
        return measured.prior.ep
    return given.ep if isinstance(given, (RooflineSpec, OperatorsSpec)) else 1


def _engine(spec: PoolSpec, arch: Architecture, card: Gpu, dtype: str, kv_dtype: str, measured: Profile | None) -> EngineConfig:
    """The engine, with the KV blocks that the file says, else those that the profile's engine reported, else as many as fit; and with the
    model's own context where the file says none."""
    given: Any = spec.engine
    config: EngineConfig = given.config()
    if measured is not None and measured.host and config.host == HostCosts():
        config = dataclasses.replace(config, host=measured.host_costs())
    if measured is not None and config.num_blocks is None and measured.kv_blocks is not None and measured.gpu == spec.gpu:
        config = dataclasses.replace(config, num_blocks=measured.kv_blocks)
    if config.preemption == "swap":  # every rank swaps its share over its own PCIe
        config = dataclasses.replace(config, pcie_bw=config.pcie_bw or card.pcie_bw * spec.tp * spec.pp,
                                     kv_bytes_per_token=config.kv_bytes_per_token or float(arch.kv_bytes_per_token(kv_dtype)))
    refuse_infeasible(arch, card, tp=spec.tp, pp=spec.pp, dtype=dtype, kv_dtype=kv_dtype, block_size=config.block_size,
                      max_model_len=config.max_model_len, max_num_batched_tokens=config.max_num_batched_tokens,
                      max_num_seqs=config.max_num_seqs, ep=_ep(spec, measured),
                      max_prompt=config.max_model_len if config.policy == "vllm" and not config.chunked_prefill else None,
                      num_blocks=config.num_blocks)
    blocks = config.num_blocks
    if blocks is None:
        blocks = kv_blocks(arch, card, tp=spec.tp, pp=spec.pp, dtype=dtype, kv_dtype=kv_dtype, block_size=config.block_size)
    return dataclasses.replace(config, num_blocks=blocks, max_model_len=config.max_model_len or arch.max_model_len)


def _step_model(spec: PoolSpec, arch: Architecture, card: Gpu, measured: Profile | None, base: Path) -> StepModel:
    profile: Any = spec.profile
    if measured is not None:
        on = dataclasses.replace(measured, model=spec.model, gpu=spec.gpu, tp=spec.tp)
        return on.step_model(on_extrapolation=profile.on_extrapolation)
    if isinstance(profile, RooflineSpec):
        return Roofline(arch, card, tp=spec.tp, dtype=profile.dtype, kv_dtype=profile.kv_dtype, ep=profile.ep, dp=profile.dp)
    if isinstance(profile, OperatorsSpec):
        return _operators(spec, profile, arch, card)
    if isinstance(profile, VidurSpec):
        if (spec.model, spec.gpu, spec.tp) != VIDUR_SERVES:
            raise ConfigInfeasibleError("the profile vidur is of Llama-3-8B on one h100_sxm only", hint="use profile: {kind: roofline}")
        return VidurRoofline()
    made: StepModel = profile.read(base) if isinstance(profile, TableSpec) else profile.config()
    return made


def _operators(spec: PoolSpec, given: OperatorsSpec, arch: Architecture, card: Gpu) -> Operators:
    tables: Tables
    if given.tables == "aic":
        tables = AicTables(arch, card, spec.tp, given.ep, given.dtype, given.kv_dtype)
    else:
        link = None if given.link_s is None or given.link_bw is None else (given.link_s, given.link_bw)
        tables = LlmServingSimTables.load(card.name, arch, spec.tp, link=link)
    roof = Roofline(arch, card, tp=spec.tp, dtype=given.dtype, kv_dtype=given.kv_dtype, ep=given.ep)
    return Operators(arch, tables, card.name, spec.tp, roof if given.fallback == "roofline" else None)


VIDUR_SERVES = ("Llama-3-8B", "h100_sxm", 1)


def _startup(spec: StartupSpec, arch: Architecture, dtype: str, tp: int, base: Path) -> Startup:
    """Stages that are given, else the preset's; weights take weights bytes per GPU / load_bw."""
    stages: dict[str, Any] = {"node_s": 0.0, "image_s": 0.0, "weights_s": arch.params * BYTES[dtype] / tp / spec.load_bw, "compile_s": 0.0}
    stages |= STARTUPS[spec.preset]
    for stage in spec.stages:
        given = getattr(spec, stage)
        if given is not None:
            stages[stage] = float(given) if isinstance(given, float) else build_dist(given, base, f"startup.{stage}")
    return Startup(**stages, cache_s=spec.cache_s)


def _scrape(spec: PoolSpec, base: Path) -> ScrapeModel:
    given = spec.scrape
    delay = float(given.delay_s) if isinstance(given.delay_s, float) else build_dist(given.delay_s, base, "scrape.delay_s")
    return ScrapeModel(given.interval_s, given.phase, delay, given.drop_p, given.fields, given.exact)


def with_hashes(pool: Pool, hash_tokens: int | None) -> Pool:
    """The pool with a prefix cache by hashes of that many tokens, unless it says itself of how many; ConfigValueError if its blocks do not
    divide them."""
    engine = pool.engine
    if hash_tokens is None or isinstance(engine, ServiceConfig) or engine.cache_block_tokens is not None or not engine.prefix_cache:
        return pool
    if hash_tokens % engine.block_size:
        raise ConfigValueError("engine.block_size", f"blocks of {engine.block_size} tokens do not divide the trace's prefix hashes of {hash_tokens}",
                               hint="write another block_size, or prefix_cache: false")
    return dataclasses.replace(pool, engine=dataclasses.replace(engine, cache_block_tokens=hash_tokens))


def with_auto_weights(pools: dict[str, Pool], auto: Collection[str]) -> dict[str, Pool]:
    """The pools in `auto` with the speed of one decode step of 32 requests over 32 768 resident tokens, the fastest pool of all being 1."""
    if not auto:
        return pools
    for name in auto:
        if isinstance(pools[name].engine, ServiceConfig):
            raise ConfigInfeasibleError(f"fleet.pools.{name}: weight auto needs an engine with steps", hint="write the weight as a number")
    batch = Batch(decode_seqs=32, decode_kv=32_768, tokens=32, sequences=32, sampled=32)
    seconds = {name: p.step_model.seconds(batch) for name, p in pools.items() if not isinstance(p.engine, ServiceConfig)}
    best = min(seconds.values())
    return {name: dataclasses.replace(p, weight=best / seconds[name]) if name in auto else p for name, p in pools.items()}


def mean_boot_s(startup: Startup) -> float:
    """Expected seconds from asking for a replica to its being ready."""
    stages = (startup.node_s, startup.image_s, startup.weights_s, startup.compile_s)
    return sum(s if isinstance(s, (int, float)) else s.expected() for s in stages)


def engine_limits(pool: Pool) -> dict[str, int | None]:
    """What one engine of the pool takes at once; nothing is known of stations."""
    engine = pool.engine
    if isinstance(engine, ServiceConfig):
        return {}
    kv_tokens = None if engine.num_blocks is None else engine.num_blocks * engine.block_size
    return {"max_num_batched_tokens": engine.max_num_batched_tokens, "max_num_seqs": engine.max_num_seqs, "max_kv_tokens": kv_tokens,
            "context_length": engine.max_model_len, "block_tokens": engine.hash_tokens}


def known_steps(pool: Pool) -> tuple[tuple[float, float, float, float], ...]:
    """Step times over the engine's range: (prompt tokens, decoding requests, their KV tokens, s), as a profile run would find them."""
    engine, limits = pool.engine, engine_limits(pool)
    if isinstance(engine, ServiceConfig):
        return ()
    most, kv_tokens = min(engine.max_num_batched_tokens, 8192), limits["max_kv_tokens"] or 0
    prompts = (0,) if pool.role == "decode" else (0, most // 8, most // 4, most // 2, most)
    seqs = engine.max_num_seqs
    decodes = (0,) if pool.role == "prefill" else tuple(dict.fromkeys((0, 1, seqs // 4, seqs // 2, seqs)))
    found = []
    for tokens in prompts:
        for requests in decodes:
            kv = min(requests * TYPICAL_CONTEXT, kv_tokens)
            if tokens or requests:
                batch = Batch(requests, kv, [(tokens, 0)] if tokens else [], tokens + requests, requests + bool(tokens), requests + bool(tokens))
                found.append((float(tokens), float(requests), float(kv), pool.step_model.seconds(batch)))
    return tuple(found)


def _capacity(spec: PoolSpec, measured: Profile | None) -> str:
    """Where the number of KV blocks is from. Computed: from an assumed share of memory, which no engine has confirmed."""
    given: Any = spec.engine
    if given.num_blocks is not None:
        return "given"
    if measured is not None and measured.kv_blocks is not None and measured.gpu == spec.gpu:
        return "measured"
    return "computed (kv_capacity_unmatched)"


def _timing(spec: PoolSpec, step_model: StepModel, measured: Profile | None) -> str:
    """Where the times of a pool come from, for the run's `timing` line."""
    if spec.service is not None:
        return f"{spec.model} / {spec.gpu}×{spec.tp} | stations that serve in seconds, no engine model"
    return f"{_provenance(spec, step_model)} | kv_capacity {_capacity(spec, measured)}"


def _provenance(spec: PoolSpec, step_model: StepModel) -> str:
    known = step_model.provenance
    named = known if known.gpu else dataclasses.replace(known, model=spec.model, gpu=f"{spec.gpu}×{spec.tp}", source=known.model)
    return str(named)
