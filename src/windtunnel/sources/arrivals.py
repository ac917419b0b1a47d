"""When requests arrive: a recorded schedule, or arrival processes that are exact for any course of the rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from windtunnel.effects import Close, Reject
from windtunnel.errors import ConfigValueError
from windtunnel.events import PRIORITIES, Event, Request, Truth
from windtunnel.policy.param import check_number
from windtunnel.sources.dist import Dist, Floats, Shares, dist_of, tokens
from windtunnel.sources.source import THROTTLED, Ask, Loop, Throttle
from windtunnel.sources.traces.prompts import Prompts

CHUNK = 2048
Pattern = Literal["constant", "poisson", "gamma"]


@dataclass(frozen=True, slots=True)
class FixedSchedule:
    """Requests come when the trace says. offset: the trace time that is run second 0, or "first" for the first arrival."""

    offset: float | Literal["first"] = "first"
    max_in_flight: int | None = None

    def __post_init__(self) -> None:
        if self.offset != "first":
            check_number("offset", self.offset)
        _check_in_flight(self.max_in_flight)


@dataclass(frozen=True, slots=True)
class Ramp:
    """A rate that goes from `from_rps` to `to_rps` in `over_s` seconds, r(t) = r0 + (r1 - r0)(t / over_s)^exponent, and stays there."""

    from_rps: float
    to_rps: float
    over_s: float
    exponent: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        check_number("from_rps", self.from_rps, lo=0)
        check_number("to_rps", self.to_rps, lo=0)
        check_number("over_s", self.over_s, above=0)
        if self.exponent not in (1, 2):
            raise ConfigValueError("exponent", f"expected 1 or 2, got {self.exponent!r}")

    def when(self, counts: Floats) -> Floats:
        """Times s at which the expected number of arrivals reaches each of `counts`; inf if it never does."""
        r0, dr, over = float(self.from_rps), float(self.to_rps) - float(self.from_rps), float(self.over_s)
        total = over * (r0 + dr / (self.exponent + 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            after = over + (counts - total) / self.to_rps
            if self.exponent == 1:  # the root of r0 t + dr t^2 / (2 over) = count, without cancellation
                inside = 2 * counts / (r0 + np.sqrt(np.maximum(r0 * r0 + 2 * dr * counts / over, 0.0)))
            else:
                inside = _cubic(r0, dr, over, counts)
        return np.where(counts <= total, np.where(counts == 0, 0.0, inside), after)


@dataclass(frozen=True, slots=True)
class RequestRate:
    """Arrivals at a rate: a number, a `Ramp`, or `series` = ((t_s, rate), ...), piecewise constant, the last one without end.

    The k-th arrival comes when the integral of the rate reaches the sum of k unit gaps: 1 (constant), Exp(1) (poisson),
    Gamma(shape, 1/shape) (gamma; CV of the gaps = 1/sqrt(shape); `cv` may be given instead).
    """

    rate_rps: float | Ramp | None = None
    series: tuple[tuple[float, float], ...] | None = None
    pattern: Pattern = "poisson"
    shape: float = 1.0
    cv: float | None = None
    max_in_flight: int | None = None

    def __post_init__(self) -> None:
        if (self.rate_rps is None) == (self.series is None):
            raise ConfigValueError("rate_rps", "expected either rate_rps or series, and not both")
        if self.series is not None:
            _check_series(self.series)
        elif isinstance(self.rate_rps, Ramp):
            if not max(self.rate_rps.from_rps, self.rate_rps.to_rps) > 0:
                raise ConfigValueError("rate_rps", "expected a ramp with a positive rate somewhere")
        else:
            check_number("rate_rps", self.rate_rps, above=0)
        if self.pattern not in ("constant", "poisson", "gamma"):
            raise ConfigValueError("pattern", f"expected constant, poisson or gamma, got {self.pattern!r}")
        check_number("shape", self.shape, above=0)
        if self.cv is not None:
            check_number("cv", self.cv, above=0)
        if self.pattern != "gamma" and (self.shape != 1.0 or self.cv is not None):
            raise ConfigValueError("shape" if self.cv is None else "cv", f"only pattern gamma has one, not {self.pattern}")
        _check_in_flight(self.max_in_flight)

    @property
    def endless(self) -> bool:
        """True if arrivals go on for ever."""
        if self.series is not None:
            return self.series[-1][1] > 0
        return not isinstance(self.rate_rps, Ramp) or self.rate_rps.to_rps > 0

    def times(self, rng: np.random.Generator) -> Iterator[Floats]:
        """Arrival times s, ascending, in arrays of at most 2048; ends only if the rate ends at 0."""
        reached = 0.0
        while True:
            counts = np.cumsum(self._gaps(rng, CHUNK)) + reached
            reached = float(counts[-1])
            at = self._when(counts)
            if not math.isfinite(at[-1]):
                yield at[np.isfinite(at)]
                return
            yield at

    def _gaps(self, rng: np.random.Generator, n: int) -> Floats:
        if self.pattern == "constant":
            return np.ones(n)
        if self.pattern == "poisson":
            return rng.standard_exponential(n)
        shape = self.shape if self.cv is None else 1.0 / (self.cv * self.cv)
        return rng.standard_gamma(shape, n) / shape

    def _when(self, counts: Floats) -> Floats:
        if self.series is not None:
            return _series_when(self.series, counts)
        return self.rate_rps.when(counts) if isinstance(self.rate_rps, Ramp) else counts / float(self.rate_rps or 0.0)


class ArrivalSource:
    """Requests of drawn lengths at a rate: an open loop.

    rate_rps, pattern, shape, cv, series, max_in_flight: see `RequestRate`. input_tokens, output_tokens: a `Dist`, a number or
    {kind: ...}. tenants, priorities: share by name. count, duration_s: where it ends (whichever comes first; neither: endless).
    bound="output": the client asks for exactly the drawn number of output tokens, as load generators do; None: no bound.
    rng: a NumPy generator or a seed; arrivals, lengths, tenants and priorities draw from separate children of it.
    prompts: makes message content for real engines. service_s: seconds of work, for engines that serve in seconds; patience_s: seconds
    after its arrival at which a request's deadline is.
    """

    loop: Loop = "open"
    needs: frozenset[str] = frozenset()

    def __init__(self, rate_rps: float | Ramp | None = None, *, pattern: Pattern = "poisson", shape: float = 1.0, cv: float | None = None,
                 series: Sequence[tuple[float, float]] | None = None, input_tokens: Dist | float | Mapping[str, Any],
                 output_tokens: Dist | float | Mapping[str, Any], tenants: Mapping[str, float] = {"default": 1.0},
                 priorities: Mapping[str, float] = {"interactive": 1.0}, count: int | None = None, duration_s: float | None = None,
                 rng: np.random.Generator | int = 0, name: str = "arrivals", model: str = "", bound: Literal["output"] | None = "output",
                 max_in_flight: int | None = None, prompts: Prompts | None = None,
                 service_s: Dist | float | Mapping[str, Any] | None = None, patience_s: Dist | float | Mapping[str, Any] | None = None) -> None:
        steps = None if series is None else tuple((t, r) for t, r in series)
        self.rate = RequestRate(rate_rps, steps, pattern, shape, cv, max_in_flight)
        self.input_tokens, self.output_tokens = dist_of(input_tokens, "input_tokens"), dist_of(output_tokens, "output_tokens")
        self.name, self.model, self._prompts = name, model, prompts
        self._tenants, self._priorities = Shares("tenants", tenants), Shares("priorities", priorities)
        _check_priorities(self._priorities)
        if count is not None:
            check_number("count", count, lo=1, whole=True)
        if duration_s is not None:
            check_number("duration_s", duration_s, above=0)
        if bound not in ("output", None):
            raise ConfigValueError("bound", f'expected "output" or None, got {bound!r}')
        self._count, self._duration_s, self._bounded = count, duration_s, bound == "output"
        self.service_s = None if service_s is None else dist_of(service_s, "service_s")
        self.patience_s = None if patience_s is None else dist_of(patience_s, "patience_s")
        self._children = (rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng)).spawn(7)
        self._exhausted, self._throttle = False, None if max_in_flight is None else Throttle(name, self._requests(), max_in_flight)
        self.needs = frozenset() if max_in_flight is None else THROTTLED

    @property
    def endless(self) -> bool:
        """True if neither count, duration nor the course of the rate ends it."""
        return self._count is None and self._duration_s is None and self.rate.endless

    def stream(self) -> Iterator[Request] | None:
        return None if self._throttle else self._requests()

    def start(self, now: float) -> Sequence[Ask]:
        return self._throttle.start(now) if self._throttle else ()

    def handle(self, what: Event | Reject | Close, now: float) -> Sequence[Ask]:
        return self._throttle.handle(what, now) if self._throttle else ()

    def done(self) -> bool:
        return self._throttle.done() if self._throttle else self._exhausted

    def _requests(self) -> Iterator[Request]:
        at, inputs, outputs, who, class_, work, wait = deepcopy(self._children)  # a second stream is the same stream
        prefix, model, nobody, n, prompts = f"{self.name}-", self.model, frozenset[str](), 0, self._prompts
        for times in self.rate.times(at):
            when = self._cut(times, n)
            k = len(when)
            ends = tokens(self.output_tokens, outputs, CHUNK)
            begins = tokens(self.input_tokens, inputs, CHUNK)
            classes = [PRIORITIES[c] for c in self._priorities.draw(class_, CHUNK)]
            seconds = _drawn(self.service_s, work)
            patience = _drawn(self.patience_s, wait)
            for t, tenant, priority, i, o, s, p in zip(when, self._tenants.draw(who, CHUNK), classes, begins, ends, seconds, patience):
                id_ = f"{prefix}{n}"
                n += 1
                deadline = None if p is None else t + p
                yield Request(id_, tenant, model, priority, t, i, o if self._bounded else None, None, None, 1, nobody, t, deadline, "chat",
                              None, None, None, None, None, (), None, "profiling", False,
                              None if prompts is None else prompts.content(id_, i), Truth(o, s, None))
            if k < CHUNK:
                break
        self._exhausted = True

    def _cut(self, times: Floats, sent: int) -> list[float]:
        if self._duration_s is not None:
            times = times[: int(np.searchsorted(times, self._duration_s, side="left"))]
        if self._count is not None:
            times = times[: self._count - sent]
        when: list[float] = times.tolist()
        return when


def _drawn(law: Dist | None, rng: np.random.Generator) -> Sequence[float | None]:
    drawn: Sequence[float | None] = [None] * CHUNK if law is None else law.sample(rng, CHUNK).tolist()
    return drawn


def _check_in_flight(value: int | None) -> None:
    if value is not None:
        check_number("max_in_flight", value, lo=1, whole=True)


def _check_priorities(shares: Shares) -> None:
    for name in shares.names:
        if name not in PRIORITIES:
            raise ConfigValueError("priorities", f"expected {' or '.join(PRIORITIES)}, got {name!r}")


def _check_series(series: Sequence[tuple[float, float]]) -> None:
    last = -math.inf
    for i, (t, rate) in enumerate(series):
        check_number(f"series.{i}.t_s", t, lo=0)
        check_number(f"series.{i}.rate", rate, lo=0)
        if t <= last:
            raise ConfigValueError(f"series.{i}.t_s", f"expected times that ascend, got {t!r} after {last!r}")
        last = t
    if not any(rate > 0 for _, rate in series):
        raise ConfigValueError("series", "expected a positive rate somewhere")


def _series_when(series: Sequence[tuple[float, float]], counts: Floats) -> Floats:
    starts = np.array([t for t, _ in series], dtype=np.float64)
    rates = np.array([r for _, r in series], dtype=np.float64)
    before = np.concatenate(([0.0], np.cumsum(rates[:-1] * np.diff(starts))))  # expected arrivals before each step
    step = np.searchsorted(before, counts, side="left") - 1  # side left: an arrival on a flat stretch comes at its beginning
    with np.errstate(divide="ignore"):
        return starts[step] + (counts - before[step]) / rates[step]


def _cubic(r0: float, dr: float, over: float, counts: Floats) -> Floats:
    """Times in [0, over] at which r0 t + dr t^3 / (3 over^2) reaches `counts`: bisection to the last bit of the course."""
    lo, hi = np.zeros_like(counts), np.full_like(counts, over)
    for _ in range(64):
        middle = (lo + hi) / 2
        below = r0 * middle + dr * middle**3 / (3 * over * over) < counts
        lo, hi = np.where(below, middle, lo), np.where(below, hi, middle)
    return hi
