"""The engine against a stepper that shares no code with it: plain state per request, one step at a time, as the rules read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from engine_jobs import MODELS, OUTPUTS, PROMPTS, TOLERANCE_S, Job, jobs_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from windtunnel.sim.agenda import ARRIVAL, Agenda
from windtunnel.sim.engine import Attempt, EngineConfig, SimEngine
from windtunnel.sim.stepmodels.model import Batch, StepModel


@dataclass
class Req:
    name: str
    prompt: int
    output: int  # tokens to yield; at least 1
    generated: int = 0
    computed: int = 0
    target: int = 0  # tokens to prefill before it decodes
    blocks: int = 0
    preempted_at: int = -1
    preemptions: int = 0
    recomputed: int = 0
    started: float | None = None
    first: float | None = None
    finished: float | None = None
    gone: float | None = None
    cancelled: bool = False

    @property
    def known(self) -> int:
        return self.prompt + self.generated

    @property
    def decoding(self) -> bool:
        return self.computed >= self.target


class Naive:
    """Requests, a queue, a count of blocks and a clock."""

    def __init__(self, config: EngineConfig, step_model: StepModel) -> None:
        self.config, self.model = config, step_model
        self.running: list[Req] = []
        self.waiting: list[Req] = []
        self.refused: dict[str, str] = {}
        self.now, self.steps = 0.0, 0
        self.said: list[tuple[str, str]] = []

    def blocks(self, tokens: int) -> int:
        return -(-tokens // self.config.block_size)

    def free(self) -> float:
        total = self.config.num_blocks
        return float("inf") if total is None else total - sum(r.blocks for r in self.running)

    def submit(self, r: Req) -> None:
        config = self.config
        if config.max_model_len is not None and r.prompt + r.output > config.max_model_len:
            self.refused[r.name] = "context_length_exceeded"
        elif config.num_blocks is not None and self.blocks(r.prompt + r.output - 1) > config.num_blocks:
            self.refused[r.name] = "kv_capacity_exceeded"
        elif not config.chunked_prefill and r.prompt + r.output - 1 > config.max_num_batched_tokens:
            self.refused[r.name] = "context_length_exceeded"  # after a preemption it could not be prefilled in one step
        elif config.max_queued_requests is not None and len(self.waiting) >= config.max_queued_requests:
            self.refused[r.name] = "engine_queue_full"
        else:
            r.target = r.prompt
            self.waiting.append(r)

    def cancel(self, r: Req, at_s: float) -> None:
        if r in self.waiting:
            self.waiting.remove(r)
            r.gone = at_s
        elif r in self.running:
            r.cancelled = True

    def victim(self) -> Req:
        """The last admitted, but nobody twice without a token in between."""
        return next((r for r in reversed(self.running) if r.decoding or r.preempted_at != r.generated), self.running[-1])

    def preempt(self, r: Req) -> None:
        self.running.remove(r)
        r.recomputed += r.computed
        r.computed, r.blocks, r.target = 0, 0, r.known
        r.preempted_at = r.generated
        r.preemptions += 1
        self.waiting.insert(0, r)

    def compose(self) -> dict[str, tuple[Req, int]]:
        """Who computes how many tokens in the next step; blocks are taken here."""
        budget, plan, preempted = self.config.max_num_batched_tokens, {}, False
        i = 0
        while i < len(self.running):
            r = self.running[i]
            while (q := min(r.known - r.computed, budget)) and self.blocks(r.computed + q) - r.blocks > self.free():
                preempted, v = True, self.victim()
                self.preempt(v)
                if v is r:  # the last one, so (a) is over; if the last one was spared, it is served yet
                    break
                if v.name in plan:
                    budget += plan.pop(v.name)[1]
                    i -= 1
            else:
                if q:
                    r.blocks = self.blocks(r.computed + q)
                    plan[r.name] = (r, q)
                    budget -= q
                i += 1
        if not preempted or self.config.policy == "sarathi":
            self.admit(plan, budget)
        return plan

    def admit(self, plan: dict[str, tuple[Req, int]], budget: int) -> None:
        config = self.config
        while self.waiting and len(self.running) < config.max_num_seqs and budget > 0:
            r = self.waiting[0]
            q = min(r.known, budget)
            if not config.chunked_prefill and q < r.known:
                return
            kept = int(config.watermark * config.num_blocks) if config.num_blocks and self.running else 0
            if self.blocks(r.known if config.reserve_full_input else q) + kept > self.free():
                return
            self.waiting.pop(0)
            self.running.append(r)
            r.started = self.now if r.started is None else r.started
            r.blocks = self.blocks(q)
            plan[r.name] = (r, q)
            budget -= q

    def step(self) -> None:
        for r in [r for r in self.running if r.cancelled]:
            self.running.remove(r)
            r.gone = self.now
        for r in [r for r in self.waiting if r.cancelled]:
            self.waiting.remove(r)
            r.gone = self.now
        plan = self.compose()
        if not plan:
            return
        decode = [r for r, _ in plan.values() if r.decoding]
        prefill = [(q, r.computed) for r, q in plan.values() if not r.decoding]
        sampled = len(decode) + sum(not r.decoding and r.computed + q == r.target for r, q in plan.values())
        seconds = self.model.seconds(Batch(len(decode), sum(r.known for r in decode), prefill, sum(q for _, q in plan.values()),
                                           len(plan), sampled))
        self.now += seconds
        self.steps += 1
        firsts = []
        for r in list(self.running):
            if r.name not in plan:
                continue
            r.computed += plan[r.name][1]
            if r.computed < r.target:
                continue
            r.generated += 1
            if r.first is None:
                r.first = self.now
                firsts.append(r.name)
            if r.generated == r.output:
                r.finished = self.now
                self.running.remove(r)
        self.said += [("finish", r.name) for r, _ in plan.values() if r.finished is not None]
        self.said += [("first", name) for name in firsts]

    def fly(self, jobs: list[Job]) -> list[Req]:
        reqs = [Req(f"q{i}", job.prompt, max(1, job.output)) for i, job in enumerate(jobs)]
        todo: list[tuple[float, int, Req]] = []
        for r, job in zip(reqs, jobs):
            todo.append((job.at_s, 0, r))
            if job.cancel_after_s is not None:
                todo.append((job.at_s + job.cancel_after_s, 1, r))
        todo.sort(key=lambda t: t[0])  # stable: equal times in the order in which they were made
        while todo or self.running or self.waiting:
            while todo and todo[0][0] <= self.now:
                at_s, what, r = todo.pop(0)
                self.submit(r) if what == 0 else self.cancel(r, at_s)
            if self.running or self.waiting:
                before = self.steps
                self.step()
                if self.steps > before:
                    continue
                assert not self.running and not self.waiting, "nobody can get on"
            if todo:
                self.now = max(self.now, todo[0][0])
        return reqs


def fly(jobs: list[Job], config: EngineConfig, step_model: StepModel, **options: Any) -> tuple[SimEngine, list[Attempt], dict[str, Any]]:
    agenda, log = Agenda(), {"refused": {}, "gone": {}, "said": []}
    engine = SimEngine("r", config, step_model, agenda, on_finish=lambda a: log["said"].append(("finish", a.id)),
                       on_cancelled=lambda a: log["gone"].__setitem__(a.id, agenda.now), check=True,
                       on_first=lambda a: log["said"].append(("first", a.id)), **options)
    attempts = [Attempt(f"q{i}", 1, job.prompt, job.output) for i, job in enumerate(jobs)]

    def send(a: Attempt) -> None:
        refusal = engine.submit(a)
        if refusal is not None:
            log["refused"][a.id] = refusal.reason

    for a, job in zip(attempts, jobs):
        agenda.at(job.at_s, ARRIVAL, lambda _, a=a: send(a))
        if job.cancel_after_s is not None:
            agenda.at(job.at_s + job.cancel_after_s, ARRIVAL, lambda _, a=a: engine.cancel(a.id, 1))
    agenda.run()
    assert engine.idle
    return engine, attempts, log


def close(ours: float | None, theirs: float | None) -> bool:
    return ours is theirs if ours is None or theirs is None else abs(ours - theirs) <= TOLERANCE_S


@dataclass
class Both:
    """One load served by both. refused: reason by id; differs: (who, what, the engine's, the stepper's), empty where they agree."""

    engine: SimEngine
    refused: dict[str, str]
    finished: int
    differs: list[tuple[str, str, Any, Any]]


def both(jobs: list[Job], config: EngineConfig, step_model: StepModel, **options: Any) -> Both:
    engine, attempts, log = fly(jobs, config, step_model, **options)
    naive = Naive(config, step_model)
    reqs = naive.fly(jobs)
    differs: list[tuple[str, str, Any, Any]] = []
    assert len(attempts) == len(reqs) == len(jobs) > 0
    for a, r, job in zip(attempts, reqs, jobs):
        whole = job.output > 0 or r.finished is None
        times = (("started", a.started_s, r.started), ("first", a.first_token_s, r.first if whole else None), ("finished", a.finished_s, r.finished),
                 ("gone", log["gone"].get(a.id), r.gone))
        differs += [(a.id, what, x, y) for what, x, y in times if not close(x, y)]
        counts = (a.preemptions, a.generated, a.recomputed_tokens), (r.preemptions, r.generated if whole else 0, r.recomputed)
        differs += [(a.id, "preempted, generated, recomputed", *counts)] if counts[0] != counts[1] else []
    ends = [[x for x in said if x[0] == "finish"] for said in (log["said"], naive.said)]
    for what, x, y in (("refused", log["refused"], naive.refused), ("ends", *ends), ("steps", engine.steps, naive.steps)):
        differs += [("engine", what, x, y)] if x != y else []
    return Both(engine, log["refused"], sum(a.finished_s is not None for a in attempts), differs)


gap = st.one_of(st.just(0.0), st.just(0.0), st.floats(1e-4, 0.3))
drawn_jobs = st.lists(st.tuples(gap, PROMPTS, OUTPUTS, st.one_of(st.none(), st.none(), st.floats(0.0, 0.8))), min_size=1, max_size=14)
configs = st.builds(
    EngineConfig, policy=st.sampled_from(["vllm", "vllm", "sarathi"]), chunked_prefill=st.sampled_from([True, True, False]),
    max_num_seqs=st.integers(1, 8), max_num_batched_tokens=st.sampled_from([8, 9, 32, 64, 300]),
    block_size=st.sampled_from([1, 4, 16]), num_blocks=st.one_of(st.none(), st.integers(3, 60)), watermark=st.sampled_from([0.0, 0.05]),
    reserve_full_input=st.booleans(), prefix_cache=st.booleans(), max_queued_requests=st.sampled_from([None, None, 3]),
    max_model_len=st.sampled_from([None, None, 200]),
)


@pytest.mark.filterwarnings("ignore:extrapolated")
@pytest.mark.parametrize("name", sorted(MODELS))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=drawn_jobs, config=configs)
def test_SF_12_the_engine_is_the_rules_stepped_one_by_one(name: str, drawn: list[Any], config: EngineConfig) -> None:
    flown = both(jobs_of(drawn), config, MODELS[name])
    assert flown.differs == []


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=drawn_jobs, config=configs)
def test_SF_12_stepping_the_engine_is_the_rules_too(drawn: list[Any], config: EngineConfig) -> None:
    flown = both(jobs_of(drawn), config, MODELS["affine"], step_every=True)
    assert flown.differs == []
    assert flown.engine.events <= flown.engine.steps, "no run of more than a step"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=drawn_jobs, blocks=st.integers(17, 24), whole=st.booleans())
def test_SK_6_a_pool_too_small_for_what_was_admitted(drawn: list[Any], blocks: int, whole: bool) -> None:
    """Blocks of 16 tokens for one or two requests: recompute again and again."""
    config = EngineConfig(num_blocks=blocks, max_num_seqs=8, max_num_batched_tokens=64, reserve_full_input=whole)
    flown = both(jobs_of(drawn), config, MODELS["affine"])
    assert flown.differs == []


@pytest.mark.parametrize("output", [0, 1, 2])
def test_SE_9_the_longest_context_and_one_token_more(output: int) -> None:
    """An output of 0 is 1 to the engine."""
    for prompt in (197, 198, 199, 200):
        flown = both([Job(0.0, prompt, output)], EngineConfig(max_model_len=200), MODELS["affine"])
        assert flown.differs == []
        too_long = prompt + max(1, output) > 200
        assert (flown.refused, flown.finished) == ({"q0": "context_length_exceeded"} if too_long else {}, 0 if too_long else 1)


def test_SE_5_sarathi_admits_in_the_step_that_preempts() -> None:
    config = EngineConfig(policy="sarathi", num_blocks=17, block_size=4, max_num_seqs=2, max_num_batched_tokens=8, reserve_full_input=False)
    flown = both([Job(0.0, 1, 33), Job(0.0, 1, 33)], config, MODELS["affine"])
    assert flown.differs == [] and flown.engine.preemptions == 1


def test_SK_6_a_burst_in_a_tiny_pool_recomputes_and_ends() -> None:
    jobs = [Job(0.001 * (i // 4), 50 + 7 * i, 80 - 3 * i, 1.0 if i % 9 == 4 else None) for i in range(20)]
    for whole in (True, False):
        flown = both(jobs, EngineConfig(num_blocks=40, max_num_seqs=8, max_num_batched_tokens=64, reserve_full_input=whole), MODELS["affine"])
        assert flown.differs == []
        assert flown.engine.preemptions > 5
        assert flown.engine.events < flown.engine.steps


@pytest.mark.filterwarnings("ignore:extrapolated")
@pytest.mark.parametrize("name", sorted(MODELS))
def test_SF_12_long_prompts_in_chunks_beside_decodes(name: str) -> None:
    jobs = [Job(0.0, 40, 400), Job(0.05, 5000, 30), Job(0.06, 3000, 3), Job(0.3, 9000, 2, 0.2), Job(0.31, 20, 5)]
    flown = both(jobs, EngineConfig(num_blocks=2000, max_num_batched_tokens=256), MODELS[name])
    assert flown.differs == []
    assert flown.engine.events < flown.engine.steps
