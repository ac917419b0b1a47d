"""Pipeline parallelism: what fits, how long steps last, and whose turn it is."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windtunnel import Run, Scenario
from windtunnel.errors import ConfigInfeasibleError, ConfigValueError
from windtunnel.lab.history import violations
from windtunnel.sim.agenda import ARRIVAL, Agenda
from windtunnel.sim.capacity import kv_blocks, refuse_infeasible
from windtunnel.sim.catalog import gpu, model
from windtunnel.sim.engine import Attempt, EngineConfig
from windtunnel.sim.pipeline_group import Piped
from windtunnel.sim.pipelined import PipelineEngine
from windtunnel.sim.stepmodels.affine import Affine
from windtunnel.sim.stepmodels.model import Batch

PLAIN = Affine(6e-3, 2.6e-5, 2e-5, 2.4e-8)
FLAT = Affine(0.01, 0.0, 0.0, 0.0)  # 10 ms a step, whatever it holds


class Rig:
    def __init__(self, pp: int, step: Any, **engine: Any) -> None:
        self.agenda, self.done, self.cancelled = Agenda(), dict[str, Attempt](), list[str]()
        options: dict[str, Any] = {"on_finish": lambda a: self.done.__setitem__(a.id, a), "on_cancelled": lambda a: self.cancelled.append(a.id),
                                   "check": True}
        config = EngineConfig(**engine)
        self.engine: Any = PipelineEngine("e", config, step, self.agenda, pp, **options)

    def send(self, id: str, prompt: int, output: int, at_s: float = 0.0) -> None:
        self.agenda.at(at_s, ARRIVAL, lambda _: self.engine.submit(Attempt(id, 1, prompt, output)))

    def run(self) -> Rig:
        self.agenda.run()
        assert self.engine.idle
        return self


def test_SE_14_worked_two_groups_take_turns_on_the_first_stage() -> None:
    rig = Rig(2, FLAT)
    for id in "abc":
        rig.send(id, 10, 5)
    rig.run()
    # a and c in group 0 (the first of the smallest), b in group 1, half a step behind
    assert {i: a.first_token_s for i, a in rig.done.items()} == pytest.approx({"a": 0.010, "c": 0.010, "b": 0.015})
    assert {i: a.finished_s for i, a in rig.done.items()} == pytest.approx({"a": 0.050, "c": 0.050, "b": 0.055})
    assert rig.engine.steps == 10
    assert rig.engine.busy_s == pytest.approx(0.050)  # of each stage: ten times its half step


def test_SE_14_one_request_passes_all_stages_and_the_hops() -> None:
    piped = Piped(FLAT, 4, 8192.0, 1e11, 5e-6)
    assert piped.seconds(Batch(tokens=100)) == pytest.approx(0.01 + 3 * (100 * 8192 / 1e11 + 5e-6))
    assert piped.run(Batch(tokens=100), 7) == (piped.seconds(Batch(tokens=100)), 0.0, 7)
    rig = Rig(4, piped)
    rig.send("a", 100, 2)
    rig.run()
    assert rig.done["a"].finished_s == pytest.approx(piped.seconds(Batch(tokens=100)) + piped.seconds(Batch(tokens=1)))


def test_SE_14_a_full_pipeline_yields_p_times_as_much_as_one_request_at_a_time() -> None:
    one, four = Rig(4, FLAT), Rig(4, FLAT)
    one.send("a", 10, 100)
    for i in range(4):
        four.send(f"q{i}", 10, 100)
    one.run(), four.run()
    assert max(a.finished_s for a in four.done.values()) == pytest.approx(one.done["a"].finished_s + 3 * 0.0025)
    assert four.engine.output_tokens == 4 * one.engine.output_tokens == 400


def test_SE_14_steps_are_taken_one_by_one_and_room_is_shared_out() -> None:
    rig = Rig(2, PLAIN, num_blocks=9, max_num_seqs=3)
    assert [(g.config.num_blocks, g.config.max_num_seqs) for g in rig.engine.groups] == [(4, 2), (4, 2)]
    rig.send("fits", 40, 20)
    rig.run()
    assert rig.engine.per_step_steps == rig.engine.steps == 20
    refused = rig.engine.submit(Attempt("large", 1, 60, 20))
    assert (refused.status, refused.reason) == (400, "kv_capacity_exceeded")


def test_SE_14_cancel_drop_pause_and_looks_reach_the_right_group() -> None:
    rig = Rig(2, FLAT, num_blocks=100)
    for id in "ab":
        rig.send(id, 16, 50)
    seen: list[Any] = []
    rig.agenda.at(0.102, ARRIVAL, lambda _: seen.append((rig.engine.state_at(0.102), rig.engine.progress_at(0.102), rig.engine.load)))
    rig.agenda.at(0.102, ARRIVAL, lambda _: seen.append([rig.engine.cancel("a", 1), rig.engine.cancel("nobody", 1)]))
    rig.agenda.at(0.2, ARRIVAL, lambda _: rig.engine.pause())
    rig.agenda.at(0.5, ARRIVAL, lambda _: rig.engine.resume())
    rig.run()
    state, progress, load = seen[0]
    assert (state.running, state.waiting, load, dict(progress)) == (2, 0, 2, {"a": 10, "b": 9})
    assert state.kv_used_fraction == pytest.approx(2 / 50)
    assert seen[1] == [True, False]
    assert rig.cancelled == ["a"]
    assert rig.done["b"].finished_s == pytest.approx(0.505 + 0.3, abs=0.02)
    rig.send("c", 16, 50, at_s=rig.agenda.now)
    rig.agenda.at(rig.agenda.now + 0.02, ARRIVAL, lambda _: seen.append([a.id for a in rig.engine.drop_all("crash")]))
    rig.agenda.run()
    assert seen[2] == ["c"] and rig.engine.idle


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 0.3), st.integers(1, 60), st.integers(0, 40)), min_size=1, max_size=14), st.integers(2, 5))
def test_SE_14_the_first_stage_is_never_taken_twice(jobs: Any, pp: int) -> None:
    rig = Rig(pp, PLAIN)
    starts: list[tuple[float, float]] = []
    for group in rig.engine.groups:
        inner = group.model

        class Seen:
            provenance = inner.provenance
            seconds = inner.seconds

            @staticmethod
            def run(b: Batch, k: int, inner: Any = inner) -> Any:
                assert k == 1
                A, B, lasts = inner.run(b, k)
                starts.append((rig.agenda.now, A / pp))
                return A, B, lasts

        group.model = Seen()
    for i, (at_s, prompt, output) in enumerate(jobs):
        rig.send(f"q{i}", prompt, output, at_s)
    rig.run()
    assert len(rig.done) == len(jobs)
    for (a, stage_s), (b, _) in pairwise(starts):
        assert b >= a + stage_s - 1e-12


def test_SM_41_worked_a_70b_model_in_bf16_fits_on_two_stages() -> None:
    arch, card = model("Llama-3.1-70B"), gpu("h100_sxm")
    with pytest.raises(ConfigInfeasibleError, match=r"weights 141.1 GB \+ overhead 1.2 GB > 77.3 GB usable"):
        refuse_infeasible(arch, card)
    refuse_infeasible(arch, card, pp=2)
    usable = card.memory_bytes * 0.9 - arch.params * 2 / 2 - 1.24e9
    assert kv_blocks(arch, card, pp=2) == int(usable // (16 * arch.kv_bytes_per_token("bf16") / 2))
    assert kv_blocks(arch, card, tp=2, pp=2) == kv_blocks(arch, card, pp=4)  # the same weights and KV on each of four
    with pytest.raises(ConfigInfeasibleError, match="80 layers cannot be shared out over pp 81"):
        refuse_infeasible(arch, card, pp=81)
    for wrong in (0, -1, 1.5):
        with pytest.raises(ConfigValueError):
            kv_blocks(arch, card, pp=wrong)  # type: ignore[arg-type]


def test_SL_1_a_pool_with_stages_flies_and_costs_its_gpus(tmp_path: Any) -> None:
    scenario = Scenario.load("overload").with_({"duration_s": 5.0, "warmup_s": 0.0, "source.rate_rps": 8, "fleet.pools.chat.model": "Llama-3.1-70B",
                                                "fleet.pools.chat.pp": 2, "fleet.pools.chat.tp": 2, "fleet.pools.chat.engine.max_num_seqs": 64})
    pool = scenario.build_fleet().pools["chat"]
    assert (pool.gpus_per_replica, pool.pp) == (4, 2)
    run = scenario.run(record="full", check=True)
    assert violations(run) == []
    assert (run.requests.outcome == "success").any() and run.replicas.gpus[0] == 4
    values = run.summary().values
    assert values["per_step_share"] == 1.0
    assert values["itl_s.p50"] > 0 and 0 < values["utilisation"] <= 1.0
    assert Run.load(run.save(tmp_path / "run")).summary().values["itl_s.p50"] == values["itl_s.p50"]


def test_SL_1_stages_do_not_hand_kv_over() -> None:
    with pytest.raises(ConfigValueError, match="pp 2 needs role agg"):
        Scenario.load("disaggregated").with_({"fleet.pools.prompts.pp": 2})
