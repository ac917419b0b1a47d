"""KV blocks beside the weights, and the refusal of what cannot run."""

from __future__ import annotations

import pytest

from windtunnel.errors import ConfigInfeasibleError, ConfigValueError
from windtunnel.sim.capacity import kv_blocks, refuse_infeasible
from windtunnel.sim.catalog import gpu, model

LLAMA, RTX = model("Llama-3.1-8B"), gpu("rtx4090")


def test_SM_41_worked_rtx4090() -> None:
    assert kv_blocks(LLAMA, RTX, overhead_bytes=1_237_612_953) == 2588
    assert kv_blocks(LLAMA, RTX) == 2586


def test_SM_41_blocks_follow_every_factor() -> None:
    h100 = gpu("h100_sxm")
    one = kv_blocks(LLAMA, h100)
    assert kv_blocks(LLAMA, h100, block_size=32) == one // 2
    assert kv_blocks(LLAMA, h100, kv_dtype="fp8") in (2 * one, 2 * one + 1)
    assert kv_blocks(LLAMA, h100, dtype="fp8") - one == pytest.approx(LLAMA.params / (16 * 131_072), abs=1)
    assert kv_blocks(LLAMA, h100, utilisation=0.8) < one


def test_SM_41_tp_splits_weights_and_kv_heads_and_repeats_them_beyond() -> None:
    h100 = gpu("h100_sxm")
    usable, weights = h100.memory_bytes * 0.9 - 1.24e9, LLAMA.params * 2
    assert kv_blocks(LLAMA, h100, tp=2) == int((usable - weights / 2) // (16 * 131_072 / 2))
    # 8 KV heads on 16 GPUs: one head each, twice over
    assert kv_blocks(LLAMA, h100, tp=16) == int((usable - weights / 16) // (16 * 131_072 / 8))


def test_SM_40_weights_too_large_show_the_sum() -> None:
    with pytest.raises(ConfigInfeasibleError, match=r"weights 141\.1 GB \+ overhead 1\.2 GB > 77\.3 GB usable \(0\.9 × 85\.9 GB\)"):
        refuse_infeasible(model("Llama-3.3-70B"), gpu("h100_sxm"))
    refuse_infeasible(model("Llama-3.3-70B"), gpu("h100_sxm"), tp=4)


@pytest.mark.parametrize(("changes", "says"), [
    ({"tp": 3}, "32 attention heads"),
    ({"tp": 16}, "more GPUs than the 8"),
    ({"max_model_len": 10_000_000}, "fewer than one request of 10,000,000 tokens"),
    ({"max_num_batched_tokens": 64, "max_num_seqs": 128}, "cannot serve 128 sequences"),
    ({"utilisation": 0.2}, "GB usable"),
    ({"overhead_bytes": 61.248e9}, "0 tokens of KV cache"),
])
def test_SM_40_refuses_with_numbers(changes: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigInfeasibleError, match=says):
        refuse_infeasible(LLAMA, gpu("h100_sxm"), **changes)  # type: ignore[arg-type]


def test_SM_40_a_dtype_that_the_gpu_has_not() -> None:
    with pytest.raises(ConfigInfeasibleError, match="a100_sxm has no fp8"):
        refuse_infeasible(LLAMA, gpu("a100_sxm"), dtype="fp8")


def test_SM_40_lets_through_what_fits() -> None:
    refuse_infeasible(LLAMA, RTX, max_model_len=41_376, max_num_batched_tokens=2048, max_num_seqs=256)
    with pytest.raises(ConfigInfeasibleError):
        refuse_infeasible(LLAMA, RTX, max_model_len=41_377)


@pytest.mark.parametrize("changes", [
    {"tp": 0}, {"tp": -2}, {"tp": 1.5}, {"block_size": 0}, {"utilisation": 0.0}, {"utilisation": 1.5}, {"utilisation": float("nan")},
    {"overhead_bytes": -1.0}, {"overhead_bytes": float("inf")}, {"dtype": "fp7"}, {"kv_dtype": "bf17"}])
def test_numbers_that_mean_nothing_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigValueError, match=next(iter(changes))):
        kv_blocks(LLAMA, RTX, **changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigValueError, match=next(iter(changes))):
        refuse_infeasible(LLAMA, RTX, **changes)  # type: ignore[arg-type]
