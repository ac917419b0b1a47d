"""Metric tables against expositions recorded from real engines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from windtunnel.errors import EngineUnavailableError
from windtunnel.live.engines.llamacpp import kv_used_fraction
from windtunnel.live.engines.metrics import MetricsTable

REPLIES = Path(__file__).parents[2] / "data" / "engine_replies"
VLLM, LLAMACPP = MetricsTable.load("vllm"), MetricsTable.load("llamacpp")


def body(path: str) -> str:
    text = (REPLIES / path).read_text("utf-8")
    return text.partition("\n\n")[2] if text.startswith("HTTP/") else text


def test_AD_7_vllm_under_overload() -> None:
    values = VLLM.read(body("vllm-0.32.0/metrics_overload.txt"))
    assert (values["running"], values["waiting"]) == (16, 44)  # waiting_by_reason is another series
    assert values["kv_used_fraction"] == pytest.approx(0.0078144, rel=1e-5)
    assert (values["prompt_tokens_total"], values["output_tokens_total"], values["cached_tokens_total"]) == (74239, 18217, 0)
    assert (values["num_blocks"], values["block_size"], values["awake"]) == (4096, 128, 1)


def test_AD_7_vllm_counts_rejections_and_preemptions() -> None:
    values = VLLM.read(body("vllm-0.32.0/metrics_admission_preempt.txt"))
    assert values["rejections_total"] == 22
    assert values["preemptions_total"] is not None


def test_AD_7_every_name_of_the_vllm_table_is_found() -> None:
    assert VLLM.found(VLLM.read(body("vllm-0.32.0/metrics_idle.txt")))[1] in ((), ("rejections_total",))


def test_AD_7_llamacpp_busy() -> None:
    values = LLAMACPP.read(body("llamacpp-b11549/metrics_busy.txt"))
    assert (values["running"], values["waiting"]) == (4, 0)
    assert values["prompt_tokens_total"] == 580 + 581  # this engine counts cached ones apart
    assert (values["cached_tokens_total"], values["output_tokens_total"]) == (581, 432)
    assert values["kv_used_fraction"] is None


def test_AD_7_a_missing_name_is_none_and_the_first_present_wins() -> None:
    values = VLLM.read("vllm:gpu_cache_usage_perc 0.5\nvllm:num_requests_running_created 9\nother:num_requests_running 3\n")
    assert values["kv_used_fraction"] == 0.5
    assert [name for name, value in values.items() if value is not None] == ["kv_used_fraction"]
    both = VLLM.read("vllm:gpu_cache_usage_perc 0.5\nvllm:kv_cache_usage_perc 0.25\n")
    assert both["kv_used_fraction"] == 0.25


def test_old_llamacpp_without_cached_tokens() -> None:
    assert LLAMACPP.read("llamacpp:prompt_tokens_total 9\nllamacpp:kv_cache_usage_ratio 0.5\n")["prompt_tokens_total"] == 9


def test_ranks_add_up_and_fractions_average() -> None:
    text = "".join(f'vllm:{name}{{engine="{i}"}} {value}\n' for name, values in (("num_requests_running", (1, 2)),
                   ("kv_cache_usage_perc", (0.1, 0.2))) for i, value in enumerate(values))
    values = VLLM.read(text)
    assert values["running"] == 3 and values["kv_used_fraction"] == pytest.approx(0.15)


def test_not_a_number_is_unknown_not_zero() -> None:
    scrape = VLLM.scrape("vllm:num_requests_running NaN\n", 4.0)
    assert (scrape.sampled_s, scrape.running, scrape.waiting, scrape.sleeping) == (4.0, None, None, None)


def test_text_that_is_no_exposition_is_refused() -> None:
    with pytest.raises(EngineUnavailableError, match="vllm"):
        VLLM.read("vllm:num_requests_running{broken 4\n")


def test_EN_1_kv_use_from_slots() -> None:
    slots = json.loads(body("llamacpp-b11549/slots_busy.txt"))
    busy = [s for s in slots if s["is_processing"]]
    used = sum(s["n_prompt_tokens"] + s["next_token"][0]["n_decoded"] for s in busy)
    assert kv_used_fraction(slots) == pytest.approx(used / (4 * 2048)) and used > 0
    assert kv_used_fraction(json.loads(body("llamacpp-b11549/slots_idle.txt"))) == 0
    assert kv_used_fraction({"error": "slots are off"}) is None
