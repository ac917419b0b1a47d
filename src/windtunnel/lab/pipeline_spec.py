"""A batch pipeline as a scenario writes it: columns, how many rows, and how tasks share the capacity."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from windtunnel.errors import ConfigError
from windtunnel.lab.dist_spec import DistSpec, build_dist
from windtunnel.lab.kinds import Spec, spec_of
from windtunnel.policy.tasks.bounded_borrow import BoundedBorrow
from windtunnel.policy.tasks.config import TaskSchedulerConfig
from windtunnel.policy.tasks.graph import Column, Graph
from windtunnel.policy.tasks.strict import Strict
from windtunnel.sources.pipeline import PipelineSource
from windtunnel.sources.program import Program
from windtunnel.sources.traces.prompts import Prompts

StrictSpec = spec_of(Strict, "strict")
BoundedBorrowSpec = spec_of(BoundedBorrow, "bounded_borrow", skip=("borrow_ceiling_by_group_resource",))
SharingSpec = Annotated[StrictSpec | BoundedBorrowSpec, Field(discriminator="kind")]  # type: ignore[valid-type]


class ColumnSpec(Spec):
    """One column: a task per row (`cell`) or per row group (`full_column`)."""

    strategy: Literal["cell", "full_column"] = "cell"
    needs: tuple[str, ...] = Field(default=(), description="Columns that must be there before.")
    model: str | None = Field(default=None, min_length=1, description="Model that its tasks ask; left out: local work only.")
    requests: int = Field(default=1, ge=0, description="Requests per task, if it has a model.")
    parallel: bool = Field(default=False, description="All requests of a task at once, not one after the other.")
    input_tokens: DistSpec = 256.0
    output_tokens: DistSpec = 64.0
    local_s: DistSpec = Field(default=0.0, description="Seconds of local work per task.")

    def column(self, name: str) -> Column:
        return Column(name, self.strategy, self.needs)


class PipelineSpec(Spec):
    """Rows through a pipeline of dependent columns: data generation beside other traffic."""

    kind: Literal["pipeline"]
    name: str = Field(default="pipeline", min_length=1)
    rows: int = Field(ge=1)
    buffer_size: int = Field(default=1000, ge=1, description="Rows per row group.")
    columns: dict[str, ColumnSpec] = Field(min_length=1)
    max_parallel_requests: dict[str, Annotated[int, Field(ge=1)]] = Field(default={}, description="Tasks at once per model; 4 if left out.")
    max_in_flight_tasks: int = Field(default=1024, ge=1)
    max_concurrent_row_groups: int = Field(default=3, ge=1)
    adaptive_row_groups: bool = False
    request_pressure_advisory: bool = True
    transport_retries: int = Field(default=3, ge=0, description="How often a request is sent again whose connection broke.")
    sharing: SharingSpec = Field(default_factory=lambda: BoundedBorrowSpec(kind="bounded_borrow"),  # type: ignore[valid-type, call-arg]
                                 description="How groups of tasks share what is free.")
    tenant: str = Field(default="pipeline", min_length=1)
    priority: Literal["interactive", "batch"] = "batch"

    @model_validator(mode="after")
    def _a_pipeline(self) -> PipelineSpec:
        try:
            Graph([c.column(name) for name, c in self.columns.items()])
        except ConfigError as error:
            raise ValueError(error.message) from None
        asked = {c.model for c in self.columns.values() if c.model and c.requests}
        stray = next((m for m in self.max_parallel_requests if m not in asked), None)
        if stray is not None:
            raise ValueError(f'max_parallel_requests names "{stray}", which no column asks')
        return self

    def build(self, base: Path, *, seed: int, replication: int, stop_at_s: float | None, live: bool, notes: bool = False) -> PipelineSource:
        """A fresh source. notes: of its scheduler, for a run that records them."""
        sharing: Any = self.sharing
        config = TaskSchedulerConfig(
            sharing.config(), max_concurrent_row_groups=self.max_concurrent_row_groups, adaptive_row_groups=self.adaptive_row_groups,
            buffer_size=self.buffer_size, max_in_flight_tasks=self.max_in_flight_tasks,
            request_pressure_advisory=self.request_pressure_advisory)
        programs = [
            Program(c.column(name), c.model, c.requests, c.parallel, build_dist(c.input_tokens, base, f"columns.{name}.input_tokens"),
                    build_dist(c.output_tokens, base, f"columns.{name}.output_tokens"), build_dist(c.local_s, base, f"columns.{name}.local_s"))
            for name, c in self.columns.items()]
        return PipelineSource(programs, self.rows, config, name=self.name, parallel=self.max_parallel_requests, tenant=self.tenant,
                              priority=self.priority, seed=seed, replication=replication, stop_at_s=stop_at_s,
                              prompts=Prompts(self.name) if live else None, notes=notes, transport_retries=self.transport_retries)
