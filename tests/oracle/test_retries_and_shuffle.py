"""Retries and shuffle sharding against their closed forms."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from random import Random

import pytest

from windtunnel.effects import Close, Dispatch
from windtunnel.errors import ConfigValueError
from windtunnel.events import Arrived, Failed, Finished, ReplicaReady, Request
from windtunnel.policy.admission.shuffle import chance_covered, hand_of
from windtunnel.policy.presets import default_control
from windtunnel.policy.settings import ControlSettings


@pytest.mark.parametrize(("failing", "expected"), [(0.1, 1.111), (0.5, 1.875), (1.0, 4.0)])
def test_OR_11_mean_attempts_of_three_retries(failing: float, expected: float) -> None:
    control, rng, n = default_control(["x"], settings=ControlSettings(attempts=4)), Random(3), 6000
    for replica in "abcd":
        control.handle(ReplicaReady(replica, "x", slots=8), 0.0)
    attempts, failed = 0, 0
    for i in range(n):
        effects = list(control.handle(Arrived(Request(f"r{i}", "t", "m", 0, float(i), 1, 1)), float(i)))
        while effects:
            effect = effects.pop()
            failed += isinstance(effect, Close)
            if isinstance(effect, Dispatch):
                attempts += 1
                key = (effect.request.id, effect.dispatch, effect.replica)
                fails = rng.random() < failing
                effects.extend(control.handle(Failed(*key, "provider_failure", "boom") if fails else Finished(*key, 1), float(i)))
    assert control.open_count == 0
    assert attempts / n == pytest.approx(expected, rel=0.02)
    assert expected == pytest.approx((1 - failing**4) / (1 - failing) if failing < 1 else 4.0, abs=1e-3)
    assert failed / n == pytest.approx(failing**4, abs=0.012)


@pytest.mark.parametrize(("heavy", "chance"), [(0, 0.0), (1, 2.259e-10), (4, 4.887e-4), (16, 0.35935)])
def test_OR_12_chance_that_heavy_flows_cover_a_light_one(heavy: int, chance: float) -> None:
    assert chance_covered(heavy) == pytest.approx(chance, rel=2e-4)


def test_OR_12_dealt_hands_cover_as_often_as_the_closed_form_says() -> None:
    covered, n = 0, 2000
    for i in range(n):
        held = {q for k in range(16) for q in hand_of(f"heavy-{i}-{k}")}
        covered += held.issuperset(hand_of(f"light-{i}"))
    assert covered / n == pytest.approx(0.35935, abs=0.033)


def test_hands_are_even_and_their_cards_differ() -> None:
    seen = Counter(frozenset(hand_of(f"k{i}", 6, 3)) for i in range(8000))
    assert set(seen) == {frozenset(c) for c in combinations(range(6), 3)}
    assert max(seen.values()) < 1.25 * 400 and min(seen.values()) > 0.75 * 400
    assert hand_of("é\ud800") == hand_of("é\ud800") and sorted(hand_of("x", 4, 4)) == [0, 1, 2, 3]
    for bad in ((0, 1), (4, 5), (4, 0)):
        with pytest.raises(ConfigValueError):
            hand_of("x", *bad)
