"""How many GPUs should compute prompts and how many answers: the arithmetic of the constants, and the simulator's own count."""

from __future__ import annotations

import pytest

from windtunnel.lab.scenario import Scenario, variants
from windtunnel.sim.stepmodels.model import Batch
from windtunnel.sim.stepmodels.two_regime import TwoRegime

STEP = TwoRegime.published("facebook/opt-13b")
LOADS = {"short": (512, 200, 64), "long": (1024, 128, 48)}  # prompt, answer, batch of answers


def per_prefill_rps(load: str) -> float:
    """Prompts a second of one GPU that computes them one after the other."""
    prompt, _, _ = LOADS[load]
    return 1 / STEP.seconds(Batch(0, 0, [(prompt, 0)], prompt, 1, 1))


def per_decode_rps(load: str, steps: int) -> float:
    """Answers a second of one GPU whose batch is full; steps: of one answer."""
    prompt, _, batch = LOADS[load]
    kv = batch * (prompt + (steps + 1) / 2)  # attended by all: prompt + 1 in the first step of an answer, prompt + steps in its last
    return batch / (steps * STEP.seconds(Batch(batch, kv, [], batch, batch, batch)))


def throughput_rps(scenario: Scenario, since_s: float, until_s: float) -> float:
    ended = scenario.run().requests.query("outcome == 'success'").ended_s
    return float(((ended >= since_s) & (ended < until_s)).sum()) / (until_s - since_s)


def test_SN_1_pd_ratio_by_arithmetic() -> None:
    """Token 1 comes with the prompt, so that an answer of n tokens takes n − 1 decode steps: 6.85 and 6.93 a second. With n steps it would
    be 6.81 and 6.88."""
    assert [per_prefill_rps(load) for load in LOADS] == pytest.approx([13.860, 7.697], abs=5e-4)
    assert [per_decode_rps(load, LOADS[load][1] - 1) for load in LOADS] == pytest.approx([6.849, 6.932], abs=5e-4)
    assert [per_decode_rps(load, LOADS[load][1]) for load in LOADS] == pytest.approx([6.812, 6.876], abs=5e-4)
    assert [per_prefill_rps(load) / per_decode_rps(load, LOADS[load][1] - 1) for load in LOADS] == pytest.approx([2.024, 1.110], abs=1e-3)
    for load, best in (("short", 2), ("long", 3)):
        serves = {p: min(p * per_prefill_rps(load), (6 - p) * per_decode_rps(load, LOADS[load][1] - 1)) for p in range(1, 6)}
        assert max(serves, key=lambda p: serves[p]) == best


def test_SN_1_pd_ratio_is_timed_by_the_published_constants() -> None:
    for pool in Scenario.load("pd-ratio").build_fleet().pools.values():
        model = pool.step_model
        assert isinstance(model, TwoRegime)
        for name in ("prefill", "small", "large"):
            assert getattr(model, name) == pytest.approx(getattr(STEP, name), rel=1e-12)
        assert model.threshold == STEP.threshold and pool.gpus_per_replica == 1


@pytest.mark.parametrize(("variant", "load"), [("p5_d1", "short"), ("long_p5_d1", "long")])
def test_SN_1_pd_ratio_one_decode_gpu_serves_what_the_arithmetic_says(variant: str, load: str) -> None:
    """Answers all of one length: each batch ends at once, and as many answers later so does the next."""
    _, answer, batch = LOADS[load]
    run = Scenario.load("pd-ratio").variant(variant).with_({"source.output_tokens": answer}).run()
    ended = sorted(run.requests.query("outcome == 'success'").ended_s)
    first, last = 3 * batch, 8 * batch
    assert (last - first) / (ended[last] - ended[first]) == pytest.approx(per_decode_rps(load, answer - 1), rel=2e-3)


@pytest.mark.parametrize(("variant", "load"), [("p1_d5", "short"), ("long_p1_d5", "long")])
def test_SN_1_pd_ratio_one_prefill_gpu_serves_what_the_arithmetic_says(variant: str, load: str) -> None:
    rows = Scenario.load("pd-ratio").variant(variant).run().requests
    first = sorted(rows.first_token_s.dropna())
    assert (len(first) - 1) / (first[-1] - first[0]) == pytest.approx(per_prefill_rps(load), rel=1e-6)


def test_SN_1_pd_ratio_the_best_split_turns_with_the_lengths() -> None:
    served = {name: throughput_rps(s, 30, 100) for name, s in variants(Scenario.load("pd-ratio"))}
    served["p2_d4"] = served.pop("base")
    short = {name: rps for name, rps in served.items() if not name.startswith("long")}
    long = {name: rps for name, rps in served.items() if name.startswith("long")}
    assert len(short) == len(long) == 5
    assert max(short, key=lambda n: short[n]) == "p2_d4" and max(long, key=lambda n: long[n]) == "long_p3_d3"
    for name, rps in served.items():
        load, p = ("long" if name.startswith("long") else "short"), int(name[-4])
        want = min(p * per_prefill_rps(load), (6 - p) * per_decode_rps(load, LOADS[load][1] - 1))
        assert rps == pytest.approx(want, rel=0.03), name
