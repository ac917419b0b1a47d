"""PREDICT: requests per window and their lengths, each by its own forecaster, as far ahead as a new replica takes to be ready."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite

from windtunnel.policy.planning.contract import PoolState, PredictionData, PredictResponse, StageRequest, TrafficMetrics
from windtunnel.policy.planning.forecast import Constant, Forecaster, Kalman, Model, MovingMean, Score, provisioning_horizon_s
from windtunnel.policy.planning.holt_winters import HoltWinters
from windtunnel.policy.planning.predictor_settings import PredictorSettings
from windtunnel.policy.planning.reasons import ThroughputReason as Why
from windtunnel.policy.planning.settings import PlannerSettings
from windtunnel.policy.planning.sizing import Sizing

FIELDS = ("num_req", "isl", "osl")


def pure_model(settings: PredictorSettings) -> Model:
    """The forecaster of the settings. Raises KeyError for those that need a library (arima, prophet): they come from the lab."""
    kalman, winters = settings.kalman, settings.holt_winters
    makers: Mapping[str, Callable[[], Model]] = {
        "constant": Constant, "moving_mean": MovingMean,
        "kalman": lambda: Kalman(kalman.q_level, kalman.q_trend, kalman.r, kalman.min_points),
        "holt_winters": lambda: HoltWinters(winters.alpha, winters.beta, winters.gamma, winters.season_len),
    }
    return makers[settings.model]()


class LoadPredict:
    """Each traffic window is taken once; hit rate and accepted length are the last known ones.

    make: a new model per forecaster. reason: of the last answer ("" if it predicted). window_s: of one step.
    """

    def __init__(self, settings: PlannerSettings, sizing: Sizing, window_s: float, make: Callable[[], Model] | None = None) -> None:
        self.settings, self.sizing, self.window_s, self.reason = settings, sizing, window_s, ""
        predictor = settings.predictor
        make = make or (lambda: pure_model(predictor))
        self.forecasters = {name: Forecaster(make(), window_s, log=predictor.log1p) for name in FIELDS}
        self._lengths: dict[str, float] = {}
        self._hit: float | None = None
        self._accept: float | None = None

    def bootstrap(self, history: Sequence[TrafficMetrics], window_s: float, hints: Mapping[str, str]) -> None:
        """Windows before the run, oldest first, the last of which ends at its start; other lengths than ours count by their rate."""
        for i, traffic in enumerate(history):
            self._take(traffic, (i + 1 - len(history)) * self.window_s)
        for forecaster in self.forecasters.values():
            forecaster.reset_idle_skip()

    def predict(self, request: StageRequest) -> PredictResponse:
        observed = request.ctx.observations
        traffic = observed.traffic if observed else None
        if traffic is None:
            for forecaster in self.forecasters.values():
                forecaster.observe(None, request.tick_at)
            return self._nothing(Why.NO_TRAFFIC_DATA)
        self._take(traffic, request.tick_at)
        horizon_s = self._horizon_s(self.sizing.states(request.ctx))
        found = {name: f.predict(horizon_s, self.settings.predictor.quantile if name == "num_req" else None)
                 for name, f in self.forecasters.items()}
        if found["num_req"] is None:
            return self._nothing(Why.NO_TRAFFIC_DATA)
        values = {f"predicted_{name}": None if f is None else f.value for name, f in found.items()}
        if not all(v is None or isfinite(v) for v in values.values()):
            return self._nothing(Why.PREDICT_FAILED)
        self.reason = ""
        return PredictResponse(PredictionData(**values, predicted_kv_hit_rate=self._hit, predicted_accept_length=self._accept,
                                              window_s=self.window_s, horizon_s=horizon_s, source="builtin_load_predict"))

    def scores(self) -> Mapping[str, Score | None]:
        """How good past forecasts were, by field."""
        return {name: f.score for name, f in self.forecasters.items()}

    def _nothing(self, why: Why) -> PredictResponse:
        self.reason = str(why)
        return PredictResponse(None, self.reason)

    def _take(self, traffic: TrafficMetrics, window_end: float) -> None:
        share = self.window_s / traffic.duration_s if traffic.duration_s > 0 else 0.0
        self.forecasters["num_req"].observe(traffic.num_req * share if share else None, window_end)
        for name in ("isl", "osl"):
            value = getattr(traffic, name)
            if value is not None:
                self._lengths[name] = value
            self.forecasters[name].observe(self._lengths.get(name), window_end)
        self._hit = traffic.kv_hit_rate if traffic.kv_hit_rate is not None else self._hit
        self._accept = traffic.accept_length if traffic.accept_length is not None else self._accept

    def _horizon_s(self, states: Mapping[str, PoolState | None]) -> float:
        boot_s = max(self.sizing.boot_s(role, state) for role, state in states.items())
        return provisioning_horizon_s(self.settings.predictor.horizon, self.window_s, boot_s)
