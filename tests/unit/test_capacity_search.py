"""Capacity by search, the perfect fleet as a bound, and energy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from windtunnel.errors import ConfigValueError
from windtunnel.lab.capacity import capacity, perfect_gpu_hours, probe_s, search
from windtunnel.lab.scenario import Scenario
from windtunnel.sim.cost import energy_kwh

TEXT = """
windtunnel: 1
name: capacity
duration_s: 30
seed: 3
fleet: {pools: {chat: {model: Llama-3.1-8B, gpu: h100_sxm, replicas: 1, service: {servers: 10}, price: {usd_per_hour: 2.0}}}}
source: {kind: arrivals, rate_rps: 3, input_tokens: 10, output_tokens: 10, service_s: {kind: exp, mean: 1.0}}
control: {queue: {kind: fifo}, admission: {limit: {kind: fixed, limit: 10}}}
slo: {e2e_s: 5.0}
"""


@pytest.mark.parametrize("start", [0.01, 1.0, 37.0, 1000.0])
def test_SV_11_finds_a_sharp_edge_to_one_percent_from_anywhere(start: float) -> None:
    found = search(lambda rate: 1.0 if rate <= 37.0 else 0.0, start_rps=start)
    assert 37.0 / 1.01 <= found.rate_rps <= 37.0 and not found.non_monotone and len(found.probes) < 30


def test_SV_11_nothing_holds_and_everything_holds() -> None:
    assert search(lambda rate: 0.0, start_rps=8.0).rate_rps == 0.0
    assert search(lambda rate: 1.0, start_rps=1.0).rate_rps == 2.0 ** 23
    assert search(lambda rate: math.nan, start_rps=8.0).rate_rps == 0.0


def test_SV_11_reports_what_is_not_monotone() -> None:
    found = search(lambda rate: 1.0 if rate <= 1.0 or 5.0 <= rate <= 6.0 else 0.0, start_rps=5.5)
    assert 5.9 < found.rate_rps <= 6.0
    odd = search(lambda rate: 0.0 if 2.9 < rate < 3.1 or rate > 3.6 else 1.0, start_rps=1.0)
    assert odd.rate_rps < 3.0 and not odd.non_monotone  # never saw the island above
    seen = iter((0.0, 1.0, 1.0, 1.0, 0.0, *[1.0] * 20))
    assert search(lambda rate: next(seen), start_rps=4.0).rate_rps > 0


@pytest.mark.parametrize("wrong", [{"start_rps": 0.0}, {"attainment": 0.0}, {"attainment": 1.1}, {"tolerance": 0.0}, {"start_rps": math.inf}])
def test_SV_11_bad_numbers_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigValueError, match=next(iter(wrong))):
        search(lambda rate: 1.0, **{"start_rps": 1.0, **wrong})


def test_SV_11_capacity_of_ten_servers_lies_below_their_rate_of_ten() -> None:
    found = capacity(Scenario.load(TEXT), attainment=0.9, tolerance=0.05)
    assert 8.0 < found.rate_rps < 11.0 and found.attainment == 0.9
    assert capacity(Scenario.load(TEXT), {"e2e_s": 0.5}, tolerance=0.05).rate_rps == 0.0  # Exp(1): 39 % at best
    twice = capacity(Scenario.load(TEXT), tolerance=0.05)
    assert twice == found, "the same arrivals in every search"


@pytest.mark.parametrize(("rps", "seconds"), [(0.01, 3000.0), (1.0, 1000.0), (4.0, 300.0), (100.0, 300.0), (1000.0, 50.0), (1e6, 0.05)])
def test_SV_11_probes_are_long_enough_for_a_queue_to_show(rps: float, seconds: float) -> None:
    assert probe_s(rps) == pytest.approx(seconds)


def test_SV_11_capacity_of_one_server_is_that_of_theory() -> None:
    one = Scenario.load(TEXT).with_({"fleet.pools.chat.service.servers": 1, "source.rate_rps": 1.0, "control.admission.limit.limit": 1})
    found = capacity(one, {"e2e_s": 5.0}, tolerance=0.02)
    assert found.rate_rps == pytest.approx(1.0 - math.log(10) / 5.0, rel=0.1), "M/M/1: a share exp(-(1 - rate) 5) takes longer"


def test_SV_11_needs_a_rate_and_an_slo() -> None:
    with pytest.raises(ConfigValueError, match="slo"):
        capacity(Scenario.load(TEXT.replace("slo: {e2e_s: 5.0}", "")))
    mix = {"kind": "mix", "sources": [{"kind": "arrivals", "rate_rps": 1, "input_tokens": 1, "output_tokens": 1}]}
    with pytest.raises(ConfigValueError, match="rate_rps"):
        capacity(Scenario.load(TEXT).with_({"source": mix}))


def test_SL_8_perfect_fleet_counts_windows() -> None:
    times = np.concatenate((np.arange(0, 60, 0.5), np.arange(60, 120, 0.1)))  # 2 rps, then 10 rps
    assert perfect_gpu_hours(times, 4.0, until_s=120.0) == pytest.approx((1 + 3) * 60 / 3600)
    assert perfect_gpu_hours(times, 4.0, gpus_per_replica=8, until_s=120.0) == pytest.approx(8 * 4 * 60 / 3600)
    assert perfect_gpu_hours(times, 4.0, until_s=240.0, floor=1) == pytest.approx(6 * 60 / 3600)
    assert perfect_gpu_hours(times, 1e9) == pytest.approx(120 / 3600, rel=1e-2)


def test_SL_8_edges() -> None:
    assert perfect_gpu_hours([], 1.0) == 0.0 and perfect_gpu_hours([0.0], 1.0) == 0.0
    assert perfect_gpu_hours([], 1.0, until_s=600.0) == 0.0
    assert perfect_gpu_hours([1.0] * 60, 1.0, until_s=90.0) == pytest.approx(60 / 3600)  # 1 rps in a whole minute, nothing in the half one
    assert perfect_gpu_hours([89.0] * 60, 1.0, until_s=90.0) == pytest.approx(2 * 30 / 3600)  # a last window of 30 s
    for wrong in ({"capacity_rps": 0.0}, {"capacity_rps": 1.0, "window_s": -1.0}, {"capacity_rps": 1.0, "gpus_per_replica": 0}):
        with pytest.raises(ConfigValueError):
            perfect_gpu_hours([1.0], **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigValueError, match="arrivals_s"):
        perfect_gpu_hours([1.0, math.nan], 1.0)


def test_SL_7_energy_of_a_life() -> None:
    one = energy_kwh(3600.0, 1800.0, 600.0, power_w=700.0, idle_w=105.0)
    assert one == pytest.approx((105 * 3600 + 595 * (0.95 * 600 + 0.55 * 1200)) / 3.6e6)
    assert energy_kwh(3600.0, 0.0, 0.0, power_w=700.0, idle_w=105.0, gpus=8) == pytest.approx(0.84)
    assert energy_kwh(3600.0, 3600.0, 3600.0, power_w=700.0, idle_w=105.0) / 0.7 == pytest.approx(0.9575, abs=1e-6)
    assert energy_kwh(0.0, 0.0, 0.0, power_w=700.0, idle_w=105.0) == 0.0
    with pytest.raises(ConfigValueError, match="busy_s"):
        energy_kwh(1.0, math.nan, 0.0, power_w=700.0, idle_w=105.0)


def test_SL_7_a_run_says_its_energy_and_joules_per_token() -> None:
    tokens = Scenario.load(TEXT).with_({"fleet.pools.chat.service": None, "source.service_s": None}).run()
    row, values = tokens.replicas.iloc[0], tokens.summary().values
    assert row.gpu_seconds * 105 / 3.6e6 < row.kwh < row.gpu_seconds * 700 / 3.6e6
    assert values["kwh"] == pytest.approx(row.kwh)
    assert values["j_per_output_token"] == pytest.approx(row.kwh * 3.6e6 / row.output_tokens)
    assert tokens.metric("j_per_output_token") == values["j_per_output_token"]
    seconds = Scenario.load(TEXT).run()
    assert seconds.summary().values["kwh"] is None, "servers in seconds have no steps to draw power"
