"""The routing benchmark holds its bars, twice as wide for a busy machine; what it measures is what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "sims" / "bench"))

import routing


@pytest.mark.parametrize(("row", "cost"), [
    ("least_outstanding", routing.least), ("prefix_affinity, hit", lambda: routing.affinity(True)),
    ("prefix_affinity, miss", lambda: routing.affinity(False)), ("prefix insert at the bound", routing.insert), ("bounded_hash", routing.ring)])
def test_PF_2_to_7_a_decision_is_a_bounded_number_of_steps(row: str, cost) -> None:  # type: ignore[no-untyped-def]
    assert 1.0 < cost() < 2 * routing.BARS[row]


def test_PF_3_sixteen_times_the_replicas_are_far_from_sixteen_times_the_cost() -> None:
    assert routing.least(1024) < 4 * routing.least()
