"""How much traffic a fleet can take: the largest rate that still meets the SLO, and the perfect fleet as a bound for planners."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import check_number
from windtunnel.policy.planning.reference import perfect_fleet

if TYPE_CHECKING:
    from windtunnel.lab.scenario import Scenario

REQUESTS, SECONDS = 1000, 300.0  # of a probe at least; a short one ends before a queue that is too long has become so
MOST_REQUESTS, MOST_S = 50_000, 3000.0  # what neither is waited for beyond
DOUBLINGS = 24


@dataclass(frozen=True, slots=True)
class Probe:
    """One run of a search: the rate that was offered and the share of requests that met the SLO."""

    rate_rps: float
    good_fraction: float


@dataclass(frozen=True, slots=True)
class Capacity:
    """rate_rps: the largest rate found to hold `attainment`; 0.0 if even the smallest probe missed it. probes: in order of flight.

    non_monotone: pairs (lower rate missed, higher rate held); the answer then lies in a zone rather than at a point.
    """

    rate_rps: float
    attainment: float
    probes: tuple[Probe, ...]
    non_monotone: tuple[tuple[float, float], ...] = ()

    def lines(self) -> list[str]:
        """The text twin: the answer, then what was good at each rate that was flown."""
        from windtunnel.lab.summary import number

        share = f"{100 * self.attainment:g} %"
        if self.rate_rps > 0:
            head = f"Capacity {number(self.rate_rps)} rps: the most traffic found at which {share} of the requests are good"
        else:
            head = f"Capacity 0 rps: {share} of the requests were good at no rate that was tried; the SLO is out of reach"
        out = [head, f"{'rate, rps':>12} {'good':>8}"]
        out += [f"{number(p.rate_rps):>12} {100 * p.good_fraction:>6.1f} %" for p in sorted(self.probes, key=lambda p: p.rate_rps)]
        if self.non_monotone:
            out.append("some lower rates missed it: take the answer for a zone, not a point")
        return [*out, "next    .rate_rps · .probes"]

    def __repr__(self) -> str:
        return "\n".join(self.lines())


def search(good_at: Callable[[float], float], *, start_rps: float, attainment: float = 0.9, tolerance: float = 0.01) -> Capacity:
    """The largest rate with `good_at(rate) >= attainment`: by doubling (or halving) from `start_rps`, then bisection to `tolerance` (a share)."""
    check_number("start_rps", start_rps, above=0.0)
    check_number("attainment", attainment, above=0.0, hi=1.0)
    check_number("tolerance", tolerance, above=0.0, below=1.0)
    probes: list[Probe] = []

    def holds(rate: float) -> bool:
        probes.append(Probe(rate, good_at(rate)))
        return probes[-1].good_fraction >= attainment

    lo, hi = 0.0, math.inf
    rate = float(start_rps)
    for _ in range(DOUBLINGS):
        if holds(rate):
            lo, rate = rate, rate * 2.0
        else:
            hi, rate = rate, rate / 2.0
        if lo and hi < math.inf:
            break
    if lo and hi < math.inf:
        while hi - lo > tolerance * lo:
            mid = (lo + hi) / 2.0
            if holds(mid):
                lo = mid
            else:
                hi = mid
    held = [p.rate_rps for p in probes if p.good_fraction >= attainment]
    crossed = tuple((p.rate_rps, max(held)) for p in probes if p.good_fraction < attainment and held and p.rate_rps < max(held))
    return Capacity(lo, attainment, tuple(probes), crossed)


def capacity(scenario: Scenario, slo: Mapping[str, Any] | None = None, attainment: float = 0.9, *, tolerance: float = 0.01,
             seed: int | None = None) -> Capacity:
    """The largest `source.rate_rps` at which a share of at least `attainment` is good, with common random numbers.

    scenario: its source must have a rate (arrivals, or a trace at `request_rate`). Each probe lasts 300 s and
    1000 requests, whichever is longer, within 50 000 requests and 3000 s.
    slo None: the scenario's. Raises ConfigValueError for a source without a rate or a scenario without an SLO.
    """
    if not hasattr(scenario, "with_"):
        raise ConfigValueError("scenario", f"expected a Scenario, got {scenario!r}", hint="Scenario.load(name) reads one")
    path, rate = _rate_of(scenario)
    bounds = dict(slo) if slo is not None else scenario.slo.bounds()
    if not bounds:
        raise ConfigValueError("slo", "a capacity needs an SLO to hold")

    def good_at(rps: float) -> float:
        left_out_s = (0.0 if scenario.warmup_s == "mser5" else scenario.warmup_s) + scenario.cooldown_s
        span = probe_s(rps) + left_out_s
        run = scenario.with_({path: rps, "duration_s": span, "expect": [], "compare": {}}).run(seed=seed)
        good = run.summary(slo=bounds).values["good_fraction"]
        return 0.0 if good is None or good != good else float(good)

    return search(good_at, start_rps=rate, attainment=attainment, tolerance=tolerance)


def probe_s(rps: float) -> float:
    """Seconds of arrivals of a probe at this rate."""
    return min(max(REQUESTS / rps, min(SECONDS, MOST_REQUESTS / rps)), MOST_S)


def _rate_of(scenario: Scenario) -> tuple[str, float]:
    source: Any = scenario.source
    if getattr(source, "rate_rps", None):
        return "source.rate_rps", float(source.rate_rps)
    if getattr(getattr(source, "load", None), "rate_rps", None):
        return "source.load.rate_rps", float(source.load.rate_rps)
    raise ConfigValueError("source", "a capacity search needs a source with one rate_rps")


def perfect_gpu_hours(arrivals_s: ArrayLike, capacity_rps: float, *, gpus_per_replica: int = 1, window_s: float = 60.0,
                      until_s: float | None = None, floor: int = 0) -> float:
    """GPU-hours of a fleet that always has exactly `ceil(rate / capacity_rps)` replicas, by windows of `window_s`, and scales at once.

    arrivals_s: arrival times (run s); until_s: end of the last window (None: the last arrival); floor: replicas kept at all times.
    No planner can do better at the same SLO, so it is shown beside every run that scales.
    """
    check_number("capacity_rps", capacity_rps, above=0.0)
    check_number("window_s", window_s, above=0.0)
    check_number("gpus_per_replica", gpus_per_replica, lo=1, whole=True)
    check_number("floor", floor, lo=0, whole=True)
    times = np.asarray(arrivals_s, dtype="f8")
    if times.size and not (np.isfinite(times).all() and times.min() >= 0):
        raise ConfigValueError("arrivals_s", "expected finite times >= 0")
    end_s = float(until_s) if until_s is not None else float(times.max(initial=0.0))
    check_number("until_s", end_s, lo=0.0)
    if end_s == 0.0:
        return 0.0
    edges = np.minimum(np.arange(0.0, math.ceil(end_s / window_s) + 1) * window_s, end_s)
    edges = edges[: int(np.searchsorted(edges, end_s)) + 1]
    spans = np.diff(edges)
    counts = np.histogram(times, edges)[0]
    replicas = np.maximum(perfect_fleet((counts / spans).tolist(), capacity_rps), floor)
    return float((replicas * spans).sum() * gpus_per_replica / 3600.0)
