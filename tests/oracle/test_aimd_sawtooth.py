"""AIMD against closed forms: the sawtooth of the limit, and the throughput that a server with hard slots gives."""

from __future__ import annotations

from heapq import heappop, heappush

import pytest

from windtunnel.policy.admission.aimd import Aimd, AimdLimit
from windtunnel.policy.admission.denial import Denial
from windtunnel.policy.admission.limit import Sample
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.param import BuildContext


@pytest.mark.parametrize(("capacity", "config", "peak", "trough", "mean", "successes"), [
    (20, Aimd(), 21, 15, 18.0, 150), (50, Aimd(), 51, 38, 44.5, 325), (100, Aimd(), 101, 75, 88.0, 650),
    (50, Aimd(decrease_factor=0.5, successes_until_increase=1), 51, 25, 38.0, 26), (100, Aimd(decrease_factor=0.9), 101, 90, 95.5, 275),
])
def test_OR_2_sawtooth(capacity: int, config: Aimd, peak: int, trough: int, mean: float, successes: int) -> None:
    limit, now = AimdLimit(config, 1000), 0.0
    limit.set_max(capacity, now)
    limit.on_sample(Sample("rate_limited", None, 1, capacity, 0), now)  # from here on it no longer follows its maximum
    limit.set_max(1000, now)
    cycles: list[list[int]] = []
    counted: list[int] = []
    for _ in range(4):
        now += 10.0
        levels, credited = [limit.limit], 0
        while limit.limit <= capacity:
            change = limit.on_sample(Sample("success", None, 1, limit.limit, limit.epoch), now)
            credited += 1
            if change is not None:
                levels.append(limit.limit)
        limit.on_sample(Sample("rate_limited", None, 1, limit.limit, limit.epoch), now)
        cycles.append(levels)
        counted.append(credited)
    for levels, credited in list(zip(cycles, counted))[1:]:
        assert (levels[-1], levels[0], credited) == (peak, trough, successes)
        assert sum(levels) / len(levels) == mean


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


@pytest.mark.parametrize(("slots", "service_s", "cooldown_s", "expected", "fluid"), [
    (20, 1.0, 2.0, 15.4545, 14.0786), (20, 5.0, 2.0, 3.4335, 3.3133), (50, 1.0, 2.0, 37.50, 34.4262), (100, 10.0, 2.0, 8.6926, 8.4593),
    (20, 1.0, 0.5, 17.1667, 16.3855),
    (20, 0.2, 2.0, 44.741, 40.2049), (20, 0.2, 0.1, 85.833, 81.9275),
])
def test_OR_3_throughput_with_cool_down(slots: int, service_s: float, cooldown_s: float, expected: float, fluid: float) -> None:
    got = throughput(slots, service_s, cooldown_s, 16_000 / expected)
    assert got == pytest.approx(expected, rel=0.02)
    assert got >= fluid


@pytest.mark.parametrize(("slots", "service_s", "cooldown_s", "fluid"), [
    (20, 1.0, 2.0, 14.0786), (20, 5.0, 2.0, 3.3133), (50, 1.0, 2.0, 34.4262), (100, 10.0, 2.0, 8.4593), (20, 1.0, 0.5, 16.3855),
    (20, 0.2, 2.0, 40.2049), (20, 0.2, 0.1, 81.9275),
])
def test_OR_3_the_fluid_model_of_the_same_sawtooth(slots: int, service_s: float, cooldown_s: float, fluid: float) -> None:
    levels = range(int(0.75 * (slots + 1)), slots + 1)
    cycle_s = service_s * 25 * sum(1 / level for level in levels) + cooldown_s
    assert 25 * len(levels) / cycle_s == pytest.approx(fluid, abs=1e-4)
