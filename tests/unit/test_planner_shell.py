"""The planner as a whole: grid, pools by event, asking, holds, plans, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from windtunnel.effects import Ask, Drain, Note, ScaleTo, WakeAt
from windtunnel.errors import PlannerConfigError
from windtunnel.events import (
    Answered,
    Arrived,
    Commanded,
    PoolsObserved,
    ReplicaBooting,
    ReplicaGone,
    ReplicaReady,
    Request,
    ScaleAnswered,
    Woke,
)
from windtunnel.policy.planning.calls import Answer
from windtunnel.policy.planning.contract import Accept, ComponentTarget, Override, OverrideType, PoolState, Reject, Stage, StageResponse
from windtunnel.policy.planning.plugin import Attached, Registration
from windtunnel.policy.planning.pool_states import Pool, PoolFrame
from windtunnel.policy.planning.rollout import Rollout
from windtunnel.policy.planning.settings import PlannerSettings
from windtunnel.policy.planning.settings_blocks import BudgetSettings, LoadSettings, PoolSettings, ScalerSettings, SchedulingSettings
from windtunnel.policy.planning.shell import PipelinePlanner

ACCEPT = StageResponse(Accept())
KINDS = {"=": OverrideType.SET, ">": OverrideType.AT_LEAST, "<": OverrideType.AT_MOST}


def says(text: str) -> StageResponse:
    """ "agg=5 agg>2"."""
    targets = []
    for word in text.split():
        [sign] = [c for c in word if c in KINDS]
        name, n = word.split(sign)
        targets.append(ComponentTarget(name, int(n), KINDS[sign]))
    return StageResponse(Override(tuple(targets)))


class Says:
    """Says the same until told otherwise."""

    def __init__(self, response: Any = ACCEPT) -> None:
        self.response, self.requests = response, []

    def propose(self, request: Any) -> Any:
        self.requests.append(request)
        if isinstance(self.response, Exception):
            raise self.response
        return self.response

    constrain = propose


def base(**changes: Any) -> PlannerSettings:
    made = PlannerSettings(mode="agg", pools={"agg": PoolSettings()}, load=LoadSettings(enabled=False), other_proposers=True,
                           scheduling=SchedulingSettings(scale_interval_s=5.0))
    return replace(made, **changes)


class World:
    """A fleet that answers every plan at once; boots take boot_s, None: never end. stepping by `run(until)`."""

    def __init__(self, plugin: Any, ready: int = 3, *, settings: PlannerSettings | None = None, boot_s: float | None = 10.0,
                 stage: Stage = Stage.PROPOSE, wants: frozenset[str] = frozenset({"planner"}), status: str = "accepted", **reg: Any) -> None:
        self.settings = settings or base()
        self.planner = PipelinePlanner(self.settings, [Attached(Registration("a", stage, **reg), plugin)], wants=wants)
        self.boot_s, self.status, self.now, self.made = boot_s, status, 0.0, 0
        self.names = {pool: [] for pool in self.planner.pools}
        self.boots: list[tuple[float, str, str]] = []
        self.plans: list[tuple[float, dict[str, int], str]] = []
        self.inbox: list[Any] = []
        self.asks: list[Ask] = []
        self.notes: list[Note] = []
        self.wakes: dict[str, float] = {}
        self.drains: list[Drain] = []
        self.take(self.planner.start(0.0))
        for pool in self.names:
            for _ in range(ready):
                self.made += 1
                self.names[pool].append(f"r{self.made}")
                self.tell(ReplicaReady(f"r{self.made}", pool))

    def tell(self, event: Any) -> None:
        """As a driver: what happens while effects are carried out waits its turn."""
        self.inbox.append(event)
        if len(self.inbox) == 1:
            while self.inbox:
                self.take(self.planner.handle(self.inbox[0], self.now))
                self.inbox.pop(0)

    def take(self, effects: Any) -> None:
        for effect in effects:
            match effect:
                case WakeAt():
                    self.wakes[effect.key] = effect.at
                case ScaleTo():
                    self.plans.append((self.now, dict(effect.targets), effect.reason))
                    self.scale(effect)
                case Drain():
                    self.drains.append(effect)
                    self.names[self.pool_of(effect.replica)].remove(effect.replica)
                    self.tell(ReplicaGone(effect.replica, effect.reason))
                case Ask():
                    self.asks.append(effect)
                case Note():
                    self.notes.append(effect)

    def pool_of(self, replica: str) -> str:
        return next(pool for pool, names in self.names.items() if replica in names)

    def scale(self, effect: ScaleTo) -> None:
        if self.status == "accepted":
            for pool, n in effect.targets:
                while len(self.names[pool]) < n:
                    self.made += 1
                    self.names[pool].append(f"r{self.made}")
                    self.boots.append((self.now + (self.boot_s or 1e9), f"r{self.made}", pool))
                    self.tell(ReplicaBooting(f"r{self.made}", pool))
        if self.status:
            self.tell(ScaleAnswered(effect.plan_id, self.status))

    def run(self, until: float) -> None:
        while True:
            times = [(at, 1, key) for key, at in self.wakes.items()] + [(at, 0, name) for at, name, _ in self.boots]
            at, kind, name = min(times)
            if at > until:
                self.now = until
                return
            self.now = at
            if kind:
                del self.wakes[name]
                self.tell(Woke(name))
            else:
                [(boot)] = [b for b in self.boots if b[1] == name]
                self.boots.remove(boot)
                if name in self.names[boot[2]]:
                    self.tell(ReplicaReady(name, boot[2], boot_s=self.boot_s))

    def arrive(self) -> None:
        self.made += 1
        self.tell(Arrived(Request(f"q{self.made}", "t", "m", 0, self.now)))

    def kinds(self) -> list[str]:
        return [n.kind for n in self.notes]

    @property
    def row(self) -> dict[str, Any]:
        return self.planner.view()["components"]["agg"]


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
