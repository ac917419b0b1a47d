"""When a client tries again: attempts, backoff with jitter, Retry-After and the budget that keeps retries a small share of traffic.

Jitter forms: Brooker, "Exponential Backoff and Jitter" (AWS architecture blog, 2015); budget: Google SRE book, chapter 21.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import Param, check_number

JITTERS: tuple[str, ...] = ("none", "full", "equal", "decorrelated")
BUDGET_CAP = 10.0  # retries in hand at the start, and at most


@dataclass(frozen=True, slots=True)
class Retry:
    """max_attempts: submissions in all; backoff before the n-th retry: min(max_s, base_s · factor^(n-1)), jittered.

    budget: retries earned per first attempt (0.1 = one in ten); None: without a bound.
    """

    max_attempts: Annotated[int, Param(1, 10, 1, label="attempts", help="submissions of one request, the first included")] = 3
    base_s: Annotated[float, Param(0, 30, 0.1, "s", "backoff", "wait before the first retry, before jitter")] = 0.5
    factor: Annotated[float, Param(1, 4, 0.1, label="factor", help="growth of the wait per retry")] = 2.0
    max_s: Annotated[float, Param(0, 300, 1, "s", "longest backoff", "the wait does not grow beyond this")] = 30.0
    jitter: Annotated[str, Param(choices=JITTERS, label="jitter", help="how the wait is spread")] = "full"
    honour_retry_after: Annotated[bool, Param(label="Retry-After", help="wait at least as long as the answer says")] = True
    budget: Annotated[float | None, Param(0, 1, 0.05, label="budget", help="retries earned per first attempt; null: no bound")] = 0.1

    def __post_init__(self) -> None:
        check_number("max_attempts", self.max_attempts, lo=1, whole=True)
        check_number("base_s", self.base_s, lo=0.0)
        check_number("factor", self.factor, lo=1.0)
        check_number("max_s", self.max_s, lo=0.0)
        if self.jitter not in JITTERS:
            raise ConfigValueError("jitter", f"expected one of {', '.join(JITTERS)}, got {self.jitter!r}")
        if self.budget is not None:
            check_number("budget", self.budget, lo=0.0)


def backoff_s(retry: Retry, attempt: int, previous_s: float, rng: np.random.Generator) -> float:
    """Seconds to wait after attempt `attempt` (from 1) failed. previous_s: the wait before, for the decorrelated form.

    x = min(max_s, base_s · factor^(attempt-1)); none: x; full: U(0, x); equal: x/2 + U(0, x/2);
    decorrelated: min(max_s, U(base_s, 3 · previous_s)). One draw, except for `none`.
    """
    if retry.jitter == "decorrelated":
        return min(retry.max_s, float(rng.uniform(retry.base_s, max(retry.base_s, 3.0 * previous_s))))
    try:
        x = min(retry.max_s, retry.base_s * retry.factor ** (attempt - 1))
    except OverflowError:
        x = retry.max_s
    if retry.jitter == "full":
        return float(rng.uniform(0.0, x))
    if retry.jitter == "equal":
        return x / 2 + float(rng.uniform(0.0, x / 2))
    return x


class Budget:
    """A bucket of retries: each first attempt adds `share`, a retry takes one; it starts full at `BUDGET_CAP`. None: without a bound."""

    __slots__ = ("_share", "denied", "tokens")

    def __init__(self, share: float | None) -> None:
        self._share, self.tokens, self.denied = share, BUDGET_CAP, 0

    def earn(self) -> None:
        if self._share is not None:
            self.tokens = min(BUDGET_CAP, self.tokens + self._share)

    def take(self) -> bool:
        """May one more retry be made? A refusal is counted."""
        if self._share is None:
            return True
        if self.tokens < 1.0 - 1e-9:  # ten times a tenth is a whole one
            self.denied += 1
            return False
        self.tokens -= 1.0
        return True
