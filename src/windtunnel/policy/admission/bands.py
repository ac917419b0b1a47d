"""Shed the least important first, by how long requests wait (Zhou et al., "Overload control for scaling WeChat microservices", 2018)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from math import inf
from typing import Annotated

from windtunnel.events import Request
from windtunnel.policy.admission.denial import Denial, make_denial
from windtunnel.policy.admission.gates import Gate, Used
from windtunnel.policy.param import BuildContext, Param, Rng, check_number

RESEED_S = 3600.0
SHRINK, GROW = 0.95, 0.01
EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class BandsGate:
    """Config. A level is (priority class, hash of session or tenant), 0 the most important; who is in which is drawn anew every hour."""

    overload_s: Annotated[float, Param(0.001, 10, 0.001, "s", "overload", "mean queueing delay that is too long", "log")] = 0.02
    window_s: Annotated[float, Param(0.1, 60, 0.1, "s", "window", "between two decisions", "log")] = 1.0
    window_requests: Annotated[int, Param(10, 100_000, 10, "requests", "window at most", "a fuller window ends early", "log")] = 2000
    user_levels: Annotated[int, Param(1, 128, 1, "levels", "levels", "per priority class", "log")] = 16

    def __post_init__(self) -> None:
        check_number("overload_s", self.overload_s, above=0.0)
        check_number("window_s", self.window_s, above=0.0)
        check_number("window_requests", self.window_requests, lo=1, whole=True)
        check_number("user_levels", self.user_levels, lo=1, whole=True)

    def build(self, ctx: BuildContext) -> Bands:
        return Bands(self, ctx.rng)


class Bands(Gate):
    """fraction: of the arrivals that it aims to let in; cut: levels above are refused. O(1) per request, O(levels) per window.

    A window without any delay seen leaves the fraction as it is: unknown is not calm.
    """

    def __init__(self, config: BandsGate | None = None, rng: Rng | None = None) -> None:
        self.config = config or BandsGate()
        self._rng = rng
        self.fraction = 1.0
        self.cut: float = inf
        self._arrivals: Counter[int] = Counter()
        self._count = self._delays = 0
        self._delay_sum = 0.0
        self._since: float | None = None
        self._hour = -1
        self._seed = b""

    def level(self, request: Request, now: float) -> int:
        hour = int(now // RESEED_S)
        if hour != self._hour:
            self._hour = hour
            self._seed = (0 if self._rng is None else self._rng.randrange(1 << 32)).to_bytes(4, "big")
        who = request.tenant if request.turn is None else request.turn.session
        drawn = int.from_bytes(blake2b(who.encode("utf-8", "surrogatepass"), digest_size=8, key=self._seed).digest(), "big")
        return max(0, request.priority) * self.config.user_levels + drawn % self.config.user_levels

    def waited(self, delay_s: float) -> None:
        """A request waited so long for its dispatch, or in vain."""
        self._delays += 1
        self._delay_sum += delay_s

    def arrived(self, level: int, now: float) -> bool:
        """Count an arrival; may it pass?"""
        if self._since is None:
            self._since = now
        elif now >= self._since + self.config.window_s or self._count >= self.config.window_requests:
            self._close(now)
        self._arrivals[level] += 1
        self._count += 1
        return level <= self.cut

    def _close(self, now: float) -> None:
        """The window is over; whole windows without any arrival that passed since were calm."""
        assert self._since is not None
        if self._delays:
            overloaded = self._delay_sum / self._delays > self.config.overload_s
            self.fraction = self.fraction * SHRINK if overloaded else min(1.0, self.fraction + GROW)
        idle = int((now - self._since) / self.config.window_s + EPSILON) - 1
        if idle > 0:
            self.fraction = min(1.0, self.fraction + GROW * idle)
        self.cut = self._cut()
        self._arrivals.clear()
        self._count = self._delays = 0
        self._delay_sum, self._since = 0.0, now

    def _cut(self) -> float:
        if self.fraction >= 1.0 - EPSILON:
            return inf
        room = self.fraction * self._count + EPSILON
        for level in sorted(self._arrivals):
            room -= self._arrivals[level]
            if room < 0:
                return max(0, level - 1)
        return inf

    def refusal(self, request: Request, now: float) -> Denial | None:
        level = self.level(request, now)
        if self.arrived(level, now):
            return None
        return make_denial("intake", "band", diagnostics={"level": level, "cut": self.cut, "fraction": self.fraction})

    def dispatched(self, request: Request, wait_s: float, now: float) -> None:
        self.waited(wait_s)

    def settle(self, request: Request, used: Used, now: float) -> None:
        if not used.outcome:
            self.waited(used.wait_s)
