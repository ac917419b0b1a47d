"""Retries only as a share of fresh traffic, so that a burst of failures cannot feed itself (Finagle's and gRPC's retry throttling)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Annotated

from windtunnel.events import Request
from windtunnel.policy.admission.denial import Denial, make_denial
from windtunnel.policy.admission.gates import Gate
from windtunnel.policy.param import BuildContext, Param, check_number

EPSILON = 1e-9  # 0.1 x 30 must be 3


@dataclass(frozen=True, slots=True)
class RetryBudgetGate:
    """Config: in any `window_s`, retries <= ratio x originals + min_per_s x window_s. Clients' retries and own ones count alike."""

    ratio: Annotated[float, Param(0, 1, 0.01, label="retries", help="per original request")] = 0.1
    min_per_s: Annotated[float, Param(0, 100, 0.1, "/s", "always", "retries allowed without any traffic")] = 0.0
    window_s: Annotated[float, Param(1, 300, 1, "s", "window", "looked back", "log")] = 10.0

    def __post_init__(self) -> None:
        check_number("ratio", self.ratio, lo=0.0)
        check_number("min_per_s", self.min_per_s, lo=0.0)
        check_number("window_s", self.window_s, above=0.0)

    def build(self, ctx: BuildContext) -> RetryBudget:
        return RetryBudget(self)


class RetryBudget(Gate):
    """A request with `attempt` > 1 is a retry. O(1) amortised; memory O(requests in the window)."""

    def __init__(self, config: RetryBudgetGate | None = None) -> None:
        self.config = config or RetryBudgetGate()
        self._originals: deque[float] = deque()
        self._retries: deque[float] = deque()

    def _look(self, now: float) -> None:
        oldest = now - self.config.window_s
        for times in (self._originals, self._retries):
            while times and times[0] <= oldest:
                times.popleft()

    def allows(self, now: float) -> bool:
        """Is there room for one more retry? Charges nothing."""
        self._look(now)
        config = self.config
        allowed = config.ratio * len(self._originals) + config.min_per_s * config.window_s
        return len(self._retries) + 1 <= allowed + EPSILON

    def original(self, now: float) -> None:
        self._look(now)
        self._originals.append(now)

    def may_retry(self, now: float) -> bool:
        if not self.allows(now):
            return False
        self._retries.append(now)
        return True

    def refusal(self, request: Request, now: float) -> Denial | None:
        if request.attempt <= 1 or self.allows(now):
            return None
        return make_denial("intake", "retry_budget", diagnostics={"originals": len(self._originals), "retries": len(self._retries)})

    def take(self, request: Request, now: float) -> None:
        if request.attempt > 1:
            self._retries.append(now)
        else:
            self.original(now)

    def give_back(self, request: Request, now: float) -> None:
        """Only ever right after `take`."""
        (self._retries if request.attempt > 1 else self._originals).pop()
