"""AIMD as in Netflix concurrency-limits (AIMDLimit, 78a74b9): one more per sample under load, a cut per drop or slow answer."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Annotated

from windtunnel.policy.admission.adaptive import DROPPED, EPSILON, AdaptiveLimit, rtt_of
from windtunnel.policy.admission.limit import LimitChange, LimitFactory, Sample
from windtunnel.policy.param import BuildContext, Param, check_number


@dataclass(frozen=True, slots=True)
class AimdNetflix:
    """Config. Every drop cuts, also each of one burst; a resource with fewer slots than `min_limit` is held by its slots alone."""

    initial_limit: Annotated[int, Param(1, 1024, 1, "requests", "start at", "limit before the first sample", "log")] = 20
    min_limit: Annotated[int, Param(1, 1024, 1, "requests", "at least", "no cut goes below", "log")] = 20
    max_limit: Annotated[int, Param(1, 1024, 1, "requests", "at most", "no step goes above", "log")] = 200
    backoff_ratio: Annotated[float, Param(0.5, 0.99, 0.01, label="cut to", help="share of the limit kept after a drop")] = 0.9
    timeout_s: Annotated[float, Param(0.05, 60, 0.05, "s", "slow is", "an answer slower than this counts as a drop", "log")] = 5.0

    def __post_init__(self) -> None:
        check_number("min_limit", self.min_limit, lo=1, whole=True)
        check_number("max_limit", self.max_limit, lo=self.min_limit, whole=True)
        check_number("initial_limit", self.initial_limit, lo=self.min_limit, hi=self.max_limit, whole=True)
        check_number("backoff_ratio", self.backoff_ratio, lo=0.5, below=1.0)
        check_number("timeout_s", self.timeout_s, above=0.0)

    def build(self, ctx: BuildContext) -> LimitFactory:
        return lambda effective_max: AimdNetflixLimit(self, effective_max)


class AimdNetflixLimit(AdaptiveLimit):
    """O(1) per sample. It grows only while at least half of it is used."""

    def __init__(self, config: AimdNetflix, effective_max: int) -> None:
        super().__init__(config.initial_limit, config.min_limit, config.max_limit, effective_max)
        self.config = config

    def on_sample(self, sample: Sample, now: float) -> LimitChange | None:
        rtt_s = rtt_of(sample)
        self.pause(sample, now)
        if sample.kind in DROPPED or (rtt_s is not None and rtt_s > self.config.timeout_s):
            return self.move(floor(self.config.backoff_ratio * self.limit + EPSILON))
        if rtt_s is not None and 2 * sample.in_flight >= self.limit:
            return self.move(self.limit + 1)
        return None
