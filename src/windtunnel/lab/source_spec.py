"""The `source` part of a scenario: where work comes from."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from windtunnel.lab.client_spec import ClientsSpec
from windtunnel.lab.dist_spec import DistSpec
from windtunnel.lab.kinds import Spec, spec_of
from windtunnel.lab.op_spec import OpSpec
from windtunnel.lab.pipeline_spec import PipelineSpec
from windtunnel.sources.arrivals import FixedSchedule, RequestRate

Shares = dict[str, Annotated[float, Field(ge=0)]]
Priority = Literal["interactive", "batch"]
AdapterShares = Annotated[dict[Annotated[str, Field(min_length=1)], Annotated[float, Field(ge=0, le=1)]], Field(
    description="Share of the requests per LoRA adapter, read by engines with lora: {by: label}; what is left of 1 asks for the base model.")]


ScheduleSpec = spec_of(FixedSchedule, "fixed_schedule")
RateSpec = spec_of(RequestRate, "request_rate")
LoadSpec = Annotated[ScheduleSpec | RateSpec, Field(discriminator="kind")]  # type: ignore[valid-type]


class TraceSpec(Spec):
    """Requests of a file: Mooncake JSONL, Azure CSV, a CSV of lengths, sessions of coding agents, or our own Parquet."""

    kind: Literal["trace"]
    path: str
    format: Literal["auto", "mooncake", "azure", "lengths", "own", "agentic"] = "auto"
    on_error: Literal["raise", "skip", "collect"] = "raise"
    ops: tuple[OpSpec, ...] = Field(default=(), description="Operations on the rows, one after the other.")
    load: LoadSpec = Field(default_factory=lambda: ScheduleSpec(kind="fixed_schedule"),  # type: ignore[valid-type, call-arg]
                           description="When requests are sent: as the file says, or at a rate.")
    name: str = Field(default="trace", min_length=1)
    model: str | None = Field(default=None, description="Model that requests ask for; left out: the fleet's first.")
    tenant: str = Field(default="default", description="Tenant of rows that name none.")
    priority: Priority = Field(default="interactive", description="Class of rows that name none.")
    clients: ClientsSpec | None = Field(default=None, description="Left out: clients wait for ever and never try again.")
    bound: Literal["output"] | None = Field(default="output", description="output: clients ask for exactly the recorded number of tokens.")
    adapters: AdapterShares | None = None


class ArrivalsSpec(spec_of(RequestRate)):  # type: ignore[misc]
    """Requests of drawn lengths at a rate."""

    of: ClassVar[type[Any]] = RequestRate
    kind: Literal["arrivals"]
    input_tokens: DistSpec
    output_tokens: DistSpec
    service_s: DistSpec | None = Field(default=None, description="Seconds of work (s), for pools that serve in seconds.")
    patience_s: DistSpec | None = Field(default=None, description="From a request's arrival to its deadline (s).")
    tenants: Shares = Field(default={"default": 1.0}, min_length=1, description="Share of the requests per tenant.")
    priorities: dict[Priority, Annotated[float, Field(ge=0)]] = Field(default={"interactive": 1.0}, min_length=1)
    count: int | None = Field(default=None, ge=1, description="Ends after this many requests.")
    name: str = Field(default="arrivals", min_length=1)
    clients: ClientsSpec | None = Field(default=None, description="Left out: clients wait for ever and never try again.")
    model: str | None = None
    bound: Literal["output"] | None = "output"
    adapters: AdapterShares | None = None

    @field_validator("tenants", "priorities")
    @classmethod
    def _some_share(cls, shares: dict[str, float]) -> dict[str, float]:
        if not sum(shares.values()) > 0:
            raise ValueError("expected shares with a sum > 0")
        return shares


PlainSource = Annotated[TraceSpec | ArrivalsSpec | PipelineSpec, Field(discriminator="kind")]


class MixSpec(Spec):
    """Several sources at once, merged by time; at equal times the earlier entry comes first."""

    kind: Literal["mix"]
    sources: tuple[PlainSource, ...] = Field(min_length=1)
    clients: ClientsSpec | None = Field(default=None, description="The clients of all its sources together; a source may have its own instead.")

    @model_validator(mode="after")
    def _names(self) -> MixSpec:
        if self.clients is not None and any(getattr(s, "clients", None) is not None for s in self.sources):
            raise ValueError("clients stand both in the mix and in one of its sources; write them in one place")
        names = [s.name for s in self.sources]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice is not None:
            raise ValueError(f'two sources are named "{twice}"; give each its own name')
        return self


SourceSpec = Annotated[TraceSpec | ArrivalsSpec | PipelineSpec | MixSpec, Field(discriminator="kind")]


def is_endless(spec: Any) -> bool:
    """Does this source go on for ever?"""
    if isinstance(spec, MixSpec):
        return any(is_endless(s) for s in spec.sources)
    return isinstance(spec, ArrivalsSpec) and spec.count is None and bool(spec.config().endless)


def has_adapters(spec: Any) -> bool:
    """Do requests of this source ask for adapters by label?"""
    return any(has_adapters(s) for s in spec.sources) if isinstance(spec, MixSpec) else bool(getattr(spec, "adapters", None))


def has_service_times(spec: Any) -> bool:
    """Do requests of this source bring their own seconds of work?"""
    return any(has_service_times(s) for s in spec.sources) if isinstance(spec, MixSpec) else getattr(spec, "service_s", None) is not None


def models_asked(spec: Any, first: str) -> frozenset[str] | None:
    """Models that requests of a source ask for, `first` where it names none; None: a file's rows may name their own, and a pipeline may
    leave a pool to columns that are not in it."""
    if isinstance(spec, MixSpec):
        parts = [models_asked(s, first) for s in spec.sources]
        return None if None in parts else frozenset().union(*(part for part in parts if part is not None))
    if isinstance(spec, PipelineSpec) or (isinstance(spec, TraceSpec) and (spec.format == "own" or spec.path.endswith(".parquet"))):
        return None
    return frozenset({spec.model or first})
