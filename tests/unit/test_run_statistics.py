"""What a run says of itself in the steady state: warm-up and cool-down, intervals by batch means, money by minute, spot prices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from windtunnel.errors import ConfigError, ConfigMetricError
from windtunnel.lab import stats
from windtunnel.lab.costs import cost_by_minute
from windtunnel.lab.run import Run
from windtunnel.lab.scenario import Scenario

TEXT = """
windtunnel: 1
name: steady
duration_s: 300
seed: 5
fleet:
  pools:
    chat: {model: Llama-3.1-8B, gpu: h100_sxm, replicas: 4, service: {servers: 1}}
source: {kind: arrivals, rate_rps: 3, input_tokens: 16, output_tokens: 16, service_s: {kind: exp, mean: 1.0}}
control: {queue: {kind: fifo}, admission: {limit: {kind: none}}, routing: {kind: least_outstanding}}
"""


def scenario(**changes: Any) -> Scenario:
    return Scenario.load(TEXT).with_(changes)


def lines(run: Run, head: str) -> list[str]:
    return [line for line in run.lines() if line.startswith(head)]


# -- SV-7: what is cut --------------------------------------------------------------------------------------------------------------------


def test_SV_7_warm_up_and_cool_down_are_marked_left_out_and_told() -> None:
    run, whole = scenario(warmup_s=50, cooldown_s=30).run(), scenario().run()
    rows = run.requests
    assert len(rows) == len(whole.requests), "marked, not removed"
    assert (rows.marked == ((rows.arrived_s < 50) | (rows.arrived_s >= 270))).all() and rows.marked.sum() > 200
    values = run.summary().values
    assert values["offered"] == (~rows.marked).sum() and 220 <= values["window_s"] < 230, "until the last of them has ended"
    assert lines(run, "cut") == [f"cut     warm-up to 50 s and the last 30 s: {rows.marked.sum():,} requests in no number"]
    assert lines(whole, "cut") == [] and max(len(line) for line in run.lines()) <= 80


def test_SV_7_the_warm_up_is_found_from_ttft() -> None:
    """A pool that is slow for its first minute: the requests of that minute are cut, at most half of all."""
    slow_start = scenario(warmup_s="mser5", faults=[{"kind": "slow", "at_s": 0, "for_s": 60, "factor": 8}], duration_s=600)
    run = slow_start.run()
    rows = run.requests
    cut_s = rows[~rows.marked].arrived_s.min()
    assert 30.0 < cut_s < 200.0 and rows[rows.marked].arrived_s.max() < cut_s and rows.marked.mean() <= 0.5
    assert "found by MSER-5" in lines(run, "cut")[0]
    steady = scenario(duration_s=600).run().summary().values["in_flight.avg"]
    assert run.metric("e2e_s.avg") < 0.6 * scenario(faults=slow_start.model_dump()["faults"], duration_s=600).run().metric("e2e_s.avg")
    assert steady is not None


def test_SV_7_nothing_to_find_in_a_short_run_and_nonsense_is_refused() -> None:
    run = scenario(warmup_s="mser5", duration_s=4).run()
    assert not run.requests.marked.any() and lines(run, "cut") == []
    for wrong in ({"warmup_s": "mser6"}, {"warmup_s": -1}, {"cooldown_s": -1}, {"cooldown_s": 300}, {"warmup_s": 200, "cooldown_s": 100}):
        with pytest.raises(ConfigError, match=r"warmup_s|cooldown_s"):
            scenario(**wrong)
    assert scenario(warmup_s="mser5", cooldown_s=60).fast().cooldown_s == 5.0


# -- SV-8: intervals ----------------------------------------------------------------------------------------------------------------------


def test_SV_8_an_interval_of_one_run_by_batch_means() -> None:
    run = scenario(duration_s=3000, warmup_s=100).run()
    found = run.interval("e2e_s.avg")
    assert found.value == pytest.approx(run.metric("e2e_s.avg"), rel=0.02) and found.lo < found.value < found.hi and found.n in (10, 20)
    rows = run.requests[~run.requests.marked].sort_values("ended_s", kind="stable")
    assert found == stats.batch_means(rows.e2e_s.dropna().to_numpy())
    p90 = run.interval("e2e_s.p90")
    assert p90.lo < p90.value < p90.hi and p90.value > found.value
    narrow = run.interval("e2e_s.avg", level=0.5)
    assert narrow.half_width < found.half_width


def test_SV_8_correlated_batches_say_so_and_few_values_have_no_bounds() -> None:
    drifting = scenario(duration_s=600, **{"source.rate_rps": 6}).run()  # more than is served: each batch waits longer than the last
    assert drifting.interval("e2e_s.avg").reliable is False
    few = scenario(duration_s=2).run().interval("e2e_s.p99")
    assert not few.reliable and few.n == 0 and np.isinf(few.half_width)
    nobody = scenario(**{"source.rate_rps": 1e-6}).run().interval("e2e_s.avg")
    assert np.isnan(nobody.value) and not nobody.reliable


@pytest.mark.parametrize("expression", ["goodput_rps", "e2e_s.max", "e2e_s.adj_p99", "nonsense.avg", "e2e_s"])
def test_SV_8_what_has_no_batch_means_is_refused(expression: str) -> None:
    with pytest.raises(ConfigMetricError):
        scenario(duration_s=5).run().interval(expression)


# -- SL-6: money --------------------------------------------------------------------------------------------------------------------------


def test_SL_6_spot_pools_pay_the_spot_price_and_their_own_comes_first() -> None:
    def usd_per_gpu_hour(**changes: Any) -> float | None:
        run = scenario(duration_s=60, **changes).run()
        values = run.summary().values
        assert run.replicas.spot.eq(changes.get("fleet.pools.chat.spot", False)).all()
        return None if values["usd"] is None else values["usd"] / values["gpu_hours"]

    assert usd_per_gpu_hour() == pytest.approx(2.5) and usd_per_gpu_hour(**{"fleet.pools.chat.spot": True}) == pytest.approx(1.2)
    mine = {"fleet.pools.chat.price": {"usd_per_hour": 0.7}}
    assert usd_per_gpu_hour(**mine, **{"fleet.pools.chat.spot": True}) == pytest.approx(0.7)
    assert usd_per_gpu_hour(**{"fleet.pools.chat.gpu": "h100_pcie", "fleet.pools.chat.spot": True}) is None, "unknown is not zero"


def test_SL_6_the_minutes_sum_to_the_whole() -> None:
    run = scenario(faults=[{"kind": "crash", "at_s": 90, "count": 1}], **{
        "fleet.pools.chat.startup": {"node_s": 20, "weights_s": 10}, "fleet.pools.cheap": {
            "model": "Llama-3.1-8B", "gpu": "h100_pcie", "replicas": 1, "service": {"servers": 1}}}).run()
    table = cost_by_minute(run)
    chat = table[table.pool == "chat"]
    assert chat.t_s.tolist() == [60.0 * i for i in range(len(chat))] and len(table) == 2 * len(chat)
    assert chat.gpu_seconds.sum() == pytest.approx(run.replicas[run.replicas.pool == "chat"].gpu_seconds.sum())
    assert chat.usd.sum() == pytest.approx(run.replicas[run.replicas.pool == "chat"].usd.sum()) and table[table.pool == "cheap"].usd.isna().all()
    # the minute of the crash has four GPUs throughout: the new one is provisioned at once
    assert chat.gpu_seconds.iloc[:4].tolist() == pytest.approx([240.0] * 4) and chat.usd.iloc[0] == pytest.approx(240 / 3600 * 2.5)


def test_SL_6_a_fleet_of_nothing_costs_nothing() -> None:
    run = scenario(duration_s=5, **{"fleet.pools.chat.replicas": 0}).run()
    assert cost_by_minute(run).gpu_seconds.sum() == 0 and (run.summary().values["gpu_hours"] or 0) == 0
