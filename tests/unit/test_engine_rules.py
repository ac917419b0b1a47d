"""Rules of one engine that hold whatever it serves: closed-form times, no work per step, lengths of jumps, KV use, prefix accounting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from engine_bench import AFFINE, SECOND
from hypothesis import given, settings
from hypothesis import strategies as st

from windtunnel.sim.agenda import ARRIVAL, Agenda
from windtunnel.sim.engine import Attempt, EngineConfig, SimEngine
from windtunnel.sim.jump import span
from windtunnel.sim.stepmodels.model import Batch, Provenance


class Bench:
    """An engine on its agenda, its runs of steps kept."""

    def __init__(self, config: EngineConfig | None = None, model: Any = AFFINE, **options: Any) -> None:
        self.agenda = Agenda()
        self.finished: list[str] = []
        self.engine = SimEngine("r0", config or EngineConfig(), model, self.agenda, on_finish=lambda a: self.finished.append(a.id),
                                on_cancelled=lambda a: None, check=True, pieces=True, **options)

    def send(self, id: str, prompt: int, output: int, *, at_s: float = 0.0, blocks: tuple[int, ...] | None = None) -> Attempt:
        a = Attempt(id, 1, prompt, output, 0, blocks)
        self.at(at_s, lambda: self.engine.submit(a))
        return a

    def at(self, at_s: float, act: Callable[[], Any]) -> None:
        self.agenda.at(at_s, ARRIVAL, lambda _: act())

    def run(self, until: float | None = None) -> SimEngine:
        self.agenda.run(until)
        return self.engine

    @property
    def jumps(self) -> list[int]:
        """Steps of each run, in order."""
        assert self.engine.pieces is not None
        return list(self.engine.pieces.k)


@dataclass
class Edged:
    """Affine times whose runs end at an edge every `edge` attended tokens, and a note of every question."""

    edge: int
    asked: int = 0
    provenance: Provenance = field(default_factory=lambda: Provenance("edged"))

    def seconds(self, b: Batch) -> float:
        return self.run(b, 1)[0]

    def run(self, b: Batch, k: int) -> tuple[float, float, int]:
        self.asked += 1
        left = -(-(self.edge - b.decode_kv % self.edge) // b.decode_seqs) if b.decode_seqs else k
        A, B, _ = AFFINE.run(b, k)
        return A, B, max(1, min(k, left))


# -- SF: fast-forward ----------------------------------------------------------------------------------------------------------------


def test_SF_2_k_steps_cost_the_sum_of_their_steps() -> None:
    assert span(0.006176, 9.6e-8, 100) == pytest.approx(0.6180752, abs=1e-15)
    for A, B, k in ((6e-3, 0.0, 1), (6e-3, 2.4e-8, 1_000_000), (6e-3, -5e-9, 1000), (1.0, 1.0, 3)):
        assert span(A, B, k) == pytest.approx(sum(A + B * j for j in range(k)), rel=1e-9)
    assert span(1.0, 1.0, 0) == 0.0


def test_SF_2_times_are_those_of_the_formula_and_are_never_added_up() -> None:
    bench = Bench()
    a = bench.send("a", 100, 100_001)
    pieces = bench.run().pieces
    assert pieces is not None and bench.jumps == [1, 100_000]
    t0, A, B = pieces.t0[1], pieces.A[1], pieces.B[1]
    assert (A, B) == (6e-3 + 2e-5 + 2.4e-8 * 101, 2.4e-8)
    for n in (2, 3, 50_000, 100_001):
        assert pieces.token_time(a, n) == t0 + span(A, B, n - 1), "equal to the last bit"
    assert a.finished_s == t0 + span(A, B, 100_000)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 60)), min_size=1, max_size=8))
def test_SF_2_a_run_is_as_long_as_its_steps_one_by_one(sizes: list[tuple[int, int]]) -> None:
    ends = []
    for every in (False, True):
        bench = Bench(step_every=every)
        sent = [bench.send(str(i), prompt, output, at_s=i * 0.013) for i, (prompt, output) in enumerate(sizes)]
        bench.run()
        ends.append([a.finished_s for a in sent])
    assert ends[0] == pytest.approx(ends[1], abs=1e-9)


def test_SF_3_a_step_touches_no_request() -> None:
    """The same number of events and of questions to the model however long the answers are."""
    cost = []
    for output in (100, 100_000):
        bench = Bench(EngineConfig(max_num_seqs=64), model := Edged(1 << 60))
        for i in range(40):
            bench.send(str(i), 50, output + i)
        engine = bench.run()
        assert engine.D == engine.steps == output + 39, "the prompts' step counts too"
        cost.append((engine.events, model.asked))
    assert cost[0] == cost[1] == (41, 41), "the prompts, then one run up to each end"


def test_SF_3_counters_move_by_the_run_and_ends_are_marks() -> None:
    bench = Bench(EngineConfig(block_size=16), SECOND)
    a, b = bench.send("a", 15, 10), bench.send("b", 33, 4)
    bench.run(until=1.5)  # both decode: their first step began at 1
    engine = bench.engine
    kv = engine.kv
    assert (engine.D, kv.n, a.end_mark, b.end_mark) == (1, 2, 10, 4)
    assert kv.base_sum + kv.n * engine.D == 15 + 33 and [r for r, n in enumerate(kv.bins) if n] == [0, 14]
    bench.run(until=4.5)  # b has ended, after D += 3
    assert (engine.D, kv.n, kv.base_sum + engine.D, b.finished_s) == (4, 1, 18, 4.0)
    late = bench.send("late", 7, 3, at_s=5.0)
    bench.run()
    assert (a.finished_s, late.first_token_s, late.finished_s) == (10.0, 6.0, 8.0)
    assert (kv.n, kv.base_sum, sum(kv.bins), kv.used(engine.D)) == (0, 0, 0, 0)


def test_SF_4_a_jump_ends_at_the_next_end_of_a_request() -> None:
    bench = Bench(model=SECOND)
    for name, output in (("a", 30), ("b", 10), ("c", 30)):
        bench.send(name, 5, output)
    bench.run()
    assert bench.jumps == [1, 9, 20] and bench.finished == ["b", "a", "c"]


def test_SF_4_a_jump_ends_where_the_blocks_do() -> None:
    """The worked pool: computed 15, 16 and 33 in blocks of 16, so that the 16th step exhausts two free blocks."""
    config = EngineConfig(num_blocks=7, block_size=16, prefix_cache=False, reserve_full_input=False)
    bench = Bench(config, SECOND)
    for name, prompt in (("a", 15), ("b", 16), ("c", 33)):
        bench.send(name, prompt, 50)
    bench.run(until=17.5)
    assert bench.jumps[:2] == [1, 15] and bench.engine.preemptions == 1


def test_SF_4_a_jump_ends_at_the_models_edge() -> None:
    bench = Bench(model=Edged(100))
    bench.send("a", 50, 301)
    bench.run()
    assert bench.jumps == [1, 49, 100, 100, 51]


def test_SF_4_a_jump_ends_with_the_chunks_of_a_prompt() -> None:
    bench = Bench(EngineConfig(max_num_batched_tokens=100, max_num_seqs=8), SECOND)
    a = bench.send("a", 10, 4)
    long = bench.send("long", 1000, 2, at_s=0.5)
    bench.run()
    assert bench.jumps == [1, 3, 7, 1, 1], "99 tokens beside a, then 100 in each, then the rest with the first token"
    assert (a.finished_s, long.first_token_s) == (4.0, 12.0)


def test_SF_4_one_token_answers_need_no_jump() -> None:
    bench = Bench(model=SECOND)
    for i in range(5):
        bench.send(str(i), 3, 1)
    assert bench.run().D == 1 and bench.jumps == [1]


# -- SK-3: KV use --------------------------------------------------------------------------------------------------------------------


def test_SK_3_use_is_the_share_of_blocks_that_somebody_holds() -> None:
    bench = Bench(EngineConfig(num_blocks=10, block_size=16, prefix_cache=False), SECOND)
    bench.send("a", 30, 5)
    seen: list[tuple[float, float | None]] = []
    for t in (0.0, 0.5, 1.5, 2.5, 3.5, 5.5):
        bench.at(t, lambda t=t: seen.append((t, bench.engine.state_at(t).kv_used_fraction)))  # type: ignore[misc]
    bench.run()
    # taken when a step is scheduled: 30 tokens, then 31, 32 and, in the third decode step, 33
    assert seen == [(0.0, 0.0), (0.5, 0.2), (1.5, 0.2), (2.5, 0.2), (3.5, 0.3), (5.5, 0.0)]


def test_SK_3_what_is_only_cached_is_not_used() -> None:
    bench = Bench(EngineConfig(num_blocks=10), SECOND)
    bench.send("a", 64, 2, blocks=(1, 2, 3, 4))
    engine = bench.run()
    assert engine.cache is not None and len(engine.cache) == 4
    assert engine.state_at(bench.agenda.now).kv_used_fraction == 0.0
    bench.send("b", 64, 5, at_s=10.0, blocks=(1, 2, 3, 4))
    bench.send("c", 64, 5, at_s=10.0, blocks=(1, 2, 3, 4))
    bench.run(until=10.5)
    assert engine.state_at(10.5).kv_used_fraction == 0.5, "three blocks shared, counted once, and a last one each"
    bench.run()


def test_SK_3_without_a_bound_there_is_no_share() -> None:
    bench = Bench(EngineConfig(num_blocks=None), SECOND)
    bench.send("a", 1000, 5)
    assert bench.run(until=1.5).state_at(1.5).kv_used_fraction is None


# -- SX-5: prefix accounting -----------------------------------------------------------------------------------------------------------


def test_SX_5_hits_and_queries_by_block_and_by_token() -> None:
    bench = Bench(EngineConfig(num_blocks=12), SECOND)
    a = bench.send("a", 70, 2, blocks=(1, 2, 3, 4))
    b = bench.send("b", 70, 2, at_s=10.0, blocks=(1, 2, 3, 9))
    c = bench.send("c", 70, 2, at_s=20.0)  # says nothing of its prompt: asks nothing of the cache
    engine = bench.run()
    assert [(x.cached_blocks, x.cached_tokens, x.input_blocks) for x in (a, b, c)] == [(0, 0, 4), (3, 48, 4), (0, 0, 0)]
    assert (engine.prefix_hit_blocks, engine.prefix_query_blocks) == (3, 8)
    assert (engine.cached_tokens, engine.prefix_query_tokens) == (48, 140)
    assert engine.evictions == 0
    bench.send("d", 170, 2, at_s=30.0, blocks=tuple(range(100, 110)))
    assert bench.run().evictions == 4, "eleven of twelve blocks: of the five that were cached one may stay"


def test_SX_5_a_preempted_request_asks_once() -> None:
    config = EngineConfig(num_blocks=6, block_size=4, reserve_full_input=False)
    bench = Bench(config, SECOND)
    a, b = bench.send("a", 8, 9, blocks=(1, 2)), bench.send("b", 8, 9, blocks=(3, 4))
    engine = bench.run()
    assert (engine.preemptions, a.generated, b.generated) == (1, 9, 9)
    assert (engine.prefix_query_blocks, engine.prefix_query_tokens, a.input_blocks, b.input_blocks) == (4, 16, 2, 2)


def test_SX_5_a_crash_empties_the_cache_and_keeps_the_counts() -> None:
    bench = Bench(EngineConfig(num_blocks=40), SECOND)
    bench.send("a", 64, 2, blocks=(1, 2, 3, 4))
    bench.send("b", 64, 2, at_s=10.0, blocks=(1, 2, 3, 4))
    engine = bench.run()
    engine.drop_all("crash")
    assert (engine.prefix_hit_blocks, engine.cached_tokens, engine.evictions) == (3, 48, 0)
    c = bench.send("c", 64, 2, at_s=20.0, blocks=(1, 2, 3, 4))
    bench.run()
    assert c.cached_tokens == 0
