"""A rate with a burst: the generic cell rate algorithm, one number of state (ITU-T I.371; RFC 9110's Retry-After is exact with it)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated, Literal

from windtunnel.errors import ConfigValueError
from windtunnel.events import Request
from windtunnel.policy.admission.denial import Denial, make_denial
from windtunnel.policy.admission.gates import Gate, Used, reserved_tokens_of, used_tokens_of
from windtunnel.policy.param import BuildContext, Param, check_number

TOLERANCE_S = 1e-9
KEYS_KEPT = 65_536
UNITS, PER = ("requests", "tokens"), ("all", "tenant")


class Gcra:
    """tat: the theoretical arrival time, run s; in (now, now + burst / rate] it says how much of the burst is used. O(1) per call."""

    __slots__ = ("burst", "period_s", "tat")

    def __init__(self, rate_per_s: float, burst: float) -> None:
        check_number("rate_per_s", rate_per_s, above=0.0)
        check_number("burst", burst, above=0.0)
        self.period_s, self.burst = 1.0 / rate_per_s, burst
        self.tat = float("-inf")

    def wait_s(self, cost: float, now: float) -> float | None:
        """Seconds until `cost` conforms, 0 if it does now; None if it never will, being more than the burst. Changes nothing."""
        if cost > self.burst * (1.0 + TOLERANCE_S):
            return None
        wait_s = max(now, self.tat) + self.period_s * (cost - self.burst) - now
        return wait_s if wait_s > TOLERANCE_S else 0.0

    def take(self, cost: float, now: float) -> None:
        """Charge `cost`, whether or not it conforms."""
        self.tat = max(now, self.tat) + self.period_s * cost

    def settle(self, reserved: float, actual: float) -> None:
        """`reserved` was charged, `actual` is right."""
        self.tat += self.period_s * (actual - reserved)

    def idle(self, now: float) -> bool:
        """Is the whole burst there? Then it is as good as new."""
        return self.tat <= now


@dataclass(frozen=True, slots=True)
class GcraGate:
    """Config: `rate_per_s` requests or tokens per second after a burst, for all together or for each tenant; one for all lanes.

    Tokens: input + max_tokens are charged at the door, what was not used comes back at the end.
    """

    rate_per_s: Annotated[float, Param(0.1, 1000, 0.1, "/s", "rate", "let in per second in the long run", "log")] = 10.0
    burst: Annotated[float, Param(1, 100_000, 1, "", "burst", "let in at once after a pause", "log")] = 20.0
    unit: Annotated[Literal["requests", "tokens"], Param(choices=UNITS, label="of", help="what is counted")] = "requests"
    per: Annotated[Literal["all", "tenant"], Param(choices=PER, label="for", help="one rate for all, or one each")] = "all"

    def __post_init__(self) -> None:
        check_number("rate_per_s", self.rate_per_s, above=0.0)
        check_number("burst", self.burst, above=0.0)
        for name, value, known in (("unit", self.unit, UNITS), ("per", self.per, PER)):
            if value not in known:
                raise ConfigValueError(name, f"expected one of {', '.join(known)}, got {value!r}")

    def build(self, ctx: BuildContext) -> RateGate:
        return RateGate(self)


class RateGate(Gate):
    """One bucket per key; buckets that are full again are forgotten beyond 65 536 keys."""

    def __init__(self, config: GcraGate) -> None:
        self.config = config
        self._buckets: OrderedDict[str, Gcra] = OrderedDict()

    def _bucket(self, request: Request, now: float) -> Gcra:
        key = request.tenant if self.config.per == "tenant" else ""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Gcra(self.config.rate_per_s, self.config.burst)
            self._forget(now)
        else:
            self._buckets.move_to_end(key)
        return bucket

    def _forget(self, now: float) -> None:
        for _ in range(2):  # one that still owes goes to the end; looking at two for each new one keeps the number bounded
            if len(self._buckets) <= KEYS_KEPT:
                return
            key, bucket = self._buckets.popitem(last=False)
            if not bucket.idle(now):
                self._buckets[key] = bucket

    def _cost(self, request: Request) -> float:
        return 1.0 if self.config.unit == "requests" else float(reserved_tokens_of(request))

    def refusal(self, request: Request, now: float) -> Denial | None:
        wait_s = self._bucket(request, now).wait_s(self._cost(request), now)
        if wait_s is None:
            return make_denial("intake", "exceeds_burst", diagnostics={"burst": self.config.burst, "asked": self._cost(request)})
        return make_denial("intake", "rate_limit", retry_after_s=wait_s, available_at=now + wait_s) if wait_s else None

    def take(self, request: Request, now: float) -> None:
        self._bucket(request, now).take(self._cost(request), now)

    def give_back(self, request: Request, now: float) -> None:
        self._bucket(request, now).settle(self._cost(request), 0.0)

    def settle(self, request: Request, used: Used, now: float) -> None:
        if self.config.unit == "tokens":
            self._bucket(request, now).settle(self._cost(request), used_tokens_of(request, used))
