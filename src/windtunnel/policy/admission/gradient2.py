"""Gradient2: the limit follows the ratio of a long mean latency to the last one (Gradient2Limit, Netflix concurrency-limits 78a74b9).

The long mean follows too: a slowdown that lasts becomes the new normal and the limit climbs back to its maximum.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from windtunnel.policy.admission.adaptive import AdaptiveLimit, rtt_of
from windtunnel.policy.admission.limit import Limit, LimitChange, LimitFactory, Sample
from windtunnel.policy.admission.windowed import Window
from windtunnel.policy.param import BuildContext, Param, check_number

DRIFT = 0.95  # of the long mean, when it is more than twice the last latency


@dataclass(frozen=True, slots=True)
class Gradient2:
    """Config. queue_size: added on every step, what it may queue; window: None feeds every sample on its own. Drops say nothing to it."""

    initial_limit: Annotated[int, Param(1, 1024, 1, "requests", "start at", "limit before the first sample", "log")] = 20
    min_limit: Annotated[int, Param(1, 1024, 1, "requests", "at least", "no step goes below", "log")] = 20
    max_limit: Annotated[int, Param(1, 1024, 1, "requests", "at most", "no step goes above", "log")] = 200
    tolerance: Annotated[float, Param(1, 3, 0.1, label="tolerance", help="slowdown against the long mean that is accepted")] = 1.5
    smoothing: Annotated[float, Param(0.01, 1, 0.01, label="smoothing", help="share of each step that is taken")] = 0.2
    queue_size: Annotated[int, Param(0, 64, 1, "requests", "queue", "added on every step")] = 4
    long_window: Annotated[int, Param(10, 5000, 1, "samples", "long window", "of the long mean", "log")] = 600
    warmup: Annotated[int, Param(1, 100, 1, "samples", "warm-up", "samples averaged before the long mean decays")] = 10
    window: Annotated[Window | None, Param(label="window", help="samples put together; null: each counts by itself", knob=False)] = field(
        default_factory=Window)

    def __post_init__(self) -> None:
        check_number("min_limit", self.min_limit, lo=1, whole=True)
        check_number("max_limit", self.max_limit, lo=self.min_limit, whole=True)
        check_number("initial_limit", self.initial_limit, lo=self.min_limit, hi=self.max_limit, whole=True)
        check_number("tolerance", self.tolerance, lo=1.0)
        check_number("smoothing", self.smoothing, above=0.0, hi=1.0)
        check_number("queue_size", self.queue_size, lo=0, whole=True)
        check_number("long_window", self.long_window, lo=1, whole=True)
        check_number("warmup", self.warmup, lo=1, whole=True)

    def build(self, ctx: BuildContext) -> LimitFactory:
        def make(effective_max: int) -> Limit:
            limit = Gradient2Limit(self, effective_max)
            return limit if self.window is None else self.window.around(limit)

        return make


class Gradient2Limit(AdaptiveLimit):
    """long_s: the long mean latency; gradient: of the last step. O(1) per sample."""

    def __init__(self, config: Gradient2, effective_max: int) -> None:
        super().__init__(config.initial_limit, config.min_limit, config.max_limit, effective_max)
        self.config = config
        self.long_s: float | None = None
        self.gradient = 1.0
        self._seen = 0
        self._sum = 0.0

    def on_sample(self, sample: Sample, now: float) -> LimitChange | None:
        self.pause(sample, now)
        rtt_s = rtt_of(sample)
        if rtt_s is None:
            return None
        config, long_s = self.config, self._longer(rtt_s)
        if long_s > 2 * rtt_s:
            self.long_s = DRIFT * long_s  # this sample still sees the old one
        if 2 * sample.in_flight < self.value:
            return None  # not the limit holds it
        self.gradient = min(1.0, max(0.5, config.tolerance * long_s / rtt_s))
        aim = self.gradient * self.value + config.queue_size
        return self.move((1.0 - config.smoothing) * self.value + config.smoothing * aim)

    def _longer(self, rtt_s: float) -> float:
        """The long mean with this sample in it."""
        config = self.config
        if self.long_s is None or self._seen < config.warmup:
            self._seen += 1
            self._sum += rtt_s
            self.long_s = self._sum / self._seen
        else:
            self.long_s += 2.0 / (config.long_window + 1) * (rtt_s - self.long_s)
        return self.long_s
