"""How many groups wait with which kind of head, kept up to date one head at a time."""

from __future__ import annotations

from collections.abc import Mapping

from windtunnel.policy.queueing.item import HeadStats, ResourceVector


class HeadCounts:
    """Counts per resource vector and distinct weight: integers only, so that no running sum of floats drifts."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: dict[ResourceVector, dict[float, int]] = {}

    def count(self, shape: ResourceVector, weight: float, by: int) -> None:
        """A group of this weight got (by = 1) or lost (by = -1) a head that asks for `shape`."""
        weights = self.counts.setdefault(shape, {})
        n = weights.get(weight, 0) + by
        if n:
            weights[weight] = n
            return
        del weights[weight]
        if not weights:
            del self.counts[shape]

    def stats(self) -> Mapping[ResourceVector, HeadStats]:
        """O(distinct shapes and weights)."""
        return {shape: HeadStats(sum(weights.values()), dict(weights)) for shape, weights in self.counts.items()}
