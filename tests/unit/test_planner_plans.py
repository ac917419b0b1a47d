"""What becomes of a plan: baselines, boots that hang, zero, victims, refusals, losses."""

from __future__ import annotations

from planner_world import Says, World, base, says

from windtunnel.events import PoolsObserved, ReplicaGone, ReplicaReady
from windtunnel.policy.planning.contract import PoolState
from windtunnel.policy.planning.pool_states import Pool, PoolFrame
from windtunnel.policy.planning.rollout import Rollout
from windtunnel.policy.planning.settings_blocks import BudgetSettings, PoolSettings, ScalerSettings


def test_PL_703_baseline_is_the_accepted_target():
    plugin = Says(says("agg=6"))
    world = World(plugin, boot_s=None)
    world.run(5.0)
    assert world.plans == [(5.0, {"agg": 6}, "applied")] and world.row["plan_reasons"] == ["applied"]
    plugin.response = says("agg>5")
    world.run(20.0)
    assert len(world.plans) == 1 and world.row["plan_reasons"] == ["unchanged"] and world.row["baseline"] == 6
    state = plugin.requests[-1].ctx.observations.workers.pools["agg"]
    assert state == PoolState(3, 6, 3, 0, True, 60.0)


def test_PL_703_boot_time_is_measured():
    world = World(Says(says("agg=6")), boot_s=10.0)
    world.run(20.0)
    assert world.planner.pools["agg"].state() == PoolState(6, 6, 0, 0, False, 10.0)


def test_PL_703_nothing_known_is_no_plan():
    world = World(Says(says("agg>2")), ready=0)
    world.run(10.0)
    assert world.plans == [] and "count_unknown" in world.row["plan_reasons"] and world.row["baseline"] is None


def test_PL_704_pending_replicas_are_cancelled_only_if_two_ticks_want_it():
    plugin = Says(says("agg=6"))
    world = World(plugin, boot_s=None)
    world.run(5.0)
    plugin.response = says("agg=4")
    world.run(10.0)
    assert len(world.plans) == 1 and world.row["plan_reasons"] == ["startup_cancel_wait"]
    world.run(15.0)
    assert world.plans[-1][:2] == (15.0, {"agg": 4}) and "startup_cancelled" in world.row["plan_reasons"]
    assert {d.replica for d in world.drains} == {"r5", "r6"}  # the newest that do not serve yet


def test_PL_705_stuck_holds_ups_but_not_downs():
    plugin = Says(says("agg=6"))
    world = World(plugin, boot_s=None, settings=base(scaler=ScalerSettings(scale_up_timeout_s=60.0, stuck_retry_s=100.0)))
    world.run(65.0)
    assert "scale_up_stuck" in world.kinds() and world.row["plan_reasons"] == ["scale_up_stuck"] and world.row["baseline"] == 3
    plugin.response = says("agg=2")
    world.run(75.0)
    assert world.plans[-1][1] == {"agg": 2}
    plugin.response = says("agg=6")
    world.run(160.0)
    assert world.plans[-1][1] == {"agg": 2}
    world.run(170.0)
    assert world.plans[-1][1] == {"agg": 6}


def test_PL_705_progress_ends_being_stuck():
    world = World(Says(says("agg=6")), boot_s=None, settings=base(scaler=ScalerSettings(scale_up_timeout_s=60.0, stuck_retry_s=1000.0)))
    world.run(66.0)
    world.tell(ReplicaReady("r4", "agg"))
    world.run(75.0)
    assert world.plans[-1][1] == {"agg": 6} and world.plans[-1][0] == 70.0


def test_PL_706_from_zero_at_the_first_arrival_and_to_zero_when_idle():
    settings = base(pools={"agg": PoolSettings(min_replicas=0)}, scaler=ScalerSettings(scale_to_zero_idle_s=50.0))
    plugin = Says(says("agg=0"))
    world = World(plugin, ready=1, settings=settings)
    world.run(3.0)
    world.arrive()
    world.run(50.0)
    assert world.plans == [] and world.row["plan_reasons"] == ["cooldown"]
    world.run(56.0)
    assert world.plans == [(55.0, {"agg": 0}, "applied")]
    world.arrive()
    world.arrive()
    assert world.plans[1:] == [(56.0, {"agg": 1}, "activated_from_zero")]


def test_PL_706_zero_waits_for_the_queue():
    settings = base(pools={"agg": PoolSettings(min_replicas=0)}, scaler=ScalerSettings(scale_to_zero_idle_s=0.0))
    world = World(Says(says("agg=0")), ready=1, settings=settings)
    world.planner.waiting = lambda: 1
    world.run(10.0)
    assert world.plans == []
    world.planner.waiting = lambda: 0
    world.run(15.0)
    assert world.plans[-1][1] == {"agg": 0}


def test_PL_707_opposing_moves_free_gpus_first():
    settings = base(mode="disagg", pools={"prefill": PoolSettings(), "decode": PoolSettings()}, budget=BudgetSettings(max_gpus=8))
    world = World(Says(says("prefill=3 decode=5")), ready=4, settings=settings)
    world.run(5.0)
    assert [d.replica for d in world.drains] == ["r4"]
    assert [p for _, p, _ in world.plans] == [{"prefill": 3}, {"decode": 5}]
    world.run(30.0)
    assert [len(names) for names in world.names.values()] == [3, 5] and len(world.plans) == 2


def test_PL_708_victims_are_the_least_busy():
    plugin = Says(says("agg=1"))
    world = World(plugin)
    world.planner.in_flight = {"r1": 1, "r2": 5, "r3": 1}.get
    world.run(5.0)
    assert [(d.replica, d.deadline_at) for d in world.drains] == [("r3", 125.0), ("r1", 125.0)]


def test_replica_lost_is_ordered_again():
    plugin = Says()
    world = World(plugin)
    plugin.response = says("agg=4")
    world.run(20.0)
    world.names["agg"].remove("r1")
    world.tell(ReplicaGone("r1", "crash"))
    world.run(25.0)
    assert world.plans[-1][1] == {"agg": 4} and "replica_lost" in world.kinds() and len(world.names["agg"]) == 4


def test_PL_709_unknown_outcome_waits_for_an_observation():
    world = World(Says(says("agg=6")), status="failed")
    world.run(20.0)
    assert len(world.plans) == 1 and "scaler_unknown" in world.row["plan_reasons"] and world.row["planned"] == 3
    world.tell(PoolsObserved({"agg": {"ready": 3, "starting": 0, "draining": 0, "expected": 3}}))
    world.run(25.0)
    assert len(world.plans) == 2


def test_a_plan_that_is_never_answered_does_not_freeze_the_planner():
    world = World(Says(says("agg=6")), status="")
    world.run(500.0)
    assert len(world.plans) >= 2


def test_refused_plans_leave_the_ready_count():
    world = World(Says(says("agg=6")), status="refused")
    world.run(10.0)
    assert world.row["baseline"] == 3 and len(world.plans) == 2


def test_manual_edit_is_adopted():
    world = World(Says())
    world.tell(PoolsObserved({"agg": {"expected": 3, "ready": 3}, "other": {}}))
    world.run(5.0)
    world.tell(PoolsObserved({"agg": {"expected": 7, "ready": 3}}))
    world.run(10.0)
    assert world.row["baseline"] == 7 and world.kinds().count("manual_edit_seen") == 1 and world.plans == []


def test_PL_705_a_backlog_that_orders_more_every_tick_does_not_hide_a_stuck_scale_up() -> None:
    pool = Pool(PoolFrame("agg", "chat", boot_s=10.0, expected=2), 100.0)
    for replica in ("a", "b"):
        pool.serves(replica, None, 0.0)
    for at in range(10, 120, 10):
        pool.ordered(3 + at // 10, float(at))
        assert pool.stuck(float(at), 300.0) == (at == 110)
    assert pool.expected == 2 and pool.stuck_until == 410.0


def test_PL_707_a_loss_under_an_unfinished_plan_is_the_next_plans_to_replace() -> None:
    pools = {"prefill": Pool(PoolFrame("prefill", "prefill", gpus=2)), "decode": Pool(PoolFrame("decode", "decode"))}
    for n in range(3):
        pools["decode"].serves(f"d{n}", None, 0.0)
    rollout = Rollout(pools, max_gpus=8)
    rollout.submit({"decode": 0}, "d", "r", 0.0)
    rollout.answered(1)
    [order] = rollout.submit({"prefill": 3}, "d", "r", 0.0)
    assert order.targets == (("prefill", 2),)  # three GPUs still drain
    rollout.answered(order.plan_id)
    for name in ("p0", "p1"):
        pools["prefill"].booting(name, 0.0)
    assert pools["prefill"].gone("p0") and pools["prefill"].expected == 2
    for n in range(3):
        pools["decode"].gone(f"d{n}")
    [order] = rollout.step(1.0)
    assert order.targets == (("prefill", 2),) and not rollout.plan
