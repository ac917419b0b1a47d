"""What stands in a scenario, and what can be wrong with it as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from windtunnel.errors import ConfigError, ConfigMetricError, ConfigValueError
from windtunnel.lab import overrides
from windtunnel.lab.catalog_spec import CatalogSpec
from windtunnel.lab.control_spec import ControlSpec
from windtunnel.lab.expect import ExpectSpec
from windtunnel.lab.fleet_spec import FleetSpec
from windtunnel.lab.kinds import Spec, spec_of
from windtunnel.lab.places import place
from windtunnel.lab.slo_spec import KnobSpec, SloSpec
from windtunnel.lab.source_spec import SourceSpec, is_endless
from windtunnel.lab.summary import names_of
from windtunnel.lab.yamlfile import Document, PathKey
from windtunnel.sim.fault_config import Fault

FaultSpec = spec_of(Fault)


class ScenarioFields(Spec):
    """The file's fields; `Scenario` is what is done with them."""

    windtunnel: Literal[1] = Field(description="Version of this file format.")
    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    question: str = Field(default="", description="The question that this scenario answers, in one sentence.")
    duration_s: float | None = Field(default=None, gt=0, description="Arrivals end here (s); null: when the source is exhausted.")
    warmup_s: Annotated[float, Field(ge=0)] | Literal["mser5"] = Field(
        default=0.0, description="Requests that arrive before this (s) are marked and left out of every metric; mser5: found from TTFT.")
    cooldown_s: float = Field(default=0.0, ge=0, description="Requests that arrive in the last so many seconds are left out too (s).")
    grace_s: float = Field(default=30.0, ge=0, description="How long requests may still run after duration_s (s).")
    seed: int = Field(default=0, ge=0, lt=2**63)
    record: Literal["requests", "decisions", "full"] = "requests"
    itl: bool = Field(default=False, description="Keep what exact gaps between tokens (itl_s) are made from; on with record: full, and where "
                                                 "expect names itl_s.")
    catalog: CatalogSpec = Field(default=CatalogSpec(), description="Models and GPUs that are not shipped, or other facts of those that are.")
    fleet: FleetSpec
    source: SourceSpec
    control: ControlSpec = ControlSpec()
    faults: tuple[FaultSpec, ...] = Field(default=(), description="What breaks, when, where and for how long.")  # type: ignore[valid-type]
    slo: SloSpec = SloSpec()
    expect: tuple[ExpectSpec, ...] = Field(default=(), description="What a run should show; a variant may bring its own list.")
    compare: dict[str, dict[str, Any]] = Field(default={}, description="Named variants: dotted path to value.")
    knobs: tuple[str | KnobSpec, ...] = Field(default=(), description="Paths that a cockpit offers as controls.")
    _base: Path = PrivateAttr(default_factory=Path)
    _marks: dict[PathKey, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.duration_s is None and is_endless(self.source):
            raise ValueError("the source never ends; write duration_s, or a count in the source")
        warmup_s = 0.0 if self.warmup_s == "mser5" else self.warmup_s
        if self.duration_s is not None and warmup_s + self.cooldown_s >= self.duration_s:
            both = f" and cooldown_s {self.cooldown_s:g} leave" if self.cooldown_s else " leaves"
            raise ValueError(f"warmup_s {warmup_s:g}{both} nothing of duration_s {self.duration_s:g}")
        for n, fault in enumerate(self.faults):
            if fault.pool and fault.pool not in self.fleet.pools:  # type: ignore[attr-defined]
                known = ", ".join(self.fleet.pools)
                raise ValueError(f'faults.{n}.pool: no pool "{fault.pool}"; there are {known}')  # type: ignore[attr-defined]
        return self

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.model_dump() == other.model_dump()  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]

    def wrong_names(self, doc: Document, base: Path) -> Iterator[ConfigError]:
        """Names that only other parts of the file, or the catalogues, can judge."""
        wrong = list(self.catalog.wrong_entries(base, doc))
        yield from wrong or list(self.fleet.wrong_names(doc, self.catalog.build(base)))
        for n, expected in enumerate(self.expect):
            try:
                expected.parse(names_of(self.slo.bounds()))
            except ConfigMetricError as error:
                label, error.where = place(doc, ("expect", n, "metric"))
                error.message = f"{label}expect.{n}.metric: {error.message}"
                yield error
        for name, changes in self.compare.items():
            try:
                overrides.check_paths(changes, f"compare.{name}")
            except ConfigValueError as error:
                error.where = doc.where(("compare", name))
                yield error
