"""The heavy-root matrix: exact targets on a virtual clock."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "sims" / "bench"))

from heavy_root import NEUTRAL, Result, heavy_root, simulate

from windtunnel.policy.tasks.bounded_borrow import BoundedBorrow
from windtunnel.policy.tasks.strict import Strict

LOWER_BOUND_S = (512 * 0.5 + 256 * 0.05) / 8
STRICT = (33.60, (0.45, 24.807031, 32.65, 33.45, 33.50), (0.45, 26.40), 8, 0)
TICKS = (34.00, (0.45, 6.775195, 6.80, 12.50, 13.15), (0.0, 21.25), 8, 4)
ROWS: dict[str, tuple[Any, bool, tuple[float, float], Any]] = {
    "strict, float": (Strict(), False, (4, 1), STRICT),
    "strict, ticks": (Strict(), True, (4, 1), STRICT),
    "bounded, float": (BoundedBorrow(), False, (4, 1), (34.00, (0.45, 6.693750, 6.70, 12.40, 13.05), (0.0, 21.35), 8, 4)),
    "bounded, ticks": (BoundedBorrow(), True, (4, 1), TICKS),
    "bounded, ticks, 0.4 : 0.1": (BoundedBorrow(), True, (0.4, 0.1), TICKS),
    "bounded, ticks, 1 : 1": (BoundedBorrow(), True, (1, 1), (33.70, (0.45, 2.025, 2.05, 3.45, 3.60), (0.0, 30.50), 8, 4)),
    "bounded, ticks, floor": (BoundedBorrow(strict_share_rounding="floor"), True, (4, 1),
                              (35.50, (0.45, 6.825, 6.85, 12.55, 13.20), (0.0, 22.70), 8, 4)),
    "bounded, ticks, reserve 0.25": (BoundedBorrow(dynamic_borrow_reserve_fraction=0.25), True, (4, 1),
                                     (41.00, (0.0, 5.940820, 5.95, 11.65, 12.30), (0.0, 28.65), 6, 2)),
    "bounded, ticks, ceiling 0": (BoundedBorrow(default_borrow_ceiling=0), True, (4, 1),
                                  (54.55, (0.0, 6.375, 6.40, 12.10, 12.75), (0.0, 41.75), 4, 0)),
}


def assert_row(result: Result, wall_s: float, waits: tuple[float, ...], idle_s: tuple[float, ...], before: int, debt: int) -> None:
    assert result.wall_s == pytest.approx(wall_s, abs=1e-6)
    assert result.waits == pytest.approx(waits, abs=1e-6)
    assert result.idle_s == pytest.approx(idle_s, abs=1e-6)
    assert (result.first_before, result.max_debt) == (before, debt)
    assert (result.open_leases, result.queued) == (0, 0)


@pytest.mark.parametrize("name", ROWS)
def test_BM_3_heavy_root_peer_arrival(name: str) -> None:
    policy, ticks, weights, expected = ROWS[name]
    result = simulate(heavy_root(weights), policy, ticks=ticks)
    assert_row(result, *expected)
    assert result.wall_s >= LOWER_BOUND_S - 1e-9


def test_BM_3_bounded_borrow_cuts_the_peers_p95_by_63_percent_for_1_2_percent_of_wall() -> None:
    strict, bounded = simulate(heavy_root(), Strict()), simulate(heavy_root(), BoundedBorrow())
    assert bounded.waits[3] / strict.waits[3] - 1 == pytest.approx(-0.629, abs=5e-4)
    assert bounded.wall_s / strict.wall_s - 1 == pytest.approx(0.012, abs=5e-4)


@pytest.mark.parametrize("policy", [Strict(), BoundedBorrow()], ids=["strict", "bounded"])
@pytest.mark.parametrize("ticks", [False, True], ids=["float", "ticks"])
def test_BM_3_neutral_ready_at_start(policy: Any, ticks: bool) -> None:
    result = simulate(NEUTRAL, policy, ticks=ticks)
    assert result.wall_s == pytest.approx(6.40, abs=1e-6)
    assert result.waits[1:] == pytest.approx((3.15, 3.20, 6.00, 6.30), abs=1e-6)
    assert result.idle_s == pytest.approx((0.0, 0.0), abs=1e-6)
