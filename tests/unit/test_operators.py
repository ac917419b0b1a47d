"""Step time from measured operators."""

from __future__ import annotations

import math
import timeit
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from windtunnel.datafiles import data_path
from windtunnel.errors import ConfigTableMissError, ConfigValueError
from windtunnel.sim.catalog import gpu, model
from windtunnel.sim.stepmodels.grid import Line, Plane
from windtunnel.sim.stepmodels.model import Batch
from windtunnel.sim.stepmodels.operators import Operators
from windtunnel.sim.stepmodels.roofline import Roofline
from windtunnel.sim.stepmodels.tables_aic import AicTables, Gemm
from windtunnel.sim.stepmodels.tables_llmservingsim import LlmServingSimTables

LLAMA, H100 = model("Llama-3.1-8B"), gpu("h100_sxm")
H100_TABLES = AicTables(LLAMA, H100)
RTX = LlmServingSimTables.load("rtx4090", LLAMA)


def test_SM_30_worked_numbers_of_the_h100_tables() -> None:
    ms = [H100_TABLES.whole_prompt(512)[0], H100_TABLES.whole_prompt(4096)[0], H100_TABLES.decode(32).at(1024), H100_TABLES.gemm(513, 6144, 4096)]
    assert [x * 1e3 for x in ms] == pytest.approx([0.0220, 0.2643, 0.0598, 0.0405], abs=6e-5)


def test_SM_30_message_sizes_are_elements_of_two_bytes() -> None:
    h100 = AicTables(model("Llama-3.1-70B"), H100, tp=8)
    f = pd.read_parquet(data_path("calibration/aic/h100_sxm_vllm0.24.0_allreduce.parquet"))
    row = f[(f.num_gpus == 8) & (f.message_size == 4096 * 8192)].set_index("backend").latency_ms  # 67 MB as elements of two bytes
    assert row["vllm_graph"] == pytest.approx(0.344, rel=0.01)  # another simulator's table has 0.322 to 0.347 ms for 67.1 MB
    assert h100.all_reduce(4096) == pytest.approx(row["vllm_eager"] * 1e-3, rel=1e-6)
    assert h100.all_reduce(512) < h100.all_reduce(513)  # graph, then eager


def test_SM_30_of_several_kernels_the_fastest_counts() -> None:
    rows = [(k, m, 64, 64, t) for k, t in (("a", 2.0), ("b", 1.0)) for m in (1, 8)] + [("a", 1, 128, 64, 5.0), ("a", 8, 128, 64, 5.0)]
    table = Gemm.of(pd.DataFrame(rows, columns=["kernel_source", "m", "n", "k", "latency_ms"]))
    assert table.at(4, 64, 64) == pytest.approx(1e-3) and table.at(4, 128, 64) == pytest.approx(5e-3)


def test_SM_30_off_the_grid_in_n_and_k_the_time_per_element_is_bilinear() -> None:
    g = H100_TABLES.gemm
    assert g(64, 5632, 4096) / 5632 == pytest.approx((g(64, 5120, 4096) / 5120 + g(64, 6144, 4096) / 6144) / 2, rel=1e-9)
    with pytest.raises(ConfigTableMissError, match=r"gemm n 100000 k 4096 is outside the table 32\.\.65536"):
        g(64, 100_000, 4096)


def test_SM_30_a_chunk_is_the_difference_of_two_prompts_and_at_least_one_token() -> None:
    t = H100_TABLES
    assert t.prefill(512, 512)[0] == pytest.approx(t.whole_prompt(1024)[0] - t.whole_prompt(512)[0], rel=1e-12)
    assert t.prefill(1, 100)[0] >= t.whole_prompt(1)[0]
    assert t.prefill(512, 0)[0] == t.whole_prompt(512)[0]


def test_SM_30_beyond_the_last_knot_a_prompt_is_quadratic() -> None:
    t = H100_TABLES
    x = [t.whole_prompt(n)[0] for n in (16384, 18384, 20384, 22384)]
    assert np.diff(x, 3) == pytest.approx([0.0], abs=1e-9) and x[3] > x[2] > x[1] > x[0]
    assert t.prefill(512, 20_000)[2] == 1


def test_SM_30_missing_cells_scale_with_batch_and_kv() -> None:
    plane = Plane.of([1, 1, 2], [10, 20, 10], [1.0, 2.0, 1.5]).filled()
    assert plane.values[1, 1] == pytest.approx(3.0)  # 1.5 × (2·20)/(2·10)
    assert H100_TABLES.decode(2048).at(131_072) > H100_TABLES.decode(1024).at(65_536)


def test_SM_30_several_values_for_a_cell_count_with_the_least_and_one_knot_is_a_constant() -> None:
    assert Plane.of([1, 1], [5, 5], [3.0, 2.0]).row(7).at(9) == 2.0
    assert Line([4.0], [2.0]).going_up(100) == (2.0, 0.0, math.inf)


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0.1, 9)), min_size=1, max_size=8, unique_by=lambda p: p[0]), st.floats(0, 600))
def test_SM_2_a_cell_ends_where_its_slope_does(points: list[tuple[int, float]], x: float) -> None:
    points.sort()
    line = Line([float(k) for k, _ in points], [v for _, v in points])
    value, slope, end = line.going_up(x)
    assert value == pytest.approx(line.at(x), rel=1e-9) and end > x
    for y in (x + 0.25 * (min(end, x + 50) - x), min(end, x + 50)):
        assert value + slope * (y - x) == pytest.approx(line.at(y), rel=1e-9, abs=1e-12)


def test_SM_30_llmservingsim_layers_are_counted_as_they_occur() -> None:
    folder = data_path("calibration/llmservingsim")
    dense = pd.read_csv(folder / "RTX4090_Llama-3.1-8B_tp1_dense.csv.gz")
    us = dense[dense.tokens == 64].set_index("layer").time_us
    per_layer = sum(us[n] for n in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "rotary_emb", "act_fn")) + 2 * us["layernorm"]
    got = RTX.dense(64)
    assert got["gemm"] + got["other"] == pytest.approx(per_layer * 1e-6, rel=1e-12)
    assert got["once"] == pytest.approx((us["embedding"] + us["final_layernorm"]) * 1e-6, rel=1e-12)


def test_SM_31_attention_of_a_mixed_step_is_prefill_plus_decode() -> None:
    step = Operators(LLAMA, RTX, "rtx4090")
    parts = step.parts(Batch(16, 16_000, [(512, 512)], 528, 17, 16))
    assert parts["attn_decode"] == 32 * RTX.decode(16).at(1000)
    assert parts["attn_prefill"] == 32 * RTX.prefill(512, 512)[0]


def test_SM_32_a_missing_table_names_what_there_is() -> None:
    with pytest.raises(ConfigTableMissError, match=r"no operator tables of rtx4090; there are tables of a100_sxm, b200_sxm"):
        AicTables(LLAMA, gpu("rtx4090"))
    with pytest.raises(ConfigTableMissError, match=r"RTX4090_Llama-3\.1-8B_tp2; there are RTX4090_Llama-3\.1-8B_tp1"):
        LlmServingSimTables.load("rtx4090", LLAMA, 2)
    qwen = model("Qwen3-32B")
    with pytest.raises(ConfigTableMissError, match="no all-reduce table"):
        Operators(qwen, LlmServingSimTables.load("rtx_pro_6000", qwen, 2), "rtx_pro_6000", 2)
    with pytest.raises(ConfigTableMissError, match="no gemm in int4"):
        Operators(LLAMA, AicTables(LLAMA, H100, dtype="int4"), "h100_sxm")


def test_SM_32_only_the_missing_operator_falls_back_and_says_so() -> None:
    qwen, pro = model("Qwen3-32B"), gpu("rtx_pro_6000")
    step = Operators(qwen, LlmServingSimTables.load("rtx_pro_6000", qwen, 2), "rtx_pro_6000", 2, Roofline(qwen, pro, tp=2))
    b = Batch(32, 32_000, [], 32, 32, 32)
    assert step.fell_back == {"comm"} and "roofline for comm" in str(step.provenance) and step.provenance.state == "partly_uncalibrated"
    assert 0 < step.fallback_share(b) < 0.3
    assert step.parts(b)["comm"] == Roofline(qwen, pro, tp=2).parts(b)["comm"]
    latent, h200 = model("DeepSeek-V3"), gpu("h200_sxm")
    roof = Roofline(latent, h200, tp=8, dtype="fp8")
    both = Operators(latent, AicTables(latent, h200, tp=8, dtype="fp8"), "h200_sxm", 8, roof)
    assert both.fell_back == {"gemm", "attn_decode", "attn_prefill"}
    assert both.parts(b)["moe"] != roof.parts(b)["moe"]


def test_a_fallback_of_another_model_and_a_tp_that_means_nothing_are_refused() -> None:
    with pytest.raises(ConfigValueError, match="fallback"):
        Operators(LLAMA, RTX, fallback=Roofline(model("Qwen3-8B"), H100))
    with pytest.raises(ConfigValueError, match="tp"):
        Operators(LLAMA, RTX, tp=0)


def test_nothing_is_read_after_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Operators(LLAMA, LlmServingSimTables.load("rtx4090", LLAMA), "rtx4090")
    monkeypatch.setattr(pd, "read_csv", None)
    monkeypatch.setattr(Path, "open", None)
    assert step.seconds(Batch(200, 200_000, [(99, 12_345)], 299, 201, 200)) > 0


def test_a_remembered_step_is_cheap() -> None:
    step, b = Operators(LLAMA, RTX, "rtx4090"), Batch(32, 32_000, [], 32, 32, 32)
    step.run(b, 10)
    assert min(timeit.repeat(lambda: step.run(b, 10), number=1000, repeat=5)) / 1000 < 20e-6
