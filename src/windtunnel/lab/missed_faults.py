"""Faults that did not happen as they were written, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def missed_lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence per fault: what, when, and whom it did not find."""
    return [_line(row) for row in found]


def _line(row: Mapping[str, Any]) -> str:
    if not row["of"]:
        return f"{row['kind']} at {row['at_s']:g} s did not happen: the run was over at {row['over_s']:g} s"
    when = f"at {row['at_s']:g} s" if row["of"] == 1 else f"{row['times']:,} of {row['of']:,} times, first at {row['at_s']:g} s"
    return f"{row['kind']} {when} missed: {_whom(row)}"


def _whom(row: Mapping[str, Any]) -> str:
    of = f" of {row['pool']}" if row["pool"] else ""
    if row["replicas"]:
        several = len(row["replicas"]) > 1
        return f"no replica{'s' * several} {_listed(row['replicas'])}{of} {'were' if several else 'was'} ready"
    if not row["found"]:
        return f"no replica{of} was ready"
    return f"only {row['found']} of the {row['asked']} replicas{of} that it wanted were ready"


def _listed(ordinals: Sequence[int]) -> str:
    shown = [str(n) for n in ordinals[:8]] + ([f"{len(ordinals) - 8} more"] if len(ordinals) > 8 else [])
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
