"""Vegas: keep a small queue, measured as what latency adds to the smallest one seen (VegasLimit, Netflix concurrency-limits 78a74b9).

With probing under a queue that never drains the smallest latency is measured inside that queue, and the limit drifts up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, log10
from typing import Annotated

from windtunnel.policy.admission.adaptive import DROPPED, EPSILON, AdaptiveLimit, rtt_of
from windtunnel.policy.admission.limit import Limit, LimitChange, LimitFactory, Sample
from windtunnel.policy.admission.windowed import Window
from windtunnel.policy.param import BuildContext, Param, Rng, check_number

PROBE_MULTIPLIER = 30


@dataclass(frozen=True, slots=True)
class Vegas:
    """Config. probe: measure the smallest latency anew now and then; window: None feeds every sample on its own."""

    initial_limit: Annotated[int, Param(1, 1024, 1, "requests", "start at", "limit before the first sample", "log")] = 20
    max_limit: Annotated[int, Param(1, 1024, 1, "requests", "at most", "no step goes above", "log")] = 1000
    probe: Annotated[bool, Param(label="probe", help="measure the smallest latency anew every 15 to 30 samples per unit of limit")] = True
    window: Annotated[Window | None, Param(label="window", help="samples put together; null: each counts by itself", knob=False)] = field(
        default_factory=Window)

    def __post_init__(self) -> None:
        check_number("max_limit", self.max_limit, lo=1, whole=True)
        check_number("initial_limit", self.initial_limit, lo=1, hi=self.max_limit, whole=True)

    def build(self, ctx: BuildContext) -> LimitFactory:
        def make(effective_max: int) -> Limit:
            limit = VegasLimit(self, effective_max, ctx.rng)
            return limit if self.window is None else self.window.around(limit)

        return make


class VegasLimit(AdaptiveLimit):
    """rtt0_s: the smallest latency known. O(1) per sample. Without a generator every probe waits its longest."""

    def __init__(self, config: Vegas, effective_max: int, rng: Rng | None = None) -> None:
        super().__init__(config.initial_limit, 1, config.max_limit, effective_max)
        self.config = config
        self.rtt0_s: float | None = None
        self._rng = rng
        self._samples = 0
        self._jitter = self._draw()

    def _draw(self) -> float:
        return 1.0 if self._rng is None or not self.config.probe else 0.5 + 0.5 * self._rng.random()

    def on_sample(self, sample: Sample, now: float) -> LimitChange | None:
        self.pause(sample, now)
        rtt_s = rtt_of(sample)
        if rtt_s is not None:
            self._samples += 1
        step = max(1, int(log10(self.value) + EPSILON))
        if sample.kind in DROPPED:
            return self.move(self.value - step)
        if rtt_s is None:
            return None
        if self._probes() or self.rtt0_s is None or rtt_s < self.rtt0_s:
            self.rtt0_s = rtt_s
            return None
        return self._towards(rtt_s, self.rtt0_s, step, sample.in_flight)

    def _probes(self) -> bool:
        if not self.config.probe or self._samples < self._jitter * PROBE_MULTIPLIER * self.value:
            return False
        self._samples, self._jitter = 0, self._draw()
        return True

    def _towards(self, rtt_s: float, rtt0_s: float, step: int, in_flight: int) -> LimitChange | None:
        value = self.value
        if 2 * in_flight < value:
            return None  # not the limit holds it
        queued = ceil(value * (1.0 - rtt0_s / rtt_s) - EPSILON)
        if queued <= step:
            return self.move(value + 6 * step)
        if queued < 3 * step:
            return self.move(value + step)
        return self.move(value - step) if queued > 6 * step else None
