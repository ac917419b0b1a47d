"""Lives of replicas: what is asked for, what can be had, what is kept warm, and what it costs."""

from __future__ import annotations

from typing import Any

import pytest

from windtunnel.effects import Drain, Note, ScaleTo
from windtunnel.errors import ConfigError, ConfigInfeasibleError, ConfigValueError
from windtunnel.events import Event, ReplicaBooting, ReplicaGone, ReplicaReady, ScaleAnswered
from windtunnel.lab.scenario import Scenario
from windtunnel.sim.agenda import Agenda
from windtunnel.sim.fleet import SimFleet
from windtunnel.sim.fleet_config import FleetConfig, Pool
from windtunnel.sim.lifecycle import READY, Startup
from windtunnel.sim.service import ServiceConfig
from windtunnel.sim.stepmodels.affine import Affine
from windtunnel.sources.dist import Uniform

STEPS = Affine(6e-3, 2.6e-5, 2e-5, 2.4e-8)


def pool(name: str = "a", **changes: Any) -> Pool:
    given: dict[str, Any] = {"replicas": 1, "max": 8, "startup": Startup(60.0, 20.0, 30.0, 10.0), "price_usd_per_hour": 3600.0}
    return Pool(name, "m", "h100_sxm", ServiceConfig(servers=1), STEPS, **(given | changes))


class Flight:
    """A fleet on an agenda, told what to do at given times."""

    def __init__(self, *pools: Pool, max_gpus: int | None = None, seed: int = 1) -> None:
        self.agenda, self.said, self.notes, self.plan = Agenda(), [], [], 0  # type: ignore[var-annotated]
        quiet = {"on_finish": lambda a: None, "on_cancelled": lambda a: None}
        self.fleet = SimFleet(FleetConfig({p.name: p for p in pools}, max_gpus=max_gpus), self.agenda, self._emit, seed=seed,
                              engine_options=lambda name, pool: quiet)
        self.fleet.note = self.notes.append
        self.fleet.start()

    def _emit(self, event: Event) -> None:
        self.said.append((self.agenda.now, event))

    def at(self, when: float) -> Flight:
        self.agenda.run(until=when)
        return self

    def scale(self, **targets: int) -> Flight:
        self.plan += 1
        self.fleet.scale_to(ScaleTo(self.plan, tuple(targets.items())))
        return self

    def times(self, kind: type, **of: Any) -> list[float]:
        return [t for t, e in self.said if type(e) is kind and all(getattr(e, k) == v for k, v in of.items())]

    def rows(self) -> dict[str, dict[str, Any]]:
        self.fleet.finish(self.agenda.now)
        return {r["replica"]: r for r in self.fleet.rows}


def test_SL_2_stages_follow_each_other_and_cost_from_provisioning() -> None:
    flight = Flight(pool()).at(100.0).scale(a=2).at(400.0)
    assert flight.times(ReplicaBooting, stage="provisioning") == [100.0] and flight.times(ReplicaBooting, stage="booting") == [160.0]
    assert flight.times(ReplicaReady, replica="a-1") == [220.0]
    row = flight.rows()["a-1"]
    assert (row["node_s"], row["image_s"], row["weights_s"], row["compile_s"], row["ready_s"]) == (60.0, 20.0, 30.0, 10.0, 220.0)
    assert row["gpu_seconds"] == 300.0 and row["usd"] == pytest.approx(300.0)


def test_SL_3_a_warm_node_needs_neither_image_nor_weights() -> None:
    startup = Startup(60.0, 20.0, 30.0, 10.0, cache_s=100.0)
    flight = Flight(pool(startup=startup, replicas=2)).at(100.0).scale(a=1).at(150.0).scale(a=2).at(400.0)
    assert flight.times(ReplicaReady, replica="a-2") == [150.0 + 60.0 + 10.0]
    assert flight.rows()["a-2"]["image_s"] == 0.0


def test_SL_3_warmth_is_used_once_and_goes() -> None:
    startup = Startup(60.0, 20.0, 30.0, 10.0, cache_s=100.0)
    flight = Flight(pool(startup=startup, replicas=2)).at(100.0).scale(a=1).at(150.0).scale(a=3).at(400.0)
    assert flight.times(ReplicaReady, replica="a-2") == [220.0] and flight.times(ReplicaReady, replica="a-3") == [270.0]
    late = Flight(pool(startup=startup, replicas=2)).at(100.0).scale(a=1).at(200.1).scale(a=2).at(400.0)
    assert late.times(ReplicaReady, replica="a-2") == [320.1]
    taken = Flight(pool(startup=startup, replicas=2)).at(100.0)
    taken.fleet.lose(taken.fleet.replicas["a-1"], "spot")
    assert taken.at(110.0).scale(a=3).at(400.0).times(ReplicaReady, replica="a-2") == [230.0], "the node itself was taken"
    never = Flight(pool(startup=startup)).at(100.0).scale(a=2).at(150.0).scale(a=1).at(160.0).scale(a=2).at(400.0)
    assert never.times(ReplicaReady, replica="a-2") == [280.0], "one that never served has nothing to leave"


def test_SL_3_a_warm_node_changes_nobody_elses_draws() -> None:
    def boots(cache_s: float) -> list[float]:
        startup = Startup(Uniform(10.0, 90.0), 20.0, 30.0, 10.0, cache_s=cache_s)
        flight = Flight(pool(startup=startup, replicas=2)).at(100.0).scale(a=1).at(110.0).scale(a=4).at(900.0)
        return [row["node_s"] for name, row in flight.rows().items() if name in ("a-2", "a-3", "a-4")]

    assert boots(0.0) == boots(1000.0) and len(set(boots(0.0))) == 3


def test_SL_1_what_cannot_be_had_waits_and_costs_nothing() -> None:
    flight = Flight(pool(gpus_per_replica=2, replicas=2), pool("b", replicas=0), max_gpus=6).at(10.0).scale(a=4, b=1).at(200.0)
    assert [n.kind for n in flight.notes] == ["no_capacity", "no_capacity"] and isinstance(flight.notes[0], Note)
    assert flight.fleet.counts("a") == (3, 1, 0) and flight.fleet.counts("b") == (0, 1, 0)
    flight.at(300.0).scale(a=2, b=1)  # the newest one that waits goes first, then a ready one: its two GPUs are free for b
    assert flight.times(ReplicaGone, replica="a-3") == [300.0] and flight.times(ReplicaBooting, replica="b-0", stage="provisioning") == [300.0]
    assert flight.at(600.0).times(ReplicaReady, replica="b-0") == [420.0]
    rows = flight.rows()
    assert rows["a-3"]["gpu_seconds"] == 0.0 and rows["b-0"]["gpu_seconds"] == 300.0 and rows["a-2"]["gpu_seconds"] == 2 * 290.0


def test_SL_1_fewer_gpus_than_serve_from_the_start_are_refused() -> None:
    with pytest.raises(ConfigValueError, match="max_gpus: 3 is below the 4"):
        FleetConfig({"a": pool(gpus_per_replica=2, replicas=2)}, max_gpus=3)


def test_SL_4_lost_replicas_are_replaced_only_up_to_what_is_wanted() -> None:
    flight = Flight(pool(replicas=3)).at(10.0)
    config = flight.fleet.config.pools["a"]
    flight.fleet.lose(flight.fleet.replicas["a-0"], "spot")
    flight.scale(a=2)
    flight.fleet.order(config)  # the order that was to follow the loss comes when the plan wants no more than there are
    assert flight.fleet.counts("a") == (2, 0, 0)
    flight.scale(a=3)
    flight.fleet.order(config)
    assert flight.fleet.counts("a") == (2, 1, 0)
    flight.fleet.drain(Drain("a-1"))
    flight.fleet.order(config)
    assert flight.fleet.counts("a") == (1, 1, 0), "what was drained on purpose is not replaced"


def test_SL_4_the_same_target_twice_is_a_no_op_and_pending_go_first() -> None:
    flight = Flight(pool()).at(10.0).scale(a=3).at(20.0).scale(a=3)
    assert [e.status for _, e in flight.said if type(e) is ScaleAnswered] == ["accepted", "unchanged"]
    flight.scale(a=2)
    assert flight.times(ReplicaGone, replica="a-2") == [20.0] and flight.fleet.replicas["a-0"].state == READY


# -- weights of unlike pools ----------------------------------------------------------------------------------------------------------

TWO = """
windtunnel: 1
name: two
duration_s: 30
seed: 3
fleet:
  pools:
    fast: {model: Llama-3.1-8B, gpu: h100_sxm, weight: auto, engine: {num_blocks: 4000}}
    slow: {model: Llama-3.1-8B, gpu: a100_sxm, weight: auto, engine: {num_blocks: 4000}}
source: {kind: arrivals, rate_rps: 8, input_tokens: 200, output_tokens: 100}
control: {preset: open}
"""


def test_SL_1_auto_weight_is_the_speed_of_a_decode_step_relative_to_the_fastest() -> None:
    pools = Scenario.load(TWO).build_fleet().pools
    assert pools["fast"].weight == 1.0 and 0.4 < pools["slow"].weight < 0.8
    given = Scenario.load(TWO).with_({"fleet.pools.fast.weight": 2.0}).build_fleet().pools
    assert given["fast"].weight == 2.0 and given["slow"].weight == pools["slow"].weight
    rows = Scenario.load(TWO).with_({"control.routing.by": "requests"}).run().requests
    assert (rows.pool == "fast").sum() > (rows.pool == "slow").sum()


def test_SL_1_auto_weight_needs_steps() -> None:
    with pytest.raises(ConfigInfeasibleError, match="weight auto needs"):
        Scenario.load(TWO).with_({"fleet.pools.slow.service": {"servers": 1}}).build_fleet()
    with pytest.raises(ConfigError, match="weight"):
        Scenario.load(TWO).with_({"fleet.pools.slow.weight": 0})


def test_SL_1_max_gpus_in_a_file_and_requests_that_can_never_be_served_end() -> None:
    limited = Scenario.load(TWO).with_({"fleet.max_gpus": 2, "fleet.pools.slow.max": 4, "fleet.pools.fast.max": 4})
    assert limited.build_fleet().max_gpus == 2 and limited.run().complete
    with pytest.raises(ConfigError, match="max_gpus"):
        Scenario.load(TWO).with_({"fleet.max_gpus": 1}).build_fleet()


def test_SL_6_a_fleet_costs_until_the_planned_end_and_shrinks_when_traffic_has_ended() -> None:
    text = """
windtunnel: 1
name: evening
duration_s: 1000
fleet: {pools: {chat: {model: Llama-3.1-8B, gpu: h100_sxm, replicas: 4, min: 1, price: {usd_per_hour: 3.6}}}}
source: {kind: arrivals, series: [[0, 4], [100, 0]], input_tokens: 100, output_tokens: 20}
"""
    run = Scenario.load(text).run()
    v = run.summary().values
    assert v["makespan_s"] < 105 and v["window_s"] == 1000.0
    assert (run.replicas.gpu_seconds == 1000.0).all() and v["usd"] == pytest.approx(4.0)
    planned = Scenario.load(text).with_({"control.planner": {"kind": "rate", "capacity_rps": 2.0}}).run()
    assert planned.replicas.gone_s.notna().sum() == 3 and planned.summary().values["usd"] < 2.5
    until_the_last = Scenario.load(text.replace("duration_s: 1000\n", "")).run()
    assert (until_the_last.replicas.gpu_seconds < 105).all(), "without a planned end it is over when the work is"


def test_SL_6_what_a_good_request_costs_counts_the_money_of_the_time_in_which_it_is_counted() -> None:
    text = """
windtunnel: 1
name: counted
duration_s: 200
fleet: {pools: {chat: {model: Llama-3.1-8B, gpu: h100_sxm, price: {usd_per_hour: 3.6}}}}
source: {kind: arrivals, rate_rps: 4, pattern: constant, input_tokens: 100, output_tokens: 20}
"""
    whole = Scenario.load(text).run()
    cut = Scenario.load(text).with_({"warmup_s": 60, "cooldown_s": 60}).run().summary().values
    for part in (cut, whole.summary(window=(100.0, 150.0)).values):
        assert part["usd"] == pytest.approx(0.2) and part["good"] < 400, "money in all is that of the whole run"
        for name in ("usd_per_1k_good", "usd_per_mtok"):
            assert part[name] == pytest.approx(whole.summary().values[name], rel=0.03), name
