"""What happened in a tick, as records: the kinds, and the keys of each one's data."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from windtunnel.errors import PlanContractError

KINDS: Mapping[str, frozenset[str]] = {kind: frozenset(keys.split()) for kind, keys in {
    "tick_started": "tick_at lag_s", "tick_missed": "count first_at", "tick_timeout": "elapsed_s", "tick_finished": "action reason targets",
    "pulled": "traffic fpm windows", "plugin_skipped": "why field", "plugin_called": "stage", "plugin_answered": "stage result final",
    "plugin_failed": "stage error message", "empty_response": "stage", "held_over": "stage age_s why", "hold_expired": "stage age_s",
    "cache_cleared": "why", "answer_discarded": "stage why", "chain_field_taken": "field", "chain_final": "",
    "chain_final_not_lowest": "priority lowest", "winner": "stage replicas priority", "tie_broken": "stage loser value other rule",
    "clamped": "stage bound wanted result", "bounds_conflict": "stage floor floor_owner ceiling ceiling_owner",
    "set_dropped": "stage replicas", "final_used": "stage ignored", "final_ignored": "stage", "negative_clamped": "stage replicas type",
    "no_recommendation": "stage", "rejected": "stage reason", "boundary_changed": "wanted planned reasons",
    "plan_emitted": "plan_id decision_id targets reason", "plan_unchanged": "reasons", "plan_held": "reasons",
    "plan_superseded": "plan_id why", "rollout_step": "plan_id step targets", "scale_up_stuck": "expected ready", "replica_lost": "replica reason",
    "manual_edit_seen": "expected seen", "registered": "stage priority subject", "registration_refused": "reason",
    "unregistered": "reason", "evicted": "silent_s", "circuit_opened": "failures", "circuit_half_opened": "", "circuit_closed": "",
    "config_reloaded": "generation", "forecast_scored": "field error wape bias",
}.items()}


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the planner's log. seq counts from 1; t: run seconds; tick: its number, 0 between ticks; data: plain values.

    Raises PlanContractError for an unknown kind or other keys than the kind's.
    """

    seq: int
    t: float
    tick: int
    kind: str
    plugin_id: str = ""
    component: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        keys = KINDS.get(self.kind)
        if keys is None:
            raise PlanContractError(f"record.kind: unknown kind {self.kind!r}")
        if keys != self.data.keys():
            raise PlanContractError(f"record.{self.kind}: expected the keys {sorted(keys)}, got {sorted(self.data)}")


BUCKETS: Mapping[str, tuple[float, ...]] = {
    "plugin_latency_seconds": (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0),
    "tick_duration_seconds": (0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0),
}


@dataclass(slots=True)
class Histogram:
    """counts: by upper bound of BUCKETS, not cumulative, the last one for what is larger; total: sum of the values."""

    counts: list[int]
    total: float = 0.0


class Journal:
    """Takes records while `on`; counters and histograms are kept always: name and label values -> count."""

    def __init__(self, on: bool = False) -> None:
        self.on, self.tick = on, 0
        self.now = 0.0
        self.counts: dict[tuple[str, ...], int] = {}
        self.histograms: dict[tuple[str, ...], Histogram] = {}
        self._seq = 0
        self._fresh: list[Record] = []

    def add(self, kind: str, plugin_id: str = "", component: str = "", /, **data: Any) -> None:
        """Callers on the hot path ask `on` first."""
        if self.on:
            self._seq += 1
            self._fresh.append(Record(self._seq, self.now, self.tick, kind, plugin_id, component, data))

    def count(self, *key: str) -> None:
        self.counts[key] = self.counts.get(key, 0) + 1

    def observe(self, name: str, value: float, *labels: str) -> None:
        """One value of a histogram; a value on a bound is under it."""
        key = (name, *labels)
        found = self.histograms.get(key)
        if found is None:
            found = self.histograms[key] = Histogram([0] * (len(BUCKETS[name]) + 1))
        found.counts[bisect_left(BUCKETS[name], value)] += 1
        found.total += value

    def take(self) -> tuple[Record, ...]:
        """The records since the last call."""
        if not self._fresh:
            return ()
        fresh, self._fresh = tuple(self._fresh), []
        return fresh
