"""One simulated engine: worked times, boundaries, refusals, cancels, loss, speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from windtunnel.errors import ConfigValueError, ModelStepTimeError
from windtunnel.sim.agenda import ARRIVAL, Agenda
from windtunnel.sim.engine import Attempt, EngineConfig, HostCosts, SimEngine
from windtunnel.sim.stepmodels.affine import Affine
from windtunnel.sim.stepmodels.model import Batch, Provenance

AFFINE = Affine(6e-3, 2.6e-5, 2e-5, 2.4e-8)


class Bench:
    """An engine, its agenda and what it said."""

    def __init__(self, config: EngineConfig | None = None, step_model: Any = AFFINE, **options: Any) -> None:
        self.agenda, self.seen, self.refusals = Agenda(), [], {}
        self.attempts: dict[str, Attempt] = {}
        self.engine = SimEngine("r0", config or EngineConfig(), step_model, self.agenda, on_finish=lambda a: self.note("finish", a),
                                on_cancelled=lambda a: self.note("cancelled", a), on_first=lambda a: self.note("first", a),
                                on_started=lambda a: self.note("started", a), check=True, pieces=True, **options)

    def note(self, what: str, a: Attempt) -> None:
        self.seen.append((what, a.id, self.agenda.now))

    def send(self, at_s: float, id: str, prompt: int, output: int) -> Attempt:
        a = self.attempts[id] = Attempt(id, 1, prompt, output)

        def submit(_: object) -> None:
            refusal = self.engine.submit(a)
            if refusal is not None:
                self.refusals[id] = refusal

        self.agenda.at(at_s, ARRIVAL, submit)
        return a

    def at(self, at_s: float, act: Any) -> None:
        self.agenda.at(at_s, ARRIVAL, lambda _: act())

    def tokens(self, a: Attempt) -> list[float]:
        assert self.engine.pieces is not None
        return [self.engine.pieces.token_time(a, n) for n in range(1, a.output + 1)]

    def run(self, until: float | None = None) -> Bench:
        self.agenda.run(until)
        return self


# -- fast-forward --------------------------------------------------------------------------------------------------------------------


def test_SF_worked_token_times() -> None:
    bench = Bench()
    a = bench.send(0.0, "a", 100, 4)
    bench.run()
    assert bench.tokens(a) == pytest.approx([0.008620, 0.014642424, 0.020664872, 0.026687344], abs=1e-12)
    assert (a.first_token_s, a.finished_s) == pytest.approx((0.008620, 0.026687344), abs=1e-12)
    assert (a.finished_s - a.first_token_s) / 3 == pytest.approx(0.006022448, abs=1e-12)
    assert bench.engine.steps == 4
    assert bench.engine.events == 2  # the prefill, and one run of three decodes
    assert bench.engine.idle


def four_decoding(bench: Bench) -> list[Attempt]:
    """Four requests whose next step attends K = 4000 and that end in 100 steps."""
    return [bench.send(0.0, f"d{i}", 999, 101) for i in range(4)]


def test_SF_5_worked_cut() -> None:
    bench = Bench(EngineConfig(max_num_batched_tokens=8192))
    start_s = 6e-3 + 2.6e-5 * 3996 + 2e-5 * 4
    decoding = four_decoding(bench)
    late = bench.send(start_s + 0.05, "late", 10, 1)
    bench.run(until=0.2)
    assert decoding[0].first_token_s == pytest.approx(start_s, abs=1e-12)
    assert late.started_s == pytest.approx(start_s + 0.055587456, abs=1e-12)
    plain = Bench(EngineConfig(max_num_batched_tokens=8192))
    decoding = four_decoding(plain)
    plain.run()
    assert decoding[0].finished_s - decoding[0].first_token_s == pytest.approx(0.6180752, abs=1e-12)
    assert plain.engine.events == 2


def test_SF_5_an_arrival_exactly_at_a_boundary_takes_part_in_the_next_step() -> None:
    plain = Bench(EngineConfig(max_num_batched_tokens=8192))
    decoding = four_decoding(plain)
    plain.run()
    boundary_s = plain.tokens(decoding[0])[8]  # eight steps after the first token
    assert boundary_s - decoding[0].first_token_s == pytest.approx(0.049410688, abs=1e-12)
    bench = Bench(EngineConfig(max_num_batched_tokens=8192))
    four_decoding(bench)
    late = bench.send(boundary_s, "late", 10, 1)
    bench.run()
    assert late.started_s == boundary_s


def test_SF_5_who_cannot_be_admitted_does_not_cut() -> None:
    full = Bench(EngineConfig(max_num_seqs=4, max_num_batched_tokens=8192))
    decoding = four_decoding(full)
    late = full.send(0.3, "late", 10, 1)
    full.run()
    assert late.started_s == decoding[0].finished_s
    assert full.engine.events == 3
    assert late.first_token_s == pytest.approx(late.started_s + 6e-3 + 2.6e-5 * 10 + 2e-5, abs=1e-12)


def test_SF_6_a_run_that_was_cut_leaves_one_live_event() -> None:
    bench = Bench()
    bench.send(0.0, "a", 10, 50)
    for i in range(20):
        bench.send(0.02 + i * 1e-4, f"b{i}", 5, 3)
    bench.run()
    assert [a.generated for a in bench.attempts.values()] == [50] + [3] * 20


def test_SF_9_a_long_prompt_alone_is_a_handful_of_events() -> None:
    bench = Bench(EngineConfig(max_num_batched_tokens=512))
    a = bench.send(0.0, "long", 32_768, 2)
    bench.run()
    assert bench.engine.steps == 65
    assert bench.engine.events <= 4
    assert a.first_token_s == pytest.approx(64 * (6e-3 + 2.6e-5 * 512 + 2e-5), abs=1e-12)


# -- boundaries ----------------------------------------------------------------------------------------------------------------------


def test_SE_1_output_1_is_the_prefill_alone_and_0_counts_no_token() -> None:
    bench = Bench()
    one, none = bench.send(0.0, "one", 20, 1), bench.send(1.0, "none", 20, 0)
    bench.run()
    assert one.finished_s == one.first_token_s == pytest.approx(6e-3 + 2.6e-5 * 20 + 2e-5)
    assert none.finished_s == pytest.approx(1.0 + one.finished_s)
    assert (one.generated, none.generated, none.first_token_s) == (1, 0, None)
    assert bench.engine.output_tokens == 1


def test_SE_2_what_comes_during_a_step_takes_effect_at_its_end() -> None:
    bench = Bench()
    a, b = bench.send(0.0, "a", 100, 2), bench.send(0.004, "b", 10, 1)
    bench.run()
    assert b.started_s == a.first_token_s
    assert b.first_token_s == a.finished_s  # one mixed step


def test_SE_2_what_comes_at_the_same_instant_shares_the_first_step() -> None:
    bench = Bench()
    for name in "abc":
        bench.send(0.0, name, 10, 1)
    bench.run()
    assert [a.finished_s for a in bench.attempts.values()] == pytest.approx([6e-3 + 2.6e-5 * 30 + 2e-5 * 3] * 3)
    assert bench.engine.steps == 1


def test_SE_2_what_a_finish_causes_takes_part_in_the_next_step() -> None:
    bench = Bench()
    follow = Attempt("follow", 1, 10, 1)
    bench.engine._on_finish = lambda a: bench.engine.submit(follow) if a.id == "a" else bench.note("finish", a)
    a = bench.send(0.0, "a", 100, 3)
    bench.run()
    assert follow.started_s == a.finished_s


def test_SE_3_finishes_in_admission_order_then_first_tokens() -> None:
    bench = Bench()
    bench.send(0.0, "a", 10, 2)
    bench.send(0.0, "b", 20, 2)
    bench.send(0.005, "c", 5, 1)
    bench.send(0.005, "d", 5, 3)
    bench.run()
    end = bench.attempts["a"].finished_s
    assert [(what, id) for what, id, at in bench.seen if at == end] == [
        ("finish", "a"), ("finish", "b"), ("first", "c"), ("finish", "c"), ("first", "d")]


def test_SE_4_the_budget_goes_to_the_running_first() -> None:
    bench = Bench(EngineConfig(max_num_batched_tokens=32, max_num_seqs=8))
    a = bench.send(0.0, "a", 4, 9)
    long = bench.send(0.001, "long", 70, 1)
    bench.run()
    times = bench.tokens(a)
    # 31 tokens beside the decode, 31 more, then the rest
    assert long.started_s == times[0]
    assert long.first_token_s == times[3]
    assert times[1] - times[0] == pytest.approx(6e-3 + 2.6e-5 * 31 + 2e-5 * 2 + 2.4e-8 * 5, abs=1e-12)


def test_SE_4_the_first_that_does_not_fit_stops_admission() -> None:
    bench = Bench(EngineConfig(num_blocks=10, block_size=16, max_num_batched_tokens=512))
    a = bench.send(0.0, "a", 96, 3)  # 6 blocks, then 7
    large, small = bench.send(0.0, "large", 80, 1), bench.send(0.0, "small", 16, 1)
    bench.run()
    assert large.started_s == a.finished_s
    assert small.started_s == large.started_s


# -- refusals ------------------------------------------------------------------------------------------------------------------------


def test_SE_9_a_context_too_long_is_refused_for_good() -> None:
    bench = Bench(EngineConfig(max_model_len=100))
    bench.send(0.0, "fits", 60, 40)
    bench.send(0.0, "long", 60, 41)
    bench.run()
    assert (bench.refusals["long"].status, bench.refusals["long"].reason) == (400, "context_length_exceeded")
    assert bench.refusals["long"].retry_after_s is None
    assert set(bench.refusals) == {"long"}
    assert bench.attempts["fits"].generated == 40


def test_SE_9_what_the_pool_can_never_hold_is_refused_and_no_livelock() -> None:
    bench = Bench(EngineConfig(num_blocks=4, block_size=16))
    fits, not_ = bench.send(0.0, "fits", 33, 32), bench.send(0.0, "not", 34, 32)  # 64 and 65 tokens are ever stored
    bench.run()
    assert (bench.refusals["not"].status, bench.refusals["not"].reason) == (400, "kv_capacity_exceeded")
    assert fits.generated == 32 and fits.preemptions == 0
    assert not_.finished_s is None


@pytest.mark.parametrize("status", [503, 429])
def test_SE_9_a_full_queue_answers_the_configured_status(status: int) -> None:
    bench = Bench(EngineConfig(max_num_seqs=1, max_queued_requests=2, reject_status=status))
    bench.send(0.0, "running", 10, 50)
    for i in range(4):
        bench.send(0.01, f"w{i}", 10, 1)
    bench.run()
    assert {id: (r.status, r.reason, r.retry_after_s) for id, r in bench.refusals.items()} == {
        "w2": (status, "engine_queue_full", None), "w3": (status, "engine_queue_full", None)}
    assert bench.attempts["w1"].finished_s is not None


def test_SE_9_queued_tokens_are_bounded_too() -> None:
    bench = Bench(EngineConfig(max_num_seqs=1, max_queued_tokens=100))
    bench.send(0.0, "running", 10, 50)
    for name, prompt in (("a", 60), ("b", 40), ("c", 1)):
        bench.send(0.01, name, prompt, 1)
    bench.run()
    assert set(bench.refusals) == {"c"}


@pytest.mark.parametrize("changes", [
    {"max_num_seqs": 0}, {"block_size": -1}, {"num_blocks": 0}, {"watermark": 1.0}, {"watermark": float("nan")}, {"policy": "vllm0"},
    {"preemption": "magic"}, {"reject_status": 200}, {"max_num_batched_tokens": 100, "max_num_seqs": 101}, {"chunked_prefill": 1}])
def test_an_engine_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigValueError):
        EngineConfig(**changes)


@pytest.mark.parametrize("seconds", [0.0, -1e-3, float("nan"), float("inf")])
def test_SM_2_a_step_that_takes_no_time_stops_the_run(seconds: float) -> None:
    class Broken:
        provenance = Provenance("broken")

        def seconds(self, b: Batch) -> float:
            return seconds

        def run(self, b: Batch, k: int) -> tuple[float, float, int]:
            return seconds, 0.0, k

    bench = Bench(step_model=Broken())
    bench.send(0.0, "a", 10, 2)
    with pytest.raises(ModelStepTimeError, match="Broken"):
        bench.run()


HOSTS = pytest.mark.parametrize("host", [HostCosts(), HostCosts(step_s=1e-3)], ids=["plain", "timed"])


class Answers:
    """10 ms a step, said in the types that numerical code gives."""

    provenance = Provenance("answers")

    def __init__(self, lasts: Callable[[int], Any]) -> None:
        self.lasts = lasts

    def seconds(self, b: Batch) -> float:
        return 0.01

    def run(self, b: Batch, k: int) -> tuple[Any, Any, Any]:
        return np.float64(0.01), 0, self.lasts(k)


@HOSTS
@pytest.mark.parametrize("number", [int, float, np.int64])
def test_SM_2_any_kind_of_number_is_a_step_models_answer(number: Callable[[int], Any], host: HostCosts) -> None:
    bench = Bench(EngineConfig(host=host), step_model=Answers(number))
    bench.send(0.0, "a", 10, 21)
    bench.run()
    assert [round(at, 9) for what, _, at in bench.seen if what == "finish"] == [round(21 * (0.01 + host.step_s), 9)]


@HOSTS
@pytest.mark.parametrize("lasts", [lambda k: 0, lambda k: -1, lambda k: k + 1])
def test_SM_2_steps_that_nobody_asked_for_stop_the_run(lasts: Callable[[int], Any], host: HostCosts) -> None:
    bench = Bench(EngineConfig(host=host), step_model=Answers(lasts))
    bench.send(0.0, "a", 10, 21)
    with pytest.raises(ModelStepTimeError, match="Answers answered for"):
        bench.run()


# -- cancels -------------------------------------------------------------------------------------------------------------------------


def test_SE_10_waiting_leaves_now_running_at_the_end_of_the_step() -> None:
    bench = Bench(EngineConfig(max_num_seqs=1))
    a = bench.send(0.0, "a", 100, 50)
    bench.send(0.0, "waits", 10, 5)
    answers = []
    bench.at(0.010, lambda: answers.append(bench.engine.cancel("waits", 1)))
    bench.at(0.050, lambda: answers.append(bench.engine.cancel("a", 1)))
    bench.at(0.050, lambda: answers.append(bench.engine.cancel("nobody", 1)))
    bench.at(0.050, lambda: answers.append(bench.engine.cancel("a", 2)))
    bench.run()
    assert answers == [True, True, False, False]
    gone = {id: at for what, id, at in bench.seen if what == "cancelled"}
    assert gone["waits"] == 0.010
    t = [0.008620 + k * 0.006022424 + 2.4e-8 * k * (k - 1) / 2 for k in range(9)]
    assert gone["a"] == pytest.approx(min(x for x in t if x >= 0.05), abs=1e-12)
    assert a.finished_s is None and a.generated == 8
    assert bench.engine.idle and bench.engine.kv.used(bench.engine.D) == 0
    assert not bench.engine.cancel("a", 1)


def test_SE_10_its_place_goes_to_the_next_at_once() -> None:
    bench = Bench(EngineConfig(max_num_seqs=1))
    bench.send(0.0, "a", 100, 500)
    b = bench.send(0.001, "b", 10, 1)
    bench.at(0.1, lambda: bench.engine.cancel("a", 1))
    bench.run()
    assert b.started_s == next(at for what, id, at in bench.seen if what == "cancelled")
    assert b.started_s < 0.1 + 0.0061


def test_SE_10_who_finishes_in_that_very_step_is_finished_or_cancelled_and_not_both() -> None:
    bench = Bench()
    a = bench.send(0.0, "a", 100, 4)
    bench.at(0.0266, lambda: bench.engine.cancel("a", 1))  # inside its last step
    bench.run()
    ends = [(what, id) for what, id, _ in bench.seen if what in ("finish", "cancelled")]
    assert ends in ([("finish", "a")], [("cancelled", "a")])
    assert a.generated == 4 and bench.engine.idle


# -- preemption ----------------------------------------------------------------------------------------------------------------------


def test_SK_6_the_last_admitted_is_recomputed_and_no_token_comes_twice() -> None:
    bench = Bench(EngineConfig(num_blocks=8, block_size=16, reserve_full_input=False, prefix_cache=False))
    a, b = bench.send(0.0, "a", 60, 40), bench.send(0.0, "b", 60, 40)
    bench.run()
    assert (a.preemptions, b.preemptions) == (0, 1)
    assert a.generated == b.generated == 40
    # 4 blocks each last for 64 tokens: a's fifth block throws b out after the first token and four decodes
    assert b.recomputed_tokens == 64
    assert bench.engine.output_tokens == 80
    assert bench.tokens(b) == sorted(set(bench.tokens(b)))
    assert [at for what, id, at in bench.seen if (what, id) == ("first", "b")] == [b.first_token_s]


# -- looking, losing, slowing -------------------------------------------------------------------------------------------------------


def test_SF_11_state_inside_a_run_is_that_of_stepping_and_changes_nothing() -> None:
    def states(**options: Any) -> tuple[list[Any], list[Any]]:
        bench = Bench(EngineConfig(num_blocks=64), **options)
        bench.send(0.0, "a", 100, 60)
        bench.send(0.03, "b", 37, 40)
        looks: list[Any] = []
        for i in range(1, 60):
            bench.at(i * 7.3e-3, lambda: looks.append(bench.engine.state_at(bench.agenda.now)))
        bench.run()
        return looks, bench.seen

    (fast, fast_seen), (slow, slow_seen) = states(), states(step_every=True)
    assert fast == slow
    assert [(w, i) for w, i, _ in fast_seen] == [(w, i) for w, i, _ in slow_seen]
    assert [s.generated for s in fast] == sorted(s.generated for s in fast)
    assert max(s.running for s in fast) == 2
    assert (fast[-1].running, fast[-1].kv_used_fraction, fast[-1].generated) == (0, 0.0, 100)


def test_SF_11_asking_about_later_does_not_change_the_run() -> None:
    bench = Bench()
    a = bench.send(0.0, "a", 100, 10)
    bench.run(until=0.0101)
    at = [bench.engine.state_at(0.0101 + i * 1e-3).generated for i in range(60)]
    assert at[0] == 1 and at[-1] == 10
    bench.run()
    assert bench.tokens(a)[-1] == pytest.approx(0.008620 + 9 * 0.006022424 + 2.4e-8 * 36, abs=1e-12)


def test_S_5_drop_all_gives_back_everybody_in_admission_then_queue_order() -> None:
    bench = Bench(EngineConfig(max_num_seqs=2))
    for name in "abcd":
        bench.send(0.0, name, 50, 100)
    bench.run(until=0.1)
    lost = bench.engine.drop_all("crash")
    assert [a.id for a in lost] == ["a", "b", "c", "d"]
    assert lost[0].generated == lost[1].generated == bench.engine.state_at(0.1).generated // 2 > 10
    assert lost[2].generated == 0
    assert bench.engine.idle and bench.engine.running == bench.engine.waiting == 0
    assert bench.engine.kv.used(bench.engine.D) == 0
    bench.run()
    assert not [x for x in bench.seen if x[0] == "finish"]
    again = bench.send(1.0, "again", 100, 4)
    bench.run()
    assert again.finished_s == pytest.approx(1.026687344, abs=1e-12)


def test_SF_1_a_change_of_speed_holds_from_the_next_step_on() -> None:
    bench = Bench()
    a = bench.send(0.0, "a", 100, 11)
    bench.at(0.03, lambda: bench.engine.set_speed(3.0))
    bench.at(0.1, lambda: bench.engine.set_speed(1.0))
    bench.run()
    gaps = [y - x for x, y in zip(bench.tokens(a), bench.tokens(a)[1:])]
    plain = [0.006022424 + 2.4e-8 * i for i in range(10)]
    factors = [round(g / p) for g, p in zip(gaps, plain)]
    assert gaps == pytest.approx([f * p for f, p in zip(factors, plain)], abs=1e-12)
    starts = bench.tokens(a)[:-1]
    assert factors == [3 if 0.03 <= s < 0.1 else 1 for s in starts]
    assert 3 in factors and factors[-1] == 1


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_speed_that_means_nothing_is_refused(factor: float) -> None:
    with pytest.raises(ConfigValueError):
        Bench().engine.set_speed(factor)


def test_SE_11_host_costs_are_added_to_every_step() -> None:
    bench = Bench(EngineConfig(host=HostCosts(step_s=1e-3, step_per_seq_s=1e-4)))
    a = bench.send(0.0, "a", 100, 4)
    bench.run()
    plain = [0.008620, 0.014642424, 0.020664872, 0.026687344]
    assert bench.tokens(a) == pytest.approx([t + i * 1.1e-3 for i, t in enumerate(plain, 1)], abs=1e-12)
