"""The scheduling benchmark's rows on few tasks: they run, start everything, and growth is not quadratic."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "sims" / "bench"))

import pytest
import scheduling


def test_PF_1_every_cycle_starts_or_finds_all_at_their_share() -> None:
    took = scheduling.cycles(600, 8)
    assert len(took) == 600 and min(took) > 0


def test_PF_2_blocked_select_and_offers() -> None:
    assert len(scheduling.blocked()) == 50 and len(scheduling.offers(2000)) == 2


def test_PF_6_rows_say_whether_they_pass() -> None:
    assert scheduling.unit_s() > 0
    assert scheduling.Row("a", 3.0, 4.0, 8.0).passed and scheduling.Row("a", 3.0).passed
    assert not scheduling.Row("a", 5.0, 4.0).passed and not scheduling.Row("a", 3.0, 4.0, 8.1).passed


def test_PF_1_sixty_four_times_the_groups_are_far_from_sixty_four_times_the_cost() -> None:
    small, large = scheduling.side_by_side(lambda: scheduling.cycles(1500, 16), lambda: scheduling.cycles(1500, 1024), 1.0, 3)
    assert large < 6 * small


def test_PF_5_an_idle_group_keeps_little_and_a_charge_does_not_see_the_other_clients() -> None:
    assert scheduling.idle_bytes(5_000) <= 200.0
    unit = scheduling.unit_s()
    assert sorted(scheduling.charges(2_000))[1_000] < 40 * unit, "four times its bar: for a loaded machine"


def test_tenants_of_one_request_each_cost_a_bounded_time_and_memory() -> None:
    first, last, kept = scheduling.crowd(20_000)
    assert last < 3 * first and kept < 4096
    offer, take, held = scheduling.waiting_crowd(20_000)
    assert offer > 0 and take > 0 and held < 4096


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_PF_5_a_million_tenants_of_one_request_each() -> None:
    """Time per tenant does not grow, and what stays of a tenant is bounded, also of idle groups."""
    unit = scheduling.unit_s()
    assert [(row.name, row.cost_u) for row in scheduling.tenants(unit, quick=False) if not row.passed] == []
