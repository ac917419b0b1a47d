"""AIMD, exactly: cuts, streaks, cool-downs, ramp, recovery, starvation."""

from __future__ import annotations

import pytest

from windtunnel.errors import ConfigValueError
from windtunnel.policy.admission.aimd import Aimd, AimdLimit
from windtunnel.policy.admission.denial import Denial
from windtunnel.policy.admission.lease import RequestLease
from windtunnel.policy.admission.limit import Fixed, LimitChange, NoLimit, Sample, Unlimited
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.param import BuildContext


def limited(limit: AimdLimit, now: float, *, retry_after_s: float | None = None, admitted: int = 1, epoch: int | None = None) -> LimitChange | None:
    return limit.on_sample(Sample("rate_limited", None, 1, admitted, limit.epoch if epoch is None else epoch, retry_after_s), now)


def succeed(limit: AimdLimit, now: float, times: int = 1, rtt_s: float | None = None) -> list[LimitChange]:
    changes = (limit.on_sample(Sample("success", rtt_s, 1, limit.limit, limit.epoch), now) for _ in range(times))
    return [c for c in changes if c is not None]


@pytest.mark.parametrize("sequence", [
    "8 6 4 3 2 1 1", "12 9 6 4 3 2 1", "20 15 11 8 6 4 3 2 1", "64 48 36 27 20 15 11 8 6 4 3 2 1", "100 75 56 42 31 23 17 12 9 6 4 3 2 1",
])
def test_RA_13_cut_sequences(sequence: str) -> None:
    first, *rest = (int(n) for n in sequence.split())
    limit, seen = AimdLimit(Aimd(), first), []
    for n in range(len(rest)):
        limited(limit, float(n))
        seen.append(limit.limit)
    assert seen == rest


def test_RA_13_worked_table() -> None:
    admission = RequestAdmission(Aimd().build(BuildContext()))
    admission.register("r", 8, 0.0)
    leases = [admission.try_acquire("r", 0.0) for _ in range(8)]
    assert all(isinstance(lease, RequestLease) for lease in leases)

    def state(now: float) -> tuple[int, int | None, float | None, int]:
        s = admission.snapshot("r", now)
        return s.limit, s.ceiling, s.blocked_until, s.consecutive_rate_limits

    admission.release(leases[0], "rate_limited", 1.0, retry_after_s=30.0)
    assert state(1.0) == (6, 8, 31.0, 1)
    admission.release(leases[1], "rate_limited", 1.1, retry_after_s=1.0)
    assert state(1.1) == (6, 8, 31.0, 2), "8 > 6: no cut, and no shorter pause"
    admission.release(leases[2], "success", 2.0)
    assert state(2.0) == (6, 8, 31.0, 2), "no credit while cooling"
    denied = admission.try_acquire("r", 30.9)
    assert isinstance(denied, Denial) and denied.reason == "cooldown" and denied.retry_after_s == pytest.approx(0.1)
    assert admission.in_flight("r") == 5
    assert isinstance(admission.try_acquire("r", 31.0), RequestLease)
    denied = admission.try_acquire("r", 31.0)
    assert isinstance(denied, Denial) and denied.reason == "no_capacity"

    def rounds(times: int) -> None:
        admission.release(leases.pop(), "success", 31.0)
        for _ in range(times - 1):
            admission.release(admission.try_acquire("r", 31.0), "success", 31.0)

    rounds(25)
    assert state(31.0) == (7, 8, 31.0, 0)
    rounds(25)
    assert state(31.0) == (8, None, 31.0, 0)


def test_RA_13_from_6_to_8_takes_50_credited_successes() -> None:
    limit = AimdLimit(Aimd(), 8)
    limited(limit, 0.0)
    assert [len(succeed(limit, 9.0, n)) for n in (24, 1, 24, 1)] == [0, 1, 0, 1] and limit.limit == 8


def test_RA_13_burst_rule_epoch_cuts_once_per_epoch() -> None:
    by_limit, by_epoch = AimdLimit(Aimd(), 20), AimdLimit(Aimd(burst_rule="epoch"), 20)
    for limit in (by_limit, by_epoch):
        for admitted in (3, 4, 5):  # granted during a ramp: below the limit of now
            limited(limit, 0.0, admitted=admitted, epoch=0)
    assert (by_limit.limit, by_epoch.limit, by_epoch.epoch) == (8, 15, 1)


def test_RA_13_a_429_without_a_cut_extends_the_pause_and_never_shortens_it() -> None:
    limit = AimdLimit(Aimd(), 8)
    limited(limit, 0.0)
    assert limit.blocked_until == 2.0
    assert limited(limit, 1.0, admitted=8) is None and limit.blocked_until == 3.0
    assert limited(limit, 1.5, admitted=8, retry_after_s=0.1) is None and limit.blocked_until == 3.0
    assert limited(limit, 1.5, admitted=8, retry_after_s=-1.0) is None and limit.blocked_until == 3.5, "a senseless Retry-After is none"


def test_RA_14_at_the_floor_ceiling_and_epoch_stay() -> None:
    limit = AimdLimit(Aimd(), 2)
    limited(limit, 0.0)
    assert (limit.limit, limit.ceiling, limit.epoch) == (1, 2, 1)
    assert limited(limit, 0.5) is None
    assert (limit.limit, limit.ceiling, limit.epoch, limit.blocked_until) == (1, 2, 1, 2.5)


def test_RA_14_recoveries_fire_once_per_episode() -> None:
    limit = AimdLimit(Aimd(successes_until_increase=1), 8)
    assert succeed(limit, 0.0, 5) == [], "no episode, no recovery"
    limited(limit, 0.0)
    limited(limit, 0.0, admitted=6)
    assert (limit.limit, limit.ceiling) == (4, 6)
    said = [(c.after, c.recovered) for c in succeed(limit, 9.0, 10)]
    assert said == [(5, ()), (6, ()), (7, ("soft_ceiling",)), (8, ("full",))]
    assert limit.ceiling is None and succeed(limit, 9.0, 10) == []
    limited(limit, 9.0, admitted=8)
    assert [(c.reason, c.recovered) for c in succeed(limit, 12.0, 9)] == [("increase", ()), ("increase", ("full",))]


def test_RA_14_a_lowered_maximum_ends_the_episode_at_the_next_success() -> None:
    limit = AimdLimit(Aimd(), 8)
    limited(limit, 0.0)
    limit.set_max(6, 1.0)
    assert succeed(limit, 1.0) == [], "still cooling"
    assert succeed(limit, 3.0, 3) == [LimitChange(6, 6, "recovered", ("full",))]


def test_RA_2_lowered_cap_lowers_at_once_and_a_raised_one_changes_nothing_after_a_429() -> None:
    limit = AimdLimit(Aimd(), 8)
    seen = []
    for cap in (4, 16):
        limit.set_max(cap, 0.0)
        seen.append(limit.limit)
    succeed(limit, 0.0, 3)
    limit.set_max(32, 0.0)
    seen.append(limit.limit)
    limited(limit, 0.0, admitted=99)
    limit.set_max(64, 0.0)
    assert [*seen, limit.limit] == [4, 16, 32, 32]


def test_RA_2_an_explicit_initial_limit_is_clamped_at_first_use() -> None:
    limit = AimdLimit(Aimd(initial_limit=100), 64)
    seen = [limit.limit]
    limit.set_max(128, 0.0)
    seen.append(limit.limit)
    limit.first_use(0.0)
    for cap in (256, 50, 256):
        limit.set_max(cap, 0.0)
        seen.append(limit.limit)
    assert seen == [64, 100, 100, 50, 50]


def test_RA_3_start_up_ramp() -> None:
    limit = AimdLimit(Aimd(startup_ramp_s=10.0), 21)
    assert [limit.limit_at(t) for t in (0.0, 50.0)] == [1, 1], "reading starts nothing"
    limit.first_use(100.0)
    assert [limit.limit_at(t) for t in (100.0, 100.4, 100.5, 105.0, 109.99, 110.0, 500.0)] == [1, 1, 2, 11, 20, 21, 21]
    assert [limit.next_step(t) for t in (100.0, 104.9, 110.0)] == [100.5, 105.0, None]
    succeed(limit, 101.0, 30)
    assert limit.streak == 0
    succeed(limit, 110.0, 3)
    assert limit.streak == 3


def test_RA_3_a_429_ends_the_ramp_and_cuts_the_limit_in_force() -> None:
    limit = AimdLimit(Aimd(startup_ramp_s=10.0), 21)
    limit.first_use(0.0)
    change = limited(limit, 5.0, admitted=11)
    assert change == LimitChange(11, 8, "decrease") and limit.ceiling == 11
    assert (limit.limit_at(5.0), limit.limit_at(50.0), limit.next_step(6.0)) == (8, 8, None)


@pytest.mark.parametrize("kind", ["provider_failure", "provider_timeout", "unexpected_exception", "local_cancelled", "local_timeout"])
def test_RA_3_other_outcomes_change_nothing(kind: str) -> None:
    limit = AimdLimit(Aimd(), 8)
    limited(limit, 0.0)
    succeed(limit, 3.0, 7)
    before = (limit.limit, limit.streak, limit.consecutive_rate_limits, limit.blocked_until, limit.rtt_s)
    assert limit.on_sample(Sample(kind, 0.5, 1, 6, 1), 4.0) is None
    assert (limit.limit, limit.streak, limit.consecutive_rate_limits, limit.blocked_until, limit.rtt_s) == before


def test_RA_15_cool_down_scales_with_the_mean_rtt() -> None:
    limit = AimdLimit(Aimd(cooldown_scale=0.5), 8)
    limited(limit, 0.0)
    assert limit.blocked_until == 2.0, "unknown rtt: the full pause"
    succeed(limit, 10.0, rtt_s=1.0)
    succeed(limit, 10.0, rtt_s=2.0)
    assert limit.rtt_s == pytest.approx(1.1)
    limited(limit, 10.0)
    assert limit.blocked_until == pytest.approx(10.55)
    succeed(limit, 20.0, 200, rtt_s=0.001)
    limited(limit, 20.0)
    assert limit.blocked_until == pytest.approx(20.05)
    succeed(limit, 30.0, 200, rtt_s=60.0)
    limited(limit, 30.0)
    assert limit.blocked_until == 32.0


def test_RA_16_starved_is_seen_and_cleared_by_a_credited_success() -> None:
    limit = AimdLimit(Aimd(), 1)
    seen = []
    for n in range(5):
        limited(limit, float(n))
        seen.append(limit.starved)
    succeed(limit, 4.5)
    seen.append(limit.starved)
    succeed(limit, 6.0)
    assert [*seen, limit.starved] == [False, False, False, False, True, True, False]


def test_RA_16_pace_doubles_the_pause_up_to_a_minute() -> None:
    limit, now, pauses = AimdLimit(Aimd(on_starved="pace"), 1), 0.0, []
    for _ in range(2000):
        limited(limit, now)
        pauses.append(limit.blocked_until - now)
        now = limit.blocked_until
    assert pauses[:11] == [2, 2, 2, 2, 2, 4, 8, 16, 32, 60, 60] and pauses[-1] == 60.0
    succeed(limit, now)
    limited(limit, now)
    assert limit.blocked_until - now == 2.0


@pytest.mark.parametrize("bad", [
    {"initial_limit": 0}, {"initial_limit": True}, {"cooldown_s": 0.0}, {"decrease_factor": 1.0}, {"decrease_factor": 0.0},
    {"increase_step": 0}, {"successes_until_increase": 2.5}, {"startup_ramp_s": -1.0}, {"cooldown_scale": float("nan")},
    {"cooldown_min_s": float("inf")}, {"burst_rule": "never"}, {"on_starved": "cry"},
])
def test_GN_4_bad_values_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigValueError, match=next(iter(bad))):
        Aimd(**bad)  # type: ignore[arg-type]


def test_fixed_and_no_limit_are_constants() -> None:
    fixed, free = Fixed(3).build(BuildContext())(8), Unlimited().build(BuildContext())(8)
    for limit in (fixed, free):
        limit.set_max(1, 0.0)
        assert limit.on_sample(Sample("rate_limited", None, 1, 1, 0), 0.0) is None
    assert (fixed.limit, isinstance(free, NoLimit), fixed.blocked_until) == (3, True, float("-inf"))
    with pytest.raises(ConfigValueError, match="limit"):
        Fixed(0)


def test_INV_7_a_ramp_whose_end_would_not_help_names_no_wake() -> None:
    """Two in flight from when six were allowed; the cap went down to two and up to three, the limit stays two."""
    a = RequestAdmission(Aimd(initial_limit=6, startup_ramp_s=5.0).build(BuildContext()))
    a.register("r", 6, 0.0)
    assert isinstance(a.try_acquire("r", 0.0), RequestLease) and a.next_open("r", 0.0) == 1.0
    assert isinstance(a.try_acquire("r", 1.0), RequestLease)
    a.set_cap("r", 2, 1.0)
    a.set_cap("r", 3, 1.0)
    assert (a.snapshot("r", 5.0).limit, a.next_open("r", 1.0)) == (2, None)
