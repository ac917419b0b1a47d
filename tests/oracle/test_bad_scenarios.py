"""Scenarios that ask for what cannot be: each is refused before it flies, or ends with a typed outcome for everybody; none hangs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from windtunnel.effects import ScaleTo
from windtunnel.errors import ConfigError, ConfigInfeasibleError, WindtunnelError
from windtunnel.lab.history import violations
from windtunnel.lab.run import Run
from windtunnel.lab.scenario import Scenario
from windtunnel.sim.agenda import ARRIVAL

TEXT = """
windtunnel: 1
name: bad
duration_s: 30
seed: 3
fleet:
  pools:
    chat:
      {model: Llama-3.1-8B, gpu: h100_sxm, replicas: 2, engine: {max_num_seqs: 16}, startup: {node_s: 10, image_s: 0, weights_s: 5, compile_s: 0}}
source: {kind: arrivals, rate_rps: 6, input_tokens: 300, output_tokens: {kind: lognormal, mean: 60, cv: 0.5}}
control: {queue: {kind: fifo}, admission: {limit: {kind: none}}, routing: {kind: least_outstanding}}
record: full
"""
OUTCOMES = {"success", "rate_limited", "provider_failure", "provider_timeout", "local_cancelled", "local_timeout", "unexpected_exception"}
WALL_S = 60.0


def fly(made: Scenario | str = TEXT, *, check: bool = True, at: dict[float, Any] | None = None, **changes: Any) -> Run:
    """The run: complete, sound, everybody with a typed end, in bounded wall time. at: done to the simulated fleet at these times."""
    scenario = Scenario.load(made) if isinstance(made, str) else made
    flight = (scenario.with_(changes) if changes else scenario).start(check=check)
    for when, act in (at or {}).items():
        flight._driver.agenda.at(when, ARRIVAL, lambda _, act=act: act(flight._driver.fleet))
    until = time.monotonic() + WALL_S
    while not flight.advance(1.0).done:
        assert time.monotonic() < until, f"still flying at {flight.progress}"
    run = flight.result()
    rows = run.requests
    assert run.complete and violations(run) == [] and rows.request_id.is_unique
    assert set(rows.outcome) <= OUTCOMES and rows.ended_s.notna().all() and (rows.reason.notna() | (rows.outcome == "success")).all()
    run.summary().text  # noqa: B018 - every number of it can be told
    return run


def share(run: Run, outcome: str) -> float:
    return float((run.requests.outcome == outcome).mean())


# -- refused before it flies -----------------------------------------------------------------------------------------------------------

IMPOSSIBLE: Sequence[tuple[dict[str, Any], str]] = (
    ({"fleet.pools.chat.model": "Llama-3.1-70B"}, r"weights 141\.1 GB \+ overhead 1\.2 GB > 77\.3 GB usable"),
    ({"fleet.pools.chat.tp": 3}, "32 attention heads cannot be split over tp 3"),
    ({"fleet.pools.chat.tp": 64}, "cannot be split over tp 64"),
    ({"fleet.max_gpus": 1}, "below the 2 GPUs that serve from the start"),
    ({"fleet.pools.chat.engine.max_model_len": 10_000_000}, "fewer than one request of 10,000,000 tokens"),
    ({"fleet.pools.chat.engine.max_num_batched_tokens": 4}, "4 tokens a step cannot serve 16 sequences"),
    ({"fleet.pools.chat.profile": {"kind": "roofline", "ep": 3}}, "ep"),
    ({"fleet.pools.chat.profile": {"kind": "affine", "c0": 0, "c2": 0}}, "expected a value > 0"),
    ({"fleet.pools.chat.gpu": "h900"}, 'unknown GPU "h900"; did you mean'),
    ({"fleet.pools.chat.model": "Lama-3.1-8B"}, "did you mean"),
    ({"fleet.pools": {}}, "at least 1"),
)


@pytest.mark.parametrize(("changes", "said"), IMPOSSIBLE)
def test_impossible_fleets_are_refused_with_the_reason(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Scenario.load(TEXT).with_(changes).run()


def test_a_model_that_does_not_fit_is_its_own_kind_of_error() -> None:
    with pytest.raises(ConfigInfeasibleError) as caught:
        Scenario.load(TEXT).with_({"fleet.pools.chat.model": "Llama-3.1-70B"}).run()
    assert "fleet.pools.chat" in caught.value.message and "tp: 2" in caught.value.hint


NUMBERS: Sequence[tuple[str, Any]] = (
    ("source.rate_rps", 0), ("source.rate_rps", -1), ("source.rate_rps", -1e-9), ("duration_s", 0), ("duration_s", -5), ("grace_s", -1),
    ("source.input_tokens", -4), ("source.output_tokens", -1), ("source.tenants", {"a": 0.0}), ("source.tenants", {"a": -1.0, "b": 3.0}),
    ("fleet.network_s", -1), ("fleet.pools.chat.replicas", -1), ("fleet.pools.chat.min", 3), ("fleet.pools.chat.max", 1),
    ("fleet.pools.chat.engine.num_blocks", 0), ("fleet.pools.chat.engine.block_size", 0), ("fleet.pools.chat.engine.watermark", 1.0),
    ("fleet.pools.chat.startup.node_s", -5), ("fleet.pools.chat.startup.node_s", {"kind": "uniform", "lo": -9.0, "hi": -5.0}),
    ("fleet.pools.chat.startup.weights_s", {"kind": "const", "value": -1.0}), ("fleet.pools.chat.price", {"usd_per_hour": -1}),
    ("fleet.pools.chat.scrape.delay_s", {"kind": "const", "value": -1.0}), ("fleet.pools.chat.scrape.interval_s", 0),
    ("control.admission.limit", {"kind": "fixed", "limit": 0}), ("slo", {"ttft_s": 0}), ("warmup_s", 30), ("warmup_s", -1),
)


@pytest.mark.parametrize(("path", "value"), NUMBERS)
def test_numbers_that_mean_nothing_are_refused(path: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=path.rpartition(".")[2].replace("source", "")):
        Scenario.load(TEXT).with_({path: value}).run()


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf", "1e999"])
@pytest.mark.parametrize("field", ["rate_rps: 6", "duration_s: 30", "node_s: 10"])
def test_numbers_that_are_none_are_refused(field: str, number: str) -> None:
    name = field.partition(":")[0]
    with pytest.raises(ConfigError, match=name):
        Scenario.load(TEXT.replace(field, f"{name}: {number}")).run()


# -- served or refused, but ended ------------------------------------------------------------------------------------------------------


def test_answers_longer_than_the_context() -> None:
    run = fly(**{"fleet.pools.chat.engine.max_model_len": 350})
    rows = run.requests
    long = rows[rows.input_tokens + rows.output_tokens.fillna(1000) > 350]
    assert 0.2 < share(run, "success") < 0.9 and len(long) == len(rows) - (rows.outcome == "success").sum()
    assert set(long.reason) == {"context_length_exceeded"} and set(long.outcome) == {"unexpected_exception"}
    assert (long.attempts == 1).all(), "never tried again"
    nobody = fly(**{"fleet.pools.chat.engine.max_model_len": 300})
    assert share(nobody, "unexpected_exception") == 1.0


@pytest.mark.parametrize("policy", ["vllm", "sarathi", "prefill_first", "static"])
def test_prompts_larger_than_the_kv_cache(policy: str) -> None:
    """12 blocks of 16 tokens, prompts of 100 or 300 tokens: the short ones are served, the long ones told that they never will be."""
    changes = {"fleet.pools.chat.engine": {"policy": policy, "num_blocks": 12, "max_num_seqs": 16}, "source.output_tokens": 20,
               "source.input_tokens": {"kind": "empirical", "values": [100.0, 300.0]}, "source.rate_rps": 2}
    rows = fly(**changes).requests
    assert set(rows[rows.input_tokens == 300].reason) == {"kv_capacity_exceeded"}
    assert (rows[rows.input_tokens == 100].outcome == "success").all() and 10 < (rows.input_tokens == 100).sum() < len(rows) - 10


def test_slots_with_less_context_than_the_prompts() -> None:
    rows = fly(**{"fleet.pools.chat.engine": {"policy": "slots", "n_ctx": 4096, "max_num_seqs": 16}}).requests
    assert set(rows.reason) == {"context_length_exceeded"} and set(rows.outcome) == {"unexpected_exception"}


def test_faults_on_top_of_each_other() -> None:
    everything = [{"kind": kind, "at_s": 5 + 0.5 * i, "for_s": 10} for i, kind in enumerate(
        ("slow", "slow", "pause", "pause", "errors", "errors", "metrics_delay", "metrics_drop", "metrics_freeze", "clock", "load", "load",
         "boot_slow", "boot_fail"))]
    losses = [{"kind": "crash", "at_s": 8, "replicas": [0]}, {"kind": "crash", "at_s": 8, "replicas": [0]},
              {"kind": "spot", "at_s": 8, "replicas": [0, 1], "notice_s": 5}, {"kind": "spot", "at_s": 9, "replicas": [1], "notice_s": 1},
              {"kind": "crash", "every_s": 7, "count": 1}]
    run = fly(faults=everything + losses, **{"control.settings.attempts": 3, "grace_s": 200})
    kinds = run.notes.kind.value_counts()
    assert kinds["fault_missed"] >= 1 and kinds["fault_started"] >= 10 and len(run.replicas) > 4
    assert len(set(run.requests.outcome)) >= 2


def test_a_pool_scaled_to_zero_with_work_waiting() -> None:
    """A plan takes the last replicas away in the middle: what runs ends, what waits is told, and nobody is left behind."""
    def to(replicas: int, plan: int) -> Any:
        return lambda fleet: fleet.scale_to(ScaleTo(plan, (("chat", replicas),)))

    busy = {"control.admission.limit": {"kind": "fixed", "limit": 2}, "source.rate_rps": 20, "fleet.pools.chat.drain_timeout_s": 0.1}
    run = fly(at={10.0: to(0, 1)}, **busy)
    rows = run.requests
    assert run.series[(run.series.name == "waiting") & (run.series.t_s == 10.0)].value.max() > 50
    assert (run.replicas.gone_s <= 10.1).all() and not (rows[rows.ended_s > 10.1].outcome == "success").any()
    back = fly(at={10.0: to(0, 1), 12.0: to(2, 2)}, grace_s=100, **busy)
    assert back.replicas.ready_s.max() == 27.0 and (back.requests[back.requests.arrived_s > 27.0].outcome == "success").all()
    gone = fly(faults=[{"kind": "spot", "at_s": 10, "notice_s": 0, "unavailable_s": 1000}],
               **{"control.admission.limit": {"kind": "fixed", "limit": 2}, "source.rate_rps": 20})
    rows = gone.requests
    assert gone.replicas.gone_s.notna().all() and (rows[rows.arrived_s > 10].outcome != "success").all()
    assert {"provider_failure", "rate_limited"} >= set(rows.outcome) - {"success"} != set()


def test_a_pool_scaled_to_zero_comes_back() -> None:
    run = fly(faults=[{"kind": "spot", "at_s": 10, "notice_s": 0, "unavailable_s": 3}], **{"duration_s": 60, "grace_s": 100})
    rows = run.requests
    assert run.replicas.ready_s.dropna().max() == pytest.approx(28.0), "10 + 3 s to be had + 15 s to boot"
    assert (rows[rows.arrived_s > 30].outcome == "success").all() and (rows.outcome == "success").mean() > 0.4


def test_a_trace_of_equal_times(tmp_path: Path) -> None:
    (tmp_path / "burst.csv").write_text("arrival_s,input_tokens,output_tokens\n" + "3.0,300,20\n" * 1000)
    text = TEXT.replace("source: {kind: arrivals, rate_rps: 6, input_tokens: 300, output_tokens: {kind: lognormal, mean: 60, cv: 0.5}}",
                        "source: {kind: trace, path: burst.csv}")
    (tmp_path / "bad.yaml").write_text(text)
    run = fly(Scenario.load(tmp_path / "bad.yaml"))
    rows = run.requests
    assert len(rows) == 1000 and rows.arrived_s.nunique() == 1 and share(run, "success") == 1.0
    assert rows.dispatched_s.is_monotonic_increasing and set(rows.replica.value_counts()) == {500}
    again = fly(Scenario.load(tmp_path / "bad.yaml"), check=False)
    assert again.requests.equals(rows)


def test_a_trace_without_a_row_and_one_of_zeros(tmp_path: Path) -> None:
    text = TEXT.replace("source: {kind: arrivals, rate_rps: 6, input_tokens: 300, output_tokens: {kind: lognormal, mean: 60, cv: 0.5}}",
                        "source: {kind: trace, path: t.csv}")
    (tmp_path / "bad.yaml").write_text(text)
    (tmp_path / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n0.0,0,0\n0.0,1,0\n0.0,1,1\n")
    rows = fly(Scenario.load(tmp_path / "bad.yaml")).requests
    assert len(rows) == 3 and rows.output_tokens.fillna(0).tolist() == [0, 0, 1]
    (tmp_path / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n")
    with pytest.raises(WindtunnelError, match=r"t\.csv: not a single row"):
        Scenario.load(tmp_path / "bad.yaml").run()


@pytest.mark.parametrize("queue", [{"kind": "fair"}, {"kind": "fifo"}, {"kind": "vtc"}])
def test_a_thousand_tenants(queue: dict[str, Any]) -> None:
    run = fly(check=False, **{"source.tenants": {f"t{i}-é": 1.0 + i % 7 for i in range(1000)}, "control.queue": queue, "source.rate_rps": 100,
                 "control.admission.limit": {"kind": "fixed", "limit": 64}, "duration_s": 20, "grace_s": 300})
    assert run.requests.tenant.nunique() > 700 and share(run, "success") == 1.0
    assert 0.0 < (run.metric("jain") or 0.0) <= 1.0


def test_one_prompt_of_a_million_tokens_among_others() -> None:
    text = TEXT.replace("source: {kind: arrivals, rate_rps: 6, input_tokens: 300, output_tokens: {kind: lognormal, mean: 60, cv: 0.5}}",
                        "source: {kind: mix, sources: ["
                        "{kind: arrivals, name: long, rate_rps: 0.5, input_tokens: 1000000, output_tokens: 5, count: 1}, "
                        "{kind: arrivals, name: short, rate_rps: 6, input_tokens: 300, output_tokens: 40}]}")
    refused = fly(text).requests
    long = refused.input_tokens == 1_000_000
    assert long.sum() == 1 and set(refused[long].reason) == {"context_length_exceeded"} and (refused[~long].outcome == "success").all()
    roomy = {"fleet.pools.chat.tp": 8, "fleet.pools.chat.engine.max_model_len": 2_000_000, "grace_s": 2000}
    served = fly(Scenario.load(text).with_(roomy)).requests
    assert (served.outcome == "success").all() and served[served.input_tokens == 1_000_000].ttft_s.iloc[0] > 30.0


def test_nobody_comes() -> None:
    run = fly(**{"source.rate_rps": 1e-6})
    assert len(run.requests) == 0 and run.summary().values["goodput_rps"] == 0 and run.metric("ttft_s.p99") is None
