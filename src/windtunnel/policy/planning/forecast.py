"""Forecasts of one number per traffic window: the seam to the models, the idle start, transforms, quantiles and the score of every forecast."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, expm1, isfinite, log1p, sqrt
from statistics import NormalDist
from typing import Protocol

MEMORY = 64  # errors that scores and quantiles look back on
LEAST_ERRORS = 16  # before a quantile is read from them


class Model(Protocol):
    """One series, one value per step. sd of `ahead` is None if the model has none."""

    @property
    def ready(self) -> bool:
        """Has it seen enough for its own formula?"""

    def observe(self, value: float) -> None: ...

    def miss(self, steps: int) -> None:
        """`steps` windows went by without a reading."""

    def ahead(self, steps: float) -> tuple[float, float | None] | None:
        """(mean, standard deviation) that many steps ahead, fractions allowed; None before any data. Changes nothing."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """mean: expected; value: what to plan for (mean, or the asked quantile); sd: None if the model has none. All >= 0."""

    mean: float
    value: float
    sd: float | None
    model_ready: bool


@dataclass(frozen=True, slots=True)
class Score:
    """Of the forecasts whose window has closed, last 64. last_error, bias: actual - forecast; wape: Σ|error|/Σactual, None if that is 0."""

    count: int
    last_error: float
    bias: float
    wape: float | None


class _Errors:
    """Errors at one horizon: made forecasts wait for their window."""

    __slots__ = ("actuals", "closed", "errors", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[int, float] = {}
        self.closed = 0  # ever
        self.errors: deque[float] = deque(maxlen=MEMORY)
        self.actuals: deque[float] = deque(maxlen=MEMORY)

    def close(self, step: int, actual: float | None) -> None:
        for due in [s for s in self.waiting if s <= step]:
            mean = self.waiting.pop(due)
            if due == step and actual is not None:
                self.closed += 1
                self.errors.append(actual - mean)
                self.actuals.append(actual)


class Forecaster:
    """Feeds a model with windows of `window_s` and asks it.

    A window is taken once, by its end; a gap counts as missing windows. Zeros before the first demand are not demand and are ignored.
    """

    def __init__(self, model: Model, window_s: float, *, log: bool = False) -> None:
        self.model, self.window_s, self.log = model, window_s, log
        self._idle, self._fed = True, False
        self._t0: float | None = None
        self._step = -1
        self._errors: dict[int, _Errors] = {}
        self._scored: _Errors | None = None  # of the horizon asked for last

    def reset_idle_skip(self) -> None:
        """Zeros from now until the next demand are ignored again: a history was handed in, the service has not started yet."""
        self._idle = True

    def observe(self, value: float | None, window_end: float) -> None:
        """The window that ended at run second `window_end`; None: it could not be read."""
        if self._t0 is None:
            self._t0 = window_end
        step = round((window_end - self._t0) / self.window_s)
        if step <= self._step:
            return
        if value is not None and not isfinite(value):
            value = None
        skipped, self._step = step - self._step - 1, step
        for errors in self._errors.values():
            errors.close(step, value)
        if self._fed and skipped:
            self.model.miss(skipped)
        if value is None:
            if self._fed:
                self.model.miss(1)
        elif value > 0 or not self._idle:
            self._idle, self._fed = False, True
            self.model.observe(log1p(max(0.0, value)) if self.log else value)

    def predict(self, horizon_s: float, quantile: float | None = None) -> Forecast | None:
        """What is expected `horizon_s` after the last window; None before any data. Asking again gives the same answer.

        quantile: from the errors at this horizon once 16 are known, before that from the model's sd.
        """
        steps = horizon_s / self.window_s
        found = self.model.ahead(steps) if self._fed else None
        if found is None:
            return None
        mean, sd = found
        if self.log:
            sd = None if sd is None else sd * exp(min(mean, 700.0))  # first order
            mean = expm1(min(mean, 700.0))
        mean = max(0.0, mean)
        slots = max(1, ceil(steps - 1e-9))
        errors = self._scored = self._errors.setdefault(slots, _Errors())
        errors.waiting[self._step + slots] = mean
        value = mean
        if quantile is not None:
            if len(errors.errors) >= LEAST_ERRORS:
                value = mean + empirical_quantile(sorted(errors.errors), quantile)
            elif sd is not None:
                value = mean + NormalDist().inv_cdf(quantile) * sd
        return Forecast(mean, max(0.0, value), sd, self.model.ready)

    @property
    def scored(self) -> int:
        """Forecasts at that horizon whose window has ever closed."""
        return self._scored.closed if self._scored is not None else 0

    @property
    def score(self) -> Score | None:
        """At the horizon that was asked for last; None before the first of its windows has closed."""
        if self._scored is None or not self._scored.errors:
            return None
        errors, total = self._scored.errors, sum(self._scored.actuals)
        wape = sum(abs(e) for e in errors) / total if total > 0 else None
        return Score(len(errors), errors[-1], sum(errors) / len(errors), wape)


def empirical_quantile(ordered: Sequence[float], q: float) -> float:
    """Of sorted values, linear between neighbours."""
    at = q * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def provisioning_horizon_s(setting: float | str, window_s: float, boot_s: float | None) -> float:
    """How far ahead to look. "next": one window; "provisioning": until a replica that is ordered now is ready, at least one window."""
    if setting == "provisioning":
        return max(window_s, boot_s or 0.0)
    return window_s if setting == "next" else float(setting)


class Constant:
    """The last value."""

    def __init__(self) -> None:
        self._last: float | None = None

    @property
    def ready(self) -> bool:
        return self._last is not None

    def observe(self, value: float) -> None:
        self._last = value

    def miss(self, steps: int) -> None: ...

    def ahead(self, steps: float) -> tuple[float, float | None] | None:
        return None if self._last is None else (self._last, None)


class MovingMean:
    """Mean of the last n values; missing ones do not count."""

    def __init__(self, n: int = 5) -> None:
        self._values: deque[float] = deque(maxlen=n)

    @property
    def ready(self) -> bool:
        return bool(self._values)

    def observe(self, value: float) -> None:
        self._values.append(value)

    def miss(self, steps: int) -> None: ...

    def ahead(self, steps: float) -> tuple[float, float | None] | None:
        return (sum(self._values) / len(self._values), None) if self._values else None


class Kalman:
    """Local linear trend by a Kalman filter (Harvey 1989): state [level, trend], F = [[1,1],[0,1]], H = [1,0].

    q_level, q_trend, r: variances per step of level, trend and reading. Below `min_points` values: the last one.
    """

    def __init__(self, q_level: float = 1.0, q_trend: float = 0.1, r: float = 10.0, min_points: int = 5) -> None:
        self.q_level, self.q_trend, self.r, self.min_points = q_level, q_trend, r, min_points
        self.level = self.trend = 0.0
        self._p = (1000.0, 0.0, 1000.0)  # P11, P12, P22
        self._points, self._last = 0, 0.0

    @property
    def ready(self) -> bool:
        return self._points >= self.min_points

    def observe(self, value: float) -> None:
        self._points += 1
        self._last = value
        if self._points == 1:
            self.level = value
            return
        self.miss(1)
        a, b, c = self._p
        gain, gain_trend, error = a / (a + self.r), b / (a + self.r), value - self.level
        self.level += gain * error
        self.trend += gain_trend * error
        self._p = ((1 - gain) * a, (1 - gain) * b, c - gain_trend * b)

    def miss(self, steps: int) -> None:
        self.level += steps * self.trend
        self._p = self._ahead(steps)

    def _ahead(self, n: float) -> tuple[float, float, float]:
        """P after n steps without a reading, in closed form."""
        a, b, c = self._p
        return (a + 2 * n * b + n * n * c + n * self.q_level + self.q_trend * (n - 1) * n * (2 * n - 1) / 6,
                b + n * c + self.q_trend * n * (n - 1) / 2, c + n * self.q_trend)

    def ahead(self, steps: float) -> tuple[float, float | None] | None:
        if not self._points:
            return None
        if not self.ready:
            return self._last, None
        return self.level + steps * self.trend, sqrt(max(0.0, self._ahead(steps)[0]) + self.r)
