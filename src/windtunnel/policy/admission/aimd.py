"""AIMD concurrency limit: one more after a streak of successes, a cut and a pause after a rate limit (Chiu and Jain, 1989)."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Annotated, Literal

from windtunnel.errors import ConfigValueError
from windtunnel.policy.admission.limit import LimitChange, LimitFactory, Sample
from windtunnel.policy.param import BuildContext, Param, check_number

RTT_ALPHA = 0.1
STARVED_AFTER = 5
PACE_MAX_S = 60.0
BURST_RULES = ("limit", "epoch")
ON_STARVED = ("keep", "pace", "open")
EPSILON = 1e-9  # binary floats must not move a rounded limit


@dataclass(frozen=True, slots=True)
class Aimd:
    """Config. initial_limit None: the ceiling, which it follows until the first rate limit. Cool-down without Retry-After: `cooldown_s`,
    or `cooldown_scale` x mean rtt within [cooldown_min_s, cooldown_s]. on_starved, for an endpoint that only says 429: keep; pace (double
    the cool-down, up to 60 s); open (open the breaker, which the admission must have)."""

    initial_limit: Annotated[int | None, Param(1, 1024, 1, "requests", "start at", "limit before the first sample", "log")] = None
    cooldown_s: Annotated[float, Param(0.05, 10, 0.05, "s", "cool-down", "pause after a 429 without Retry-After", "log")] = 2.0
    decrease_factor: Annotated[float, Param(0.5, 0.95, 0.01, label="cut to", help="share of the limit kept after a 429")] = 0.75
    increase_step: Annotated[int, Param(1, 16, 1, "requests", "step", "added after a full streak")] = 1
    successes_until_increase: Annotated[int, Param(1, 200, 1, "requests", "streak", "successes per step", "log")] = 25
    startup_ramp_s: Annotated[float, Param(0, 120, 1, "s", "ramp", "time from 1 to the initial limit")] = 0.0
    burst_rule: Annotated[
        Literal["limit", "epoch"], Param(choices=BURST_RULES, label="burst rule", help="which 429s of a burst may cut")
    ] = "limit"
    cooldown_scale: Annotated[float | None, Param(0.1, 5, 0.1, "× rtt", "cool-down scale", "cool-down as a multiple of the mean rtt")] = None
    cooldown_min_s: Annotated[float, Param(0.01, 2, 0.01, "s", "least cool-down", "floor of a scaled cool-down", "log")] = 0.05
    on_starved: Annotated[
        Literal["keep", "pace", "open"], Param(choices=ON_STARVED, label="starved", help="an endpoint that only says 429")
    ] = "keep"

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
        for name, value, known in (("burst_rule", self.burst_rule, BURST_RULES), ("on_starved", self.on_starved, ON_STARVED)):
            if value not in known:
                raise ConfigValueError(name, f"expected one of {', '.join(known)}, got {value!r}")

    def build(self, ctx: BuildContext) -> LimitFactory:
        return lambda effective_max: AimdLimit(self, effective_max)


class AimdLimit:
    """State: limit (during a ramp its target), the streak of successes, the recovery from the last cut, the pause."""

    needs: frozenset[str] = frozenset()

    def __init__(self, config: Aimd, effective_max: int) -> None:
        self.config = config
        self.blocked_until, self.epoch = float("-inf"), 0
        self.ceiling: int | None = None
        self.consecutive_rate_limits = self.streak = 0
        self.rtt_s: float | None = None
        self.ramps = config.startup_ramp_s > 0
        self._recovering = False  # from the first cut until the limit is at its maximum again
        self._used = False
        self._limited = False  # a 429 was seen: from then on a raised ceiling changes no limit
        self._ramp_from: float | None = None
        self._pace_s = 0.0
        self.set_max(effective_max, float("-inf"))

    def set_max(self, effective_max: int, now: float) -> None:
        """A lowered ceiling lowers the limit at once. A raised one raises only a limit that was never used, or that simply is the ceiling."""
        self.effective_max = effective_max
        initial = self.config.initial_limit
        if not self._limited and initial is None:
            self.limit = max(1, effective_max)
        elif not self._used and initial is not None:
            self.limit = max(1, min(initial, effective_max))
        else:
            self.limit = max(1, min(self.limit, effective_max))

    def first_use(self, now: float) -> None:
        """The first lease is asked for: the ramp, if any, starts now."""
        self._used = True
        if self._ramp_from is None:
            self._ramp_from = now

    def _ramping(self, now: float) -> bool:
        return self.ramps and (self._ramp_from is None or now - self._ramp_from < self.config.startup_ramp_s)

    def limit_at(self, now: float) -> int:
        """The limit in force at run second `now`, the start-up ramp included."""
        if not self._ramping(now):
            return self.limit
        elapsed_s = 0.0 if self._ramp_from is None else now - self._ramp_from
        return 1 + floor((self.limit - 1) * elapsed_s / self.config.startup_ramp_s + EPSILON)

    def next_step(self, now: float) -> float | None:
        """When the ramp next admits one more, run s; None if no ramp is running."""
        if self._ramp_from is None or not self._ramping(now) or self.limit <= 1:
            return None
        end = self._ramp_from + self.config.startup_ramp_s
        step = self._ramp_from + self.limit_at(now) * self.config.startup_ramp_s / (self.limit - 1)
        return min(end, step) if step > now else end

    @property
    def starved(self) -> bool:
        """The endpoint only says 429."""
        return self.limit == 1 and self.consecutive_rate_limits >= STARVED_AFTER

    @property
    def opens_breaker(self) -> bool:
        return self.config.on_starved == "open" and self.starved

    def on_sample(self, sample: Sample, now: float) -> LimitChange | None:
        """Learn from one end of an attempt; only successes and rate limits count."""
        self._used = True
        if sample.kind == "success":
            rtt_s = sample.rtt_s
            if rtt_s is not None and rtt_s > 0:
                self.rtt_s = rtt_s if self.rtt_s is None else self.rtt_s + RTT_ALPHA * (rtt_s - self.rtt_s)
            return self._success(now)
        if sample.kind == "rate_limited":
            return self._rate_limited(sample, now)
        return None

    def _success(self, now: float) -> LimitChange | None:
        if self.ramps:
            if self._ramping(now):
                self.streak = 0
                return None
            self.ramps = False
        if now < self.blocked_until:
            return None  # it was admitted before the pause: no credit
        self.consecutive_rate_limits = 0
        self.streak += 1
        before = self.limit
        if self.streak >= self.config.successes_until_increase:
            self.streak = 0
            self.limit = min(self.effective_max, before + self.config.increase_step)
        recovered = self._recovered() if self._recovering else ()
        if self.limit != before:
            return LimitChange(before, self.limit, "increase", recovered)
        return LimitChange(before, before, "recovered", recovered) if recovered else None

    def _recovered(self) -> tuple[Literal["soft_ceiling", "full"], ...]:
        soft = self.ceiling is not None and self.limit > self.ceiling
        full = self.limit == self.effective_max
        if soft or full:
            self.ceiling = None
        self._recovering = not full
        return ("soft_ceiling", "full") if soft and full else ("soft_ceiling",) if soft else ("full",) if full else ()

    def _rate_limited(self, sample: Sample, now: float) -> LimitChange | None:
        config, before = self.config, self.limit_at(now)
        self.limit, self.ramps, self._limited = before, False, True
        was_starved = self.starved
        self.consecutive_rate_limits += 1
        self.streak = 0
        retry_after_s = sample.retry_after_s
        pause_s = retry_after_s if retry_after_s is not None and retry_after_s > 0 else self._cooldown_s(was_starved)
        self.blocked_until = max(self.blocked_until, now + pause_s)
        may_cut = sample.epoch == self.epoch if config.burst_rule == "epoch" else sample.admitted_limit <= before
        if not may_cut or before == 1:
            return None
        self.ceiling, self._recovering = before, True
        self.limit = max(1, floor(before * config.decrease_factor + EPSILON))
        self.epoch += 1
        return LimitChange(before, self.limit, "decrease")

    def _cooldown_s(self, was_starved: bool) -> float:
        """The pause after a 429 without Retry-After; paced, it doubles with each one that finds the endpoint starved already."""
        config = self.config
        pause_s = config.cooldown_s
        if config.cooldown_scale is not None and self.rtt_s is not None:
            pause_s = min(config.cooldown_s, max(config.cooldown_min_s, config.cooldown_scale * self.rtt_s))
        if config.on_starved != "pace" or not was_starved:
            self._pace_s = pause_s
            return pause_s
        self._pace_s = max(pause_s, min(PACE_MAX_S, 2 * self._pace_s))
        return self._pace_s
