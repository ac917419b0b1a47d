"""Envoy's gradient controller: the limit follows minimum over sampled latency, with a headroom of its square root.

Source: Envoy `adaptive_concurrency` filter, gradient_controller.cc. Its fixed point lies at 1.35 to 1.56 times the base latency.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import median_low
from typing import Annotated

from windtunnel.policy.admission.adaptive import AdaptiveLimit, rtt_of
from windtunnel.policy.admission.limit import LimitChange, LimitFactory, Sample
from windtunnel.policy.param import BuildContext, Param, Rng, check_number

PINNED_AGAIN_AFTER = 5  # windows in a row at the minimum
SAMPLES_KEPT = 4096  # of one window; more change no median that anyone would notice


@dataclass(frozen=True, slots=True)
class EnvoyGradient:
    """Config. To measure the minimum, the limit is pinned to `min_limit` for `min_rtt_samples` answers: short requests only."""

    buffer: Annotated[float, Param(0, 1, 0.05, label="buffer", help="slowdown against the minimum that is accepted")] = 0.25
    min_limit: Annotated[int, Param(1, 64, 1, "requests", "at least", "limit while the minimum is measured", "log")] = 3
    max_limit: Annotated[int, Param(1, 1024, 1, "requests", "at most", "no step goes above", "log")] = 1000
    window_s: Annotated[float, Param(0.05, 10, 0.05, "s", "window", "between two steps", "log")] = 0.1
    min_rtt_samples: Annotated[int, Param(1, 500, 1, "requests", "minimum from", "answers behind the minimum")] = 50
    min_rtt_interval_s: Annotated[float | None, Param(1, 600, 1, "s", "minimum every", "between two measurements, ± jitter", "log")] = 60.0
    jitter: Annotated[float, Param(0, 0.5, 0.05, label="jitter", help="spread of the interval, as a share of it")] = 0.15

    def __post_init__(self) -> None:
        check_number("buffer", self.buffer, lo=0.0)
        check_number("min_limit", self.min_limit, lo=1, whole=True)
        check_number("max_limit", self.max_limit, lo=self.min_limit, whole=True)
        check_number("window_s", self.window_s, above=0.0)
        check_number("min_rtt_samples", self.min_rtt_samples, lo=1, whole=True)
        check_number("jitter", self.jitter, lo=0.0, below=1.0)
        if self.min_rtt_interval_s is not None:
            check_number("min_rtt_interval_s", self.min_rtt_interval_s, above=0.0)

    def build(self, ctx: BuildContext) -> LimitFactory:
        return lambda effective_max: EnvoyGradientLimit(self, effective_max, ctx.rng)


class EnvoyGradientLimit(AdaptiveLimit):
    """min_rtt_s: None until it was first measured. O(1) per sample, O(samples of the window) per step.

    While it measures, only answers to requests granted since then count (their epoch says so); afterwards the old limit returns.
    """

    def __init__(self, config: EnvoyGradient, effective_max: int, rng: Rng | None = None) -> None:
        super().__init__(config.min_limit, config.min_limit, config.max_limit, effective_max)
        self.config = config
        self.min_rtt_s: float | None = None
        self._rng = rng
        self._seen: list[float] = []
        self._before: float | None = float(config.min_limit)  # the limit to return to; None: not measuring
        self._window_end: float | None = None
        self._measure_at: float | None = None
        self._at_minimum = 0

    @property
    def measuring(self) -> bool:
        """Is the limit pinned to its minimum, to measure the smallest latency?"""
        return self._before is not None

    def on_sample(self, sample: Sample, now: float) -> LimitChange | None:
        self.pause(sample, now)
        rtt_s = rtt_of(sample)
        if rtt_s is None:
            return None
        if self._before is not None:
            return self._measured(rtt_s, sample.epoch, now)
        if self._measure_at is not None and now >= self._measure_at:
            return self._measure()
        change = None
        if self._window_end is None:
            self._window_end = now + self.config.window_s
        elif now >= self._window_end:
            self._window_end = now + self.config.window_s
            change = self._step()
        if self._before is None and len(self._seen) < SAMPLES_KEPT:
            self._seen.append(rtt_s)
        return change

    def _step(self) -> LimitChange | None:
        """One window is over."""
        assert self.min_rtt_s is not None
        config, sampled_s = self.config, median_low(self._seen)
        self._seen.clear()
        gradient = min(2.0, max(0.5, self.min_rtt_s * (1.0 + config.buffer) / sampled_s))
        change = self.move(gradient * self.value + sqrt(self.value))
        self._at_minimum = self._at_minimum + 1 if self.limit <= config.min_limit else 0
        if self._at_minimum >= PINNED_AGAIN_AFTER:
            return self._measure() or change
        return change

    def _measure(self) -> LimitChange | None:
        self._before, self._at_minimum, self._window_end = self.value, 0, None
        self._seen.clear()
        change = self.move(self.config.min_limit)
        if change is None:
            self.epoch += 1  # what was granted before must not count
        return change

    def _measured(self, rtt_s: float, epoch: int, now: float) -> LimitChange | None:
        if epoch >= self.epoch and len(self._seen) < self.config.min_rtt_samples:
            self._seen.append(rtt_s)
        if len(self._seen) < self.config.min_rtt_samples:
            return None
        before, self._before = self._before, None
        self.min_rtt_s = median_low(self._seen)
        self._seen.clear()
        self._schedule(now)
        return self.move(self.value if before is None else before)

    def _schedule(self, now: float) -> None:
        every_s, jitter = self.config.min_rtt_interval_s, self.config.jitter
        spread = 0.0 if self._rng is None else jitter * (2.0 * self._rng.random() - 1.0)
        self._measure_at = None if every_s is None else now + every_s * (1.0 + spread)
