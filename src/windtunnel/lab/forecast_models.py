"""Forecasters that need a library: ARIMA by statsmodels (extra `forecast`). They fit the planner's model seam."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from math import ceil, expm1, floor, isfinite, log1p
from typing import Any

from numpy.linalg import LinAlgError

from windtunnel.errors import PlannerConfigError
from windtunnel.policy.planning.forecast import Model
from windtunnel.policy.planning.load_predict import pure_model
from windtunnel.policy.planning.predictor_settings import PredictorSettings

LEAST_POINTS = 5
MEMORY = 512  # values that a fit may see
MOST_STEPS = 50  # of one fit's optimiser
ORDERS = ((0, 1, 0), (1, 0, 0), (1, 1, 0), (0, 1, 1), (0, 2, 1))


class Arima:
    """ARIMA of the order with the least AICc of a small set: fitted at 5 values and whenever they have doubled, updated with each value.

    Below 5 values, and whenever the library fails: the last value. A constant series is its own forecast. Where a bare difference
    (0, d, 0) fits best the logarithm is fitted instead, for then only the size of the moves is left to learn.
    """

    def __init__(self) -> None:
        self._values: deque[float | None] = deque(maxlen=MEMORY)
        self._last: float | None = None
        self._known = 0
        self._fit: Any = None
        self._log = False
        self._fit_at = LEAST_POINTS

    @property
    def ready(self) -> bool:
        return self._known >= LEAST_POINTS

    def observe(self, value: float) -> None:
        self._known += 1
        self._last = value
        self._append([value])

    def miss(self, steps: int) -> None:
        self._append([None] * min(steps, MEMORY))

    def _append(self, values: list[float | None]) -> None:
        self._values.extend(values)
        if self._known >= self._fit_at and len(set(self._values) - {None}) > 1:
            self._fit_at = 2 * self._known
            self._fit = self._guarded(self._new_fit)
        elif self._fit is not None:
            self._fit = self._guarded(lambda: self._fit.append(self._scaled(values)))

    def _new_fit(self) -> Any:
        self._log = False
        best = self._best(self._scaled(list(self._values)))
        p, _, q = best.model.order
        if p == q == 0:
            self._log = True
            best = self._best(self._scaled(list(self._values)))
        return best

    def _scaled(self, values: list[float | None]) -> list[float]:
        return [float("nan") if v is None else log1p(max(0.0, v)) if self._log else v for v in values]

    @staticmethod
    def _best(values: list[float]) -> Any:
        arima = import_module("statsmodels.tsa.arima.model").ARIMA
        fits = [arima(values, order=order).fit(method_kwargs={"maxiter": MOST_STEPS}) for order in ORDERS]
        return min(fits, key=lambda fit: fit.aicc if isfinite(fit.aicc) else float("inf"))

    @staticmethod
    def _guarded(call: Callable[[], Any]) -> Any:
        """The result, or None where the library gives up; it warns about every short series."""
        import_module("statsmodels.tsa.arima.model")  # before the filter: the import sets filters of its own
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return call()
            except (ArithmeticError, ValueError, IndexError, LinAlgError):
                return None

    def ahead(self, steps: float) -> tuple[float, float | None] | None:
        if self._last is None:
            return None
        found = self._guarded(lambda: self._forecast(steps)) if self._fit is not None else None
        return found if found is not None and isfinite(found[0]) else (self._last, None)

    def _forecast(self, steps: float) -> tuple[float, float | None]:
        """Between whole steps in a straight line; a step of 0 is the last value."""
        most = max(1, ceil(steps - 1e-9))
        means = self._fit.get_forecast(most).predicted_mean
        raw = [self._last or 0.0, *(expm1(m) if self._log else float(m) for m in means)]
        low = min(floor(steps), most - 1)
        return raw[low] + (steps - low) * (raw[low + 1] - raw[low]), None


def forecaster(settings: PredictorSettings) -> Callable[[], Model]:
    """Makes the model of the settings. Raises PlannerConfigError if its library is missing."""
    if settings.model == "arima":
        if find_spec("statsmodels") is None:
            raise PlannerConfigError('planner.predictor.model: arima needs the extra "forecast"', hint='pip install "windtunnel[forecast]"')
        return Arima
    if settings.model == "prophet":
        raise PlannerConfigError('planner.predictor.model: prophet is not supported by the extra "forecast"',
                                 hint="choose arima, or holt_winters with season_len")
    return lambda: pure_model(settings)
