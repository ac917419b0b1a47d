"""Adaptive limits against closed forms: fairness of AIMD, fixed points, the drift trap, the square root law of random loss."""

from __future__ import annotations

import math
from random import Random

import pytest

from windtunnel.lab.fairness import jain
from windtunnel.lab.validation.oracles.limits import INDICES, START, AiadFlow, AimdFlow, MimdFlow, indices, settle
from windtunnel.policy.admission.aimd_netflix import AimdNetflix, AimdNetflixLimit
from windtunnel.policy.admission.envoy_gradient import EnvoyGradient, EnvoyGradientLimit
from windtunnel.policy.admission.gradient2 import Gradient2, Gradient2Limit
from windtunnel.policy.admission.limit import Sample
from windtunnel.policy.admission.vegas import Vegas, VegasLimit


def test_OR_1_two_flows_that_share_a_capacity_become_equal_under_aimd() -> None:
    assert indices([AimdFlow(x) for x in START]) == pytest.approx(INDICES, abs=1e-3)


def test_OR_1_the_gap_of_two_aimd_flows_is_halved_by_each_cut() -> None:
    flows, gaps = [AimdFlow(x) for x in START], []
    for _ in range(6):
        gaps.append(flows[1].size() - flows[0].size())
        indices(flows, 1)
    assert gaps == pytest.approx([18 * 0.5**k for k in range(6)], abs=1e-3)


def test_OR_1_multiplicative_increase_and_additive_decrease_never_become_equal() -> None:
    """The comparison: MIMD keeps the ratio, AIAD keeps the gap, so neither is fair ever after; at the trough of AIAD it is least so."""
    assert indices([MimdFlow(x) for x in START], 20) == pytest.approx([0.5525] * 20, abs=1e-4)
    flows = [AiadFlow(x) for x in START]
    assert indices(flows, 20) == pytest.approx([0.5525] * 20, abs=1e-3)
    for flow in flows:
        flow.cut()
    assert flows[1].size() - flows[0].size() == pytest.approx(18.0) and jain([f.size() for f in flows]) == pytest.approx(0.2358, abs=1e-3)


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
