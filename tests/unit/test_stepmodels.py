"""Step-time models: every run is the steps that it stands for."""

from __future__ import annotations

import math
import timeit
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windtunnel.errors import ConfigTableMissError, ConfigValueError
from windtunnel.sim.catalog import gpu, model
from windtunnel.sim.stepmodels.affine import Affine
from windtunnel.sim.stepmodels.model import Batch, Provenance, StepModel
from windtunnel.sim.stepmodels.operators import Operators
from windtunnel.sim.stepmodels.roofline import Efficiency, Roofline
from windtunnel.sim.stepmodels.table import Table
from windtunnel.sim.stepmodels.tables_aic import AicTables
from windtunnel.sim.stepmodels.tables_llmservingsim import LlmServingSimTables
from windtunnel.sim.stepmodels.two_regime import TwoRegime
from windtunnel.sim.stepmodels.vidur import VidurRoofline

LLAMA, QWEN, H100 = model("Llama-3.1-8B"), model("Qwen3-32B"), gpu("h100_sxm")
MODELS: dict[str, StepModel] = {
    "affine": Affine(6e-3, 2.6e-5, 2e-5, 2.4e-8, 1.3e-10),
    "table": Table(((1, 5e-3), (8, 7e-3), (64, 1.1e-2)), 2e-5, 3e-8),
    "table_by_context": Table(((1, 128, 5e-3), (1, 1000.5, 5.1e-3), (1, 6000, 7e-3), (8, 128, 7e-3), (8, 700, 6.8e-3), (8, 1500, 9e-3),
                               (64, 0, 9e-3), (64, 512, 1.2e-2)), 2e-5),
    "table_ceil": Table(((8, 256, 5e-3), (8, 1024, 5.5e-3), (8, 4096, 7e-3), (64, 512, 1e-2), (64, 1024, 2e-2)), 2e-5, mode="ceil"),
    "roofline": Roofline(LLAMA, H100),
    "roofline_tp4": Roofline(model("Llama-3.3-70B"), gpu("a100_sxm"), tp=4),
    "roofline_fp8": Roofline(model("Qwen3-8B"), gpu("l40s"), dtype="fp8", kv_dtype="fp8"),
    # so little compute that a chunk's attention changes from one side of the roof to the other
    "roofline_turning": Roofline(LLAMA, replace(H100, flops={"bf16": 4.0e14, "fp8": 4.0e14}), eff=Efficiency(attn=0.05)),
    "roofline_moe": Roofline(model("Mixtral-8x7B"), H100, tp=4, ep=2),
    "roofline_mla": Roofline(model("DeepSeek-V3"), gpu("h200_sxm"), tp=8, ep=8, dp=8, dtype="fp8"),
    "roofline_window": Roofline(model("gpt-oss-120b"), gpu("b200_sxm"), tp=2, dtype="fp4"),
    "roofline_state": Roofline(model("Qwen3.5-397B-A17B"), gpu("b200_sxm"), tp=4, dtype="fp8"),
    "operators_aic": Operators(LLAMA, AicTables(LLAMA, H100), "h100_sxm"),
    "operators_aic_tp8": Operators(model("Qwen3-235B-A22B"), AicTables(model("Qwen3-235B-A22B"), gpu("h200_sxm"), tp=8, dtype="fp8"), "h200_sxm", 8),
    "operators_llmservingsim": Operators(LLAMA, LlmServingSimTables.load("rtx4090", LLAMA), "rtx4090"),
    "operators_tp2": Operators(QWEN, LlmServingSimTables.load("rtx_pro_6000", QWEN, 2, link=(2e-5, 1.4e10)), "rtx_pro_6000", 2),
    "two_regime": TwoRegime.published("facebook/opt-13b"),
    "vidur": VidurRoofline(),
}
NAN, INF = float("nan"), float("inf")


@st.composite
def batches(draw: Any) -> Batch:
    n = draw(st.integers(0, 200))
    kv = sum(draw(st.integers(1, 8000)) for _ in range(min(n, 3))) * max(1, n // 3) + n if n else 0
    chunk = st.tuples(st.sampled_from([1, 2, 31, 45, 64, 512, 2047]), st.one_of(st.integers(0, 60), st.integers(0, 20_000)))
    prefill = draw(st.lists(chunk, min_size=0 if n else 1, max_size=3))
    done = draw(st.integers(0, len(prefill)))
    return Batch(n, kv, prefill, n + sum(c for c, _ in prefill), n + len(prefill), n + done)


def advanced(b: Batch, j: int) -> Batch:
    return replace(b, decode_kv=b.decode_kv + b.decode_seqs * j, prefill=[(c, s + c * j) for c, s in b.prefill])


@pytest.mark.filterwarnings("ignore:extrapolated")
@pytest.mark.parametrize("name", sorted(MODELS))
@settings(max_examples=60, deadline=None)
@given(b=batches(), k=st.integers(1, 3000), share=st.floats(0, 1))
def test_SM_1_a_run_is_the_steps_that_it_stands_for(name: str, b: Batch, k: int, share: float) -> None:
    step_model = MODELS[name]
    A, B, k_max = step_model.run(b, k)
    assert 1 <= k_max <= k
    assert step_model.seconds(b) == A
    assert math.isfinite(A) and A > 0
    for j in {0, 1, int(share * (k_max - 1)), k_max - 1}:
        if j < k_max:
            assert step_model.seconds(advanced(b, j)) == pytest.approx(A + B * j, rel=1e-12)


@pytest.mark.parametrize(("name", "b"), [
    ("table_by_context", Batch(3, 2700, [], 3, 3, 3)), ("table_ceil", Batch(3, 2700, [], 3, 3, 3)),
    ("vidur", Batch(2, 2 * 900, [], 2, 2, 2)), ("roofline", Batch(0, 0, [(45, 0)], 45, 1, 0)), ("roofline_turning", Batch(0, 0, [(2, 0)], 2, 1, 0))])
def test_SM_2_a_run_stops_at_an_edge(name: str, b: Batch) -> None:
    """Where the model is not linear any more, and no sooner."""
    A, B, k_max = MODELS[name].run(b, 500)
    assert k_max < 500
    assert MODELS[name].seconds(advanced(b, k_max)) != pytest.approx(A + B * k_max, rel=1e-9)


@pytest.mark.parametrize(("batch", "seconds"), [
    (Batch(0, 0, [(512, 0)], 512, 1, 1), 0.013869351), (Batch(1, 1023, [], 1, 1, 1), 0.005923571),
    (Batch(8, 8 * 1023, [], 8, 8, 8), 0.006320605), (Batch(32, 32 * 1023, [], 32, 32, 32), 0.007717871),
    (Batch(64, 64 * 1023, [], 64, 64, 64), 0.009580894)])
def test_SM_22_check_values_of_the_peers_tables(batch: Batch, seconds: float) -> None:
    assert VidurRoofline().seconds(batch) == pytest.approx(seconds, abs=5e-10)


def test_SM_22_a_tail_of_one_token_is_a_decode() -> None:
    tail = Batch(1, 1023, [(1, 1023)], 2, 2, 2)
    assert VidurRoofline().seconds(tail) == VidurRoofline().seconds(Batch(2, 2 * 1023, [], 2, 2, 2))


def test_SM_22_k_max_is_the_way_to_the_next_multiple_of_256() -> None:
    step_model = VidurRoofline()
    assert step_model.run(Batch(4, 4 * 1023, [], 4, 4, 4), 1000)[2] == 1  # 1024 attended: the next step attends 1025
    assert step_model.run(Batch(4, 4 * 1024, [], 4, 4, 4), 1000)[2] == 256
    assert step_model.run(Batch(4, 4 * 1024, [], 4, 4, 4), 10)[2] == 10


def test_SM_10_affine_is_its_formula() -> None:
    step_model = Affine(6e-3, 2.6e-5, 2e-5, 2.4e-8, 1e-9)
    b = Batch(3, 3000, [(100, 50), (7, 0)], 110, 5, 4)
    want = 6e-3 + 2.6e-5 * 107 + 2e-5 * 5 + 2.4e-8 * 3000 + 1e-9 * (100 * (50 + 50) + 7 * 3.5)
    assert step_model.seconds(b) == pytest.approx(want, rel=1e-14)


def test_SF_5_worked_coefficients() -> None:
    A, B, _ = Affine(6e-3, 2.6e-5, 2e-5, 2.4e-8).run(Batch(4, 4000, [], 4, 4, 4), 100)
    assert pytest.approx((0.006176, 9.6e-8), rel=1e-12) == (A, B)


@pytest.mark.filterwarnings("ignore:extrapolated")
def test_SM_11_table_is_linear_between_knots_and_beyond() -> None:
    step_model = Table(((1, 1e-3), (5, 3e-3), (9, 4e-3)), 1e-5)
    seconds = [step_model.seconds(Batch(n, 10, [], n, n, n)) for n in (1, 3, 5, 7, 9, 13)]
    assert seconds == pytest.approx([1e-3, 2e-3, 3e-3, 3.5e-3, 4e-3, 5e-3])


def literal_roofline(b: Batch, t: int) -> float:
    """The roofline written down once more, term by term, for Llama-3.1-8B on H100s in bf16."""
    F, W, launch, L, d, ff, hq, hkv, hd, vocab = 989e12, 3.35e12, 2e-6, 32, 4096, 14336, 32, 8, 128, 128256

    def gemm(m: int, n: float, k: float) -> float:
        return max(2 * m * n * k / (F * 0.60), (2 * n * k + 2 * m * (n + k)) / (W * 0.80)) + launch

    def elementwise(width: float) -> float:
        return 4 * b.tokens * width / (W * 0.80) + launch

    m = b.tokens
    layer = gemm(m, (hq + 2 * hkv) * hd / t, d) + gemm(m, d, hq * hd / t) + gemm(m, 2 * ff / t, d) + gemm(m, d, ff / t)
    layer += 4 * elementwise(d) + elementwise(ff / t)
    for c, s in b.prefill:
        layer += max(4 * hq / t * hd * c * (s + c / 2) / (F * 0.48), 2 * 2 * hkv / t * hd * (s + c) / (W * 0.80)) + launch
    if b.decode_seqs:
        layer += 2 * 2 * hkv / t * hd * b.decode_kv / (W * 0.80) + launch
    if t > 1:
        layer += 2 * (2 * (t - 1) / t * 2 * m * d / (450e9 * 0.75) + 5e-6 * (t - 1))
    return L * layer + elementwise(d) + (gemm(b.sampled, vocab / t, d) if b.sampled else 0.0)


@pytest.mark.parametrize("tp", [1, 2, 8])
@settings(max_examples=40, deadline=None)
@given(b=batches())
def test_SM_20_roofline_is_its_formula(tp: int, b: Batch) -> None:
    assert Roofline(LLAMA, H100, tp=tp).seconds(b) == pytest.approx(literal_roofline(b, tp), rel=1e-12)


def test_SM_20_is_always_uncalibrated() -> None:
    assert Roofline(LLAMA, H100).provenance.state == "uncalibrated"
    assert "uncalibrated" in str(Roofline(LLAMA, H100, tp=2).provenance)


def test_SM_21_a_dtype_that_the_gpu_cannot_compute_runs_at_bf16_rate_with_a_note() -> None:
    a100 = gpu("a100_sxm")
    quantised, plain = Roofline(LLAMA, a100, dtype="int4"), Roofline(LLAMA, a100)
    assert "bf16 rate" in quantised.provenance.note and plain.provenance.note == ""
    decode, prefill = Batch(1, 100, [], 1, 1, 1), Batch(0, 0, [(4096, 0)], 4096, 1, 1)
    assert quantised.seconds(decode) < 0.4 * plain.seconds(decode)
    assert quantised.seconds(prefill) == pytest.approx(plain.seconds(prefill), rel=0.01)


def test_SM_20_more_gpus_are_faster_and_less_than_proportionally() -> None:
    b = Batch(32, 32_000, [], 32, 32, 32)
    one, two, eight = (Roofline(LLAMA, H100, tp=t).seconds(b) for t in (1, 2, 8))
    assert one / 2 < two < one and one / 8 < eight < one


@pytest.mark.parametrize("bad", [NAN, INF, -INF, -1.0, "1", None, True])
@pytest.mark.parametrize("make", [
    lambda x: Affine(c0=x), lambda x: Affine(c1=x), lambda x: Affine(c2=x), lambda x: Affine(c3=x), lambda x: Affine(c4=x),
    lambda x: Table(((1, x),), 1e-5), lambda x: Table(((1, 1e-3),), x), lambda x: Table(((1, 1e-3),), 0.0, x), lambda x: Table(((x, 1e-3),), 0.0),
    lambda x: Efficiency(mem=x), lambda x: Efficiency(launch_s=x), lambda x: Efficiency(link_latency_s=x),
    lambda x: Roofline(LLAMA, H100, tp=x)])
def test_numbers_that_mean_nothing_are_refused(make: Any, bad: Any) -> None:
    with pytest.raises(ConfigValueError):
        make(bad)


@pytest.mark.parametrize("make", [
    lambda: Affine(0.0, 1e-5, 0.0, 1e-8), lambda: Table((), 1e-5), lambda: Table(((2, 1e-3), (1, 1e-3)), 0.0),
    lambda: Table(((1, 1e-3), (1, 2e-3)), 0.0), lambda: Efficiency(gemm=1.2), lambda: Efficiency(attn=0.0),
    lambda: Roofline(LLAMA, H100, dtype="fp7"), lambda: Roofline(LLAMA, H100, kv_dtype="bf17")])
def test_models_that_could_take_no_time_or_mean_nothing_are_refused(make: Any) -> None:
    with pytest.raises(ConfigValueError):
        make()


def test_provenance_is_one_line() -> None:
    line = str(Provenance("Llama-3.1-8B", "h100_sxm×1", "roofline", "uncalibrated", "a note"))
    assert line == "Llama-3.1-8B / h100_sxm×1 | roofline | uncalibrated | a note"


def test_a_remembered_roofline_step_is_cheap() -> None:
    """About as cheap as affine, which looks nothing up: the dense part of a step is computed once per (tokens, sampled)."""
    b = Batch(32, 32_000, [], 32, 32, 32)
    fast, affine = MODELS["roofline"], MODELS["affine"]
    fast.run(b, 10)
    cost, reference = (min(timeit.repeat(lambda m=m: m.run(b, 10), number=2000, repeat=5)) for m in (fast, affine))
    assert cost < 4 * reference


def test_SM_20_experts_are_read_as_they_are_touched() -> None:
    """One token reads topk of them, many tokens all of them; the rest of a step hardly changes."""
    roof = Roofline(model("Mixtral-8x7B"), H100, tp=2)
    one, many = roof.dense(1, 1)["moe"], roof.dense(256, 256)["moe"]
    expert = 3 * 4096 * 14336 * 2 / 2 / (3.35e12 * 0.8)  # seconds to read one expert's share
    assert one == pytest.approx(32 * (2 * expert), rel=0.05) and many == pytest.approx(32 * 8 * expert, rel=0.05)


def test_SM_20_a_latent_cache_is_read_whole_by_every_rank() -> None:
    deepseek, h200 = model("DeepSeek-V3"), gpu("h200_sxm")
    two, eight = (Roofline(deepseek, h200, tp=t, dtype="fp8").decode_attention(16, 16 * 8192)[1] for t in (4, 8))
    assert two > eight or two == pytest.approx(eight)
    bytes_s = 61 * 576 * 2 * 16 / (4.8e12 * 0.8)
    assert eight == pytest.approx(bytes_s, rel=1e-9)
    dp = Roofline(deepseek, h200, tp=8, dp=8, dtype="fp8").decode_attention(16, 16 * 8192)[1]
    assert dp < two  # each rank attends its own sequences only


def test_SM_20_windowed_layers_stop_growing_at_the_window() -> None:
    roof = Roofline(model("gpt-oss-120b"), gpu("b200_sxm"), dtype="fp4")
    short, long = roof.decode_attention(4, 4 * 100), roof.decode_attention(4, 4 * 1000)
    assert short[1] == pytest.approx(2 * long[1]) and short[2] == 28 and long[2] > 1 << 29


def test_SM_20_parts_sum_to_the_step() -> None:
    roof = Roofline(model("Mixtral-8x7B"), H100, tp=2, ep=2)
    b = Batch(8, 8000, [(512, 100)], 520, 9, 9)
    assert sum(roof.parts(b).values()) == pytest.approx(roof.seconds(b), rel=1e-12)
    assert set(roof.parts(b)) == {"gemm", "moe", "comm", "other", "attn_decode", "attn_prefill"}


@pytest.mark.parametrize("shape", [{"tp": 4, "ep": 3}, {"tp": 4, "dp": 8}, {"ep": 0}])
def test_SM_20_groups_divide_the_ranks(shape: dict[str, int]) -> None:
    with pytest.raises(ConfigValueError, match=r"ep|dp"):
        Roofline(model("Mixtral-8x7B"), H100, **shape)


def test_SM_10_two_regimes_are_their_formula() -> None:
    """OPT-13B on one A100: one prompt of 512, decodes of 64 and, in the other regime, of 128 with 768 tokens each."""
    step_model = TwoRegime.published("facebook/opt-13b")
    prefill = (18.10254647486372 + 0.1019122572698738 * 512 + 7.122264314252114e-06 * 512**2) * 1e-3
    small = (19.934702624895458 + 0.0006269356524350583 * 64 * 768 + 0.03850697740828398 * 64) * 1e-3
    large = (7.1661889468253595 + 0.0005798000403396046 * 128 * 768 + 0.15831096191764046 * 128) * 1e-3
    assert step_model.seconds(Batch(0, 0, [(512, 0)], 512, 1, 1)) == pytest.approx(prefill, rel=1e-12)
    assert step_model.seconds(Batch(64, 64 * 768, [], 64, 64, 64)) == pytest.approx(small, rel=1e-12)
    assert step_model.seconds(Batch(128, 128 * 768, [], 128, 128, 128)) == pytest.approx(large, rel=1e-12)
    assert step_model.seconds(Batch(64, 64 * 768, [(512, 0)], 576, 65, 65)) == pytest.approx(prefill + small, rel=1e-12)
    assert 1 / prefill == pytest.approx(13.86, abs=0.25)  # requests a second that one such replica prefills


def test_SM_10_constants_that_were_not_published_show_what_was() -> None:
    with pytest.raises(ConfigTableMissError, match="no constants of facebook/opt-13b at tp 8; there are facebook/opt-13b at tp 1, 2, 4"):
        TwoRegime.published("facebook/opt-13b", 8)
    with pytest.raises(ConfigValueError, match="small"):
        TwoRegime((1e-3, 0.0, 0.0), (1e-3, float("nan"), 0.0), (1e-3, 0.0, 0.0), 95)
