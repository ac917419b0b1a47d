"""Planner plugins that failed during a run. The pipeline goes on without them, so whoever reads the run has to be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FAILED = ("error", "timeout")


def plugin_failures(control: Any) -> dict[str, tuple[int, int]]:
    """Plugin id → (calls that failed, calls); only plugins that failed. {} without such a planner."""
    journal, roster = getattr(control.planner, "journal", None), getattr(control.planner, "roster", None)
    if journal is None or roster is None:
        return {}
    failed: dict[str, int] = {}
    for (name, *words), count in journal.counts.items():
        if name == "plugin_evaluations_total" and words[2] in FAILED:
            failed[words[0]] = failed.get(words[0], 0) + count
    calls = {entry.plugin_id: entry.calls for entry in roster.snapshot().entries}
    return {plugin_id: (n, max(n, calls.get(plugin_id, n))) for plugin_id, n in failed.items()}


def failure_lines(found: Mapping[str, Sequence[int]]) -> list[str]:
    """A sentence per plugin."""
    out = []
    for plugin_id, (failed, calls) in found.items():
        how = f"failed always, {calls:,} times: nothing was decided by it" if failed == calls else f"failed {failed:,} of {calls:,} times"
        out.append(f"{plugin_id} {how}; windtunnel planner explain says why")
    return out
