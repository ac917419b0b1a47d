"""The rate planner: sizing, grid, holds, pending replicas, losses."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from windtunnel.effects import Note, ScaleTo, WakeAt
from windtunnel.errors import ConfigError, PlannerConfigError
from windtunnel.events import Arrived, Finished, ReplicaBooting, ReplicaGone, ReplicaReady, Request, ScaleAnswered, Woke
from windtunnel.policy.param import BuildContext, PoolFacts
from windtunnel.policy.planning.rate import RateBased, RatePlanner


class Service:
    """A pool that does what it is told, and arrivals at a rate; `plans` are (time, target)."""

    def __init__(self, ready: int = 2, *, boot_s: float | None = 35.0, wants: frozenset[str] = frozenset(), facts: PoolFacts | None = None,
                 others: tuple[PoolFacts, ...] = (), **config: object) -> None:
        settings = RatePlanner(pool="chat", **{"window_s": 10.0, "capacity_rps": 1.0, "down_stable_s": 30.0, **config})  # type: ignore[arg-type]
        self.planner: RateBased = settings.build(BuildContext(pools=(facts or PoolFacts("chat", model="m"), *others), wants=wants))
        self.boot_s, self.n, self.now, self.made = boot_s, 0, 0.0, 0
        self.ready: list[str] = []
        self.booting: list[tuple[float, str]] = []
        self.plans: list[tuple[float, int]] = []
        self.notes: list[Note] = []
        began = self.planner.start(0.0)
        self.wakes = [e.at for e in began if isinstance(e, WakeAt)]
        self.began = [e for e in began if isinstance(e, Note)]
        for _ in range(ready):
            self.join()

    def tell(self, event: object) -> None:
        effects = self.planner.handle(event, self.now)  # type: ignore[arg-type]
        assert sum(type(e) is WakeAt for e in effects) <= 1
        for effect in effects:
            if isinstance(effect, ScaleTo):
                ((pool, target),) = effect.targets
                assert pool == "chat" and effect.plan_id == len(self.plans) + 1
                self.plans.append((self.now, target))
                self.carry_out(target)
            elif isinstance(effect, WakeAt):
                assert effect.key == "planner"
                self.wakes.append(effect.at)
            elif isinstance(effect, Note):
                self.notes.append(effect)

    def carry_out(self, target: int) -> None:
        if self.boot_s is None:
            return
        while len(self.ready) + len(self.booting) < target:
            self.made += 1
            self.booting.append((self.now + self.boot_s, f"chat-{self.made}"))
            self.tell(ReplicaBooting(f"chat-{self.made}", "chat"))
        while len(self.ready) + len(self.booting) > target:
            self.lose(self.booting.pop()[1] if self.booting else self.ready[-1], "scaled_down")

    def join(self, boot_s: float | None = None, name: str | None = None) -> None:
        if name is None:
            self.made += 1
            name = f"chat-{self.made}"
        self.ready.append(name)
        self.tell(ReplicaReady(name, "chat", boot_s=boot_s))

    def lose(self, name: str, reason: str = "crash") -> None:
        if name in self.ready:
            self.ready.remove(name)
        self.tell(ReplicaGone(name, reason))

    def arrive(self, **more: str) -> None:
        self.n += 1
        self.tell(Arrived(Request(f"r{self.n}", "t", more.pop("model", "m"), 0, self.now, 100, 50, **more)))  # type: ignore[arg-type]

    def run(self, until: float, rate: float = 0.0, on_arrival: Callable[[], None] | None = None) -> str:
        """Arrivals `rate` a second, boots and ticks in order of time; returns the last tick's reason."""
        start, sent = self.now, 0
        while True:
            arrival = start + (sent + 0.5) / rate if rate else float("inf")
            boot = self.booting[0][0] if self.booting else float("inf")
            wake = self.wakes[-1]
            assert wake is not None
            at = min(arrival, boot, wake)
            if at > until:
                self.now = until
                return str(self.planner.view()["reason"])
            self.now = at
            if at == boot:
                self.join(self.boot_s, self.booting.pop(0)[1])
            elif at == wake:
                self.tell(Woke("planner"))
            else:
                sent += 1
                (on_arrival or self.arrive)()


def test_PL_605_demand_scales_up_and_floor_holds() -> None:
    service = Service(2)
    assert service.run(10.0, 4.0) == "scale_up"
    assert service.plans == [(10.0, 5)]
    idle = Service(1, min_replicas=1)
    assert idle.run(200.0) == "no_change"
    assert idle.plans == []


def test_PL_704_pending_scale_up_is_neither_repeated_nor_cancelled() -> None:
    service = Service(2, boot_s=60.0, down_stable_s=0.0)
    service.run(30.0, 4.0)
    assert service.plans == [(10.0, 5)]  # 3 are booting: not asked for again
    service.planner.waiting = lambda: 60  # the queue of those who wait for them adds rate, but does not run away
    service.run(60.0, 4.0)
    assert [n for _, n in service.plans[1:]] == [7]
    service.planner.waiting = lambda: 0
    assert service.run(71.0, 3.0) == "startup_cancel_wait"  # one tick that wants fewer cancels nothing
    service.run(81.0, 5.6)
    assert [n for _, n in service.plans] == [5, 7]


def test_PL_704_two_ticks_that_want_fewer_cancel_a_startup() -> None:
    service = Service(2, boot_s=600.0, down_stable_s=0.0)
    service.run(10.0, 4.0)
    service.run(20.0, 1.0)
    assert service.planner.view()["reason"] == "startup_cancel_wait"
    service.run(30.0, 1.0)
    assert service.planner.view()["reason"] == "startup_cancelled"
    assert service.plans == [(10.0, 5), (30.0, 2)]
    assert service.booting == []


def test_zero_demand_goes_to_min_replicas_only_after_down_stable_s() -> None:
    service = Service(5, boot_s=0.0)
    service.run(40.0, 4.0)
    assert service.plans == []
    assert service.run(70.0) == "stabilisation_window"
    service.run(80.0)
    assert service.plans == [(80.0, 1)]  # the window of arrivals is empty from 50.0 on, and has been for 30 s
    assert len(service.ready) == 1


def test_a_dip_shorter_than_down_stable_s_takes_nothing_away() -> None:
    service = Service(5, boot_s=0.0)
    for _ in range(5):
        service.run(service.now + 20.0, 4.0)
        service.run(service.now + 20.0, 0.5)
    assert service.plans == []


def test_down_only_as_far_as_would_have_been_enough() -> None:
    service = Service(8, boot_s=0.0)
    service.run(20.0, 6.4)
    service.run(30.0, 3.2)
    service.run(70.0, 1.6)
    assert service.plans == [(60.0, 4), (70.0, 2)]


def test_max_step_and_ceiling() -> None:
    service = Service(2, boot_s=0.0, max_step=3, max_replicas=7)
    service.run(40.0, 20.0)
    assert service.plans == [(10.0, 5), (20.0, 7)]
    assert service.planner.view()["reason"] == "max_replicas"
    facts = Service(2, boot_s=0.0, facts=PoolFacts("chat", model="m", max_replicas=3))
    facts.run(20.0, 20.0)
    assert facts.plans == [(10.0, 3)]


def test_PL_304_late_wakes_keep_the_grid() -> None:
    service = Service(2)
    assert service.wakes == [10.0]
    service.now = 37.2
    service.tell(Woke("planner"))
    view = service.planner.view()
    assert (service.wakes[-1], view["tick_at_s"], view["tick"], view["missed"]) == (40.0, 30.0, 1, 2)
    service.now = 38.0
    service.tell(Woke("planner"))  # a second one before the next grid time only asks again
    assert (service.wakes[-1], service.planner.view()["tick"]) == (40.0, 1)
    service.tell(Woke("requests"))
    assert len(service.wakes) == 3


def test_PL_304_demand_is_that_of_the_grid_however_late_the_wake() -> None:
    rates = []
    for late in (0.0, 3.9):
        service = Service(2, window_s=20.0)
        for i in range(300):
            service.now = i * 0.1
            service.arrive()
        service.now = 30.0 + late
        service.tell(Woke("planner"))
        rates.append(service.planner.view()["rate_rps"])
    assert rates[0] == rates[1] == 10.0


def finishing(service: Service, waiting: int, per_s: float, until: float) -> None:
    """Completions spread over the ready replicas while `waiting` requests wait."""
    service.planner.waiting = lambda: waiting
    start, i = service.now, 0
    while start + (i + 1) / per_s <= until:
        i += 1
        service.now = start + i / per_s
        service.tell(Finished(f"f{service.now}", 1, service.ready[i % len(service.ready)], 10))
    service.now = until


def test_unknown_capacity_is_measured_only_while_work_waits() -> None:
    service = Service(2, capacity_rps=None)
    finishing(service, 0, 8.0, 9.5)
    assert service.run(10.0) == "model_not_ready"
    finishing(service, 5, 3.0, 19.9)
    service.run(20.0)
    assert service.planner.view()["capacity_rps"] == pytest.approx(1.5, rel=0.1)
    assert service.plans == []
    assert service.planner.view()["reason"] != "model_not_ready"


def test_unknown_capacity_gives_no_plan_but_the_floor() -> None:
    assert Service(9, capacity_rps=None).run(300.0, 5.0) == "model_not_ready"
    service = Service(9, capacity_rps=None)
    service.run(300.0, 5.0)
    assert service.plans == []
    floor = Service(1, capacity_rps=None, min_replicas=3, boot_s=0.0)
    floor.run(50.0, 5.0)
    assert floor.plans == [(10.0, 3)]


def test_measured_capacity_does_not_depend_on_late_wakes() -> None:
    service = Service(2, capacity_rps=None)
    finishing(service, 5, 2.0, 47.0)
    service.tell(Woke("planner"))
    assert service.planner.view()["capacity_rps"] == pytest.approx(1.0, rel=0.05)


def test_no_replica_was_ever_heard_of() -> None:
    service = Service(0)
    assert service.run(10.0, 1.0) == "count_unknown"
    assert service.plans == []


def test_PL_703_a_lost_replica_is_ordered_again() -> None:
    service = Service(5, boot_s=20.0)
    service.run(20.0, 4.0)
    service.lose("chat-2")
    service.run(60.0, 4.0)
    assert service.plans == [(30.0, 5)]
    planned = Service(5, boot_s=20.0)
    planned.run(10.0, 5.6)
    assert planned.plans == [(10.0, 7)]
    planned.lose("chat-1")  # while two are booting
    planned.run(40.0, 5.6)
    assert planned.plans == [(10.0, 7), (20.0, 7)]


def test_PL_705_replicas_that_never_come_do_not_freeze_the_planner() -> None:
    service = Service(5, boot_s=1e6)
    service.run(10.0, 8.0)
    assert service.plans == [(10.0, 10)]
    service.booting.clear()
    assert service.run(620.0, 8.0) == "scale_up_stuck"
    service.run(900.0, 8.0)
    assert len(service.plans) == 1
    service.run(930.0, 8.0)
    assert service.plans[1:] == [(910.0, 10)]


def test_refused_plans_are_not_repeated_at_every_tick() -> None:
    service = Service(2, boot_s=None)
    service.run(10.0, 4.0)
    service.tell(ScaleAnswered(1, "refused", "no_connector"))
    assert service.run(60.0, 4.0) == "refused"
    service.run(70.0, 6.0)
    assert service.plans == [(10.0, 5), (70.0, 8)]
    service.tell(ScaleAnswered(2, "refused", "no_connector"))
    service.run(400.0, 6.0)
    assert service.plans == [(10.0, 5), (70.0, 8), (370.0, 8)]


def test_PL_706_to_zero_when_long_idle_and_back_at_an_arrival() -> None:
    service = Service(2, boot_s=15.0, min_replicas=0)
    service.run(20.0, 1.0)
    service.run(310.0)
    assert service.plans[-1][1] == 1
    service.run(330.0)
    assert service.plans[-1] == (320.0, 0)
    service.now = 333.0
    service.arrive()
    service.arrive()
    assert service.plans[-2:] == [(320.0, 0), (333.0, 1)]
    empty = Service(0, min_replicas=0, facts=PoolFacts("chat", model="m", replicas=0))
    empty.arrive()
    assert empty.plans == [(0.0, 1)]


def test_only_this_pools_demand_counts() -> None:
    other = PoolFacts("code", model="coder")
    service = Service(2, others=(other,))
    service.run(5.0, 4.0, lambda: service.arrive(model="coder"))
    service.run(7.5, 4.0, lambda: service.arrive(model="m", pool="code"))
    service.run(10.0, 4.0)
    assert service.planner.view()["rate_rps"] == pytest.approx(1.0)


def test_notes_only_if_they_are_recorded() -> None:
    quiet, loud = Service(2), Service(2, wants=frozenset({"planner"}))
    quiet.run(30.0, 4.0)
    loud.run(30.0, 4.0)
    assert quiet.notes == quiet.began == []
    [settings] = loud.began
    assert settings.kind == "settings" and settings.data["settings"]["pool"] == "chat" and settings.data["settings"]["capacity_rps"] == 1.0
    assert [(n.kind, n.stream, n.reason) for n in loud.notes] == [("plan", "planner", "scale_up"), *[("plan", "planner", "no_change")] * 2]
    assert all(n.reason for n in loud.notes)


def test_same_events_same_effects() -> None:
    def flight() -> tuple[object, ...]:
        service = Service(2, wants=frozenset({"planner"}))
        service.run(60.0, 4.0)
        service.lose("chat-1")
        service.run(200.0, 0.5)
        return service.plans, service.notes, service.wakes

    assert flight() == flight()


@pytest.mark.parametrize("config", [
    {"interval_s": 0.0}, {"window_s": 5.0}, {"target_utilisation": 1.5}, {"capacity_rps": float("nan")}, {"min_replicas": -1},
    {"max_replicas": 1, "min_replicas": 2}, {"max_step": 0}, {"down_stable_s": -1.0}, {"zero_idle_s": float("inf")},
])
def test_bad_settings(config: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        RatePlanner(**config)  # type: ignore[arg-type]


def test_the_pool_must_be_one() -> None:
    two = BuildContext(pools=(PoolFacts("a"), PoolFacts("b")))
    for settings in (RatePlanner(), RatePlanner(pool="c")):
        with pytest.raises(PlannerConfigError, match="a, b"):
            settings.build(two)
    assert RatePlanner(pool="b").build(two).pool.name == "b"
