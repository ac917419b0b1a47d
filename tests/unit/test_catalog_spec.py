"""Models and GPUs that a scenario brings with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from windtunnel import Scenario
from windtunnel.errors import ConfigError, ConfigFileError, ConfigInfeasibleError, ConfigUnknownKeyError, ConfigUnknownModelError, ConfigValueError

TEXT = """
windtunnel: 1
name: mine
duration_s: 2
fleet: {pools: {chat: {model: My-8B, gpu: my_card}}}
source: {kind: arrivals, rate_rps: 5, input_tokens: 100, output_tokens: 10}
catalog:
  models:
    My-8B: {params: 8030261248, layers: 32, hidden: 4096, ffn: 14336, heads: 32, kv_heads: 8, head_dim: 128, vocab: 128256, max_model_len: 8192,
            tie_embeddings: false, source: mine}
  gpus:
    my_card: {memory_bytes: 5.0e10, memory_bw: 2.0e12, flops: {bf16: 5.0e14}, power_w: 400, gpus_per_node: 8, intra_bw: 3.0e11, inter_bw: 2.5e10,
              pcie_bw: 3.2e10, source: mine}
"""


def load(text: str = TEXT, **changes: Any) -> Scenario:
    return Scenario.load(text).with_(changes) if changes else Scenario.load(text)


def test_SG_3_own_entries_stand_beside_the_shipped_ones() -> None:
    scenario = load()
    pool = scenario.build_fleet().pools["chat"]
    kept = 0.9 * 5.0e10 - 8030261248 * 2 - 1.24e9
    assert pool.engine.num_blocks == int(kept // (16 * 131_072))
    assert "My-8B / my_card" in pool.provenance
    assert pool.price_usd_per_hour is None
    run = scenario.run()
    assert (run.requests.outcome == "success").all() and run.replicas.gpu[0] == "my_card"
    assert Scenario.load(scenario.dump()) == scenario
    shipped = load(**{"fleet.pools.chat.model": "Llama-3.1-8B", "fleet.pools.chat.gpu": "h100_sxm"})
    assert shipped.build_fleet().pools["chat"].engine.num_blocks > pool.engine.num_blocks


def test_SG_3_a_shipped_entry_keeps_what_is_not_changed() -> None:
    bigger = load(catalog={"gpus": {"h100_sxm": {"memory_bytes": 1.6e11}}},
                  **{"fleet.pools.chat.model": "Llama-3.1-8B", "fleet.pools.chat.gpu": "h100_sxm"})
    plain = bigger.with_({"catalog": {}})
    a, b = (s.build_fleet().pools["chat"] for s in (bigger, plain))
    assert a.engine.num_blocks > 1.5 * b.engine.num_blocks
    assert a.power_w == b.power_w and a.price_usd_per_hour == b.price_usd_per_hour
    assert bigger.digest != plain.digest


def test_SG_3_files_beside_the_scenario_later_ones_win_and_count_in_the_digest(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("gpus: {my_card: {memory_bytes: 4.0e10}}", "utf-8")
    (tmp_path / "two.yaml").write_text("gpus: {my_card: {memory_bytes: 6.0e10}}", "utf-8")
    text = TEXT.replace("catalog:\n", "catalog:\n  files: [{path: one.yaml}, {path: two.yaml}]\n").replace("memory_bytes: 5.0e10, ", "")
    (tmp_path / "mine.yaml").write_text(text, "utf-8")
    first = Scenario.load(tmp_path / "mine.yaml")
    pool = first.build_fleet().pools["chat"]
    assert pool.engine.num_blocks == int((0.9 * 6.0e10 - 8030261248 * 2 - 1.24e9) // (16 * 131_072))
    before = first.digest
    (tmp_path / "two.yaml").write_text("gpus: {my_card: {memory_bytes: 7.0e10}}", "utf-8")
    assert Scenario.load(tmp_path / "mine.yaml").digest != before
    (tmp_path / "two.yaml").unlink()
    with pytest.raises(ConfigError, match=r"two\.yaml"):
        Scenario.load(tmp_path / "mine.yaml").build_fleet()


def test_SM_40_what_does_not_fit_is_refused_with_the_sum() -> None:
    small = load(**{"catalog.gpus.my_card.memory_bytes": 1.8e10})
    with pytest.raises(ConfigInfeasibleError, match=r"fleet.pools.chat: weights 16.1 GB \+ overhead 1.2 GB > 16.2 GB usable \(0.9 × 18.0 GB\)"):
        small.build_fleet()


@pytest.mark.parametrize(("path", "value", "error", "says"), [
    ("catalog.gpus.my_card.memory_bw", 2000, ConfigValueError, "did you mean bytes/s"),
    ("catalog.gpus.my_card.memory_bandwidth", 2e12, ConfigUnknownKeyError, "memory_bandwidth"),
    ("catalog.models.My-8B.params", 9_000_000_000, ConfigValueError, "is not the sum of the parts"),
    ("catalog.models.Other", {"layers": 3}, ConfigValueError, "is missing"),
    ("fleet.pools.chat.gpu", "my_cart", ConfigUnknownModelError, 'did you mean "my_card"'),
])
def test_SG_3_wrong_entries_are_named(path: str, value: Any, error: type[ConfigError], says: str) -> None:
    with pytest.raises(error) as caught:
        load(**{path: value})
    assert says in f"{caught.value.message} {caught.value.hint}"
    assert path.rpartition(".")[0].split(".")[0] in str(caught.value)


def test_SG_3_a_file_that_is_no_catalogue(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("gpus: [1]", "utf-8")
    (tmp_path / "mine.yaml").write_text(TEXT.replace("catalog:\n", "catalog:\n  files: [{path: x.yaml}]\n"), "utf-8")
    with pytest.raises(ConfigFileError, match="expected models: or gpus:"):
        Scenario.load(tmp_path / "mine.yaml")


def test_LM_7_kv_quotas_count_the_bytes_of_the_scenarios_own_model_at_its_precision() -> None:
    quota = {"control.tenants": {"default": {"quota": {"kv_bytes": 2.0e7}}}, "source.input_tokens": 120, "source.output_tokens": 30}
    mine = load(**quota)  # 150 tokens of 131 072 bytes are 19.7 MB: one at a time
    assert [gate.kv_bytes_per_token for gate in mine.build_control().lanes[0].gates.gates] == [131_072.0]
    rows = mine.run().requests
    assert {"quota_kv"} <= set(rows.reason) and (rows.outcome == "success").any()
    half = load(catalog={**mine._plain()["catalog"], "gpus": {"my_card": {**mine._plain()["catalog"]["gpus"]["my_card"],
                                                                        "flops": {"bf16": 5.0e14, "fp8": 1.0e15}}}},
                **quota, **{"fleet.pools.chat.profile": {"kind": "roofline", "kv_dtype": "fp8"}})
    assert [gate.kv_bytes_per_token for gate in half.build_control().lanes[0].gates.gates] == [65_536.0]
    two = half.with_({"fleet.pools.wide": {"model": "My-8B", "gpu": "my_card"}})
    with pytest.raises(ConfigValueError, match=r"quota\.kv_bytes: a token takes 65536 or 131072 bytes, by pool"):
        two.build_control()
