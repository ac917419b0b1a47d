"""The `control` part of a scenario: tenants, queue, admission, routing, planner, settings, all by registered kinds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from windtunnel.lab import registry
from windtunnel.lab.kinds import Kinds, Spec, spec_of
from windtunnel.lab.planner_config import PlannerSpec
from windtunnel.policy.admission.budget import Budget
from windtunnel.policy.admission.quota import TenantQuota
from windtunnel.policy.settings import ControlSettings

_BOUNDED = {"capacity": 256, "capacity_by_class": {"interactive": 128, "batch": 128}}
_FAIR, _LEAST = {"kind": "fair", "bounded": _BOUNDED}, {"kind": "least_outstanding", "by": "requests"}
_AIMD = {"limit": {"kind": "aimd"}, "gates": []}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {"queue": _FAIR, "admission": _AIMD, "routing": _LEAST},
    "open": {"queue": {"kind": "fifo"}, "admission": {"limit": {"kind": "none"}, "gates": []}, "routing": _LEAST},
    "aimd": {"queue": _FAIR, "admission": {**_AIMD, "gates": [{"kind": "breaker"}, {"kind": "token_budget"}]}, "routing": _LEAST},
    "fair_tokens": {"queue": {"kind": "vtc", "bounded": _BOUNDED}, "admission": _AIMD, "routing": _LEAST},
    "batch": {"queue": {"kind": "fair", "cost": "tokens", "inside": "edf"}, "admission": _AIMD, "routing": _LEAST},
}
registry.register("planner", "pipeline", PlannerSpec)
SettingsSpec, QuotaSpec, BudgetSpec = spec_of(ControlSettings), spec_of(TenantQuota), spec_of(Budget)


class TenantSpec(Spec):
    """One tenant's share, and what it may use."""

    weight: float = Field(default=1.0, gt=0, description="Share of the fair queue, relative to the other tenants.")
    quota: QuotaSpec | None = Field(default=None, description="What it may have at once and per time.")  # type: ignore[valid-type]
    budget: BudgetSpec | None = Field(default=None, description="What each of its sessions may use in all.")  # type: ignore[valid-type]


class AdmissionSpec(Spec):
    """How many requests may be in flight, and what else may refuse one at the door."""

    limit: Annotated[Any, Kinds("admission.limit")] | None = None
    gates: tuple[Annotated[Any, Kinds("admission.gates")], ...] | None = None
    signal: Literal["ttft", "per_token", "rtt"] | None = Field(
        default=None, description="Latency that limits learn from: dispatch to first token (default), time per token, or dispatch to end.")


class LedgerSpec(Spec):
    """How the load of a replica is reckoned. Anything but in_flight needs the engines' metrics, which are late by nature."""

    accounting: Literal["in_flight", "since_scrape", "snapshot"] = Field(
        default="in_flight", description="in_flight: own requests (and others' seen in metrics); since_scrape: the last metrics plus what was "
                                         "sent since; snapshot: the last metrics alone, which makes a herd of all senders.")
    scrape_interval_s: float = Field(default=1.0, gt=0, description="How often metrics are expected (s).")
    stale_after_s: float | None = Field(default=None, ge=0, description="Older metrics are ignored (s); left out: three intervals.")
    ledger_window_s: float = Field(default=30.0, ge=0, description="How far back own sends are known (s).")


class ControlSpec(Spec):
    """What decides. A part that is not named is the preset's; a part that is named replaces the preset's whole part."""

    preset: str = Field(default="default", description="Named composition that the other keys override.",
                        json_schema_extra={"enum": list(PRESETS)})
    tenants: dict[str, TenantSpec] = Field(default={}, description='Weight per tenant; the entry "default" is for all others.')
    queue: Annotated[Any, Kinds("queue")] | None = None
    admission: AdmissionSpec | None = None
    routing: Annotated[Any, Kinds("routing")] | None = None
    planner: Annotated[Any, Kinds("planner")] | None = Field(default=None, description="Absent: a fleet of fixed size.")
    settings: SettingsSpec = SettingsSpec()  # type: ignore[valid-type]
    ledger: LedgerSpec = LedgerSpec()

    @field_validator("preset")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in PRESETS:
            raise ValueError(f'unknown preset "{name}"; presets: {", ".join(PRESETS)}')
        return name

    def resolved(self) -> ControlSpec:
        """The same control with every part of its preset written out."""
        data = self.model_dump(mode="json", exclude_unset=True)
        return ControlSpec.model_validate_json(json.dumps(filled(data)), strict=True)


def filled(control: Mapping[str, Any]) -> dict[str, Any]:
    """Plain `control` data with the preset's parts where it names none (limit and gates count separately)."""
    preset = PRESETS.get(control.get("preset") or "default", {})
    out = dict(control)
    for part, given in preset.items():
        if out.get(part) is None:
            out[part] = given
        elif part == "admission" and isinstance(out[part], Mapping):
            out[part] = {**given, **{k: v for k, v in out[part].items() if v is not None}}
    return out


def preset_part(path: tuple[str | int, ...], root: Any) -> Mapping[str, Any] | None:
    """What an absent mapping at `path` stands for, so that an override may change one field of it; None: nothing."""
    if len(path) < 2 or path[0] != "control" or not isinstance(root, Mapping):
        return None
    control = root.get("control")
    node: Any = PRESETS.get((control.get("preset") if isinstance(control, Mapping) else None) or "default", {})
    for key in path[1:]:
        if not isinstance(node, Mapping) or key not in node:
            return None
        node = node[key]
    return node if isinstance(node, Mapping) else None

