"""How a tick of planning ended, and what was seen of its plugins."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from windtunnel.policy.planning.audit import Record
from windtunnel.policy.planning.calls import Answers, Gather
from windtunnel.policy.planning.chain import EMPTY, ChainOutcome
from windtunnel.policy.planning.contract import PredictResponse, Stage, StageResponse
from windtunnel.policy.planning.merge import MergeOutcome

Action = Literal["apply", "skip_no_targets", "skip_short_circuit", "skip_tick_timeout"]
Baseline = Mapping[str, int | None]
Ticking = Generator[Gather, Answers, "TickOutcome"]


@dataclass(slots=True)
class Diagnostics:
    """Who was held over, skipped (id, why, path), failed (id, error), and whose answer came too late to count.

    said: every answer that counted, (id, stage, response, held over), as it came in.
    """

    held_over: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)
    said: list[tuple[str, Stage, PredictResponse | StageResponse, bool]] = field(default_factory=list)


@dataclass(slots=True)
class TickOutcome:
    """How a tick ended. targets: component -> replicas (None: count unknown), what the boundary gets; None stages had no say."""

    action: Action
    targets: Mapping[str, int | None]
    short_circuit_reason: str | None = None
    chain: ChainOutcome = EMPTY
    propose: MergeOutcome | None = None
    reconcile: MergeOutcome | None = None
    constrain: MergeOutcome | None = None
    diagnostics: Diagnostics = field(default_factory=Diagnostics)
    records: tuple[Record, ...] = ()
