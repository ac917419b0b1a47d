"""The planner around its pipeline: the grid of ticks, plugins that come and go or do not answer, what it says it did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from planner_world import ACCEPT, Says, World, base, says

from windtunnel.effects import Note
from windtunnel.errors import PlannerConfigError
from windtunnel.events import Answered, Commanded, Woke
from windtunnel.policy.planning.calls import Answer
from windtunnel.policy.planning.contract import Reject, Stage, StageResponse
from windtunnel.policy.planning.plugin import Attached, Registration
from windtunnel.policy.planning.settings_blocks import BudgetSettings, PoolSettings
from windtunnel.policy.planning.shell import PipelinePlanner


def test_PL_304_ticks_belong_to_the_grid_and_are_not_caught_up():
    plugin = Says()
    world = World(plugin)
    world.run(12.0)
    world.now = 31.2  # stalled: 15, 20 and 25 passed
    world.tell(Woke("planner"))
    assert [r.tick_at for r in plugin.requests] == [5, 10, 30] and plugin.requests[-1].now == 31.2
    assert world.planner.missed == 3 and world.wakes["planner"] == 35.0
    world.tell(Woke("planner"))
    assert len(plugin.requests) == 3 and world.kinds().count("tick_missed") == 1


def test_advisory_moves_nothing():
    world = World(Says(says("agg=6")), settings=base(advisory=True))
    world.run(20.0)
    assert world.plans == [] and world.row["plan_reasons"] == ["advisory"] and world.row["planned"] == 6


def test_PL_302_rejection_emits_nothing():
    world = World(Says(StageResponse(Reject("freeze"))))
    world.run(5.0)
    view = world.planner.view()
    assert view["action"] == "skip_short_circuit" and world.row["plan_reasons"] == ["rejected"] and world.plans == []


def test_PL_610_floors_hold_even_when_a_tick_runs_out_of_time():
    world = World(Says(), settings=base(pools={"agg": PoolSettings(min_replicas=5)}), offload=True)
    world.run(5.0)
    assert [a.gather_id for a in world.asks] == [1] and world.wakes["planner.deadline"] == 35.0
    world.run(35.0)
    assert world.planner.view()["action"] == "skip_tick_timeout" and world.plans == [(35.0, {"agg": 5}, "replica_floor")]
    assert {"replica_floor", "tick_timeout"} <= set(world.row["plan_reasons"])


def test_PL_301_answers_resume_the_tick_and_stale_ones_are_dropped():
    world = World(Says(), offload=True)
    world.run(5.0)
    world.tell(Answered(7, (Answer("a", says("agg=9")),)))
    world.now = 6.0
    world.tell(Answered(1, (Answer("a", says("agg=4")),)))
    assert world.plans == [(6.0, {"agg": 4}, "applied")]
    world.tell(Answered(1, (Answer("a", says("agg=9")),)))
    world.tell(Woke("planner.deadline"))
    assert len(world.plans) == 1


def test_PL_301_answers_from_a_log_are_plain_data():
    world = World(Says(), offload=True)
    world.run(5.0)
    world.tell(Answered(1, ({"plugin_id": "a", "stage": {"override": {"targets": [{"component": "agg", "replicas": 4}]}}},)))
    assert world.plans[0][1] == {"agg": 4}


def test_PL_303_ticks_never_overlap():
    world = World(Says(), offload=True)
    world.run(16.0)
    assert len(world.asks) == 1 and world.planner.missed == 2
    world.tell(Answered(1, (Answer("a", ACCEPT),)))
    world.run(20.0)
    assert len(world.asks) == 2 and world.asks[1].calls[0].request.tick_at == 20.0


def test_PL_311_a_replaced_deadline_wake_is_armed_again():
    world = World(Says(), offload=True)
    world.run(5.0)
    world.wakes.pop("planner.deadline")
    world.now = 6.0
    world.tell(Woke("planner.deadline"))
    assert world.wakes["planner.deadline"] == 35.0


def test_PL_406_registration_by_command_eviction_and_unregistration():
    world = World(Says())
    reg = {"plugin_id": "ext", "stage": "constrain", "endpoint": "unix:/tmp/x", "priority": 5}
    world.tell(Commanded("planner.register", {"registration": reg, "subject": "me"}))
    world.tell(Commanded("planner.register", {"registration": reg}))
    assert world.kinds().count("registered") == 2 and "registration_refused" in world.kinds()
    world.run(5.0)
    assert world.asks[-1].calls[0].plugin_id == "ext" and world.asks[-1].calls[0].transport == "unix"
    world.tell(Answered(world.asks[-1].gather_id, (Answer("ext", says("agg<2")),)))
    assert world.plans[-1][1] == {"agg": 2} and world.row["winner"] == "ext" and "merge_ceiling" in world.row["plan_reasons"]
    world.tell(Commanded("planner.heartbeat", {"plugin_id": "ext"}))
    world.run(45.0)  # the tick of 10 waited for it until 40
    assert "ext" not in world.planner.roster and "evicted" in world.kinds()
    world.tell(Commanded("planner.register", {"registration": reg}))
    world.tell(Commanded("planner.unregister", {"plugin_id": "ext"}))
    assert world.kinds()[-1] == "unregistered"


def test_PL_905_reconfigure_between_ticks():
    plugin = Says(says("agg=3"))
    world = World(plugin, execution_interval_s=60.0)
    world.run(5.0)
    world.planner.reconfigure(replace(world.settings, pools={"agg": PoolSettings(min_replicas=4)}), 6.0)
    world.run(10.0)
    assert world.plans[-1][1] == {"agg": 4} and world.planner.generation == 1 and len(plugin.requests) == 1
    with pytest.raises(PlannerConfigError, match=r"planner\.mode"):
        world.planner.reconfigure(base(mode="prefill", pools={"prefill": PoolSettings()}), 11.0)


def test_PL_710_a_plan_of_an_older_generation_is_discarded():
    world = World(Says(), offload=True)
    world.run(5.0)
    world.planner.reconfigure(replace(world.settings, budget=BudgetSettings(max_gpus=4)), 6.0)
    world.tell(Answered(1, (Answer("a", says("agg=4")),)))
    assert world.plans == [] and "plan_superseded" in world.kinds()


def test_PL_403_bad_in_process_registrations_are_refused_at_start():
    for reg in (Registration("a b", Stage.PROPOSE), Registration("a", Stage.PROPOSE, needs=("nope",))):
        with pytest.raises(PlannerConfigError, match=r"planner\.plugins\."):
            PipelinePlanner(base(), [Attached(reg, Says())])


@pytest.mark.parametrize("response", [ACCEPT, says("agg=3"), says("agg>2 agg<9"), StageResponse(Reject("no")), RuntimeError("x"), StageResponse(),
                                      None, says("agg=0"), says("agg=99")])
@pytest.mark.parametrize("status", ["accepted", "refused", "failed", ""])
def test_PL_802_every_hold_has_a_reason(response, status):
    world = World(Says(response), status=status, settings=base(budget=BudgetSettings(max_gpus=5)))
    seen = []
    for k in range(1, 40):
        world.run(5.0 * k)
        row = world.row
        assert row["plan_reasons"], k
        if row["planned"] != row["baseline"]:
            assert "applied" in row["plan_reasons"]
        seen.append(row["planned"])
    assert max(seen) <= 5


def test_PL_702_two_planners_with_the_same_events_are_equal_and_notes_are_optional():
    def flown(wants: frozenset[str]) -> list[Any]:
        world = World(Says(says("agg=6 agg<5")), wants=wants)
        made: list[Any] = []
        take: Callable[[Any], None] = world.take
        world.take = lambda effects: (made.extend(effects), take(effects))  # type: ignore[method-assign]
        world.run(60.0)
        return made

    full = flown(frozenset({"planner"}))
    assert full == flown(frozenset({"planner"})) and [e for e in full if type(e) is not Note] == flown(frozenset())
    assert {n.kind for n in full if type(n) is Note} >= {"tick_started", "pulled", "plugin_called", "plugin_answered", "clamped", "tick_finished",
                                                         "plan_emitted", "plan"}
