"""Fast-forward gives what stepping every iteration gives: every token time, finish, block count, preemption and cache hit."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from engine_jobs import MODELS, OUTPUTS, PROMPTS, TOLERANCE_S, Job, jobs_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from windtunnel.datafiles import data_path
from windtunnel.sim.agenda import ARRIVAL, Agenda
from windtunnel.sim.engine import Attempt, EngineConfig, HostCosts, SimEngine, SpecDecode
from windtunnel.sim.stepmodels.model import StepModel


def fly(jobs: list[Job], config: EngineConfig, step_model: StepModel, *, step_every: bool, check: bool = True,
        speeds: Sequence[tuple[float, float]] = (), looks: Sequence[float] = (), rng: Any = None) -> tuple[SimEngine, list[Any]]:
    """speeds: (at s, factor), 0 to pause and -1 to resume; looks: times at which the state is asked for."""
    agenda, seen, attempts = Agenda(), [], []
    held: dict[str, int] = {}

    def finished(a: Attempt) -> None:
        seen.append(("finish", a.id))
        if not config.host.egress_s:  # then it is told in the middle of some run
            held[a.id] = engine.kv.used(engine.D)

    engine = SimEngine("r", config, step_model, agenda, on_finish=finished, on_cancelled=lambda a: seen.append(("cancel", a.id)),
                       on_first=lambda a: seen.append(("first", a.id)), on_started=lambda a: seen.append(("start", a.id)),
                       step_every=step_every, check=check, pieces=True, rng=rng)

    def send(a: Attempt) -> None:
        refusal = engine.submit(a)
        if refusal is not None:
            seen.append((refusal.reason, a.id))

    for i, job in enumerate(jobs):
        blocks = tuple(job.group * 1000 + n for n in range(job.prompt // config.hash_tokens)) if job.group >= 0 else None
        a = Attempt(f"q{i}", 1, job.prompt, job.output, job.priority, blocks)
        attempts.append(a)
        agenda.at(job.at_s, ARRIVAL, lambda _, a=a: send(a))
        if job.cancel_after_s is not None:
            agenda.at(job.at_s + job.cancel_after_s, ARRIVAL, lambda _, a=a: engine.cancel(a.id, 1))
    for at_s, factor in speeds:
        act = {0.0: engine.pause, -1.0: engine.resume}.get(factor) or (lambda factor=factor: engine.set_speed(factor))
        agenda.at(at_s, ARRIVAL, lambda _, act=act: act())
    for at_s in looks:
        agenda.at(at_s, ARRIVAL, lambda _: seen.append(("look", engine.state_at(agenda.now))))
    agenda.run()
    assert engine.idle
    assert engine.kv.used(engine.D) == 0
    assert engine._host_blocks == engine._waiting_tokens == 0
    rows: list[Any] = []
    for a in attempts:
        tokens = []
        if a.finished_s is not None:
            tokens = [engine.pieces.token_time(a, n) for n in range(1, max(1, a.output) + 1)]
        rows.append((a.id, a.generated, a.preemptions, a.recomputed_tokens, a.swapped_blocks, a.cached_tokens, held.get(a.id), a.started_s,
                     a.first_token_s, a.finished_s, *tokens))
    numbers = (engine.steps, engine.output_tokens, engine.preemptions, engine.prefix_hit_blocks, engine.sequence_steps, engine.D,
               engine.cache.evictions if engine.cache else 0, engine.swapped_blocks)
    seconds, counts = engine.pieces.gaps()
    multiset = np.repeat(seconds, counts)
    return engine, [seen, numbers, rows, engine.busy_s, [*np.sort(multiset).tolist()]]


def difference(fast: Any, slow: Any) -> Any:
    """The first pair that differs: floats by more than the tolerance, all else at all; None if there is none."""
    if isinstance(fast, float) and isinstance(slow, float):
        return None if abs(fast - slow) <= TOLERANCE_S else (fast, slow)
    if isinstance(fast, (list, tuple)) and isinstance(slow, (list, tuple)):
        if len(fast) != len(slow):
            return len(fast), len(slow), fast, slow
        return next((d for x, y in zip(fast, slow) if (d := difference(x, y)) is not None), None)
    return None if fast == slow else (fast, slow)


def itl(attempts_rows: list[Any]) -> list[float]:
    """Gaps between the tokens of every request, each m-token chunk one gap, sorted."""
    gaps: list[float] = []
    for row in attempts_rows:
        times = sorted(set(row[10:]))
        gaps += [y - x for x, y in pairwise(times)]
    return sorted(gaps)


gap = st.one_of(st.just(0.0), st.floats(1e-4, 0.3))
job = st.tuples(gap, PROMPTS, OUTPUTS, st.one_of(st.none(), st.none(), st.floats(1e-4, 0.8)), st.integers(-1, 2), st.sampled_from([0, 0, 1]))


@st.composite
def configs(draw: Any) -> EngineConfig:
    """Any engine: every policy with every feature that it can have."""
    policy = draw(st.sampled_from(["vllm", "vllm", "sarathi", "prefill_first", "prefill_first", "static", "slots"]))
    changes: dict[str, Any] = {"policy": policy, "max_num_seqs": draw(st.integers(1, 8))}
    spec = draw(st.sampled_from([None, None, SpecDecode(3, 0.7), SpecDecode(2, (0.9, 0.35), 1e-4)]))
    if draw(st.booleans()):
        changes |= {"preemption": "swap", "swap_blocks": draw(st.integers(0, 60)), "kv_bytes_per_token": 1e5,
                    "pcie_bw": draw(st.sampled_from([1e7, 3e9]))}
    if policy == "prefill_first":
        changes |= {"min_decode_steps": draw(st.sampled_from([0, 0, 3, 10])), "admission": draw(st.sampled_from(["blocks", "peak"]))}
    if policy == "static":
        changes |= {"batch_wait_s": draw(st.sampled_from([0.0, 0.05])), "pad": draw(st.booleans())}
    if policy == "slots":
        changes |= {"n_ctx": draw(st.sampled_from([None, 1500]))}
    return EngineConfig(
        **changes, spec_decode=spec, max_num_batched_tokens=draw(st.sampled_from([32, 64])), block_size=draw(st.sampled_from([1, 4, 16])),
        num_blocks=draw(st.one_of(st.none(), st.integers(20, 60))), watermark=draw(st.sampled_from([0.0, 0.05])),
        reserve_full_input=draw(st.booleans()), prefix_cache=draw(st.booleans()), order=draw(st.sampled_from(["fcfs", "priority"])),
        host=draw(st.sampled_from([HostCosts(), HostCosts(), HostCosts(1e-3, 3e-5), HostCosts(0.0, 0.0, 1e-3, 2e-3, 1e-5, 3e-3)])),
        max_queued_requests=draw(st.sampled_from([None, None, 3])), max_queued_tokens=draw(st.sampled_from([None, None, 300])))


speeds = st.lists(st.tuples(st.floats(0.0, 2.0), st.sampled_from([0.5, 1.0, 3.7, 0.0])), max_size=3)


@pytest.mark.filterwarnings("ignore:extrapolated")
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=st.lists(job, min_size=1, max_size=14), config=configs(), name=st.sampled_from(sorted(MODELS)), speeds=speeds,
       looks=st.lists(st.floats(0.0, 2.0), max_size=3))
def test_SF_12_fast_forward_equals_stepping(drawn: list[Any], config: EngineConfig, name: str, speeds: list[Any], looks: list[float]) -> None:
    jobs = jobs_of(drawn)
    actions = [*speeds, (2.5, -1.0)]
    _, fast = fly(jobs, config, MODELS[name], step_every=False, speeds=actions, looks=looks)
    _, slow = fly(jobs, config, MODELS[name], step_every=True, speeds=actions, looks=looks)
    assert difference(fast, slow) is None


@pytest.mark.filterwarnings("ignore:extrapolated")
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=st.lists(job, min_size=1, max_size=14), config=configs(), name=st.sampled_from(sorted(MODELS)))
def test_SF_8_pooled_gaps_are_those_of_the_token_times(drawn: list[Any], config: EngineConfig, name: str) -> None:
    jobs = [replace(j, cancel_after_s=None) for j in jobs_of(drawn)]  # of who is cancelled no token times are told
    _, (_, _, rows, _, gaps) = fly(jobs, config, MODELS[name], step_every=False)
    assert difference(gaps, itl(rows)) is None


def chat(n: int, squeeze: float = 1.0) -> list[Job]:
    with data_path("workloads/chat_1k_r16.csv").open() as file:
        rows = list(csv.DictReader(file))[:n]
    return [Job(float(r["arrival_s"]) * squeeze, int(r["input_tokens"]), int(r["output_tokens"]), 2.7 if i % 11 == 5 else None, i % 7)
            for i, r in enumerate(rows)]


@pytest.mark.filterwarnings("ignore:extrapolated")
@pytest.mark.parametrize("name", sorted(MODELS))
def test_SF_12_on_recorded_lengths(name: str) -> None:
    config = EngineConfig(num_blocks=3000, max_num_seqs=64)
    fast, a = fly(chat(150), config, MODELS[name], step_every=False)
    slow, b = fly(chat(150), config, MODELS[name], step_every=True)
    assert difference(a, b) is None
    assert fast.events < slow.events / 3


def test_SF_12_under_thrashing() -> None:
    """A pool so small that most requests are preempted, with a prefix cache that is evicted all the time."""
    jobs = [Job(j.at_s, min(j.prompt, 700), min(j.output, 300), j.cancel_after_s, j.group) for j in chat(120, 0.2)]
    for policy in ("vllm", "sarathi"):
        config = EngineConfig(policy=policy, num_blocks=130, max_num_seqs=32, max_num_batched_tokens=256)
        fast, a = fly(jobs, config, MODELS["affine"], step_every=False)
        _, b = fly(jobs, config, MODELS["affine"], step_every=True)
        assert difference(a, b) is None
        assert fast.preemptions > 20
        assert fast.cache is not None and fast.cache.evictions > 20
