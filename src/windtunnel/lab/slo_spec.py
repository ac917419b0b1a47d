"""Service objectives and knobs of a scenario."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from windtunnel.lab.kinds import Spec


class Bounds(Spec):
    """Upper bounds of one request (s); a request that meets all of them is good."""

    ttft_s: float | None = Field(default=None, gt=0, description="Arrival to first token.")
    tpot_s: float | None = Field(default=None, gt=0, description="Seconds per output token after the first.")
    e2e_s: float | None = Field(default=None, gt=0, description="Arrival to the last token.")
    queue_s: float | None = Field(default=None, gt=0, description="Waiting before the engine began.")

    def given(self) -> dict[str, float]:
        return {k: getattr(self, k) for k in Bounds.model_fields if getattr(self, k) is not None}


class SloSpec(Bounds):
    """Either one set of bounds or one per priority class; `attainment` is the share that should meet them."""

    interactive: Bounds | None = None
    batch: Bounds | None = None
    attainment: float = Field(default=0.99, gt=0, le=1)

    @model_validator(mode="after")
    def _one_kind(self) -> SloSpec:
        if self.given() and (self.interactive or self.batch):
            raise ValueError("use either one set of bounds or one per priority class, not both")
        return self

    def bounds(self) -> dict[str, Any]:
        """Plain bounds by column, or by class then column."""
        classes = {name: part.given() for name, part in (("interactive", self.interactive), ("batch", self.batch)) if part}
        return dict(classes) if classes else dict(self.given())


class KnobSpec(Spec):
    """A control of the cockpit for one path."""

    path: str
    label: str = ""
    lo: float | None = None
    hi: float | None = None
    step: float | None = Field(default=None, gt=0)
