"""What the scenarios of the library expect of themselves and of their variants, and the bounds beside them."""

from __future__ import annotations

import pytest

from windtunnel.lab.capacity import perfect_gpu_hours
from windtunnel.lab.expect import check_expectations, expectation_table
from windtunnel.lab.locate import bundled
from windtunnel.lab.scenario import Scenario, variants

STORIES = ("agentic-dag", "burst-diurnal", "cold-start", "disaggregated", "long-poison", "pd-ratio", "prefix-thrash", "retry-storm", "spot-loss",
           "stale-herd", "straggler")
LONG = {("agentic-dag", v) for v in ("tight_bounds", "one_replica", "small_turns", "small_by_session")} | {
    ("prefix-thrash", v) for v in ("turns_2000", "affinity_2000", "turns_4000", "affinity_4000", "synthetic_turns", "synthetic_affinity")}
FLIGHTS = [pytest.param(name, variant, marks=[pytest.mark.slow] if (name, variant) in LONG else [], id=f"{name}-{variant}")
           for name in STORIES for variant, _ in variants(Scenario.load(name))]


@pytest.mark.parametrize(("name", "variant"), FLIGHTS)
def test_SN_1_scenario_shows_what_it_expects(name: str, variant: str) -> None:
    scenario = Scenario.load(name).variant(variant)
    checked = check_expectations(scenario.run(), scenario.expect)
    assert checked and all(c.holds for c in checked), f"{name}@{variant}\n{expectation_table(checked)}"


def test_SN_1_the_phenomenon_and_its_cure_are_told_apart() -> None:
    """Each variant has expectations of its own, and no run of another variant would pass for it unnoticed."""
    for name in STORIES:
        scenario = Scenario.load(name)
        assert all("expect" in changes for changes in scenario.compare.values()), name
        assert len({tuple(one.text for one in s.expect) for _, s in variants(scenario)}) > 1, name


def test_SL_8_a_planner_costs_more_than_the_perfect_fleet_and_less_than_one_for_the_peak() -> None:
    followed = Scenario.load("burst-diurnal").run()
    hours = {v: Scenario.load("burst-diurnal").variant(v).run().summary().values["gpu_hours"] for v in ("for_the_peak",)}
    perfect = perfect_gpu_hours(followed.requests.arrived_s, 4.0, until_s=1800.0)
    assert perfect == pytest.approx(2.5, abs=0.05)
    assert perfect < followed.summary().values["gpu_hours"] < 0.6 * hours["for_the_peak"]


def test_every_scenario_that_expects_something_is_in_the_list() -> None:
    expecting = {name for name, path in bundled().items() if Scenario.load(path).expect and not name.startswith("planner-")}  # those: own file
    assert expecting == set(STORIES)
