"""Samples by the window: one mean instead of many single latencies (WindowedLimit of Netflix concurrency-limits, 78a74b9)."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Annotated

from windtunnel.policy.admission.adaptive import DROPPED, rtt_of
from windtunnel.policy.admission.limit import Limit, LimitChange, Sample
from windtunnel.policy.param import Param, check_number


@dataclass(frozen=True, slots=True)
class Window:
    """Config. A window lasts twice its smallest latency within [min_window_s, max_window_s], and on until `min_samples` came."""

    min_window_s: Annotated[float, Param(0.05, 10, 0.05, "s", "window", "shortest window", "log")] = 1.0
    max_window_s: Annotated[float, Param(0.05, 60, 0.05, "s", "window at most", "longest window", "log")] = 1.0
    min_samples: Annotated[int, Param(1, 100, 1, "requests", "samples", "samples that a window needs")] = 10
    min_rtt_s: Annotated[float, Param(0, 0.1, 0.0001, "s", "shortest latency", "faster answers say nothing")] = 1e-4

    def __post_init__(self) -> None:
        check_number("min_window_s", self.min_window_s, above=0.0)
        check_number("max_window_s", self.max_window_s, lo=self.min_window_s)
        check_number("min_samples", self.min_samples, lo=1, whole=True)
        check_number("min_rtt_s", self.min_rtt_s, lo=0.0)

    def around(self, inner: Limit) -> Limit:
        """The inner limit, fed one aggregate per window."""
        return WindowedLimit(inner, self)


class WindowedLimit:
    """The inner limit sees one sample per window: mean latency, most in flight, dropped if any was. O(1) per sample.

    A drop counts as a sample, so an endpoint that only refuses is heard; a Retry-After takes effect at once.
    """

    def __init__(self, inner: Limit, config: Window | None = None) -> None:
        self.inner, self.config = inner, config or Window()
        self.needs = inner.needs
        self.blocked_until = -inf
        self._copy()
        self._open(None)

    def _copy(self) -> None:
        inner = self.inner
        self.limit, self.epoch = inner.limit, inner.epoch
        self.blocked_until = max(self.blocked_until, inner.blocked_until)

    def _open(self, now: float | None) -> None:
        self._since = now
        self._count = self._timed = self._in_flight = 0
        self._sum, self._least = 0.0, inf
        self._dropped = False

    def set_max(self, effective_max: int, now: float) -> None:
        self.inner.set_max(effective_max, now)
        self._copy()

    def on_sample(self, sample: Sample, now: float) -> LimitChange | None:
        rtt_s = rtt_of(sample)
        dropped = sample.kind in DROPPED
        timed = rtt_s is not None and rtt_s >= self.config.min_rtt_s
        if not timed and not dropped:
            return None
        if self._since is None:
            self._since = now
        self._count += 1
        self._in_flight = max(self._in_flight, sample.in_flight)
        self._dropped |= dropped
        if timed and rtt_s is not None:
            self._timed += 1
            self._sum += rtt_s
            self._least = min(self._least, rtt_s)
        wait_s = sample.retry_after_s
        if dropped and wait_s is not None and 0 < wait_s < inf:
            self.blocked_until = max(self.blocked_until, now + wait_s)
        config = self.config
        length_s = min(config.max_window_s, max(config.min_window_s, 2 * self._least))
        if self._count < config.min_samples or now < self._since + length_s:
            return None
        return self._close(sample, now)

    def _close(self, last: Sample, now: float) -> LimitChange | None:
        mean_s = self._sum / self._timed if self._timed else None
        kind = "rate_limited" if self._dropped else "success"
        whole = Sample(kind, mean_s, self._in_flight, last.admitted_limit, last.epoch)
        self._open(now)
        change = self.inner.on_sample(whole, now)
        self._copy()
        return change
