"""What may leave the process: one function, `may`, and the gate that asks it for every effect.

| mode | Dispatch, Cancel | Reject, Close | ScaleTo, Drain | WakeAt, Ask, Note |
|---|---|---|---|---|
| shadow | no | no | no | yes |
| dry_run | yes: to the in-process stand-in | yes | no | yes |
| armed | yes, within the caps | yes | only if armed with scaling, within the caps | yes |
| stopped | Cancel only | yes | no | yes |
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from windtunnel.effects import Ask, Cancel, Close, Dispatch, Effect, Note, Reject, ScaleTo, WakeAt
from windtunnel.policy.param import check_number

Mode = Literal["shadow", "dry_run", "armed", "stopped"]
MODES: tuple[str, ...] = ("shadow", "dry_run", "armed")
INSIDE = (WakeAt, Ask, Note)  # never leave the process


@dataclass(frozen=True, slots=True)
class Caps:
    """Bounds on an armed world, beyond whatever its policies decide.

    max_in_flight: attempts at once; max_rps: attempts sent within any one second; max_replicas: sum of all scaling targets;
    max_usd_per_hour: cost of all scaling targets. None = no bound. Raises ConfigValueError.
    """

    max_in_flight: int
    max_rps: float | None = None
    max_replicas: int | None = None
    max_usd_per_hour: float | None = None

    def __post_init__(self) -> None:
        check_number("max_in_flight", self.max_in_flight, lo=1, whole=True)
        if self.max_rps is not None:
            check_number("max_rps", self.max_rps, above=0)
        if self.max_replicas is not None:
            check_number("max_replicas", self.max_replicas, lo=0, whole=True)
        if self.max_usd_per_hour is not None:
            check_number("max_usd_per_hour", self.max_usd_per_hour, above=0)


class Usage:
    """What counts against the caps: attempts alive, send times within the rate window, the last targets and prices (USD/h) by pool."""

    __slots__ = ("in_flight", "now", "prices", "sent", "targets")

    def __init__(self, prices: Mapping[str, float | None] | None = None) -> None:
        self.in_flight, self.now = 0, 0.0
        self.sent: deque[float] = deque()
        self.prices = dict(prices or {})
        self.targets: dict[str, int] = {}

    def sends(self, max_rps: float) -> tuple[int, int]:
        """Sends in the window that ends now, and how many it allows; below 1 per second the window is 1/max_rps seconds."""
        window_s = max(1.0, 1.0 / max_rps)
        while self.sent and self.sent[0] <= self.now - window_s:
            self.sent.popleft()
        return len(self.sent), max(1, int(max_rps * window_s))

    def usd_per_hour(self, targets: Mapping[str, int]) -> float | None:
        """Cost of these targets in USD per hour; None if the price of a pool with replicas is unknown."""
        prices = [self.prices.get(pool) for pool, n in targets.items() if n > 0]
        if any(p is None for p in prices):
            return None
        return sum(n * (self.prices.get(pool) or 0.0) for pool, n in targets.items())


def may(effect: Effect, mode: str, caps: Caps | None, usage: Usage | None = None, *, scaling: bool = False) -> str | None:
    """None if the effect may be carried out in this mode, else why not (`shadow`, `dry_run`, `cap_max_rps`, ...)."""
    if isinstance(effect, INSIDE):
        return None
    if mode == "shadow":
        return "shadow"
    if isinstance(effect, Reject | Close | Cancel):
        return None
    if mode == "stopped":
        return "stopped"
    if isinstance(effect, Dispatch):
        return _may_send(caps, usage or Usage()) if mode == "armed" else None
    if mode != "armed":
        return mode
    if not scaling:
        return "no_scaling"
    return _may_scale(effect, caps, usage or Usage()) if isinstance(effect, ScaleTo) else None


def _may_send(caps: Caps | None, usage: Usage) -> str | None:
    if caps is None:
        return "no_caps"
    if usage.in_flight >= caps.max_in_flight:
        return "cap_max_in_flight"
    if caps.max_rps is not None:
        sent, allowed = usage.sends(caps.max_rps)
        if sent >= allowed:
            return "cap_max_rps"
    return None


def _may_scale(effect: ScaleTo, caps: Caps | None, usage: Usage) -> str | None:
    if caps is None or caps.max_replicas is None:
        return "no_caps"
    targets = {**usage.targets, **dict(effect.targets)}
    if sum(targets.values()) > caps.max_replicas:
        return "cap_max_replicas"
    if caps.max_usd_per_hour is not None:
        cost = usage.usd_per_hour(targets)
        if cost is None or cost > caps.max_usd_per_hour:  # an unknown price is not a price of zero
            return "cap_max_usd_per_hour"
    return None


@dataclass(slots=True)
class Gate:
    """The driver's gate. `close` may be called from any thread and is final: it is one attribute assignment."""

    mode: str
    caps: Caps | None = None
    scaling: bool = False
    usage: Usage = field(default_factory=Usage)
    refused: Counter[str] = field(default_factory=Counter)
    closed: bool = False

    def close(self) -> None:
        """Nothing leaves any more; for good."""
        self.closed = True

    @property
    def state(self) -> str:
        """The mode as the effects see it; a shadow lets nothing out, stopped or not."""
        return "stopped" if self.closed and self.mode != "shadow" else self.mode

    def verdicts(self, effects: Sequence[Effect], now: float) -> tuple[str | None, ...] | None:
        """One verdict per effect, or None if all may be carried out. A permitted Dispatch counts from here on until `ended`."""
        if not effects:
            return None
        self.usage.now = now
        made = tuple([self._ask(effect) for effect in effects])
        return made if any(made) else None

    def _ask(self, effect: Effect) -> str | None:
        usage = self.usage
        why = may(effect, self.state, self.caps, usage, scaling=self.scaling)
        if why is not None:
            self.refused[why] += 1
        elif type(effect) is Dispatch:
            usage.in_flight += 1
            if self.caps is not None and self.caps.max_rps is not None:
                usage.sent.append(usage.now)
        elif type(effect) is ScaleTo:
            usage.targets.update(effect.targets)
        return why

    def ended(self) -> None:
        """A permitted attempt is over."""
        self.usage.in_flight -= 1
