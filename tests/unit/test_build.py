"""From a scenario to objects: fleet with arithmetic, control with the right parts, sources that end, equal seeds, equal runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from windtunnel.errors import ConfigError, ConfigInfeasibleError, ConfigValueError, PlannerConfigError
from windtunnel.lab.build import build_control, control_from_header, header_spec, pool_facts
from windtunnel.lab.build_pool import mean_boot_s
from windtunnel.lab.build_source import Until
from windtunnel.lab.control_spec import ControlSpec
from windtunnel.lab.scenario import Scenario
from windtunnel.policy.param import PoolFacts
from windtunnel.policy.queueing.bounded import BoundedQueue
from windtunnel.policy.queueing.deadline_drop import DeadlineDropQueue
from windtunnel.policy.queueing.fifo import FifoQueue
from windtunnel.policy.routing.choices import PowerOfTwo
from windtunnel.sim.capacity import kv_blocks
from windtunnel.sim.catalog import gpu, model

TEXT = """
windtunnel: 1
name: small
duration_s: 10
seed: 5
fleet: {pools: {chat: {model: Llama-3.1-8B, gpu: h100_sxm, replicas: 2, max: 4}}}
source: {kind: arrivals, rate_rps: 8, input_tokens: {kind: lognormal, mean: 300, cv: 1.0}, output_tokens: 40}
"""
POOLS = (PoolFacts("chat", model="m", replicas=2, slots=8, max_replicas=4),)


def scenario(**changes: Any) -> Scenario:
    return Scenario.load(TEXT).with_({k.replace("__", "."): v for k, v in changes.items()})


def control(**parts: Any) -> Any:
    return build_control(ControlSpec.model_validate(parts), POOLS, seed=1)


def test_fleet_has_as_many_kv_blocks_as_fit_unless_told() -> None:
    pool = scenario().build_fleet().pools["chat"]
    assert pool.engine.num_blocks == kv_blocks(model("Llama-3.1-8B"), gpu("h100_sxm"))
    assert (pool.replicas, pool.max, pool.gpus_per_replica, pool.slots) == (2, 4, 1, 256)
    assert "Llama-3.1-8B / h100_sxm×1" in pool.provenance and "uncalibrated" in pool.provenance
    assert scenario(fleet__pools__chat__engine__num_blocks=77).build_fleet().pools["chat"].engine.num_blocks == 77
    two = scenario(fleet__pools__chat__tp=2).build_fleet().pools["chat"]
    assert (two.gpus_per_replica, two.tp) == (2, 2)


def test_SM_40_what_cannot_run_is_refused_with_the_sum() -> None:
    big = scenario(fleet__pools__chat__model="Llama-3.3-70B")
    with pytest.raises(ConfigInfeasibleError, match=r"pools\.chat: weights 141\.\d GB \+ overhead 1\.2 GB > .* GB usable .*; use tp: 2"):
        big.build_fleet()
    with pytest.raises(ConfigInfeasibleError, match=r"fleet\.pools\.chat: the profile vidur is of Llama-3-8B"):
        scenario(fleet__pools__chat__profile={"kind": "vidur"}).build_fleet()


def test_SL_2_startup_stages() -> None:
    weights_s = 8_030_261_248 * 2 / 2e9
    boot = scenario().build_fleet().pools["chat"].startup
    assert (boot.node_s, boot.image_s, boot.compile_s) == (0.0, 0.0, 0.0)
    assert boot.weights_s == pytest.approx(weights_s, rel=1e-6)
    cold = scenario(fleet__pools__chat__startup={"preset": "cold_node", "image_s": {"kind": "exp", "mean": 7}, "load_bw": 4e9})
    startup = cold.build_fleet().pools["chat"].startup
    assert mean_boot_s(startup) == pytest.approx(120 + 7 + weights_s / 2 + 30, rel=1e-6)
    assert pool_facts(cold.build_fleet())[0].boot_s == pytest.approx(mean_boot_s(startup))


def test_SL_6_price_is_the_scenarios_else_the_catalogues() -> None:
    assert scenario(fleet__pools__chat__price={"usd_per_hour": 9}).build_fleet().pools["chat"].price_usd_per_hour == 9
    assert scenario().build_fleet().pools["chat"].price_usd_per_hour == gpu("h100_sxm").usd_per_hour


@pytest.mark.parametrize("profile", [{"kind": "affine", "c0": 0.01}, {"kind": "roofline", "dtype": "fp8"},
                                     {"kind": "table", "decode_s": [[1, 0.01], [8, 0.02]], "prefill_s_per_token": 1e-4}])
def test_profiles_run(profile: dict[str, Any]) -> None:
    run = scenario(fleet__pools__chat__profile=profile).run()
    assert run.summary().values["completed"] == len(run.requests) > 40


def test_control_has_the_parts_of_the_spec() -> None:
    made = control(queue={"kind": "fifo", "bounded": {"capacity": 3}, "deadline_drop": {}}, routing={"kind": "power_of_two"},
                   admission={"limit": {"kind": "fixed", "limit": 7}, "gates": [{"kind": "breaker"}]}, planner={"kind": "rate"},
                   settings={"attempts": 2}, tenants={"a": {"weight": 2}})
    (lane,) = made.lanes
    assert isinstance(lane.queue, BoundedQueue)
    assert isinstance(lane.queue.inner, DeadlineDropQueue)
    assert isinstance(lane.queue.inner.inner, FifoQueue)
    assert isinstance(lane.router, PowerOfTwo)
    assert (lane.cap, made.settings.attempts, lane.admission.breaker is not None, made.planner is not None) == (7, 2, True, True)
    assert control().lanes[0].cap == "slots"
    assert control(preset="open").lanes[0].cap is None


def test_KC_1_one_lane_per_model() -> None:
    pools = (*POOLS, PoolFacts("chat2", model="m"), PoolFacts("code", model="n"))
    made = build_control(ControlSpec(), pools)
    assert [(lane.name, lane.pools, lane.models) for lane in made.lanes] == [
        ("chat", ("chat", "chat2"), frozenset({"m"})), ("code", ("code",), frozenset({"n"}))]


def test_controls_that_cannot_be() -> None:
    with pytest.raises(ConfigValueError, match="at most one gate of kind breaker"):
        control(admission={"gates": [{"kind": "breaker"}, {"kind": "breaker"}]})
    with pytest.raises(PlannerConfigError, match="expected one of chat"):
        control(planner={"kind": "rate", "pool": "none"})
    with pytest.raises(ConfigValueError, match="at least one pool"):
        build_control(ControlSpec(), ())


def test_RC_2_a_header_builds_an_equal_control() -> None:
    spec = ControlSpec.model_validate({"queue": {"kind": "fifo"}, "routing": {"kind": "random"}})
    header = {"control": header_spec(spec, POOLS, {"ttft_s": 1.0}), "seed": 3, "replication": 1, "level": "full"}
    again = control_from_header(header)
    assert isinstance(again.lanes[0].queue, FifoQueue)
    assert again.lanes[0].pools == ("chat",)
    assert header_spec(spec, POOLS, {"ttft_s": 1.0}) == header["control"]
    other = control_from_header(header, ControlSpec())
    assert not isinstance(other.lanes[0].queue, FifoQueue)
    with pytest.raises(ConfigError, match="does not say how to build its control"):
        control_from_header({"control": None, "seed": 0, "replication": 0})


def test_sources_end_at_the_duration(tmp_path: Path) -> None:
    rows = "arrival_s,input_tokens,output_tokens\n" + "".join(f"{t},10,5\n" for t in range(3, 30))
    (tmp_path / "t.csv").write_text(rows, "utf-8")
    (tmp_path / "s.yaml").write_text(TEXT.replace(TEXT[TEXT.index("source"):], "source: {kind: trace, path: t.csv}\n"), "utf-8")
    s = Scenario.load(tmp_path / "s.yaml")
    source = s.build_source()
    stream = source.stream()
    assert stream is not None
    got = list(stream)
    assert [r.arrived_s for r in got] == [float(t) for t in range(10)]
    assert (got[0].model, got[0].max_tokens, got[0].tenant, got[0].content) == ("Llama-3.1-8B", 5, "default", None)
    assert isinstance(source, Until) and source.done()
    zero = s.with_({"source.load": {"kind": "fixed_schedule", "offset": 0.0}}).build_source(model="m", live=True).stream()
    assert zero is not None
    live = list(zero)
    assert [r.arrived_s for r in live] == [float(t) for t in range(3, 10)]
    assert live[0].model == "m" and "messages" in live[0].content
    assert not isinstance(s.with_({"duration_s": None}).build_source(), Until)


def test_mixes_keep_their_sources_apart() -> None:
    one = {"kind": "arrivals", "rate_rps": 5, "input_tokens": 10, "output_tokens": 5}
    mix = {"kind": "mix", "sources": [{**one, "name": "a"}, {**one, "name": "b", "tenants": {"x": 1}}]}
    stream = scenario(source=mix).build_source().stream()
    assert stream is not None
    got = list(stream)
    assert {r.tenant for r in got} == {"default", "x"}
    assert [r.arrived_s for r in got] == sorted(r.arrived_s for r in got)
    with pytest.raises(ConfigError, match='two sources are named "a"'):
        scenario(source={"kind": "mix", "sources": [{**one, "name": "a"}, {**one, "name": "a"}]})


def arrivals(run: Any) -> list[float]:
    return sorted(run.requests["arrived_s"].tolist())


def test_SV_5_equal_seeds_equal_runs_other_replications_other_draws() -> None:
    s = scenario()
    a, b, c, d = s.run(), s.run(), s.run(replication=1), s.run(seed=6)
    assert a.requests.equals(b.requests)
    assert arrivals(a) not in (arrivals(c), arrivals(d))
    slower = s.with_({"control.queue": {"kind": "fifo"}, "fleet.pools.chat.replicas": 1}).run()
    assert arrivals(slower) == arrivals(a), "a part's draws do not depend on other parts"


def test_flights_can_be_sliced() -> None:
    s = scenario(record="full", duration_s=60)
    flight = s.start()
    slices = 0
    while not flight.advance(0.0).done:
        slices += 1
    assert slices > 1
    assert flight.result().requests.equals(s.run().requests)


def test_SL_2_drawn_boot_stages_are_flown() -> None:
    s = scenario(duration_s=60, fleet__pools__chat={"model": "Llama-3.1-8B", "gpu": "h100_sxm", "replicas": 1, "max": 3, "startup": {
        "node_s": {"kind": "uniform", "lo": 2, "hi": 4}, "weights_s": 1.0}},
        control={"planner": {"kind": "rate", "interval_s": 5, "window_s": 10, "capacity_rps": 4, "max_replicas": 3}})
    lives = s.run().replicas
    ordered = lives[lives["ordinal"] > 0]
    assert len(ordered) >= 1
    assert ordered["node_s"].between(2, 4).all()
    assert ((ordered["ready_s"] - ordered["requested_s"]) - (ordered["node_s"] + 1.0)).abs().max() < 1e-9


def test_SK_6_swap_takes_its_rates_from_the_catalogue() -> None:
    engine = scenario(fleet__pools__chat__engine={"preemption": "swap", "swap_blocks": 100}).build_fleet().pools["chat"].engine
    assert engine.pcie_bw == gpu("h100_sxm").pcie_bw
    assert engine.kv_bytes_per_token == model("Llama-3.1-8B").kv_bytes_per_token("bf16")


@pytest.mark.parametrize("engine", [
    {"noise_cv": 0.1}, {"spec_decode": {"k": 3, "accept": 0.7, "mode": "sampled"}}, {"spec_decode": {"k": 2, "accept": [0.8, 0.5]}},
    {"policy": "prefill_first", "min_decode_steps": 2}, {"policy": "slots", "n_ctx": 65536, "max_num_seqs": 8, "host": {"egress_s": 0.01}}])
def test_SV_5_every_engine_of_a_scenario_runs_and_equal_seeds_give_equal_runs(engine: dict[str, Any]) -> None:
    def fly() -> list[Any]:
        run = scenario(fleet__pools__chat__engine=engine, duration_s=4).run()
        return run.requests[["e2e_s", "output_tokens"]].to_numpy().tolist()

    first = fly()
    assert len(first) > 10
    assert np.array_equal(first, fly(), equal_nan=True)


def test_SM_40_given_blocks_do_not_make_the_impossible_possible() -> None:
    for changes, says in (({"model": "Llama-3.3-70B"}, r"weights 141\.1 GB \+ 100 KV blocks 0\.5 GB > 85\.9 GB"), ({"tp": 3}, "32 attention heads"),
                          ({"tp": 16}, "more GPUs than the 8 of a node"), ({"engine": {"num_blocks": 100, "max_model_len": 8192}}, "1,600 tokens")):
        made = scenario(**{"fleet__pools__chat__engine__num_blocks": 100, **{f"fleet__pools__chat__{k}": v for k, v in changes.items()}})
        with pytest.raises(ConfigInfeasibleError, match=says):
            made.build_fleet()
    with pytest.raises(ConfigInfeasibleError, match="70,000 KV blocks 146"):
        scenario(fleet__pools__chat__engine__num_blocks=70_000).build_fleet()


def test_S_3_a_model_answers_within_its_own_context_unless_the_engine_says_another() -> None:
    assert scenario().build_fleet().pools["chat"].engine.max_model_len == 131_072
    assert scenario(fleet__pools__chat__engine__max_model_len=500).build_fleet().pools["chat"].engine.max_model_len == 500
    rows = scenario(fleet__pools__chat__model="OPT-13B", source__input_tokens=2000, source__output_tokens=100).run().requests
    assert len(rows) > 0 and set(rows.reason) == {"context_length_exceeded"}, "OPT has 2048 positions"


def test_SM_40_a_pool_that_no_request_can_reach_and_requests_that_no_pool_serves_are_refused() -> None:
    other = {"model": "Qwen3-8B", "gpu": "h100_sxm"}
    with pytest.raises(ConfigInfeasibleError, match=r"fleet\.pools\.other: no request asks for Qwen3-8B; the source asks for Llama-3\.1-8B"):
        scenario(fleet__pools__other=other).run()
    with pytest.raises(ConfigInfeasibleError, match=r"fleet\.pools\.chat: no request asks for Llama"):
        scenario(source__model="Qwen3-8B").run()
    part = {"kind": "arrivals", "rate_rps": 2, "input_tokens": 100, "output_tokens": 20}
    both = {"kind": "mix", "sources": [{**part, "name": "a"}, {**part, "name": "b", "model": "Qwen3-8B"}]}
    with pytest.raises(ConfigInfeasibleError, match=r"source: no pool serves the model Qwen3-8B; there are Llama-3\.1-8B"):
        scenario(source=both).run()
    assert (scenario(source=both, fleet__pools__other=other).run().requests.outcome == "success").all()


def test_S_2_a_value_that_only_building_can_judge_is_told_with_its_place() -> None:
    with pytest.raises(ConfigValueError, match=r"^(override )?source\.input_tokens\.value: expected a value >= 0, got -5"):
        scenario(source__input_tokens=-5).build_source()
    for profile, says in (({"kv_dtype": "foo"}, "kv_dtype: expected one of"), ({"ep": 4}, "ep: expected a divisor of tp 1")):
        with pytest.raises(ConfigError, match=rf"fleet\.pools\.chat: {says}"):
            scenario(fleet__pools__chat__profile={"kind": "roofline", **profile}).build_fleet()


def test_SX_1_engines_that_say_nothing_cache_by_the_hashes_of_the_trace() -> None:
    made = Scenario.load("mooncake-conversation").with_({"duration_s": 60.0, "warmup_s": 0.0, "source.ops": []})
    silent = made.with_({"fleet.pools.chat.engine": {}})
    assert silent.build_fleet().pools["chat"].engine.hash_tokens == 512
    given = made.with_({"fleet.pools.chat.engine": {"cache_block_tokens": 512}})
    rate = silent.run().summary().values["prefix_hit_rate"]
    assert rate == given.run().summary().values["prefix_hit_rate"] and rate > 0.01
    assert scenario().build_fleet().pools["chat"].engine.cache_block_tokens is None
    with pytest.raises(ConfigValueError, match=r"fleet\.pools\.chat: engine\.block_size: blocks of 48 tokens do not divide .* of 512"):
        made.with_({"fleet.pools.chat.engine": {"block_size": 48}}).build_fleet()


def test_S_2_seconds_of_work_that_no_pool_reads_are_refused() -> None:
    with pytest.raises(ConfigValueError, match=r"source\.service_s: no pool serves in seconds; write service"):
        scenario(source__service_s=0.5).run()
    assert (scenario(source__service_s=0.1, fleet__pools__chat__service={"servers": 4}).run().requests.outcome == "success").all()
    broken = {"kind": "errors", "at_s": 1, "after": "first_token"}
    with pytest.raises(ConfigValueError, match=r"faults\.0\.after: pool 'chat' serves in seconds and tells no first token"):
        scenario(source__service_s=0.1, fleet__pools__chat__service={"servers": 4}, faults=[broken]).run()


@pytest.mark.parametrize(("preset", "queue", "gates"), [
    ("default", "FairTaskQueue", []), ("aimd", "FairTaskQueue", ["breaker", "token_budget"]), ("fair_tokens", "VtcQueue", [])])
def test_RG_1_presets_are_compositions_that_fly_and_can_be_changed(preset: str, queue: str, gates: list[str]) -> None:
    made = scenario(control={"preset": preset}, duration_s=5)
    lane = made.build_control().lanes[0]
    assert (type(lane.queue).__name__, type(lane.queue.inner).__name__) == ("BoundedQueue", queue)
    assert [gate["kind"] for gate in made.resolved()["control"]["admission"]["gates"]] == gates
    assert (made.run().requests.outcome == "success").sum() > 10
    fixed = made.with_({"control.admission.limit": {"kind": "fixed", "limit": 3}})
    assert [gate["kind"] for gate in fixed.resolved()["control"]["admission"]["gates"]] == gates, "the preset's other parts stay"


@pytest.mark.parametrize(("policy", "want"), [
    ("sarathi", (128, 512, 0.01)), ("prefill_first", (128, 4096, 0.01)), ("vllm", (256, 2048, 0.0)), ("static", (256, 2048, 0.0)),
    ("slots", (256, 2048, 0.0))])
def test_SE_5_and_SE_6_a_batching_policy_brings_what_its_own_system_starts_with(policy: str, want: tuple[int, int, float]) -> None:
    made = scenario(fleet__pools__chat__engine={"policy": policy})
    engine = made.build_fleet().pools["chat"].engine
    assert (engine.max_num_seqs, engine.max_num_batched_tokens, engine.watermark) == want
    shown = made.resolved()["fleet"]["pools"]["chat"]["engine"]
    assert (shown["max_num_seqs"], shown["max_num_batched_tokens"], shown["watermark"]) == want
    assert set(yaml.safe_load(made.dump())["fleet"]["pools"]["chat"]["engine"]) == {"policy"}
    spelt = made.with_({"fleet.pools.chat.engine": dict(zip(("max_num_seqs", "max_num_batched_tokens", "watermark"), want), policy=policy)})
    assert spelt.digest == made.digest and spelt == made
    assert Scenario.load(made.dump(resolved=True)).fleet == made.fleet


def test_SE_5_and_SE_6_what_is_given_stays_and_another_policy_has_its_own_again() -> None:
    given = scenario(fleet__pools__chat__engine={"policy": "sarathi", "max_num_seqs": 64, "watermark": 0.0})
    engine = given.build_fleet().pools["chat"].engine
    assert (engine.max_num_seqs, engine.max_num_batched_tokens, engine.watermark) == (64, 512, 0.0)
    other = given.with_({"fleet.pools.chat.engine.policy": "vllm"}).build_fleet().pools["chat"].engine
    assert (other.max_num_seqs, other.max_num_batched_tokens) == (64, 2048)
    as_vllm = scenario(fleet__pools__chat__engine={"policy": "sarathi", "max_num_seqs": 256, "max_num_batched_tokens": 2048})
    assert as_vllm.build_fleet().pools["chat"].engine.max_num_batched_tokens == 2048
    with pytest.raises(ConfigError, match="512 tokens a step cannot serve 600 sequences"):
        scenario(fleet__pools__chat__engine={"policy": "sarathi", "max_num_seqs": 600})
    with pytest.raises(ConfigError, match="max_num_seqs"):
        scenario(fleet__pools__chat__engine={"policy": "sarathi", "max_num_seqs": None})
