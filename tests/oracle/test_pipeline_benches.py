"""Benchmark scenarios of pipelines on a virtual clock: a provider that cools down, one that only says 429, and strict against borrowing."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "sims" / "bench"))

import ab
import cooldown
from cooldown import Result, Setup, simulate

from windtunnel.errors import ConfigValueError
from windtunnel.lab.paired import paired
from windtunnel.policy.tasks.record import TIMELINE
from windtunnel.policy.tasks.strict import Strict

NOTHING = (0, 0, 0, 0)


def numbers(r: Result) -> tuple[float, ...]:
    return tuple(round(x, 6) for x in (r.wall_s, r.b_wall_s, r.b_leases, r.b_gap_s, r.a_held_s, r.refused))


@pytest.mark.parametrize(("setup", "expected"), [
    (Setup(cools_until=20), (4.50, 4.50, 0, 0.0, 0.0, 0)),
    (Setup(), (6.40, 5.00, 120, 0.05, 7.00, 1)),
    (Setup(policy=Strict()), (5.60, 3.35, 183, 0.05, 4.00, 1)),
    (Setup(policy=Strict(), advisory=False), (7.65, 7.50, 4, 0.05, 12.10, 1)),
    (Setup(cools_until=math.inf), (84.00, 5.00, 160, 0.05, 318.00, 86)),
], ids=["nobody cools", "borrowing", "strict", "strict without advice", "429 for ever"])
def test_BM_cross_provider_cool_down_exact_on_the_virtual_clock(setup: Setup, expected: tuple[float, ...]) -> None:
    result = simulate(setup)
    assert numbers(result) == expected
    assert result.left == NOTHING and result.status == "completed" and result.b_done == 200
    assert numbers(simulate(setup)) == expected, "the same again"
    for row in result.timeline:
        times = [row[key] for key in TIMELINE if row.get(key) is not None]
        assert times == sorted(times)


def test_BM_cross_provider_cool_down_b_gets_a_lease_in_every_tick() -> None:
    """A's two places (its share of four) are held by what waits for the cool-down; B's two make two tasks a tick: (4.0 - 1.0) / 0.05 x 2."""
    result = simulate(Setup())
    assert result.b_leases == 120 and result.b_gap_s == cooldown.TICK_S and result.a_done == 40
    lower_s = 4.0 + (40 - 2 * 5) * 0.2 / 4  # what A had not done before 1.0 s, on all four places once B is done
    assert lower_s <= result.wall_s < simulate(Setup(policy=Strict(), advisory=False)).wall_s


def test_TS_10_without_advice_a_strict_stage_gives_all_places_to_the_provider_that_cools() -> None:
    advised, blind = simulate(Setup(policy=Strict())), simulate(Setup(policy=Strict(), advisory=False))
    assert advised.b_wall_s < 0.5 * blind.b_wall_s and advised.b_leases > 40 * blind.b_leases and advised.a_held_s < blind.a_held_s


def test_BM_always_429_is_seen_ends_and_leaves_the_other_endpoint_alone() -> None:
    result = simulate(Setup(cools_until=math.inf))
    assert result.starved and result.status == "completed" and result.left == NOTHING
    assert result.b_done == 200 and result.a_done == 10 and result.refused > 30
    assert result.b_wall_s == simulate(Setup()).b_wall_s, "whether A ever comes back is nothing to B"


SHORT = ("dynamic requests", "generate to judge")


@pytest.mark.parametrize("shape", SHORT)
def test_BM_end_to_end_pairs_are_neutral_and_leave_nothing(shape: str) -> None:
    found, zeros = ab.compare(shape, 5, rows=10)
    assert found.neutral and found.pairs == 5
    assert zeros == {"hidden_scheduler_resource_waiters": 0.0, "ready_idle_gap": 0.0, "left": 0.0, "unequal outputs": 0.0}


@pytest.mark.slow
@pytest.mark.parametrize("shape", ab.SHAPES)
def test_BM_end_to_end_all_shapes(shape: str) -> None:
    found, zeros = ab.compare(shape)
    assert found.neutral and not any(zeros.values())


def test_BM_a_claim_survives_without_the_fastest_and_the_slowest_pair() -> None:
    base = [10.0] * 6
    assert paired(base, [9.0] * 6).claim == "better" and paired(base, [9.0] * 6).change == pytest.approx(-0.1)
    lucky = paired(base, [1.0, 10.0, 10.0, 10.0, 10.0, 10.0])
    assert lucky.change == pytest.approx(-0.15) and lucky.trimmed_change == 0.0 and lucky.claim == "none", "one fast pair is no claim"
    unlucky = paired(base, [30.0, 10.0, 10.0, 10.0, 10.0, 10.0])
    assert not unlucky.neutral and unlucky.claim == "none"
    assert paired(base, [10.4] * 6).neutral and paired(base, [10.4] * 6).claim == "worse"
    assert paired(base, [8.0, 9.0, 12.0, 11.0, 10.5, 10.0]).claim == "none", "signs differ"
    for bad in (([1.0] * 4, [1.0] * 4), ([1.0] * 5, [1.0] * 6), ([1.0] * 5, [1.0] * 4 + [0.0]), ([1.0] * 5, [1.0] * 4 + [math.nan])):
        with pytest.raises(ConfigValueError):
            paired(*bad)
