"""A client that throttles itself by what its requests came to (Beyer et al., "Site Reliability Engineering", 2016, chapter 21)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Annotated

from windtunnel.events import Request
from windtunnel.policy.admission.denial import Denial, make_denial
from windtunnel.policy.admission.gates import Gate, Used
from windtunnel.policy.param import BuildContext, Param, Rng, check_number

REFUSED = frozenset({"rate_limited", "provider_failure", "provider_timeout", "unexpected_exception"})


@dataclass(frozen=True, slots=True)
class ThrottleGate:
    """Config: P(refuse) = ((n - s / healthy) / (n + 1)) ** (1 / aggression), at most `cap`, over the last `window_s`."""

    healthy: Annotated[float, Param(0.5, 1, 0.01, label="healthy", help="share of successes below which it begins")] = 0.95
    aggression: Annotated[float, Param(0.25, 4, 0.25, label="aggression", help="above 1 it refuses sooner")] = 1.0
    cap: Annotated[float, Param(0, 1, 0.05, label="at most", help="largest probability; the rest keeps probing")] = 0.8
    window_s: Annotated[float, Param(1, 300, 1, "s", "window", "looked back", "log")] = 30.0

    def __post_init__(self) -> None:
        check_number("healthy", self.healthy, above=0.0, hi=1.0)
        check_number("aggression", self.aggression, above=0.0)
        check_number("cap", self.cap, lo=0.0, hi=1.0)
        check_number("window_s", self.window_s, above=0.0)

    def build(self, ctx: BuildContext) -> Throttle:
        return Throttle(self, ctx.rng)


class Throttle(Gate):
    """n: requests that have ended, or were refused here; s: those that the service did not refuse or fail. O(1) amortised.

    Requests still on their way are in neither: LLM answers take long, and counting them as failures would shut the door at the start.
    Without a generator nothing is refused.
    """

    def __init__(self, config: ThrottleGate | None = None, rng: Rng | None = None) -> None:
        self.config = config or ThrottleGate()
        self._rng = rng
        self._seen: deque[tuple[float, bool]] = deque()
        self._good = 0

    def saw(self, good: bool, now: float) -> None:
        """One request came to its end."""
        self._seen.append((now, good))
        self._good += good

    def chance(self, now: float) -> float:
        """The probability of refusing, before the cap."""
        seen, oldest = self._seen, now - self.config.window_s
        while seen and seen[0][0] <= oldest:
            self._good -= seen.popleft()[1]
        n = len(seen)
        share: float = max(0.0, (n - self._good / self.config.healthy) / (n + 1)) ** (1.0 / self.config.aggression)
        return share

    def refusal(self, request: Request, now: float) -> Denial | None:
        chance = min(self.config.cap, self.chance(now))
        if chance <= 0.0 or self._rng is None or self._rng.random() >= chance:
            return None
        self.saw(False, now)
        return make_denial("intake", "rate_limit", diagnostics={"throttle": chance})

    def settle(self, request: Request, used: Used, now: float) -> None:
        if used.outcome:
            self.saw(used.outcome not in REFUSED, now)
