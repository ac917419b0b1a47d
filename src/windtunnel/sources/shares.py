"""Names with shares, such as tenants of a synthetic load."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import check_number
from windtunnel.sources.dist import Floats


class Shares:
    """Names with relative shares; a number in [0, 1) picks one. The shares need not sum to 1."""

    def __init__(self, field: str, shares: Mapping[str, float]) -> None:
        if not isinstance(shares, Mapping):
            raise ConfigValueError(field, f"expected a mapping of name to share, got {shares!r}")
        for name, share in shares.items():
            check_number(f"{field}.{name}", share, lo=0)
        total = math.fsum(shares.values())
        if not total > 0:
            raise ConfigValueError(field, f"expected shares with a sum > 0, got {dict(shares)!r}")
        self.names = tuple(name for name, share in shares.items() if share > 0)
        self._edges = np.cumsum([share / total for share in shares.values() if share > 0])[:-1]

    def pick(self, points: Sequence[float] | Floats) -> list[str]:
        """One name per point in [0, 1)."""
        return [self.names[i] for i in np.searchsorted(self._edges, points, side="right")]

    def draw(self, rng: np.random.Generator, n: int) -> list[str]:
        """n names at random; draws nothing if there is only one."""
        return [self.names[0]] * n if len(self.names) == 1 else self.pick(rng.random(n))
