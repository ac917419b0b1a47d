"""The `fleet` part of a scenario: pools of replicas alike in model, GPU and engine."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from windtunnel.errors import ConfigError, ConfigUnknownModelError, ConfigValueError
from windtunnel.lab.dist_spec import DistSpec
from windtunnel.lab.kinds import Spec, spec_of
from windtunnel.lab.locate import data_file
from windtunnel.lab.places import place
from windtunnel.lab.yamlfile import Document, dotted
from windtunnel.sim.catalog import Catalog
from windtunnel.sim.engine import EngineConfig
from windtunnel.sim.engine_config import POLICY_DEFAULTS
from windtunnel.sim.service import ServiceConfig
from windtunnel.sim.stepmodels.affine import Affine
from windtunnel.sim.stepmodels.model import Provenance
from windtunnel.sim.stepmodels.table import Table
from windtunnel.sim.stepmodels.table_csv import read_steps
from windtunnel.sim.stepmodels.two_regime import TwoRegime


class EngineSpec(spec_of(EngineConfig)):  # type: ignore[misc]
    """How one engine batches, caches and queues; what is left out is as the policy's own system has it."""

    @model_validator(mode="after")
    def _accepted(self) -> EngineSpec:
        for name, value in POLICY_DEFAULTS.get(self.policy, {}).items():
            if name not in self.model_fields_set:
                self.__dict__[name] = value  # known, and yet not given: another policy has its own again
        return super()._accepted()  # type: ignore[no-any-return]


ServiceSpec = spec_of(ServiceConfig, skip=("setup_s",))
# Boot stages (s) of labelled assumptions; weights_s is always weights bytes / load_bw unless it is given.
STARTUPS: dict[str, dict[str, float]] = {
    "warm": {},
    "cold_node": {"node_s": 120.0, "image_s": 45.0, "compile_s": 30.0},
    "serverless": {"image_s": 8.0, "compile_s": 10.0},
}


class RooflineSpec(Spec):
    """Step times from the model's shape and the GPU's peak rates; uncalibrated."""

    kind: Literal["roofline"]
    dtype: str = Field(default="bf16", description="Weights: bf16, fp8, int8, fp4 or int4.")
    kv_dtype: str = "bf16"
    ep: int = Field(default=1, ge=1, description="GPUs that share out the experts.")
    dp: int = Field(default=1, ge=1, description="GPUs that each attend requests of their own.")


class VidurSpec(Spec):
    """The roofline behind Vidur's tables: Llama-3-8B on one H100 SXM."""

    kind: Literal["vidur"]


class OperatorsSpec(Spec):
    """Step times from measured operator tables; what they lack falls back to the roofline, and is named."""

    kind: Literal["operators"]
    tables: Literal["aic", "llmservingsim"] = Field(default="aic", description="aic: H100, H200, B200, A100, L40S; llmservingsim: RTX cards.")
    dtype: str = "bf16"
    kv_dtype: str = "bf16"
    ep: int = Field(default=1, ge=1, description="GPUs that share out the experts.")
    link_s: float | None = Field(default=None, ge=0, description="Latency of an all-reduce where no table has one (s).")
    link_bw: float | None = Field(default=None, gt=0, description="Bytes per second of an all-reduce where no table has one.")
    fallback: Literal["roofline", "none"] = "roofline"

    @model_validator(mode="after")
    def _whole_link(self) -> OperatorsSpec:
        if (self.link_s is None) != (self.link_bw is None):
            raise ValueError("link_s and link_bw belong together")
        return self


class CalibratedSpec(Spec):
    """A profile fitted to a measured engine: shipped, by name, or a YAML file beside the scenario."""

    kind: Literal["calibrated"]
    name: str = Field(description="Name of a shipped profile, or path of a YAML file.")
    anyway: bool = Field(default=False, description="Use it on another model, GPU or tp than it was measured on.")
    on_extrapolation: Literal["warn", "error"] = "warn"


ScrapeField = Literal["running", "waiting", "kv_used_fraction", "preemptions", "input_tokens_total", "output_tokens_total",
                      "cached_tokens_total", "num_blocks", "sleeping"]
class MeasuredSpec(Spec):
    """What `windtunnel calibrate` wrote of a running engine: its step times, and its engine settings where the scenario has none."""

    kind: Literal["measured"]
    path: str = Field(description="The YAML file, beside the scenario.")


AffineSpec = spec_of(Affine, "affine", skip=("provenance",))


class TableSpec(spec_of(Table, "table", skip=("provenance", "outside"))):  # type: ignore[misc]
    """Step times measured per batch, or per batch and context: written here, or in a CSV file."""

    decode_s: tuple[tuple[float | int, ...], ...] = Field(
        default=(), description="[batch, seconds] or [batch, kv_mean, seconds] each, ascending; kv_mean: tokens that one decode attends on average.")
    path: str | None = Field(default=None, description="Instead of decode_s: a CSV file beside the scenario with the columns batch, seconds and, "
                                                       "where time was measured by context too, kv_mean.")

    def config(self) -> Table:
        """The table; without the knots of its file."""
        if (self.path is None) == (not self.decode_s):
            raise ConfigValueError("decode_s", "give one of decode_s and path")
        knots = self.decode_s if self.path is None else UNREAD
        return Table(knots, self.prefill_s_per_token, self.kv_s_per_token, self.prefill_s, mode=self.mode, on_extrapolation=self.on_extrapolation)

    def read(self, base: Path) -> Table:
        """The table with the knots of its file. Raises ConfigFileError with file, line and column."""
        if self.path is None:
            return self.config()
        path = data_file(self.path, base)
        named = Provenance(f"table {path.name}", "", "measured per batch")
        return replace(self.config(), decode_s=read_steps(path), provenance=named)


UNREAD = ((1, 1.0),)  # stands for a file that is read when the fleet is built
TwoRegimeSpec = spec_of(TwoRegime, "two_regime", skip=("provenance",))
ProfileSpec = Annotated[
    RooflineSpec | AffineSpec | TableSpec | VidurSpec | OperatorsSpec | CalibratedSpec | MeasuredSpec | TwoRegimeSpec, Field(discriminator="kind")]  # type: ignore[valid-type]


class StartupSpec(Spec):
    """Boot stages (s), each a number or a distribution. A stage that is not given is the preset's."""

    preset: Literal["warm", "cold_node", "serverless"] = "warm"
    node_s: DistSpec | None = None
    image_s: DistSpec | None = None
    weights_s: DistSpec | None = Field(default=None, description="Left out: weights bytes / load_bw.")
    compile_s: DistSpec | None = None
    load_bw: float = Field(default=2e9, gt=0, description="Bytes per second at which weights reach the GPU.")
    cache_s: float = Field(default=0.0, ge=0, description="A node that served until so long ago still has image and weights (s).")

    stages: ClassVar[tuple[str, ...]] = ("node_s", "image_s", "weights_s", "compile_s")


class PriceSpec(Spec):
    """What one GPU costs, with the day and place the number is from."""

    usd_per_hour: float = Field(ge=0)
    as_of: str = ""
    source: str = ""

    @field_validator("as_of")
    @classmethod
    def _a_day(cls, value: str) -> str:
        if value:
            try:
                datetime.date.fromisoformat(value)
            except ValueError:
                raise ValueError(f'expected a day such as "2026-11-01", got "{value}"') from None
        return value


class ScrapeSpec(Spec):
    """When and how the engine's metrics are read."""

    interval_s: float = Field(default=1.0, gt=0)
    phase: Literal["random", 0] = Field(default=0, description='random: each replica at its own offset; 0: all at the same times.')
    delay_s: DistSpec = Field(default=0.0, description="From the look to its delivery (s).")
    drop_p: float = Field(default=0.0, ge=0, le=1, description="Share of looks that are lost.")
    fields: tuple[ScrapeField, ...] | None = Field(default=None, description="What the engine exports; left out: all it can.")
    exact: bool = Field(default=False, description="Also at once with every dispatch and end, as no real fleet can: an oracle.")

    @model_validator(mode="after")
    def _not_before(self) -> ScrapeSpec:
        if isinstance(self.delay_s, float) and self.delay_s < 0:
            raise ValueError(f"delay_s {self.delay_s:g} is below 0")
        return self


class PoolSpec(Spec):
    """Replicas alike. `replicas` serve from the start; a planner moves between min and max."""

    model: str
    gpu: str
    tp: int = Field(default=1, ge=1, le=64)
    pp: int = Field(default=1, ge=1, le=64, description="Stages that share out the layers; steps are then simulated one by one.")
    role: Literal["agg", "prefill", "decode"] = Field(
        default="agg", description="prefill computes prompts and hands their KV to a decode pool of the same model; agg does both.")
    link_bw: float | None = Field(default=None, gt=0, description="Bytes per second of KV into a replica, and as many out of it; left out: "
                                                                "the catalogue's bandwidth between nodes.")
    link_latency_s: float = Field(default=0.0, ge=0, description="Behind the last byte of a transfer (s).")
    layerwise: bool = Field(default=False, description="Each layer's KV leaves as soon as it is computed, not all at the end.")
    replicas: int = Field(default=1, ge=0)
    min: int = Field(default=0, ge=0)
    max: int | None = Field(default=None, ge=0)
    engine: EngineSpec = EngineSpec()  # type: ignore[valid-type]
    service: ServiceSpec | None = Field(default=None, description="Serve requests for their own service_s instead of stepping an engine.")  # type: ignore[valid-type]
    profile: ProfileSpec = RooflineSpec(kind="roofline")
    startup: StartupSpec = StartupSpec()
    spot: bool = Field(default=False, description="Interruptible capacity at its own price; what takes it away is a fault of kind spot.")
    price: PriceSpec | None = Field(default=None, description="Left out: the catalogue's example price, if it has one.")
    weight: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        default=1.0, description="Speed relative to the other pools, for routing; auto: from the time of a decode step, the fastest 1.")
    scrape: ScrapeSpec = ScrapeSpec()
    drain_timeout_s: float = Field(default=120.0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> PoolSpec:
        if self.max is not None and self.max < max(self.min, self.replicas):
            raise ValueError(f"max {self.max} is below {'replicas' if self.replicas > self.min else 'min'} {max(self.min, self.replicas)}")
        if self.role != "agg" and self.service is not None:
            raise ValueError(f"role {self.role} needs an engine with steps, and service has none")
        if self.pp > 1 and (self.role != "agg" or self.service is not None):
            raise ValueError(f"pp {self.pp} needs role agg and an engine with steps")
        if self.engine.role not in ("agg", self.role):  # type: ignore[attr-defined]
            raise ValueError(f"engine.role {self.engine.role} is not the pool's role {self.role}")  # type: ignore[attr-defined]
        if self.min > self.replicas:
            raise ValueError(f"min {self.min} is above replicas {self.replicas}")
        return self


class FleetSpec(Spec):
    """The simulated fleet."""

    pools: dict[str, PoolSpec] = Field(min_length=1)
    network_s: float = Field(default=0.0, ge=0, description="One way between control and engine (s).")
    max_gpus: int | None = Field(default=None, ge=1, description="All GPUs that can be had; what is asked for beyond them waits.")

    @property
    def only_model(self) -> str:
        """The model that requests without one ask for: the first pool's."""
        return next(iter(self.pools.values())).model

    def wrong_names(self, doc: Document, catalog: Catalog) -> Iterator[ConfigError]:
        """Models and GPUs that are not in the catalogue."""
        for name, pool in self.pools.items():
            for key, find, given in (("model", catalog.model, pool.model), ("gpu", catalog.gpu, pool.gpu)):
                try:
                    find(given)
                except ConfigUnknownModelError as error:
                    path: tuple[Any, ...] = ("fleet", "pools", name, key)
                    label, error.where = place(doc, path)
                    error.message = f"{label}{dotted(path)}: {error.message}"
                    yield error
