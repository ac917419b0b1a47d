"""Labels that a metric may carry, and how many values of each a monitoring system is given: what comes after that is `other`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

BUDGETS: Mapping[str, int] = {
    "plugin_id": 64, "component": 64, "reason": 32, "field": 32, "missing_field": 32, "result": 16, "status": 16,
    "action": 8, "bound": 8, "outcome": 8, "stage": 8, "state": 8, "type": 8,
}
OTHER = "other"
Labels = tuple[str, ...]
Value = TypeVar("Value")


def within_budget(names: Labels, samples: Mapping[Labels, Value], merge: Callable[[Value, Value], Value]) -> dict[Labels, Value]:
    """The samples with at most BUDGETS values of each label, the first ones that are met; the others' are merged under `other`.

    Counters keep their order of first use, so a value that was told once stays. O(samples).
    """
    known: tuple[dict[str, None], ...] = tuple({} for _ in names)
    out: dict[Labels, Value] = {}
    for values, value in samples.items():
        key = tuple(_kept(seen, word, BUDGETS[name]) for name, word, seen in zip(names, values, known, strict=True))
        out[key] = merge(out[key], value) if key in out else value
    return out


def _kept(seen: dict[str, None], word: str, budget: int) -> str:
    if word not in seen:
        if len(seen) >= budget:
            return OTHER
        seen[word] = None
    return word
