"""AIMD concurrency limit: one more after a streak of successes, a cut and a pause after a rate limit (Chiu and Jain, 1989)."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Annotated, Literal

from windtunnel.policy.admission.limit import LimitChange, LimitFactory, Sample
from windtunnel.policy.param import BuildContext, Param, check_number

RTT_ALPHA = 0.1
STARVED_AFTER = 5
PACE_MAX_S = 60.0


@dataclass(frozen=True, slots=True)
class Aimd:
    """Config. initial_limit None: the ceiling, which it follows until the first cut. Cool-down without Retry-After: `cooldown_s`, or
    `cooldown_scale` x mean rtt within [cooldown_min_s, cooldown_s]. on_starved: keep, or pace (double the cool-down of an endpoint that
    only says 429, up to 60 s)."""

    initial_limit: Annotated[int | None, Param(1, 1024, 1, "requests", "start at", "limit before the first sample", "log")] = None
    cooldown_s: Annotated[float, Param(0.05, 10, 0.05, "s", "cool-down", "pause after a 429 without Retry-After", "log")] = 2.0
    decrease_factor: Annotated[float, Param(0.5, 0.95, 0.01, label="cut to", help="share of the limit kept after a 429")] = 0.75
    increase_step: Annotated[int, Param(1, 16, 1, "requests", "step", "added after a full streak")] = 1
    successes_until_increase: Annotated[int, Param(1, 200, 1, "requests", "streak", "successes per step", "log")] = 25
    startup_ramp_s: Annotated[float, Param(0, 120, 1, "s", "ramp", "time from 1 to the initial limit")] = 0.0
    burst_rule: Annotated[
        Literal["limit", "epoch"], Param(choices=("limit", "epoch"), label="burst rule", help="which 429s of a burst may cut")
    ] = "limit"
    cooldown_scale: Annotated[float | None, Param(0.1, 5, 0.1, "× rtt", "cool-down scale", "cool-down as a multiple of the mean rtt")] = None
    cooldown_min_s: Annotated[float, Param(0.01, 2, 0.01, "s", "least cool-down", "floor of a scaled cool-down", "log")] = 0.05
    on_starved: Annotated[Literal["keep", "pace"], Param(choices=("keep", "pace"), label="starved", help="an endpoint that only says 429")] = "keep"

    def __post_init__(self) -> None:
        if self.initial_limit is not None:
            check_number("initial_limit", self.initial_limit, lo=1, whole=True)
        check_number("cooldown_s", self.cooldown_s, above=0.0)
        check_number("decrease_factor", self.decrease_factor, above=0.0, below=1.0)
        check_number("increase_step", self.increase_step, lo=1, whole=True)
        check_number("successes_until_increase", self.successes_until_increase, lo=1, whole=True)
        check_number("startup_ramp_s", self.startup_ramp_s, lo=0.0)
        check_number("cooldown_min_s", self.cooldown_min_s, lo=0.0)
        if self.cooldown_scale is not None:
            check_number("cooldown_scale", self.cooldown_scale, above=0.0)

    def build(self, ctx: BuildContext) -> LimitFactory:
        return lambda effective_max: AimdLimit(self, effective_max)


class AimdLimit:
    """State: limit, the streak of successes, the ceiling of the current recovery, the pause."""

    needs: frozenset[str] = frozenset()

    def __init__(self, config: Aimd, effective_max: int) -> None:
        self.config, self.effective_max = config, effective_max
        target = effective_max if config.initial_limit is None else config.initial_limit
        self.limit = max(1, min(target, effective_max))
        self.blocked_until, self.epoch = float("-inf"), 0
        self.ceiling: int | None = None
        self.consecutive_rate_limits = self.streak = 0
        self.rtt_s: float | None = None
        self._follows = config.initial_limit is None  # until the first cut the limit is the ceiling itself
        self._ramp_from: float | None = None
        self._ramping = config.startup_ramp_s > 0

    def set_max(self, effective_max: int, now: float) -> None:
        """A lowered ceiling lowers the limit at once; a raised one raises it only while it simply follows."""
        self.effective_max = effective_max
        if self.limit > effective_max or self._follows:
            self.limit = max(1, effective_max)

    @property
    def starved(self) -> bool:
        return self.limit == 1 and self.consecutive_rate_limits >= STARVED_AFTER

    def limit_at(self, now: float) -> int:
        """The limit in force, the start-up ramp included."""
        if not self._ramping:
            return self.limit
        if self._ramp_from is None:
            self._ramp_from = now
        t, ramp_s = now - self._ramp_from, self.config.startup_ramp_s
        if t >= ramp_s:
            self._ramping = False
            return self.limit
        return 1 + floor((self.limit - 1) * t / ramp_s + 1e-9)

    def next_step(self, now: float) -> float | None:
        """When the ramp next admits one more, if it is on."""
        if not self._ramping or self._ramp_from is None or self.limit <= 1:
            return None
        at = self._ramp_from + self.limit_at(now) * self.config.startup_ramp_s / (self.limit - 1)
        return max(at, now + 1e-9) if self._ramping else None

    def on_sample(self, sample: Sample, now: float) -> LimitChange | None:
        if sample.kind == "success":
            if sample.rtt_s is not None and sample.rtt_s > 0:
                self.rtt_s = sample.rtt_s if self.rtt_s is None else self.rtt_s + RTT_ALPHA * (sample.rtt_s - self.rtt_s)
            return self._success(now)
        if sample.kind == "rate_limited":
            return self._rate_limited(sample, now)
        return None

    def _success(self, now: float) -> LimitChange | None:
        if self._ramping:
            self.streak = 0
            return None
        if now < self.blocked_until:
            return None
        self.consecutive_rate_limits = 0
        self.streak += 1
        if self.streak < self.config.successes_until_increase:
            return None
        self.streak = 0
        if self.limit >= self.effective_max:
            self.ceiling = None
            return None
        before = self.limit
        self.limit = min(self.effective_max, before + self.config.increase_step)
        reason = "increase"
        if self.ceiling is not None and self.limit > self.ceiling:
            self.ceiling, reason = None, "soft_ceiling_recovered"
        if self.limit == self.effective_max:
            self.ceiling, reason = None, "fully_recovered"
        return LimitChange(before, self.limit, reason)

    def _rate_limited(self, sample: Sample, now: float) -> LimitChange | None:
        before = self.limit_at(now)
        if self._ramping:
            self.limit, self._ramping = before, False
        self.consecutive_rate_limits += 1
        self.streak = 0
        pause_s = sample.retry_after_s if sample.retry_after_s is not None and sample.retry_after_s > 0 else self._cooldown_s()
        self.blocked_until = max(self.blocked_until, now + pause_s)
        config = self.config
        may_cut = sample.epoch == self.epoch if config.burst_rule == "epoch" else sample.admitted_limit <= self.limit
        if not may_cut:
            return None
        self._follows = False
        if self.limit == 1:
            return None
        self.ceiling = self.limit
        self.limit = max(1, floor(self.limit * config.decrease_factor + 1e-9))
        self.epoch += 1
        return LimitChange(before, self.limit, "decrease")

    def _cooldown_s(self) -> float:
        config = self.config
        pause_s = config.cooldown_s
        if config.cooldown_scale is not None and self.rtt_s is not None:
            pause_s = min(config.cooldown_s, max(config.cooldown_min_s, config.cooldown_scale * self.rtt_s))
        if config.on_starved == "pace" and self.starved:
            pause_s = min(PACE_MAX_S, pause_s * 2 ** (self.consecutive_rate_limits - STARVED_AFTER + 1))
        return pause_s
