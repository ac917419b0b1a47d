"""Requests whose prompt is computed on one replica and whose answer on another, end to end: router, ledger, driver, links, record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from windtunnel import Scenario, replay
from windtunnel import effects as fx
from windtunnel.errors import ConfigInfeasibleError, ConfigNeedsError, ConfigValueError, PolicyError
from windtunnel.events import Arrived, Cancelled, Commanded, HandedOver, ReplicaReady, Request, Truth, Woke
from windtunnel.lab.build import build_control, pool_facts
from windtunnel.lab.control_spec import ControlSpec
from windtunnel.lab.history import violations
from windtunnel.lab.logread import LogReader
from windtunnel.lab.planner_build import build_pipeline_planner
from windtunnel.lab.planner_config import read_planner
from windtunnel.lab.recorder import Recorder, wants_of
from windtunnel.lab.run import Run
from windtunnel.lab.world_simulated import Simulated
from windtunnel.live.driver import LiveDriver
from windtunnel.live.fleet import LiveFleet
from windtunnel.policy.control import Control
from windtunnel.sim.engine import EngineConfig
from windtunnel.sim.fault_config import Fault
from windtunnel.sim.fleet_config import FleetConfig, Pool
from windtunnel.sim.pd import pairs_of
from windtunnel.sim.stepmodels.affine import Affine
from windtunnel.sim.transfer import KvLink

LLAMA_8B = 131_072  # KV bytes per token
MODEL = Affine(6e-3, 2.6e-5, 2e-5, 2.4e-8)
JOB_S = 6e-3 + 2e-5  # of a step, beside its tokens


class Script:
    """Requests (at s, id, prompt, output), and cancels (at s, id)."""

    name, loop, needs = "script", "open", frozenset[str]()

    def __init__(self, jobs: Sequence[tuple[float, str, int, int]], cancels: Sequence[tuple[float, str]] = ()) -> None:
        self._jobs, self._cancels = sorted(jobs, key=lambda j: j[0]), cancels
        self._left = len(cancels)

    def stream(self) -> Iterator[Request]:
        for at_s, id, prompt, output in self._jobs:
            yield Request(id, "t", "m", 0, at_s, prompt, output, truth=Truth(output))

    def start(self, now: float) -> list[Any]:
        return [fx.WakeAt(at_s, f"{n}") for n, (at_s, _) in enumerate(self._cancels)]

    def handle(self, what: Any, now: float) -> list[Any]:
        if isinstance(what, Woke):
            self._left -= 1
            return [Cancelled(self._cancels[int(what.key)][1])]
        return []

    def done(self) -> bool:
        return not self._left


def fleet(prefill: int = 1, decode: int = 1, *, bandwidth: float = 50e9, latency_s: float = 0.0, layers: int | None = None, network_s: float = 0.0,
          agg: int = 0, p: dict[str, Any] | None = None, d: dict[str, Any] | None = None, **both: Any) -> FleetConfig:
    link = KvLink(bandwidth, LLAMA_8B, latency_s, layers)
    engines = {"prefill": {"max_num_batched_tokens": 8192, **both, **(p or {})}, "decode": {**both, **(d or {})}, "agg": both}
    pools = {role: Pool(role, "m", "h100_sxm", EngineConfig(role="prefill" if role == "prefill" else "decode", **engines[role]), MODEL, n,
                        role=role, link=link)
             for role, n in (("prefill", prefill), ("decode", decode), ("agg", agg)) if n or role != "agg"}
    return FleetConfig(pools, network_s)


def fly(config: FleetConfig, jobs: Sequence[tuple[float, str, int, int]], cancels: Sequence[tuple[float, str]] = (), *,
        faults: Sequence[Fault] = (), attempts: int = 1, routing: dict[str, Any] | None = None, **world: Any) -> Run:
    spec = ControlSpec.model_validate({"preset": "open", "routing": {"kind": "pairs", **(routing or {})}, "settings": {"attempts": attempts}})
    control = build_control(spec, pool_facts(config), wants=wants_of("full"))
    run = Simulated(config, record="full", check=True, faults=faults, **world).run(control, Script(jobs, cancels))
    assert violations(run) == []
    assert control.open_count == 0
    for r in control.fleet.replicas.values():
        assert (r.in_flight, r.in_flight_tokens, r.prefill_tokens) == (0, 0, 0), r.id
    return run


def row(run: Run, id: str) -> dict[str, Any]:
    return dict(run.requests[run.requests.request_id == id].iloc[0])


# -- the worked numbers ----------------------------------------------------------------------------------------------------------------


def test_SP_2_worked_one_transfer_end_to_end() -> None:
    a = row(fly(fleet(), [(0.0, "a", 4096, 3)]), "a")
    first = JOB_S + 2.6e-5 * 4096
    assert a["ttft_s"] == pytest.approx(first, abs=1e-12)
    assert (a["kv_bytes"], a["kv_wait_s"]) == (4096 * LLAMA_8B, 0.0)
    assert a["kv_transfer_s"] == pytest.approx(0.010737418, abs=1e-9)
    assert a["e2e_s"] == pytest.approx(first + 0.010737418 + 2 * JOB_S + 2.4e-8 * (4097 + 4098), abs=1e-9)
    assert (a["prefill_replica"], a["replica"], a["pool"], a["outcome"], a["output_tokens"]) == ("prefill-0", "decode-0", "decode", "success", 3)


def test_SP_2_worked_two_transfers_into_one_replica() -> None:
    run = fly(fleet(2, 1), [(0.0, "a", 4096, 3), (0.0, "b", 4096, 3)])
    assert [row(run, i)["kv_transfer_s"] for i in "ab"] == pytest.approx([0.021474836] * 2, abs=1e-9)
    assert {row(run, i)["prefill_replica"] for i in "ab"} == {"prefill-0", "prefill-1"}


def test_SP_2_layerwise_hides_all_but_the_last_layer() -> None:
    a = row(fly(fleet(layers=32), [(0.0, "a", 4096, 3)]), "a")
    assert a["kv_transfer_s"] == pytest.approx(0.010737418 / 32, abs=1e-9)
    assert a["kv_bytes"] == 4096 * LLAMA_8B


def test_SP_1_one_token_never_leaves_the_prefill_side() -> None:
    run = fly(fleet(), [(0.0, "one", 100, 1), (0.0, "none", 100, 0), (0.0, "two", 100, 2)])
    assert list(run.requests.outcome) == ["success"] * 3
    assert run.requests.set_index("request_id").kv_bytes.notna().to_dict() == {"one": False, "none": False, "two": True}


def test_SP_1_the_decode_side_may_yield_token_1() -> None:
    a = row(fly(fleet(first_token="decode"), [(0.0, "a", 4096, 3)]), "a")
    assert a["ttft_s"] == pytest.approx(JOB_S + 2.6e-5 * 4096 + 0.010737418 + JOB_S + 2.6e-5, abs=1e-6)
    assert a["engine_queue_s"] == 0.0  # the engine that began is the prefill side's


def test_SP_1_room_on_the_decode_side_is_waited_for_in_order() -> None:
    run = fly(fleet(d={"num_blocks": 10}), [(0.0, f"q{i}", 90, output) for i, output in enumerate((30, 20, 10))])
    waits = [row(run, f"q{i}")["kv_wait_s"] for i in range(3)]
    assert waits[0] == 0.0 < waits[1] < waits[2]


def test_network_both_ways_is_in_ttft_and_hand_over_is_told_late() -> None:
    a = row(fly(fleet(network_s=0.01), [(0.0, "a", 4096, 3)]), "a")
    assert a["ttft_s"] == pytest.approx(0.02 + JOB_S + 2.6e-5 * 4096, abs=1e-12)


# -- the ledger and the router ---------------------------------------------------------------------------------------------------------


def test_RT_61_prefill_ends_at_hand_over_and_decode_counts_from_the_start() -> None:
    config = fleet(1, 2)
    control = build_control(ControlSpec.model_validate({"preset": "open", "routing": {"kind": "pairs"}}), pool_facts(config))
    for name, role in (("prefill-0", "prefill"), ("decode-0", "decode"), ("decode-1", "decode")):
        control.handle(ReplicaReady(name, role, role, slots=8), 0.0)
    [sent] = control.handle(Arrived(Request("a", "t", "m", 0, 0.0, 100, 50)), 0.0)
    assert isinstance(sent, fx.Dispatch)
    assert (sent.prefill, sent.replica, sent.reason) == ("prefill-0", "decode-0", "pair")
    view = {r.id: (r.in_flight, r.in_flight_tokens, r.prefill_tokens) for r in control.view().replicas}
    assert view == {"prefill-0": (1, 100, 100), "decode-0": (1, 150, 0), "decode-1": (0, 0, 0)}
    for _ in range(2):  # a second one is late
        control.handle(HandedOver("a", 1, "prefill-0"), 1.0)
    view = {r.id: (r.in_flight, r.in_flight_tokens, r.prefill_tokens) for r in control.view().replicas}
    assert view == {"prefill-0": (0, 0, 0), "decode-0": (1, 150, 0), "decode-1": (0, 0, 0)}
    assert control.late_events == 1
    [second] = control.handle(Arrived(Request("b", "t", "m", 0, 1.0, 10, 5)), 1.0)
    assert isinstance(second, fx.Dispatch)
    assert second.replica == "decode-1"  # least room promised


def test_RT_61_a_short_prompt_stays_where_the_answer_is() -> None:
    run = fly(fleet(1, 1, agg=1), [(0.0, "long", 1000, 5), (0.1, "short", 64, 5)], routing={"local_prefill_max_tokens": 64, "decode": "round_robin"})
    assert (row(run, "short")["replica"], row(run, "short")["prefill_replica"] == row(run, "long")["prefill_replica"]) == ("agg-0", False)
    assert row(run, "long")["prefill_replica"] == "prefill-0"


def test_RT_61_nobody_on_one_side_is_said_and_waited_for_only_if_someone_comes() -> None:
    crash = Fault("crash", at_s=0.5, pool="decode", restart=False)
    run = fly(fleet(), [(0.0, "a", 100, 5), (1.0, "b", 100, 5)], faults=[crash])
    assert row(run, "a")["outcome"] == "success"
    assert (row(run, "b")["outcome"], row(run, "b")["reason"]) == ("rate_limited", "no_replica")
    again = fly(fleet(), [(0.0, "a", 100, 5), (0.6, "b", 100, 5)], faults=[Fault("crash", at_s=0.5, pool="decode")])
    assert row(again, "b")["outcome"] == "success"


def test_pools_that_do_not_fit_together_are_refused() -> None:
    pools = fleet().pools
    other = replace(pools["decode"], link=KvLink(1e9, 2.0 * LLAMA_8B))
    for wrong, why in (({"prefill": pools["prefill"]}, "no pool of role decode"), ({"decode": pools["decode"]}, "no pool of role prefill"),
                       ({"prefill": pools["prefill"], "decode": replace(pools["decode"], link=None)}, "cannot exchange KV"),
                       ({"prefill": pools["prefill"], "decode": other}, "cannot exchange KV"),
                       ({"prefill": pools["prefill"], "decode": fleet(first_token="decode").pools["decode"]}, "differ in engine.first_token")):
        with pytest.raises(ConfigInfeasibleError, match=why):
            pairs_of(FleetConfig(wrong))


def test_a_router_without_pairs_is_refused_for_split_pools() -> None:
    with pytest.raises(ConfigValueError, match="expected pairs"):
        build_control(ControlSpec(), pool_facts(fleet()))
    with pytest.raises(ConfigValueError, match="role prefill"):
        spec = ControlSpec.model_validate({"routing": {"kind": "pairs"}})
        build_control(spec, [f for f in pool_facts(fleet()) if f.role == "decode"])


def test_a_pair_for_a_fleet_without_split_pools_is_the_routers_mistake() -> None:
    config = FleetConfig({"chat": Pool("chat", "m", "h100_sxm", EngineConfig(), MODEL, 2)})
    control = build_control(ControlSpec(), pool_facts(config))

    class Wrong:
        needs = frozenset[str]()

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def pick(self, request: Any, fleet: Any, now: float) -> Any:
            return replace(self.inner.pick(request, fleet, now), replica="chat-0", prefill="chat-1")

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    control.lanes[0].router = Wrong(control.lanes[0].router)  # type: ignore[assignment]
    with pytest.raises(PolicyError, match="no prefill and decode pools"):
        Simulated(config).run(control, Script([(0.0, "a", 10, 2)]))


# -- loss and cancels ------------------------------------------------------------------------------------------------------------------

SLOW = 90 * LLAMA_8B  # a second for 90 tokens


@pytest.mark.parametrize(("at_s", "pool", "reason"), [
    (0.004, "prefill", "kv_lost"), (0.004, "decode", "kv_lost"),  # in its prefill
    (0.5, "prefill", "kv_lost"), (0.5, "decode", "kv_lost"),  # on its way
    (1.05, "decode", "kv_lost"),  # while it decodes
])
def test_SP_3_the_loss_of_either_replica_ends_it(at_s: float, pool: str, reason: str) -> None:
    run = fly(fleet(bandwidth=SLOW), [(0.0, "a", 90, 50)], faults=[Fault("crash", at_s=at_s, pool=pool)])
    assert (row(run, "a")["outcome"], row(run, "a")["reason"]) == ("provider_failure", reason)


def test_SP_3_the_prefill_side_may_go_once_its_kv_is_there() -> None:
    run = fly(fleet(bandwidth=SLOW), [(0.0, "a", 90, 50)], faults=[Fault("crash", at_s=1.05, pool="prefill")])
    assert row(run, "a")["outcome"] == "success"


@pytest.mark.parametrize("pool", ["prefill", "decode"])
@pytest.mark.parametrize("at_s", [0.004, 0.5])
def test_SP_3_another_attempt_computes_the_prompt_again(pool: str, at_s: float) -> None:
    run = fly(fleet(2, 2, bandwidth=SLOW, first_token="decode"), [(0.0, "a", 90, 5)], attempts=2,
              faults=[Fault("crash", at_s=at_s, pool=pool, replicas=(0,))])
    a = row(run, "a")
    assert (a["outcome"], a["attempts"], a["kv_bytes"]) == ("success", 2, 90 * LLAMA_8B)
    assert a["e2e_s"] > at_s + 1.0
    assert f"{pool}-0" not in (a["replica"], a["prefill_replica"])


@pytest.mark.parametrize("at_s", [0.002, 0.5, 1.05])
def test_SP_3_a_client_may_leave_at_every_stage(at_s: float) -> None:
    run = fly(fleet(bandwidth=SLOW), [(0.0, "a", 90, 50), (0.0, "b", 90, 50)], [(at_s, "a")])
    assert row(run, "a")["outcome"] == "local_cancelled"
    assert row(run, "b")["outcome"] == "success"


def test_SP_3_a_client_may_leave_while_it_waits_for_room() -> None:
    run = fly(fleet(d={"num_blocks": 10}), [(0.0, f"q{i}", 90, 30) for i in range(3)], [(0.03, "q1")])
    assert [row(run, f"q{i}")["outcome"] for i in range(3)] == ["success", "local_cancelled", "success"]


def test_SP_3_what_the_decode_side_can_never_hold_is_refused_before_its_prefill() -> None:
    run = fly(fleet(d={"num_blocks": 4}), [(0.0, "a", 90, 5)])
    a = row(run, "a")
    assert (a["outcome"], a["reason"]) == ("unexpected_exception", "kv_capacity_exceeded")
    assert run.replicas.set_index("replica").busy_s["prefill-0"] == 0.0


def test_a_draining_side_finishes_what_it_was_promised() -> None:
    class Drains(Script):
        def handle(self, what: Any, now: float) -> list[Any]:
            self._left -= isinstance(what, Woke)
            return [Commanded("drain", {"replica": f"{role}-0"}) for role in ("prefill", "decode")] if isinstance(what, Woke) else []

    config = fleet(2, 2, bandwidth=SLOW)
    for at_s in (0.002, 0.5, 1.05):
        spec = ControlSpec.model_validate({"preset": "open", "routing": {"kind": "pairs"}})
        control = build_control(spec, pool_facts(config), wants=wants_of("full"))
        run = Simulated(config, record="full", check=True).run(control, Drains([(0.0, "a", 90, 50)], [(at_s, "")]))
        assert (row(run, "a")["outcome"], row(run, "a")["replica"]) == ("success", "decode-0")
        gone = run.replicas.set_index("replica").gone_s
        assert gone["decode-0"] == pytest.approx(row(run, "a")["ended_s"])
        assert gone["prefill-0"] <= max(1.02, at_s)
        assert violations(run) == []


def test_replies_that_fail_at_either_side() -> None:
    for pool in ("prefill", "decode"):
        run = fly(fleet(), [(0.1, "a", 90, 5)], faults=[Fault("errors", at_s=0.0, pool=pool, status=500)])
        assert (row(run, "a")["outcome"], row(run, "a")["reason"]) == ("provider_failure", "http_500")
    run = fly(fleet(), [(0.1, "a", 90, 5)], faults=[Fault("errors", at_s=0.0, pool="prefill", status=500, after="first_token")])
    assert row(run, "a")["outcome"] == "provider_failure"


# -- the live world --------------------------------------------------------------------------------------------------------------------


def test_the_live_world_refuses_a_router_of_pairs_with_one_clear_error() -> None:
    control = build_control(ControlSpec.model_validate({"routing": {"kind": "pairs"}}), pool_facts(fleet()))
    live = LiveFleet.model_validate({"name": "x", "pools": {role: {"engine": "mock", "role": role} for role in ("prefill", "decode")}})
    with pytest.raises(ConfigNeedsError, match='a router that splits prefill and decode needs "handover", which the live world does not give'):
        LiveDriver(control, Script([]), live, Recorder("full"))


def test_SV_4_a_cancel_takes_the_same_way_as_its_dispatch() -> None:
    config = FleetConfig({"chat": Pool("chat", "m", "h100_sxm", EngineConfig(), MODEL, 1)}, 0.01)
    control = build_control(ControlSpec(), pool_facts(config))
    run = Simulated(config, record="full", check=True).run(control, Script([(0.0, "a", 90, 500), (0.0, "b", 90, 5)], [(0.005, "a")]))
    assert violations(run) == []
    assert row(run, "a")["outcome"] == "local_cancelled"
    assert control.late_events == 0
    assert run.replicas.output_tokens.sum() < 10  # it does not run on


# -- the scenario ----------------------------------------------------------------------------------------------------------------------


def test_the_scenarios_log_replays_and_its_history_is_sound() -> None:
    run = Scenario.load("disaggregated").with_({"duration_s": 20.0, "warmup_s": 0.0, "faults": [
        {"kind": "crash", "at_s": 5.0, "pool": "prompts", "replicas": [0]}, {"kind": "crash", "at_s": 9.0, "pool": "answers", "replicas": [1]}]}).run(
            record="full", check=True)
    assert violations(run) == []
    agreed = replay(run)
    assert agreed.events > 500 and agreed.effects > 200
    lost = run.requests[run.requests.reason == "kv_lost"]
    assert len(lost) > 2 and set(lost.outcome) == {"provider_failure"}


def test_the_planner_sizes_both_pools() -> None:
    scenario = Scenario.load("disaggregated").with_({"duration_s": 60.0, "warmup_s": 0.0, "fleet.pools.prompts.max": 4, "fleet.pools.answers.max": 4,
                                                     "source.rate_rps": 20})
    facts = pool_facts(scenario.build_fleet())
    limits = {"max_num_batched_tokens": 8192, "max_num_seqs": 256, "max_kv_tokens": 400_000, "context_length": 131_072}
    block = {"mode": "disagg", "pools": {"prefill": {"limits": limits}, "decode": {"limits": limits}}, "budget": {"max_gpus": 8},
             "throughput": {"enabled": True, "interval_s": 10}, "load": {"enabled": True, "interval_s": 5}}

    def control() -> Control:
        built = scenario.build_control(pools=facts, wants=wants_of("full"))
        planner = build_pipeline_planner(read_planner(block), facts, wants=wants_of("full"))
        return Control(lanes=built.lanes, fleet=built.fleet, planner=planner, settings=built.settings, wants=wants_of("full"))

    flown = control()
    run = Simulated(scenario.build_fleet(), seed=3, record="full", check=True, until=60.0).run(flown, scenario.build_source(seed=3))
    assert violations(run) == []
    reports = [step.event for step in LogReader(run.tables.log).steps() if step.event["e"] == "StepReported"]  # type: ignore[arg-type]
    told = {role: [r["report"] for r in reports if r["replica"].startswith(name)] for role, name in (("prefill", "prompts"), ("decode", "answers"))}
    assert told["prefill"] and told["decode"]
    assert all(not r["scheduled"].get("num_decode") for r in told["prefill"])
    assert any(r["scheduled"].get("num_decode") for r in told["decode"])
    assert all(not r["scheduled"].get("num_prefill") for r in told["decode"])
    targets = {pool for d in run.decisions[run.decisions.effect == "ScaleTo"].pool.dropna() for pool in [d]}
    assert targets, run.decisions.effect.value_counts()
    replay(run, lambda header: control())


# -- links that fail -------------------------------------------------------------------------------------------------------------------


def test_SJ_1_a_slower_link_from_one_moment_to_another() -> None:
    # 90 tokens at a second: 0.5 s at full speed, 0.25 s at half, the rest at full again
    slow = Fault("link", at_s=0.5 + JOB_S + 2.6e-5 * 90, for_s=0.25, pool="decode", factor=0.5)
    run = fly(fleet(bandwidth=SLOW), [(0.0, "a", 90, 3)], faults=[slow])
    assert row(run, "a")["kv_transfer_s"] == pytest.approx(1.125, abs=1e-9)


def test_SJ_1_transfers_over_a_link_that_is_down_fail_in_time_or_go_on() -> None:
    down = Fault("link", at_s=0.5, for_s=20.0, pool="prefill", replicas=(0,), down=True, timeout_s=5.0)
    run = fly(fleet(2, 1, bandwidth=SLOW), [(0.0, "a", 90, 3), (6.0, "b", 90, 3)], faults=[down], routing={"prefill": "round_robin"})
    a, b = row(run, "a"), row(run, "b")
    assert (a["outcome"], a["reason"], a["prefill_replica"]) == ("provider_failure", "kv_lost", "prefill-0")
    assert a["ended_s"] == pytest.approx(5.5, abs=1e-9)
    assert (b["outcome"], b["prefill_replica"]) == ("success", "prefill-1")
    short = Fault("link", at_s=0.5, for_s=2.0, pool="prefill", down=True, timeout_s=5.0)
    again = row(fly(fleet(bandwidth=SLOW), [(0.0, "a", 90, 3)], faults=[short]), "a")
    assert again["outcome"] == "success" and again["kv_transfer_s"] == pytest.approx(3.0, abs=1e-6)
    late = row(fly(fleet(bandwidth=SLOW), [(1.0, "a", 90, 3)], faults=[replace(short, for_s=None)]), "a")
    assert late["reason"] == "kv_lost" and late["ended_s"] == pytest.approx(1.0 + JOB_S + 2.6e-5 * 90 + 5.0)


def test_SJ_1_no_links_no_link_faults() -> None:
    config = FleetConfig({"chat": Pool("chat", "m", "h100_sxm", EngineConfig(), MODEL, 1)})
    with pytest.raises(ConfigValueError, match="no KV moves between the replicas of this fleet"):
        Simulated(config, faults=[Fault("link", at_s=1.0, down=True)]).run(build_control(ControlSpec(), pool_facts(config)), Script([]))
