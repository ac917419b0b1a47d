"""Models and GPUs by name."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from windtunnel.datafiles import data_path
from windtunnel.errors import ConfigFileError, ConfigUnknownKeyError, ConfigUnknownModelError, ConfigValueError
from windtunnel.sim import catalog

MODELS = ("Llama-3.1-8B", "Llama-3.3-70B", "Llama-2-7B", "Qwen3-8B", "Qwen3-32B", "tiny-test")
GPUS = ("h100_sxm", "h200_sxm", "a100_sxm", "l40s", "b200_sxm", "rtx4090")


@pytest.mark.parametrize("name", catalog.names("models"))
def test_SG_1_params_match_the_sum_of_the_parts(name: str) -> None:
    arch = catalog.model(name)
    assert arch.counted_params == pytest.approx(arch.params, rel=0.02)
    assert arch.heads % arch.kv_heads == 0
    assert arch.source and arch.licence


def test_SG_1_the_parts_of_llama_are_counted_exactly() -> None:
    assert catalog.model("Llama-3.1-8B").counted_params == 8_030_261_248
    assert catalog.model("Llama-2-7B").counted_params == 6_738_415_616
    assert catalog.model("Llama-3.1-8B").kv_bytes_per_token() == 131_072


def test_SG_1_ships_what_the_scenarios_name() -> None:
    assert set(MODELS) <= set(catalog.names("models"))
    assert set(GPUS) <= set(catalog.names("gpus"))


@pytest.mark.parametrize("name", catalog.names("gpus"))
def test_SG_2_units_are_bytes_flops_and_watts(name: str) -> None:
    gpu = catalog.gpu(name)
    assert 8e9 < gpu.memory_bytes < 1e12
    assert 1e11 < gpu.memory_bw < 2e13
    assert 1e13 < gpu.flops["bf16"] < 1e16
    assert gpu.flops.get("fp8", gpu.flops["bf16"]) >= gpu.flops["bf16"]
    assert 30 < gpu.power_w < 2000
    assert 1e9 < gpu.pcie_bw < gpu.memory_bw
    assert 1e9 < gpu.intra_bw < gpu.memory_bw
    assert gpu.inter_bw > 1e9
    assert gpu.source
    assert gpu.usd_per_hour is None or (gpu.usd_per_hour > 0 and gpu.price_as_of)


def test_SG_2_a_missing_price_is_none_and_never_zero() -> None:
    assert catalog.gpu("h100_pcie").usd_per_hour is None
    assert catalog.gpu("h100_sxm").usd_per_hour == 2.5


@pytest.mark.parametrize(("look_up", "name", "meant"), [(catalog.model, "Llama-3.1-8b", "Llama-3.1-8B"), (catalog.gpu, "h100-sxm", "h100_sxm")])
def test_SG_1_an_unknown_name_shows_the_closest(look_up: object, name: str, meant: str) -> None:
    with pytest.raises(ConfigUnknownModelError) as caught:
        look_up(name)  # type: ignore[operator]
    assert name in str(caught.value) and meant in str(caught.value)


def test_entries_are_frozen_and_remembered() -> None:
    gpu = catalog.gpu("h100_sxm")
    assert catalog.gpu("h100_sxm") is gpu
    assert catalog.model("Qwen3-8B") is catalog.model("Qwen3-8B")
    with pytest.raises(FrozenInstanceError):
        gpu.memory_bw = 1.0  # type: ignore[misc]


def test_data_is_looked_for_in_the_environment_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "catalog").mkdir()
    mine = tmp_path / "catalog" / "gpus.yaml"
    mine.write_text("gpus: {}\n")
    packaged = data_path("catalog/gpus.yaml")
    monkeypatch.setenv("WINDTUNNEL_DATA", str(tmp_path))
    assert data_path("catalog/gpus.yaml") == mine != packaged
    assert data_path("catalog/models.yaml").parent == packaged.parent


def test_a_data_file_that_is_nowhere_names_the_places() -> None:
    with pytest.raises(ConfigFileError) as caught:
        data_path("catalog/no-such.yaml")
    assert "no-such.yaml" in str(caught.value) and "windtunnel" in str(caught.value)


SHIPPED = ("Llama-3.1-8B", "Llama-3.1-70B", "Llama-3.3-70B", "Llama-2-7B", "Llama-2-70B", "Qwen3-8B", "Qwen3-32B", "Qwen3-30B-A3B",
           "Qwen3-235B-A22B", "gpt-oss-120b", "DeepSeek-V3", "DeepSeek-R1", "Mixtral-8x7B", "OPT-13B", "tiny-test")


def test_SG_1_ships_every_model_of_the_list() -> None:
    assert set(SHIPPED) <= set(catalog.names("models"))


@pytest.mark.parametrize(("name", "billions"), [
    ("DeepSeek-V3", 671.026), ("Mixtral-8x7B", 46.703), ("gpt-oss-120b", 116.8), ("Qwen3-235B-A22B", 235.09), ("Kimi-K2.5", 1026.4)])
def test_SG_1_the_parts_of_sparse_models_sum_to_the_published_total(name: str, billions: float) -> None:
    assert catalog.model(name).counted_params == pytest.approx(billions * 1e9, rel=1e-3)


@pytest.mark.parametrize("name", [n for n in catalog.names("models") if catalog.model(n).active_params])
def test_SG_1_active_weights_are_the_routed_part(name: str) -> None:
    arch = catalog.model(name)
    assert arch.active_params is not None
    assert arch.counted_active_params == pytest.approx(arch.active_params, rel=0.1)
    assert arch.counted_active_params < 0.4 * arch.counted_params


def test_SM_20_a_latent_is_cached_once_for_all_heads_and_on_every_rank() -> None:
    deepseek = catalog.model("DeepSeek-V3")
    assert deepseek.kv_bytes_per_token() == 61 * (512 + 64) * 2
    assert deepseek.kv_share(8) == 1.0
    assert catalog.model("Llama-3.1-8B").kv_share(2) == 0.5 and catalog.model("Llama-3.1-8B").kv_share(16) == 1 / 8


def test_SG_2_ships_the_fourteen_systems_and_two_workstation_cards() -> None:
    assert len(catalog.names("gpus")) == 16 and {"rtx4090", "rtx_pro_6000", "gb300", "l4"} <= set(catalog.names("gpus"))
    assert catalog.gpu("l4").idle_w == pytest.approx(0.15 * 72)


def own(tmp_path: Path, text: str) -> catalog.Catalog:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return catalog.Catalog.load([path])


def test_SG_3_a_users_file_adds_and_overrides_by_name(tmp_path: Path) -> None:
    mine = own(tmp_path, """
gpus:
  h100_sxm: {price_usd_per_hour: {on_demand: 1.99, as_of: "2026-11-01", source: our contract}}
  größer: {memory_bytes: 1.0e11, memory_bw: 2.0e12, flops: {bf16: 3.0e14}, power_w: 300, gpus_per_node: 4, intra_bw: 6.0e10, inter_bw: 2.0e10,
           pcie_bw: 3.0e10, idle_w: 20}
models:
  little: {params: 4196608, layers: 4, hidden: 256, ffn: 768, heads: 8, kv_heads: 4, head_dim: 32, vocab: 2048, max_model_len: 512}
""")
    assert mine.gpu("h100_sxm").usd_per_hour == 1.99 and mine.gpu("h100_sxm").memory_bw == catalog.gpu("h100_sxm").memory_bw
    assert mine.gpu("größer").idle_w == 20.0 and mine.model("little").layers == 4
    assert catalog.gpu("h100_sxm").usd_per_hour == 2.5 and "little" not in catalog.names("models")
    assert "größer" in mine.names("gpus")


@pytest.mark.parametrize(("text", "error", "says"), [
    ("gpus: {h100_sxm: {memory_bw: 3350}}", ConfigValueError, "gpus.h100_sxm.memory_bw: 3350 is not between.*did you mean bytes/s"),
    ("gpus: {h100_sxm: {flops: {bf16: 989}}}", ConfigValueError, "did you mean FLOP/s"),
    ("gpus: {h100_sxm: {memory_bw: .nan}}", ConfigValueError, "memory_bw"),
    ("gpus: {h100_sxm: {memory_bandwidth: 1.0e12}}", ConfigUnknownKeyError, "memory_bandwidth: unknown key; did you mean"),
    ("gpus: {mine: {memory_bw: 1.0e12}}", ConfigValueError, "gpus.mine.memory_bytes: is missing"),
    ("models: {Llama-3.1-8B: {layers: 40}}", ConfigValueError, "is not the sum of the parts"),
    ("models: {Mixtral-8x7B: {moe: {experts: 8, topk: 2}}}", ConfigValueError, "moe.expert_ffn: is missing"),
    ("prices: {}", ConfigUnknownKeyError, "prices: unknown key"),
    ("[1, 2]", ConfigFileError, "expected models: or gpus:"), ("a: [", ConfigFileError, "no catalogue")])
def test_SG_3_a_users_file_is_checked_by_key_and_magnitude(tmp_path: Path, text: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        mine = own(tmp_path, text)
        for name in mine.names("gpus"):
            mine.gpu(name)
        for name in mine.names("models"):
            mine.model(name)
