"""Adaptive limits against closed forms: fairness of AIMD, fixed points, the drift trap, the square root law of random loss."""

from __future__ import annotations

import math
from random import Random

import pytest

from windtunnel.policy.admission.aimd import Aimd, AimdLimit
from windtunnel.policy.admission.aimd_netflix import AimdNetflix, AimdNetflixLimit
from windtunnel.policy.admission.envoy_gradient import EnvoyGradient, EnvoyGradientLimit
from windtunnel.policy.admission.gradient2 import Gradient2, Gradient2Limit
from windtunnel.policy.admission.limit import Limit, Sample
from windtunnel.policy.admission.vegas import Vegas, VegasLimit

SCALE = 1024  # limits are whole numbers: a flow of 1 unit is a limit of 1024


def jain(*x: float) -> float:
    return sum(x) ** 2 / (len(x) * sum(v * v for v in x))


def test_OR_1_two_flows_that_share_a_capacity_become_equal_under_aimd() -> None:
    config = Aimd(decrease_factor=0.5, increase_step=8, successes_until_increase=1, cooldown_s=0.01)
    flows, now = [AimdLimit(config, 64 * SCALE) for _ in range(2)], 0.0
    for flow, start in zip(flows, (1, 19)):
        flow.set_max(start * SCALE, now)
        flow.first_use(now)
        flow.on_sample(Sample("rate_limited", None, 1, 0, -1), now)  # it no longer follows its ceiling
        flow.limit = start * SCALE
        flow.set_max(64 * SCALE, now)
    indices, gaps = [], []
    for _ in range(6):
        indices.append(jain(*(f.limit for f in flows)))
        gaps.append((flows[1].limit - flows[0].limit) / SCALE)
        now += 1.0
        for flow in flows:
            flow.on_sample(Sample("rate_limited", None, 1, flow.limit, flow.epoch), now)
        now += 1.0
        while sum(f.limit for f in flows) < 20 * SCALE:
            for flow in flows:
                flow.on_sample(Sample("success", None, 1, flow.limit, flow.epoch), now)
    assert indices == pytest.approx([0.5525, 0.8316, 0.9518, 0.9875, 0.9968, 0.9992], abs=1e-4)
    assert gaps == pytest.approx([18 * 0.5**k for k in range(6)], abs=1e-3)


def test_OR_1_multiplicative_increase_and_additive_decrease_never_become_equal() -> None:
    """The comparison: MIMD keeps the ratio, AIAD keeps the gap, so neither is fair ever after."""
    mimd, aiad = [1.0, 19.0], [1.0, 19.0]
    for _ in range(20):
        mimd = [0.5 * x for x in mimd]
        mimd = [x * 20 / sum(mimd) for x in mimd]
        trough = [x - 5 for x in aiad]
        assert jain(*mimd) == pytest.approx(0.5525, abs=1e-4)
        assert trough[1] - trough[0] == 18 and jain(*trough) == pytest.approx(0.2358, abs=1e-4)
        aiad = [x + 5 for x in trough]


def settle(limit: Limit, c0: float, steps: int) -> float:
    """Feed a server whose latency is max(1, L/C0) until the limit rests; returns the real value."""
    for n in range(steps):
        value = limit.value  # type: ignore[attr-defined]
        limit.on_sample(Sample("success", max(1.0, value / c0), math.ceil(value), 1, limit.epoch), 0.2 * n)
    return float(limit.value)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("c0", "fixed"), [(8, 13.7016), (16, 25.0), (32, 46.8443), (64, 89.4582), (128, 173.1590)])
def test_OR_4_envoy_rests_where_its_headroom_holds_the_gradient(c0: float, fixed: float) -> None:
    limit = EnvoyGradientLimit(EnvoyGradient(min_rtt_interval_s=None), 100_000)
    value = settle(limit, c0, 400)
    assert value == pytest.approx(fixed, abs=1e-3)
    assert 1.35 <= value / c0 <= 1.72, "latency above the base: 1.35 to 1.56 from 16 on"
    if c0 >= 16:
        assert value / c0 < 1.5626


@pytest.mark.parametrize(("c0", "low", "high"), [(8, 11, 14), (16, 19, 22), (32, 35, 38), (64, 67, 70), (128, 134, 140), (256, 262, 268)])
@pytest.mark.parametrize("start", [5, 20, 400])
def test_OR_4_vegas_rests_with_a_queue_of_three_to_six_steps(c0: int, low: int, high: int, start: int) -> None:
    limit = VegasLimit(Vegas(initial_limit=start, probe=False, window=None), 1_000_000)
    limit.rtt0_s = 1.0
    value = settle(limit, c0, 500)
    assert low <= value <= high
    assert settle(limit, c0, 50) == value, "it rests"


@pytest.mark.parametrize(("slowdown", "back_at", "lowest", "full_at"), [(2, 122, 33.806, 300), (3, 208, 20.0, 392), (5, 263, 20.0, 446)])
def test_OR_5_gradient2_takes_a_slowdown_that_lasts_for_normal(slowdown: float, back_at: int, lowest: float, full_at: int) -> None:
    limit = Gradient2Limit(Gradient2(initial_limit=100, window=None), 1_000_000)
    for _ in range(10):
        limit.on_sample(Sample("success", 1.0, 0, 1, 0), 0.0)
    gradients, values = [], []
    for _ in range(500):
        limit.on_sample(Sample("success", float(slowdown), math.ceil(limit.value), 1, 0), 0.0)
        gradients.append(limit.gradient)
        values.append(limit.value)
    assert gradients[0] < 1.0
    assert (next(n for n, g in enumerate(gradients, 1) if g >= 1.0), next(n for n, v in enumerate(values, 1) if v >= 200)) == (back_at, full_at)
    assert min(values) == pytest.approx(lowest, abs=1e-3)


def test_LM_4_vegas_drifts_up_if_it_probes_inside_a_queue_that_never_drains() -> None:
    """The same server, the same start: with probing the base latency is measured in its own queue."""
    ends = {}
    for probe in (False, True):
        limit = VegasLimit(Vegas(initial_limit=20, probe=probe, window=None), 100_000, Random(2))
        limit.rtt0_s = 1.0
        ends[probe] = settle(limit, 32, 20_000)
    assert 35 <= ends[False] <= 38
    assert ends[True] > 2 * ends[False]


@pytest.mark.parametrize(("p", "expected"), [(1e-2, 12.25), (1e-3, 38.73), (1e-4, 122.47)])
def test_OR_6_random_loss_gives_the_square_root_law(p: float, expected: float) -> None:
    """One sample per round trip, dropped if any of its `limit` packets was."""
    rng, total, rounds = Random(1), 0, 60_000
    limit = AimdNetflixLimit(AimdNetflix(initial_limit=20, min_limit=1, max_limit=100_000, backoff_ratio=0.5), 100_000)
    for n in range(rounds):
        total += limit.limit
        dropped = rng.random() < 1.0 - (1.0 - p) ** limit.limit
        limit.on_sample(Sample("rate_limited" if dropped else "success", 0.1, limit.limit, 1, 0), float(n))
    assert total / rounds == pytest.approx(expected, rel=0.05)
    assert expected == pytest.approx(math.sqrt(1.5 / p), abs=0.01)
