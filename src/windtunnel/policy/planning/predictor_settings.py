"""Settings of the load predictor: which forecaster, how far ahead, and what each forecaster takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from windtunnel.policy.planning.checks import STRICT
from windtunnel.policy.planning.settings_blocks import check_block, refuse


@dataclass(frozen=True, slots=True)
class KalmanSettings:
    """Variances per step, and the values needed before the trend is used."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    q_level: float = 1.0
    q_trend: float = 0.1
    r: float = 10.0
    min_points: int = 5

    def __post_init__(self) -> None:
        check_block("planner.predictor.kalman", self, positive=("r", "min_points"), natural=("q_level", "q_trend"))


@dataclass(frozen=True, slots=True)
class HoltWintersSettings:
    """Weights of the newest value; season_len: steps of a season, None: no season."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    alpha: float = 0.5
    beta: float = 0.1
    gamma: float = 0.1
    season_len: int | None = None

    def __post_init__(self) -> None:
        check_block("planner.predictor.holt_winters", self, natural=("alpha", "beta", "gamma"), positive=("season_len",))
        for name in ("alpha", "beta", "gamma"):
            if getattr(self, name) > 1:
                raise refuse(f"planner.predictor.holt_winters.{name}", f"expected a weight in [0, 1], got {getattr(self, name)!r}")


@dataclass(frozen=True, slots=True)
class ProphetSettings:
    """window: values that a fit sees."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    window: int = 50

    def __post_init__(self) -> None:
        check_block("planner.predictor.prophet", self, positive=("window",))


@dataclass(frozen=True, slots=True)
class PredictorSettings:
    """horizon: "provisioning", "next", or seconds; quantile None: plan for the mean."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    model: Literal["constant", "moving_mean", "kalman", "holt_winters", "arima", "prophet"] = "kalman"
    log1p: bool = False
    horizon: float | Literal["provisioning", "next"] = "provisioning"
    quantile: float | None = None
    kalman: KalmanSettings = field(default_factory=KalmanSettings)
    holt_winters: HoltWintersSettings = field(default_factory=HoltWintersSettings)
    prophet: ProphetSettings = field(default_factory=ProphetSettings)

    def __post_init__(self) -> None:
        check_block("planner.predictor", self, positive=("horizon",))
        if self.quantile is not None and not 0 < self.quantile < 1:
            raise refuse("planner.predictor.quantile", f"expected a share strictly between 0 and 1, got {self.quantile!r}")
