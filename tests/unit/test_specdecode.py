"""Speculative decoding: the mean, the draws, and what they do to an engine's steps."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windtunnel.errors import ConfigValueError
from windtunnel.sim.agenda import ARRIVAL, Agenda
from windtunnel.sim.engine import Attempt, EngineConfig, SimEngine, SpecDecode
from windtunnel.sim.specdecode import steps_for, tokens_after
from windtunnel.sim.stepmodels.affine import Affine
from windtunnel.sim.stepmodels.vidur import VidurRoofline
from windtunnel.sim.stretched import StretchedBlocks

SECOND = Affine(1.0, 0.0, 0.0, 0.0)


def fly(spec: SpecDecode | None, jobs: list[tuple[int, int]], model: Any = SECOND, **changes: Any) -> tuple[SimEngine, list[Attempt]]:
    agenda = Agenda()
    engine = SimEngine("r", EngineConfig(spec_decode=spec, **changes), model, agenda, on_finish=lambda a: None, on_cancelled=lambda a: None,
                       check=True, pieces=True, rng=np.random.Generator(np.random.PCG64(7)))
    sent = [Attempt(str(i), 1, prompt, output) for i, (prompt, output) in enumerate(jobs)]
    for a in sent:
        agenda.at(0.0, ARRIVAL, lambda _, a=a: engine.submit(a))
    agenda.run()
    assert engine.idle
    return engine, sent


def test_SD_1_worked_mean_and_steps() -> None:
    spec = SpecDecode(3, 0.7)
    assert spec.mean_tokens == pytest.approx(2.533)
    assert spec.mean_tokens == pytest.approx((1 - 0.7**4) / (1 - 0.7))
    assert steps_for(199, spec.mean_tokens) == 79
    engine, (a,) = fly(spec, [(100, 200)])
    assert engine.steps == 80  # the prefill and 79 decode steps instead of 199
    assert (a.generated, engine.output_tokens, a.finished_s) == (200, 200, 80.0)
    assert engine.events <= 3


def test_SD_1_each_position_may_have_its_own_chance() -> None:
    assert SpecDecode(2, (0.9, 0.5)).mean_tokens == pytest.approx(1 + 0.9 + 0.45)
    assert SpecDecode(4, 1.0).mean_tokens == 5.0
    assert SpecDecode(4, 0.0).mean_tokens == 1.0


def test_SD_1_tokens_come_in_chunks_and_a_chunk_is_one_gap() -> None:
    engine, (a,) = fly(SpecDecode(3, 0.7), [(100, 12)])
    assert engine.pieces is not None
    times = [engine.pieces.token_time(a, n) for n in range(1, 13)]
    after = [min(12, 1 + int(m * 2.533 + 1e-9)) for m in range(6)]  # tokens after m decode steps
    assert times == [1.0 + next(m for m, tokens in enumerate(after) if tokens >= n) for n in range(1, 13)]
    seconds, counts = engine.pieces.gaps()
    assert np.repeat(seconds, counts).tolist() == [1.0] * 5


def test_SD_1_acceptance_of_nothing_is_plain_decoding_and_costs_the_drafts() -> None:
    _, plain = fly(None, [(100, 20)])
    _, drafted = fly(SpecDecode(2, 0.0, draft_s=0.25), [(100, 20)])
    assert plain[0].finished_s == 20.0
    assert drafted[0].finished_s == pytest.approx(1.0 + 19 * 1.5)


def test_SD_1_the_step_computes_the_drafts_too() -> None:
    _, plain = fly(None, [(10, 2)] * 64, VidurRoofline())
    _, drafted = fly(SpecDecode(7, 0.0), [(10, 2)] * 64, VidurRoofline(), max_num_batched_tokens=8192)
    assert drafted[0].finished_s - drafted[0].first_token_s > 1.5 * (plain[0].finished_s - plain[0].first_token_s)


def test_SD_1_kv_grows_by_g_a_step() -> None:
    model = Affine(1.0, 0.0, 0.0, 1e-3)
    _, (a,) = fly(SpecDecode(3, 0.7), [(100, 12)], model)
    g = 2.533
    assert a.finished_s == pytest.approx(1.0 + sum(1.0 + 1e-3 * (101 + g * m) for m in range(5)), abs=1e-9)


def test_SD_1_sampled_draws_have_the_mean_and_step_one_by_one() -> None:
    spec = SpecDecode(3, 0.7, mode="sampled")
    engine, sent = fly(spec, [(10, 400)] * 32)
    assert {a.generated for a in sent} == {400}
    assert engine.output_tokens == 400 * 32
    mean = 399 * 32 / (engine.sequence_steps - 32)
    assert mean == pytest.approx(spec.mean_tokens, rel=0.02)
    assert engine.per_step_share > 0.95
    assert engine.pieces is not None
    times = [engine.pieces.token_time(sent[0], n) for n in range(1, 401)]
    assert times == sorted(times) and times[-1] == sent[0].finished_s
    assert max(times.count(t) for t in set(times)) == 4


def test_SD_1_sampled_twice_is_the_same() -> None:
    spec = SpecDecode(4, 0.6, mode="sampled")
    assert [a.finished_s for a in fly(spec, [(10, 50)] * 8)[1]] == [a.finished_s for a in fly(spec, [(10, 50)] * 8)[1]]


def test_SD_1_draws_follow_the_chances() -> None:
    spec, rng = SpecDecode(3, (0.9, 0.5, 0.2)), random.Random(3)
    drawn = [spec.draw(rng.random) for _ in range(20_000)]
    assert np.mean(drawn) == pytest.approx(spec.mean_tokens - 1, abs=0.02)
    assert set(drawn) == {0, 1, 2, 3}


@pytest.mark.parametrize("mode", ["expected", "sampled"])
def test_SK_6_speculation_in_a_tiny_pool_is_preempted_and_ends(mode: str) -> None:
    engine, sent = fly(SpecDecode(3, 0.7, mode=mode), [(60, 60), (50, 70), (20, 30)], num_blocks=9, reserve_full_input=False)
    assert engine.preemptions > 0
    assert [a.generated for a in sent] == [60, 70, 30]
    assert engine.output_tokens == 160


@pytest.mark.parametrize("mode", ["expected", "sampled"])
def test_SE_9_drafts_need_room_behind_the_last_token(mode: str) -> None:
    _, (fits, not_) = fly(SpecDecode(3, 0.7, mode=mode), [(31, 31), (31, 32)], num_blocks=4)  # 61 + 3 and 62 + 3 tokens of 64
    assert (fits.generated, not_.finished_s) == (31, None)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 20)), min_size=1, max_size=6), st.floats(1.0, 5.0), st.sampled_from([1, 4, 16]),
       st.integers(20, 60))
def test_SK_2_stretched_blocks_are_a_count_of_each(members: list[tuple[int, int]], g: float, size: int, total: int) -> None:
    kv = StretchedBlocks(size, total, g)
    for member in members:
        kv.join(member)
    D = 20

    def used(D: int) -> int:
        return sum(-(-(computed + tokens_after(D - since, g)) // size) for computed, since in members)

    assert [kv.used(D + k) for k in range(30)] == [used(D + k) for k in range(30)]
    k = kv.affordable(D, 25)
    assert used(D + k) <= total or k == 0
    assert k == 25 or used(D + k + 1) > total
    for member in members:
        kv.leave(member)
    assert (kv.n, kv.used(D), kv.base_sum) == (0, 0, 0.0)


@pytest.mark.parametrize("changes", [
    {"k": 0}, {"k": 1.5}, {"accept": 1.1}, {"accept": -0.1}, {"accept": float("nan")}, {"accept": (0.5,)}, {"accept": (0.5, 0.5, 2.0)},
    {"draft_s": -1.0}, {"mode": "lucky"}])
def test_speculation_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigValueError):
        SpecDecode(**{"k": 3, **changes})


def test_a_budget_too_small_for_the_drafts_is_refused() -> None:
    with pytest.raises(ConfigValueError, match="of 4 tokens each"):
        EngineConfig(spec_decode=SpecDecode(3), max_num_seqs=64, max_num_batched_tokens=255)
