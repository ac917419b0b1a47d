"""Batching policies and the engine's order: prompts first, static batches, slots, priority, swap; what cannot be."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from engine_bench import AFFINE, Bench

from windtunnel import compiled
from windtunnel.errors import ConfigValueError
from windtunnel.sim.agenda import Agenda
from windtunnel.sim.engine import Attempt, EngineConfig, HostCosts, SimEngine

# -- prefill_first ----------------------------------------------------------------------------------------------------------------


def test_SE_6_prompts_have_steps_of_their_own_and_decodes_stand_still() -> None:
    bench = Bench(EngineConfig(policy="prefill_first"))
    a, b = bench.send("a", 10, 4), bench.send("b", 10, 2, at_s=1.5)
    engine = bench.run()
    assert bench.tokens(a) == [1.0, 2.0, 4.0, 5.0]  # nothing at 3: b's prompt
    assert bench.tokens(b) == [3.0, 4.0]
    assert engine.steps == 5
    assert engine.pieces is not None
    seconds, counts = engine.pieces.gaps()
    assert sorted(np.repeat(seconds, counts).tolist()) == [1.0, 1.0, 1.0, 2.0]


def test_SE_6_whole_prompts_while_they_fit_and_a_longer_one_alone() -> None:
    bench = Bench(EngineConfig(policy="prefill_first", max_num_batched_tokens=100, max_num_seqs=8))
    sent = [bench.send(f"q{i}", prompt, 1) for i, prompt in enumerate((60, 40, 1, 500, 10))]
    bench.run()
    assert [a.first_token_s for a in sent] == [1.0, 1.0, 2.0, 3.0, 4.0]


def test_SE_6_decode_steps_between_two_admissions() -> None:
    bench = Bench(EngineConfig(policy="prefill_first", min_decode_steps=3))
    a, b, c = bench.send("a", 10, 20), bench.send("b", 10, 9, at_s=0.5), bench.send("c", 10, 2, at_s=4.5)
    bench.run()
    assert (a.first_token_s, b.started_s, b.first_token_s) == (1.0, 4.0, 5.0)
    assert c.started_s == 8.0


def test_SE_6_min_decode_steps_do_not_hold_back_an_empty_batch() -> None:
    bench = Bench(EngineConfig(policy="prefill_first", min_decode_steps=10))
    bench.send("a", 10, 2)
    b = bench.send("b", 10, 2, at_s=0.5)
    bench.run()
    assert b.started_s == 2.0


def test_SE_6_peak_admits_only_what_can_run_to_its_end() -> None:
    config = EngineConfig(policy="prefill_first", admission="peak", num_blocks=100, block_size=1, prefix_cache=False)
    bench = Bench(config)
    bench.send("a", 10, 50)
    b = bench.send("b", 10, 50, at_s=0.5)
    engine = bench.run()
    assert engine.preemptions == 0
    # when a ends, both have got all that a still needs: 2·30 + (10 + 19) + 10 = 99 < 100 with 30 tokens to go, 100 with 31
    assert b.started_s == 20.0
    plain = Bench(EngineConfig(policy="prefill_first", num_blocks=100, block_size=1, prefix_cache=False))
    plain.send("a", 10, 50)
    plain.send("b", 10, 50, at_s=0.5)
    assert plain.run().preemptions == 1


def test_SE_6_peak_opens_inside_a_run_and_the_run_ends_there() -> None:
    config = EngineConfig(policy="prefill_first", admission="peak", num_blocks=100, block_size=1, prefix_cache=False)
    bench = Bench(config)
    bench.send("a", 10, 70)
    b = bench.send("b", 10, 12, at_s=0.5)
    engine = bench.run()
    # at D decodes: a has 69 - D to go and 10 + D stored; b's end is the worse: 12·2 + 10 + D + 10 < 100, a's: 79 + 10 < 100
    assert b.started_s == 1.0
    assert engine.preemptions == 0


def test_SE_6_a_request_that_the_pool_can_never_hold_is_refused_under_peak() -> None:
    bench = Bench(EngineConfig(policy="prefill_first", admission="peak", num_blocks=10, block_size=4))
    bench.send("a", 20, 20)
    bench.send("b", 20, 19)
    bench.run()
    assert bench.refused == {"a": (400, "kv_capacity_exceeded", None)}


# -- static and slots -------------------------------------------------------------------------------------------------------------


def test_SE_7_static_the_next_batch_waits_for_the_longest() -> None:
    bench = Bench(EngineConfig(policy="static", max_num_seqs=2))
    a, b, c = bench.send("a", 10, 2), bench.send("b", 10, 5), bench.send("c", 10, 1)
    bench.run()
    assert (a.finished_s, b.finished_s, c.started_s) == (2.0, 5.0, 5.0)


def test_SE_7_static_freed_slots_stay_in_the_cost_if_padded() -> None:
    def last(pad: bool) -> float:
        bench = Bench(EngineConfig(policy="static", max_num_seqs=2, pad=pad), AFFINE)
        bench.send("a", 10, 2)
        b = bench.send("b", 20, 4)
        bench.run()
        assert b.finished_s is not None
        return b.finished_s

    prompts = 6e-3 + 2.6e-5 * 30 + 2e-5 * 2
    first = 6e-3 + 2e-5 * 2 + 2.4e-8 * (11 + 21)
    assert last(True) == pytest.approx(prompts + first + 2 * (6e-3 + 2e-5 * 2) + 2.4e-8 * (12 + 22 + 13 + 23), abs=1e-12)
    assert last(False) == pytest.approx(prompts + first + 2 * (6e-3 + 2e-5) + 2.4e-8 * (22 + 23), abs=1e-12)


def test_SE_7_static_waits_for_company_but_not_when_full() -> None:
    config = EngineConfig(policy="static", max_num_seqs=2, batch_wait_s=5.0)
    alone = Bench(config)
    a = alone.send("a", 10, 1, at_s=1.0)
    alone.run()
    assert a.started_s == 6.0
    full = Bench(config)
    a, b = full.send("a", 10, 1, at_s=1.0), full.send("b", 10, 1, at_s=2.0)
    full.run()
    assert (a.started_s, b.started_s) == (2.0, 2.0)


def test_SE_7_static_never_preempts() -> None:
    bench = Bench(EngineConfig(policy="static", max_num_seqs=8, num_blocks=10))
    for i in range(6):
        bench.send(f"q{i}", 20, 40)
    engine = bench.run()
    assert (engine.preemptions, engine.steps) == (0, 3 * 40)  # two at a time: 4 blocks each to the end


def test_SE_7_slots_have_their_own_context_and_never_preempt() -> None:
    bench = Bench(EngineConfig(policy="slots", max_num_seqs=2, n_ctx=200, num_blocks=2))
    bench.send("long", 100, 0)
    bench.send("over", 60, 41)
    sent = [bench.send(f"q{i}", 60, 40) for i in range(3)]
    engine = bench.run()
    assert {id: r[:2] for id, r in bench.refused.items()} == {"long": (400, "context_length_exceeded"), "over": (400, "context_length_exceeded")}
    assert engine.preemptions == 0
    assert [a.started_s for a in sent] == [0.0, 0.0, 40.0]
    assert engine.state_at(0.0).kv_used_fraction is None


def test_SE_7_slots_share_one_budget_decodes_first() -> None:
    bench = Bench(EngineConfig(policy="slots", max_num_seqs=2, max_num_batched_tokens=32))
    a, b = bench.send("a", 10, 9), bench.send("b", 40, 1, at_s=0.5)
    bench.run()
    assert a.first_token_s == 1.0
    assert b.first_token_s == 3.0  # 31 tokens beside a's decode, then 9


# -- priority ---------------------------------------------------------------------------------------------------------------------


def test_SE_8_the_more_urgent_goes_first_then_who_arrived_first() -> None:
    bench = Bench(EngineConfig(max_num_seqs=1, order="priority"))
    bench.send("running", 10, 5)
    for i, priority in enumerate((1, 1, 0, 0)):
        bench.send(f"q{i}", 10, 1, at_s=0.5 + 0.1 * i, priority=priority)
    bench.run()
    assert [id for what, id, _ in bench.told if what == "finish"] == ["running", "q2", "q3", "q0", "q1"]


def test_SE_8_the_least_urgent_is_preempted_and_keeps_its_place() -> None:
    config = EngineConfig(num_blocks=8, max_num_seqs=3, reserve_full_input=False, prefix_cache=False, order="priority")
    bench = Bench(config)
    low = bench.send("low", 60, 40, priority=1)
    high = bench.send("high", 60, 40)
    later = bench.send("later", 10, 1, at_s=30.0, priority=1)
    engine = bench.run()
    assert (low.preemptions, high.preemptions, engine.preemptions) == (1, 0, 1)
    assert later.first_token_s is not None and low.finished_s is not None
    resumed = [id for what, id, _ in bench.told if what in ("first", "finish")]
    assert resumed.index("later") > resumed.index("high")  # low came first: later waited behind it


def test_SE_8_fcfs_preempts_the_last_whatever_its_class() -> None:
    bench = Bench(EngineConfig(num_blocks=8, reserve_full_input=False, prefix_cache=False))
    low, high = bench.send("low", 60, 40, priority=1), bench.send("high", 60, 40)
    bench.run()
    assert (low.preemptions, high.preemptions) == (0, 1)


# -- swap -------------------------------------------------------------------------------------------------------------------------


def swap_config(**changes: Any) -> EngineConfig:
    return EngineConfig(**{"num_blocks": 8, "reserve_full_input": False, "prefix_cache": False, "preemption": "swap", "swap_blocks": 100,
                           "kv_bytes_per_token": 1000.0, "pcie_bw": 16_000.0, **changes})  # one block a second


def test_SK_6_swapped_kv_goes_and_comes_over_pcie_and_nothing_is_recomputed() -> None:
    bench = Bench(swap_config())
    a, b = bench.send("a", 60, 40), bench.send("b", 60, 40)
    engine = bench.run()
    assert (b.preemptions, b.recomputed_tokens, b.swapped_blocks, engine.swapped_blocks) == (1, 0, 4, 4)
    assert a.finished_s == 40.0  # steps went on
    times = bench.tokens(b)
    # out at 5 with 5 tokens, a's blocks are free at 40, four seconds for the way back, the next token one step later
    assert times[:5] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert times[5] == 45.0
    assert times[-1] == 45.0 + 34


def test_SK_6_transfers_take_the_way_one_after_the_other() -> None:
    bench = Bench(swap_config(num_blocks=12))
    for name in "abc":
        bench.send(name, 60, 40)
    engine = bench.run()
    assert engine.swapped_blocks >= 8
    assert engine._host_blocks == 0


def test_SK_6_without_host_room_it_recomputes() -> None:
    bench = Bench(swap_config(swap_blocks=3))
    bench.send("a", 60, 40)
    b = bench.send("b", 60, 40)
    engine = bench.run()
    assert (engine.swapped_blocks, b.recomputed_tokens) == (0, 64)


def test_SK_6_who_leaves_while_swapped_frees_its_host_blocks() -> None:
    bench = Bench(swap_config())
    bench.send("a", 60, 40)
    bench.send("b", 60, 40)
    c = bench.send("c", 10, 2, at_s=6.0)
    bench.at(20.0, lambda: bench.engine.cancel("b", 1))
    engine = bench.run()
    assert engine._host_blocks == 0
    assert ("cancel", "b", 20.0) in bench.told
    assert c.finished_s is not None and c.finished_s < 40.0


@pytest.mark.parametrize("missing", ["pcie_bw", "kv_bytes_per_token"])
def test_SK_6_swap_without_its_rate_is_refused(missing: str) -> None:
    with pytest.raises(ConfigValueError, match="swap needs"):
        Bench(swap_config(**{missing: None}))


# -- what cannot be ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prompt", "output"), [(0, 1), (-1, 5), (5, -1), (float("nan"), 1), (float("inf"), 1), (10, float("nan"))])
def test_counts_that_mean_nothing_are_refused(prompt: Any, output: Any) -> None:
    bench = Bench(EngineConfig(num_blocks=100))
    if compiled.in_use() and not (type(prompt) is type(output) is int):
        with pytest.raises(TypeError, match="int object expected"):
            bench.send("a", prompt, output)
        return
    bench.send("a", prompt, output)
    bench.run()
    assert bench.refused == {"a": (400, "invalid_request", None)}


@pytest.mark.parametrize("changes", [
    {"preemption": "drop"}, {"order": "lifo"}, {"admission": "none"}, {"swap_blocks": -1}, {"pcie_bw": 0.0}, {"pcie_bw": float("nan")},
    {"min_decode_steps": -1}, {"batch_wait_s": -1.0}, {"batch_wait_s": float("inf")}, {"n_ctx": 0}, {"policy": "slots", "n_ctx": 10},
    {"noise_cv": -0.1}, {"role": "both"}, {"first_token": "none"}, {"wake_s": (1.0,)}, {"wake_s": (1.0, float("nan"))}, {"pad": 1},
    {"policy": "slots", "max_num_batched_tokens": 8}])
def test_an_engine_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigValueError):
        EngineConfig(**changes)


@pytest.mark.parametrize("name", ["connect_s", "ingress_s", "ingress_per_token_s", "egress_s", "step_s", "step_per_seq_s"])
@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_SE_11_host_costs_that_cannot_be_are_refused(name: str, seconds: float) -> None:
    with pytest.raises(ConfigValueError):
        HostCosts(**{name: seconds})


@pytest.mark.parametrize("policy", ["vllm", "sarathi", "prefill_first", "static", "slots"])
def test_a_prompt_of_a_million_tokens_and_fifty_thousand_waiting_are_fast(policy: str) -> None:
    engine = SimEngine("r", EngineConfig(policy=policy, max_num_seqs=64), AFFINE, agenda := Agenda(), on_finish=lambda a: None,
                       on_cancelled=lambda a: None)
    begun = time.process_time()
    engine.submit(Attempt("long", 1, 1_000_000, 100))
    for i in range(50_000):
        engine.submit(Attempt(str(i), 1, 10, 5))
    agenda.run()
    assert engine.idle
    assert engine.output_tokens == 100 + 5 * 50_000
    assert time.process_time() - begun < 4.0
