"""Seconds of an engine step, learned from reports: ordinary least squares with intercept over samples spread by cells of the operating range.

prefill t(tokens), decode t(requests, kv_tokens), agg t(prefill_tokens, kv_tokens).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import fsum, isqrt
from typing import Protocol

from windtunnel.policy.planning.contract import ForwardPass

LEAST_S = 1e-6  # no step is predicted to be shorter
AVERAGED = 64
DECODE_NEGATIVE = -1e-6  # so little is rounding: kept
Role = str  # agg, prefill, decode
Sample = tuple[tuple[float, ...], float]  # features, seconds
KnownStep = tuple[float, float, float, float]  # prompt tokens, decoding requests, their KV tokens, seconds


class PerfModel(Protocol):
    """Step times by role. A regression, a table, or a simulator's own step model (an oracle)."""

    def ready(self, role: Role) -> bool: ...

    def prefill_s(self, tokens: float) -> float: ...

    def decode_s(self, requests: float, kv_tokens: float) -> float: ...

    def agg_s(self, prefill_tokens: float, kv_tokens: float) -> float: ...


@dataclass(frozen=True, slots=True)
class LinearPerf:
    """Known coefficients (intercept, slope, ...), in seconds and seconds per token or request; None: that role is not known."""

    prefill: tuple[float, float] | None = None
    decode: tuple[float, float, float] | None = None
    agg: tuple[float, float, float] | None = None

    def ready(self, role: Role) -> bool:
        return {"prefill": self.prefill, "decode": self.decode, "agg": self.agg}.get(role) is not None

    def prefill_s(self, tokens: float) -> float:
        return _affine(self.prefill, (tokens,))

    def decode_s(self, requests: float, kv_tokens: float) -> float:
        return _affine(self.decode, (requests, kv_tokens))

    def agg_s(self, prefill_tokens: float, kv_tokens: float) -> float:
        return _affine(self.agg, (prefill_tokens, kv_tokens))


class TablePerf:
    """Measured prefill step times, straight lines between and beyond the two nearest points; decode and agg as coefficients.

    prefill: (tokens, seconds), at least two, ascending. Raises ValueError otherwise.
    """

    def __init__(self, prefill: Sequence[tuple[float, float]], decode: tuple[float, float, float] | None = None,
                 agg: tuple[float, float, float] | None = None) -> None:
        if len(prefill) < 2 or any(b[0] <= a[0] for a, b in pairwise(prefill)):
            raise ValueError("a step-time table needs two or more points with ascending tokens")
        self._points, self._rest = list(prefill), LinearPerf(None, decode, agg)

    def ready(self, role: Role) -> bool:
        return role == "prefill" or self._rest.ready(role)

    def prefill_s(self, tokens: float) -> float:
        points = self._points
        i = next((i for i in range(1, len(points) - 1) if tokens <= points[i][0]), len(points) - 1)
        (x0, y0), (x1, y1) = points[i - 1], points[i]
        return max(LEAST_S, y0 + (tokens - x0) * (y1 - y0) / (x1 - x0))

    def decode_s(self, requests: float, kv_tokens: float) -> float:
        return self._rest.decode_s(requests, kv_tokens)

    def agg_s(self, prefill_tokens: float, kv_tokens: float) -> float:
        return self._rest.agg_s(prefill_tokens, kv_tokens)


def _affine(fit: Sequence[float] | None, x: Sequence[float]) -> float:
    if fit is None:
        raise ValueError("this role's step times are not known: ask ready() first")
    return max(LEAST_S, fit[0] + sum(b * v for b, v in zip(fit[1:], x, strict=True)))


def least_squares(samples: Sequence[Sample]) -> tuple[float, ...] | None:
    """(intercept, slope, ...) for one or two features; None if nothing varies: one operating point tells no slope.

    A feature that does not vary gets slope 0; two that vary in proportion share the effect, scaled by their spread.
    """
    n, k = len(samples), len(samples[0][0]) if samples else 0
    if n < 2:
        return None
    means = [fsum(x[j] for x, _ in samples) / n for j in range(k)]
    mean_y = fsum(y for _, y in samples) / n
    spread = [(fsum((x[j] - means[j]) ** 2 for x, _ in samples) / n) ** 0.5 for j in range(k)]
    varies = [j for j in range(k) if spread[j] > 1e-9 * max(1.0, abs(means[j]))]
    if not varies:
        return None
    z = [[(x[j] - means[j]) / spread[j] for x, _ in samples] for j in varies]
    y = [value - mean_y for _, value in samples]
    r = [fsum(a * b for a, b in zip(zj, y, strict=True)) / n for zj in z]
    if len(varies) == 2:
        c = fsum(a * b for a, b in zip(z[0], z[1], strict=True)) / n
        det = 1 - c * c
        r = [(r[0] - c * r[1]) / det, (r[1] - c * r[0]) / det] if det > 1e-9 else [r[0] / 2, r[1] / 2]
    slopes = [0.0] * k
    for j, b in zip(varies, r, strict=True):
        slopes[j] = b / spread[j]
    return (mean_y - sum(b * m for b, m in zip(slopes, means, strict=True)), *slopes)


class Regression:
    """Step time of one role. Samples are kept spread: the fullest cell of the seen range gives up its oldest.

    cells: of the range, a square number (split in two axes for two features). clip: per feature, may a negative slope count as 0?
    Else it refuses the fit.
    """

    def __init__(self, features: int, *, cells: int = 16, least: int = 5, most: int = 64, clip: Sequence[bool] = ()) -> None:
        self.cells, self.least, self.most = cells, least, most
        self._clip = tuple(clip) or (False,) * features
        self._per_axis = cells if features == 1 else isqrt(cells)
        self._bounds: list[tuple[float, float]] = []
        self._cells: dict[tuple[int, ...], deque[tuple[int, Sample]]] = {}
        self._made = self._count = 0
        self._fit: tuple[float, ...] | None = None
        self._stale = False

    def __len__(self) -> int:
        return self._count

    def add(self, features: tuple[float, ...], seconds: float) -> None:
        """A step that took `seconds`; idle reports (0 s) are no samples."""
        if seconds <= 0:
            return
        self._made, self._stale = self._made + 1, True
        entry = (self._made, (features, seconds))
        bounds = self._bounds
        if not bounds or any(v < lo or v > hi for (lo, hi), v in zip(bounds, features, strict=True)):
            old = bounds or [(v, v) for v in features]
            self._bounds = [(min(lo, v), max(hi, v)) for (lo, hi), v in zip(old, features, strict=True)]
            entries = sorted([e for cell in self._cells.values() for e in cell] + [entry])
            self._cells = {}
        else:
            entries = [entry]
        for each in entries:
            self._cells.setdefault(self._cell(each[1][0]), deque()).append(each)
        self._count += 1
        if self._count > self.most:
            fullest = max(self._cells, key=lambda c: len(self._cells[c]))  # the first created, on a tie
            self._cells[fullest].popleft()
            self._count -= 1

    def _cell(self, features: tuple[float, ...]) -> tuple[int, ...]:
        n = self._per_axis
        return tuple(0 if hi == lo else min(n - 1, max(0, int((v - lo) / (hi - lo) * n)))
                     for v, (lo, hi) in zip(features, self._bounds, strict=True))

    @property
    def fit(self) -> tuple[float, ...] | None:
        """(intercept, slope, ...); None until there are enough samples and no slope is negative."""
        if self._stale:
            self._stale = False
            samples = [s for _, s in sorted(e for cell in self._cells.values() for e in cell)]
            self._fit = self._accepted(least_squares(samples)) if self._count >= self.least else None
        return self._fit

    def _accepted(self, fit: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if fit is None:
            return None
        slopes = []
        for slope, clip, (lo, hi) in zip(fit[1:], self._clip, self._bounds, strict=True):
            if slope < 0 and -slope * (hi - lo) <= LEAST_S:
                slopes.append(slope if clip else 0.0)  # rounding of a time that does not depend on this: not a reason to know nothing
                continue
            if slope < 0 and not clip:
                return None
            slopes.append(0.0 if slope < DECODE_NEGATIVE else slope)
        return (fit[0], *slopes)


class Average:
    """Mean of the last 64 values; zeros before the first other value are not counted."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=AVERAGED)

    def add(self, value: float) -> None:
        if value or self._values:
            self._values.append(value)

    @property
    def mean(self) -> float | None:
        return fsum(self._values) / len(self._values) if self._values else None


class LearnedPerf:
    """Regressions and averages of a service's roles, fed with reports of engine steps; each report is taken once."""

    def __init__(self, *, cells: int = 16, least: int = 5, most: int = 64) -> None:
        def regression(features: int, clip: Sequence[bool] = ()) -> Regression:
            return Regression(features, cells=cells, least=least, most=most, clip=clip)

        self.models: Mapping[Role, Regression] = {"prefill": regression(1), "decode": regression(2, (True, False)), "agg": regression(2)}
        self.avg_isl, self.avg_num, self.avg_len, self.avg_prefill_tokens = Average(), Average(), Average(), Average()
        self._seen: dict[str, int] = {}

    def observe(self, role: Role, report: ForwardPass) -> None:
        key = f"{role}/{report.replica_id}/{report.rank}"
        if self._seen.get(key) == report.counter:
            return
        self._seen[key] = report.counter
        load = report.scheduled
        if role != "decode":
            self.avg_prefill_tokens.add(load.prefill_tokens)
            if load.num_prefill:
                self.avg_isl.add((load.prefill_tokens + load.prefill_kv_tokens) / load.num_prefill)
        if role != "prefill":
            self.avg_num.add(load.num_decode)
            if load.num_decode:
                self.avg_len.add(load.decode_kv_tokens / load.num_decode)
        features: tuple[float, ...] = (load.prefill_tokens,)
        if role != "prefill":
            features = (load.num_decode if role == "decode" else load.prefill_tokens, load.decode_kv_tokens)
        self.models[role].add(features, report.wall_s)

    def seed(self, role: Role, steps: Sequence[KnownStep]) -> None:
        """Steps that were timed before the run, so that a planner is ready from its first tick; reports replace them cell by cell."""
        for tokens, requests, kv_tokens, seconds in steps:
            features: tuple[float, ...] = {"prefill": (tokens,), "decode": (requests, kv_tokens)}.get(role, (tokens, kv_tokens))
            self.models[role].add(features, seconds)

    def ready(self, role: Role) -> bool:
        return self.models[role].fit is not None

    def prefill_s(self, tokens: float) -> float:
        return _affine(self.models["prefill"].fit, (tokens,))

    def decode_s(self, requests: float, kv_tokens: float) -> float:
        return _affine(self.models["decode"].fit, (requests, kv_tokens))

    def agg_s(self, prefill_tokens: float, kv_tokens: float) -> float:
        return _affine(self.models["agg"].fit, (prefill_tokens, kv_tokens))
