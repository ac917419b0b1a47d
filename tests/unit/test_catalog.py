"""Models and GPUs by name."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from windtunnel.datafiles import data_path
from windtunnel.errors import ConfigFileError, ConfigUnknownModelError
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
