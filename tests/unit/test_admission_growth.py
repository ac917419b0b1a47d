"""What waiting costs does not grow with the number of those who wait."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "sims" / "bench"))

from admission import enqueue_and_cancel, expiry, lease_cycle, one_grant, unit_s


def test_PF_3_a_lease_and_its_release_cost_a_few_heap_pairs() -> None:
    unit = unit_s(5000)
    assert lease_cycle(4000) <= 15 * unit


def test_PF_3_a_grant_costs_the_same_with_a_thousand_waiting() -> None:
    assert one_grant(1000, 1500) <= 30 * unit_s(5000)
    assert one_grant(4000, 1000) <= 2.5 * one_grant(16, 1000)


def test_PF_3_enqueue_cancel_and_expiry_grow_with_the_logarithm() -> None:
    assert enqueue_and_cancel(8000, 1000) <= 3 * enqueue_and_cancel(64, 1000)
    assert expiry(8000) <= 5 * expiry(250)
