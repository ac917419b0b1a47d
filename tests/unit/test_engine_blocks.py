"""The engine when blocks, tokens and prefixes are shared: preemption, watermark, prefix hits, chunks, both batching policies."""

from __future__ import annotations

import csv

import pytest
from engine_bench import Bench

from windtunnel.datafiles import data_path
from windtunnel.errors import ConfigValueError
from windtunnel.sim.agenda import ARRIVAL
from windtunnel.sim.batching.sarathi import sarathi_config
from windtunnel.sim.engine import Attempt, EngineConfig
from windtunnel.sim.stepmodels.affine import Affine


def hashes(n: int, group: int = 1) -> tuple[int, ...]:
    return tuple(group * 100 + i for i in range(n))


def test_SE_4_a_long_prompt_is_split_and_shares_the_budget() -> None:
    bench = Bench(EngineConfig(max_num_batched_tokens=64, max_num_seqs=8))
    a, b, c = bench.send("a", 10, 8), bench.send("b", 150, 2), bench.send("c", 10, 2)
    bench.run()
    assert a.first_token_s == 1.0
    # b: 54 tokens beside a's prompt, 63 beside its decode, then 33 and c's 10
    assert (b.first_token_s, c.first_token_s) == (3.0, 3.0)


def test_SE_4_without_chunks_a_prompt_waits_for_room() -> None:
    bench = Bench(EngineConfig(max_num_batched_tokens=64, max_num_seqs=8, chunked_prefill=False))
    a, b = bench.send("a", 40, 2), bench.send("b", 40, 2)
    bench.run()
    assert (a.first_token_s, b.first_token_s) == (1.0, 2.0)


def test_SE_5_sarathi_decodes_come_first_and_prompts_share_the_chunk() -> None:
    bench = Bench(sarathi_config(max_num_batched_tokens=32, max_num_seqs=32))
    a, b = bench.send("a", 20, 5), bench.send("b", 40, 2)
    bench.run()
    assert (a.first_token_s, b.first_token_s) == (1.0, 2.0)  # 20 + 12 tokens, then 1 + 28


def test_SE_9_a_request_that_fits_alone_is_served_in_spite_of_the_watermark() -> None:
    bench = Bench(EngineConfig(num_blocks=10, watermark=0.5))
    a = bench.send("a", 120, 2)
    bench.run()
    assert a.finished_s == 2.0


def test_SE_10_cancelling_the_first_in_line_lets_the_next_one_in_at_the_next_boundary() -> None:
    bench = Bench(EngineConfig(num_blocks=10, prefix_cache=False))
    bench.send("a", 60, 30)
    bench.send("big", 120, 2, at_s=1.5)
    small = bench.send("small", 10, 2, at_s=1.6)
    bench.agenda.at(5.5, ARRIVAL, lambda _: bench.engine.cancel("big", 1))
    bench.run()
    assert small.started_s == 6.0


def test_SK_6_the_last_admitted_is_preempted_and_emits_no_token_twice() -> None:
    bench = Bench(EngineConfig(num_blocks=6, block_size=4, prefix_cache=False, reserve_full_input=False))
    a, b = bench.send("a", 8, 9), bench.send("b", 8, 9)
    engine = bench.run()
    assert (a.preemptions, b.preemptions, a.finished_s) == (0, 1, 9.0)
    assert b.recomputed_tokens == 12  # both had filled three blocks of four
    assert (b.generated, b.first_token_s, engine.output_tokens) == (9, 1.0, 18)
    assert [what for what, who, _ in bench.told if who == "b"] == ["first", "finish"]
    assert engine.pieces is not None
    assert len(engine.pieces.singles) == 1
    assert [engine.pieces.token_time(b, n) for n in (1, 5, 9)] == [1.0, 5.0, b.finished_s]


def test_SK_6_two_prompts_do_not_throw_each_other_out_for_ever() -> None:
    bench = Bench(EngineConfig(num_blocks=12, block_size=1, max_num_batched_tokens=4, max_num_seqs=4, prefix_cache=False,
                               reserve_full_input=False))
    ends = [bench.send(str(i), 6, 6) for i in range(3)]
    engine = bench.run()
    assert [a.generated for a in ends] == [6, 6, 6]
    assert 0 < engine.preemptions < 12


def test_SX_2_a_later_equal_prompt_computes_only_what_is_new() -> None:
    bench = Bench(EngineConfig(num_blocks=40))
    a, b = bench.send("a", 64, 2, blocks=hashes(4)), bench.send("b", 64, 2, at_s=10.0, blocks=hashes(4))
    c = bench.send("c", 80, 2, at_s=20.0, blocks=(*hashes(2), 7, 8, 9))
    engine = bench.run()
    assert (a.cached_tokens, b.cached_tokens, c.cached_tokens) == (0, 48, 32)  # at least one token is always computed
    assert (engine.prefix_hit_blocks, engine.prefix_query_blocks, engine.cached_tokens) == (5, 13, 80)


def test_SX_2_equal_prompts_in_one_step_both_compute() -> None:
    bench = Bench(EngineConfig(num_blocks=40))
    a, b, c = (bench.send(name, 64, 3, at_s=t, blocks=hashes(4)) for name, t in (("a", 0.0), ("b", 0.0), ("c", 0.5)))
    bench.run()
    assert (a.cached_tokens, b.cached_tokens, c.cached_tokens) == (0, 0, 48)


def test_SX_1_one_hash_may_stand_for_several_blocks() -> None:
    bench = Bench(EngineConfig(num_blocks=100, cache_block_tokens=64))
    bench.send("a", 200, 2, blocks=hashes(4))
    b = bench.send("b", 200, 2, at_s=10.0, blocks=hashes(4))
    bench.run()
    assert b.cached_tokens == 192


def test_SX_1_hashes_of_another_size_are_counted_and_not_used() -> None:
    bench = Bench()
    a = bench.send("a", 1000, 2, blocks=hashes(2))
    assert (bench.run().prefix_unusable, a.cached_tokens) == (1, 0)
    with pytest.raises(ConfigValueError, match="cache_block_tokens: 2 prefix hashes for a prompt of 1000 tokens"):
        Bench(EngineConfig(cache_block_tokens=16)).engine.submit(Attempt("a", 1, 1000, 2, 0, hashes(2)))


def test_SX_3_output_blocks_that_are_known_can_be_hit() -> None:
    bench = Bench(EngineConfig(num_blocks=40))
    bench.send("a", 32, 33, blocks=hashes(4))
    b = bench.send("b", 80, 2, at_s=100.0, blocks=hashes(5))
    bench.run()
    assert b.cached_tokens == 64


def test_SK_4_cached_blocks_make_room_the_oldest_tail_first() -> None:
    bench = Bench(EngineConfig(num_blocks=8))
    bench.send("a", 64, 2, blocks=hashes(4, 1))
    bench.send("b", 100, 2, at_s=10.0, blocks=hashes(6, 2))
    c = bench.send("c", 64, 2, at_s=20.0, blocks=hashes(4, 1))
    engine = bench.run()
    assert c.cached_tokens == 16  # b's seven blocks left one of a's
    assert engine.cache is not None
    assert engine.cache.evictions == 3 + 3


def test_SF_13_at_most_three_events_a_request_and_SF_8_every_gap_once() -> None:
    with data_path("workloads/chat_10k_r16.csv").open() as file:
        rows = list(csv.DictReader(file))[:1500]
    bench = Bench(EngineConfig(num_blocks=30208), Affine(6e-3, 2.6e-5, 2e-5, 2.4e-8))
    sent = [bench.send(str(i), int(r["input_tokens"]), int(r["output_tokens"]), at_s=float(r["arrival_s"])) for i, r in enumerate(rows)]
    engine = bench.run()
    assert engine.events / len(rows) <= 3.0
    assert engine.pieces is not None
    seconds, counts = engine.pieces.gaps()
    assert counts.sum() == sum(a.output - 1 for a in sent)
    total_s = sum(a.finished_s - a.first_token_s for a in sent if a.finished_s is not None and a.first_token_s is not None)
    assert float((seconds * counts).sum()) == pytest.approx(total_s, rel=1e-9)
