"""Concurrency limits in closed form: who becomes equal, where a limit saws, rests and drifts, and what a pause costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import heappop, heappush
from random import Random
from typing import Protocol

from windtunnel.lab.fairness import jain
from windtunnel.lab.validation.check import Check, between, near, within
from windtunnel.policy.admission.aimd import Aimd, AimdLimit
from windtunnel.policy.admission.aimd_netflix import AimdNetflix, AimdNetflixLimit
from windtunnel.policy.admission.denial import Denial
from windtunnel.policy.admission.envoy_gradient import EnvoyGradient, EnvoyGradientLimit
from windtunnel.policy.admission.gradient2 import Gradient2, Gradient2Limit
from windtunnel.policy.admission.limit import Limit, Sample
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.admission.vegas import Vegas, VegasLimit
from windtunnel.policy.param import BuildContext

EQUAL, SAW, PAUSE, REST, DRIFT, LOSS = (
    "Two flows, one capacity", "Sawtooth of AIMD", "Throughput with a pause after each 429", "Where a limit rests",
    "A slowdown that lasts", "Random loss")
CAPACITY, START = 20.0, (1.0, 19.0)
SCALE = 1024  # limits are whole numbers: a flow of 1 unit is a limit of 1024
INDICES = (0.5525, 0.8316, 0.9518, 0.9875, 0.9968, 0.9992)  # Chiu and Jain (1989), one per cut


class Flow(Protocol):
    """A sender with a limit that grows while all fit and is cut when they do not."""

    def size(self) -> float: ...
    def grow(self) -> None: ...
    def cut(self) -> None: ...


class AimdFlow:
    """The real limit, cut to a half."""

    def __init__(self, start: float) -> None:
        self.limit, self.now = AimdLimit(Aimd(decrease_factor=0.5, increase_step=8, successes_until_increase=1, cooldown_s=0.01), 64 * SCALE), 0.0
        self.limit.set_max(int(start * SCALE), self.now)
        self.limit.on_sample(Sample("rate_limited", None, 1, 0, -1), self.now)  # from here on it does not follow its ceiling
        self.limit.limit = int(start * SCALE)
        self.limit.set_max(64 * SCALE, self.now)

    def size(self) -> float:
        return self.limit.limit / SCALE

    def grow(self) -> None:
        self.limit.on_sample(Sample("success", None, 1, self.limit.limit, self.limit.epoch), self.now)

    def cut(self) -> None:
        self.now += 1.0
        self.limit.on_sample(Sample("rate_limited", None, 1, self.limit.limit, self.limit.epoch), self.now)
        self.now += 1.0


class MimdFlow:
    """Grows and shrinks by factors: the ratio stays for ever."""

    def __init__(self, start: float) -> None:
        self.x = start

    def size(self) -> float:
        return self.x

    def grow(self) -> None:
        self.x *= 1.0001

    def cut(self) -> None:
        self.x *= 0.5


class AiadFlow(MimdFlow):
    """Grows and shrinks by steps: the difference stays for ever."""

    def grow(self) -> None:
        self.x += 0.01

    def cut(self) -> None:
        self.x -= 5.0


def indices(flows: Sequence[Flow], cuts: int = 6) -> list[float]:
    """Jain's index at each moment when the capacity is full, before the cut."""
    out = []
    for _ in range(cuts):
        out.append(jain([f.size() for f in flows]))
        for f in flows:
            f.cut()
        while sum(f.size() for f in flows) < CAPACITY - 1e-9:
            for f in flows:
                f.grow()
    return out


def equal(kind: type[AimdFlow] | type[MimdFlow] = AimdFlow, name: str = "additive increase, multiplicative decrease") -> list[Check]:
    """Jain's index of two flows after each common cut."""
    got = indices([kind(start) for start in START])
    return [near(EQUAL, name, f"Jain's index, cut {n}", want, index, 1e-3, 2) for n, (want, index) in enumerate(zip(INDICES, got))]


def equal_mimd() -> list[Check]:
    """The naive variant whose flows stay as unequal as they were: multiplicative both ways."""
    return equal(MimdFlow, "multiplicative both ways")[-1:]


def equal_aiad() -> list[Check]:
    """The naive variant whose flows do not converge: additive both ways."""
    return equal(AiadFlow, "additive both ways")[-1:]


# -- sawtooth -----------------------------------------------------------------------------------------------------------------------

SAWS = ((20, Aimd(), 21, 15, 18.0, 150), (50, Aimd(), 51, 38, 44.5, 325), (100, Aimd(), 101, 75, 88.0, 650),
        (50, Aimd(decrease_factor=0.5, successes_until_increase=1), 51, 25, 38.0, 26), (100, Aimd(decrease_factor=0.9), 101, 90, 95.5, 275))


def sawtooth(capacity: int, config: Aimd) -> tuple[int, int, float, int]:
    """Peak, trough and mean of a cycle's limits, and its credited successes, of a limit that is cut above `capacity`."""
    limit, now = AimdLimit(config, 1000), 0.0
    limit.set_max(capacity, now)
    limit.on_sample(Sample("rate_limited", None, 1, capacity, 0), now)
    limit.set_max(1000, now)
    levels: list[int] = []
    credited = 0
    for _ in range(3):  # the first cycle begins elsewhere
        now += 10.0
        levels, credited = [limit.limit], 0
        while limit.limit <= capacity:
            credited += 1
            if limit.on_sample(Sample("success", None, 1, limit.limit, limit.epoch), now) is not None:
                levels.append(limit.limit)
        limit.on_sample(Sample("rate_limited", None, 1, limit.limit, limit.epoch), now)
    return levels[-1], levels[0], sum(levels) / len(levels), credited


def saws() -> list[Check]:
    """Peak, trough and mean of AIMD's sawtooth at a fixed capacity, and successes per cut."""
    out = []
    for capacity, config, *wanted in SAWS:
        what = f"capacity {capacity}, cut to {config.decrease_factor:g}, {config.successes_until_increase} per step"
        for metric, want, got in zip(("peak", "trough", "mean", "successes per cut"), wanted, sawtooth(capacity, config)):
            out.append(near(SAW, what, metric, want, got, 0.0, 1))
    return out


# -- throughput ---------------------------------------------------------------------------------------------------------------------

PAUSES = ((20, 1.0, 2.0, 15.4545, 14.0786), (20, 5.0, 2.0, 3.4335, 3.3133), (50, 1.0, 2.0, 37.50, 34.4262), (100, 10.0, 2.0, 8.6926, 8.4593),
          (20, 1.0, 0.5, 17.1667, 16.3855), (20, 0.2, 2.0, 44.741, 40.2049), (20, 0.2, 0.1, 85.833, 81.9275))


def throughput(slots: int, service_s: float, cooldown_s: float, until_s: float) -> float:
    """Completions per second of a saturated client: `slots` hard slots, constant service, the next attempt gets its 429 at once."""
    admission = RequestAdmission(Aimd(initial_limit=slots, cooldown_s=cooldown_s).build(BuildContext()))
    admission.register("r", 10_000, 0.0)
    running: list[tuple[float, int]] = []
    leases = {}
    now, done, sent, warm_s = 0.0, 0, 0, 0.25 * until_s
    while now < until_s:
        while admission.admissible("r", now):
            lease = admission.try_acquire("r", now)
            assert not isinstance(lease, Denial)
            if len(running) >= slots:
                admission.release(lease, "rate_limited", now)
                continue
            sent += 1
            leases[sent] = lease
            heappush(running, (now + service_s, sent))
        opens_at = admission.next_open("r", now)
        if running and (opens_at is None or running[0][0] <= opens_at):
            now, which = heappop(running)
            admission.release(leases.pop(which), "success", now)
            done += now >= warm_s
        else:
            assert opens_at is not None
            now = opens_at
    return done / (until_s - warm_s)


def pauses() -> list[Check]:
    """Throughput, requests/s, of AIMD with a pause after each cut."""
    out = []
    for slots, service_s, cooldown_s, want, fluid in PAUSES:
        what = f"{slots} slots, service {service_s:g} s, pause {cooldown_s:g} s"
        got = throughput(slots, service_s, cooldown_s, 16_000 / want)
        out.append(within(PAUSE, what, "throughput", want, got, 0.02, 16_000, "rps"))
        out.append(between(PAUSE, what, "throughput, at least the fluid model's", fluid, math.inf, got, 16_000, "rps"))
        levels = range(sawtooth(slots, Aimd())[1], slots + 1)
        cycle_s = service_s * 25 * sum(1 / level for level in levels) + cooldown_s
        out.append(near(PAUSE, what, "fluid model over the limit's own levels", fluid, 25 * len(levels) / cycle_s, 1e-4, 1, "rps"))
    return out


# -- resting points, drift, loss ----------------------------------------------------------------------------------------------------

ENVOY = ((8, 13.7016), (16, 25.0), (32, 46.8443), (64, 89.4582), (128, 173.1590))
VEGAS = ((8, 11, 14), (16, 19, 22), (32, 35, 38), (64, 67, 70), (128, 134, 140), (256, 262, 268))
DRIFTS = ((2, 122, 33.806, 300), (3, 208, 20.0, 392), (5, 263, 20.0, 446))
LOSSES = ((1e-2, 12.25), (1e-3, 38.73), (1e-4, 122.47))


def settle(limit: Limit, c0: float, steps: int) -> float:
    """Feed a server whose latency is max(1, L/C0) until the limit rests; the real value behind it."""
    for n in range(steps):
        value = limit.value  # type: ignore[attr-defined]
        limit.on_sample(Sample("success", max(1.0, value / c0), math.ceil(value), 1, limit.epoch), 0.2 * n)
    return float(limit.value)  # type: ignore[attr-defined]


def rests() -> list[Check]:
    """Where gradient and Vegas limits come to rest at a fixed capacity."""
    envoy = EnvoyGradient(min_rtt_interval_s=None)
    out = [near(REST, f"Envoy's gradient, capacity {c0}", "limit", want, settle(EnvoyGradientLimit(envoy, 100_000), c0, 400), 1e-3, 400)
           for c0, want in ENVOY]
    for c0, low, high in VEGAS:
        for start in (5, 20, 400):
            limit = VegasLimit(Vegas(initial_limit=start, probe=False, window=None), 1_000_000)
            limit.rtt0_s = 1.0
            out.append(between(REST, f"Vegas from {start}, capacity {c0}", "limit", low, high, settle(limit, c0, 500), 500))
    return out


def drifts() -> list[Check]:
    """Gradient2 takes a lasting slowdown for normal: a trait to know, and a number to hold."""
    out = []
    for slowdown, back_at, lowest, full_at in DRIFTS:
        limit = Gradient2Limit(Gradient2(initial_limit=100, window=None), 1_000_000)
        for _ in range(10):
            limit.on_sample(Sample("success", 1.0, 0, 1, 0), 0.0)
        seen: list[tuple[float, float]] = []
        for _ in range(500):
            limit.on_sample(Sample("success", float(slowdown), math.ceil(limit.value), 1, 0), 0.0)
            seen.append((limit.gradient, limit.value))
        back = next(n for n, (g, _) in enumerate(seen, 1) if g >= 1.0)
        full = next(n for n, (_, v) in enumerate(seen, 1) if v >= 200)
        what = f"Gradient2, {slowdown} times slower for good"
        out += [near(DRIFT, what, "sample at which its gradient is 1 again", back_at, back, 0.0, 500),
                near(DRIFT, what, "lowest limit", lowest, min(v for _, v in seen), 1e-3, 500),
                near(DRIFT, what, "sample at which its limit is 200 again", full_at, full, 0.0, 500)]
    return out


def losses(rounds: int = 60_000) -> list[Check]:
    """One sample per round trip, dropped if any of its packets was: the square root law."""
    out = []
    for p, want in LOSSES:
        rng, total = Random(1), 0
        limit = AimdNetflixLimit(AimdNetflix(initial_limit=20, min_limit=1, max_limit=100_000, backoff_ratio=0.5), 100_000)
        for n in range(rounds):
            total += limit.limit
            dropped = rng.random() < 1.0 - (1.0 - p) ** limit.limit
            limit.on_sample(Sample("rate_limited" if dropped else "success", 0.1, limit.limit, 1, 0), float(n))
        out.append(within(LOSS, f"AIMD, one packet in {round(1 / p):,} is lost", "mean limit", want, total / rounds, 0.05, rounds))
    return out
