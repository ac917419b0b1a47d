"""Fast-forward gives what stepping every iteration gives: every token time, finish, block count, preemption and cache hit."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from windtunnel.datafiles import data_path
from windtunnel.sim.agenda import ARRIVAL, Agenda
from windtunnel.sim.catalog import gpu, model
from windtunnel.sim.engine import Attempt, EngineConfig, HostCosts, SimEngine
from windtunnel.sim.stepmodels.affine import Affine
from windtunnel.sim.stepmodels.model import StepModel
from windtunnel.sim.stepmodels.roofline import Roofline
from windtunnel.sim.stepmodels.table import Table
from windtunnel.sim.stepmodels.vidur import VidurRoofline

MODELS: dict[str, StepModel] = {
    "affine": Affine(6.1e-3, 2.63e-5, 2.1e-5, 2.4e-6, 1.1e-9),
    "table": Table(((1, 5.1e-3), (4, 6.3e-3), (32, 9.7e-3)), 2.17e-5, 1.3e-7),
    "roofline": Roofline(model("Llama-3.1-8B"), gpu("h100_sxm")),
    "vidur": VidurRoofline(),
}
TOLERANCE_S = 1e-9


@dataclass(frozen=True)
class Job:
    at_s: float
    prompt: int
    output: int
    group: int = -1  # requests of one group share a prefix
    cancel_after_s: float | None = None


def fly(jobs: list[Job], config: EngineConfig, step_model: StepModel, *, step_every: bool, check: bool = True) -> tuple[SimEngine, list[Any]]:
    agenda, seen, attempts = Agenda(), [], []
    held: dict[str, int] = {}

    def finished(a: Attempt) -> None:
        seen.append(("finish", a.id))
        held[a.id] = engine.kv.used(engine.D)

    engine = SimEngine("r", config, step_model, agenda, on_finish=finished, on_cancelled=lambda a: seen.append(("cancel", a.id)),
                       on_first=lambda a: seen.append(("first", a.id)), on_started=lambda a: seen.append(("start", a.id)),
                       step_every=step_every, check=check, pieces=True)

    def send(a: Attempt) -> None:
        refusal = engine.submit(a)
        if refusal is not None:
            seen.append((refusal.reason, a.id))

    for i, job in enumerate(jobs):
        blocks = tuple(job.group * 1000 + n for n in range(job.prompt // config.hash_tokens)) if job.group >= 0 else None
        a = Attempt(f"q{i}", 1, job.prompt, job.output, 0, blocks)
        attempts.append(a)
        agenda.at(job.at_s, ARRIVAL, lambda _, a=a: send(a))
        if job.cancel_after_s is not None:
            agenda.at(job.at_s + job.cancel_after_s, ARRIVAL, lambda _, a=a: engine.cancel(a.id, 1))
    agenda.run()
    assert engine.idle
    assert engine.kv.used(engine.D) == 0
    rows: list[Any] = []
    for a in attempts:
        tokens = []
        if a.finished_s is not None:
            tokens = [engine.pieces.token_time(a, n) for n in range(1, max(1, a.output) + 1)]
        rows.append((a.id, a.generated, a.preemptions, a.recomputed_tokens, a.cached_tokens, held.get(a.id), a.started_s, a.first_token_s,
                     a.finished_s, *tokens))
    numbers = (engine.steps, engine.output_tokens, engine.preemptions, engine.prefix_hit_blocks, engine.sequence_steps, engine.D,
               engine.cache.evictions if engine.cache else 0)
    return engine, [seen, numbers, rows, engine.busy_s]


def same(fast: Any, slow: Any) -> None:
    if isinstance(fast, float):
        assert abs(fast - slow) <= TOLERANCE_S, (fast, slow)
    elif isinstance(fast, (list, tuple)):
        assert len(fast) == len(slow), (fast, slow)
        for x, y in zip(fast, slow):
            same(x, y)
    else:
        assert fast == slow, (fast, slow)


gap = st.one_of(st.just(0.0), st.floats(1e-4, 0.3))
job = st.tuples(gap, st.one_of(st.just(1), st.integers(1, 40), st.integers(41, 260)), st.one_of(st.just(0), st.just(1), st.integers(2, 60)),
                st.integers(-1, 2), st.one_of(st.none(), st.none(), st.floats(1e-4, 0.8)))
config = st.builds(
    EngineConfig, policy=st.sampled_from(["vllm", "sarathi"]), max_num_seqs=st.integers(1, 8), max_num_batched_tokens=st.sampled_from([8, 32, 64]),
    block_size=st.sampled_from([1, 4, 16]), num_blocks=st.one_of(st.none(), st.integers(20, 60)), watermark=st.sampled_from([0.0, 0.05]),
    reserve_full_input=st.booleans(), prefix_cache=st.booleans(), host=st.sampled_from([HostCosts(), HostCosts(1e-3, 3e-5)]),
    max_queued_requests=st.sampled_from([None, None, 3]),
)


def jobs_of(drawn: list[tuple[float, int, int, int, float | None]]) -> list[Job]:
    now, jobs = 0.0, []
    for wait, *rest in drawn:
        now += wait
        jobs.append(Job(now, *rest))
    return jobs


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=st.lists(job, min_size=1, max_size=14), config=config, name=st.sampled_from(sorted(MODELS)))
def test_SF_12_fast_forward_equals_stepping(drawn: list[Any], config: EngineConfig, name: str) -> None:
    jobs = jobs_of(drawn)
    same(fly(jobs, config, MODELS[name], step_every=False)[1], fly(jobs, config, MODELS[name], step_every=True)[1])


def chat(n: int, squeeze: float = 1.0) -> list[Job]:
    with data_path("workloads/chat_1k_r16.csv").open() as file:
        rows = list(csv.DictReader(file))[:n]
    return [Job(float(r["arrival_s"]) * squeeze, int(r["input_tokens"]), int(r["output_tokens"]), i % 7, 2.7 if i % 11 == 5 else None)
            for i, r in enumerate(rows)]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_SF_12_on_recorded_lengths(name: str) -> None:
    config = EngineConfig(num_blocks=3000, max_num_seqs=64)
    fast, a = fly(chat(150), config, MODELS[name], step_every=False)
    slow, b = fly(chat(150), config, MODELS[name], step_every=True)
    same(a, b)
    assert fast.events < slow.events / 3


def test_SF_12_under_thrashing() -> None:
    """A pool so small that most requests are preempted, with a prefix cache that is evicted all the time."""
    jobs = [Job(j.at_s, min(j.prompt, 700), min(j.output, 300), j.group, j.cancel_after_s) for j in chat(120, 0.2)]
    for policy in ("vllm", "sarathi"):
        config = EngineConfig(policy=policy, num_blocks=130, max_num_seqs=32, max_num_batched_tokens=256)
        fast, a = fly(jobs, config, MODELS["affine"], step_every=False)
        _, b = fly(jobs, config, MODELS["affine"], step_every=True)
        same(a, b)
        assert fast.preemptions > 20
        assert fast.cache is not None and fast.cache.evictions > 20
