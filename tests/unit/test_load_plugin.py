"""The built-in plugin that sizes pools by the load of their engines: guards, thresholds, and by a latency objective."""

from __future__ import annotations

from typing import Any

import pytest
from plugin_requests import MODEL, POOL, TRAFFIC, engine, planner, request, said, state

from windtunnel.policy.planning.contract import ForwardPass, PoolState, Stage, TrafficMetrics
from windtunnel.policy.planning.load import FIXED, LoadPropose, Thresholds, step
from windtunnel.policy.planning.perf_model import LinearPerf
from windtunnel.policy.planning.settings import PlannerSettings
from windtunnel.policy.planning.settings_blocks import LoadSettings, PoolSettings, SloSettings, ThroughputSettings
from windtunnel.policy.planning.sizing import Sizing


def test_PL_607_consolidation_examples() -> None:
    assert step([0.5] * 3, 3, FIXED["throughput", "decode"]) == (2, "scale_down")
    assert step([0.5] * 3, 3, Thresholds(0.7, 0.6, down_at=True)) == (3, "scale_down_refused_consolidation")


@pytest.mark.parametrize(("target", "role", "value", "want"), [
    ("throughput", "prefill", 1.0, 4), ("throughput", "prefill", 0.0999, 2), ("throughput", "prefill", 0.1, 3),
    ("throughput", "decode", 1.0, 3), ("throughput", "decode", 1.0001, 4), ("throughput", "decode", 0.6, 3),
    ("latency", "prefill", 0.1, 4), ("latency", "prefill", 0.0, 2), ("latency", "prefill", 0.01, 3),
    ("latency", "decode", 0.4, 3), ("latency", "decode", 0.41, 4), ("latency", "decode", 0.09, 2),
])
def test_PL_607_thresholds(target: str, role: str, value: float, want: int) -> None:
    assert step([value] * 3, 3, FIXED[target, role])[0] == want


def test_PL_607_any_over_goes_up_all_under_go_down() -> None:
    bounds = FIXED["throughput", "decode"]
    assert step([1.2, 0.0, 0.0], 3, bounds)[0] == 4
    assert step([0.1, 0.1, 0.7], 3, bounds)[0] == 3
    assert step([0.1], 1, bounds) == (1, "no_change")


def test_PL_1001_two_and_one_never_flap_with_the_consolidation_check() -> None:
    bounds = Thresholds(0.7, 0.6, down_at=True)
    n, seen = 1, []
    for _ in range(50):  # work that fills 0.7 of one replica, spread over n
        n = step([0.7 / n] * n, n, bounds)[0]
        seen.append(n)
    assert set(seen) == {2}


def load(mode: str = "agg", **kw: Any) -> LoadPropose:
    config = planner(mode, **kw)
    return LoadPropose(config, Sizing(config, MODEL))


def test_PL_607_guards_in_order() -> None:
    plugin, workers = load(), {"agg": state(2)}
    two = {"agg": [engine("a", kv=250_000), engine("b")]}
    off = load(target="sla")
    off.propose(request(Stage.PROPOSE, fpm=two, workers=workers))
    assert off.reasons == {"agg": "disabled"}

    def why(**kw: Any) -> str:
        assert said(plugin.propose(request(Stage.PROPOSE, **kw))) == {}
        return plugin.reasons["agg"]

    assert why(workers=workers) == "no_fpm_data"
    assert why(fpm=two, workers={"agg": PoolState(2, 3)}) == "scaling_in_progress"
    assert why(fpm=two, workers={"agg": PoolState(2, scaling=True)}) == "scaling_in_progress"
    assert why(fpm=two, workers={"agg": state(3)}) == "worker_count_mismatch"
    assert why(fpm=two) == "worker_count_mismatch"  # counts unknown
    uneven = {"agg": [engine("a"), engine("a", rank=1), engine("b")]}
    assert why(fpm=uneven, workers=workers) == "worker_count_mismatch"
    bare = PlannerSettings(pools={"agg": PoolSettings()})
    unknown = LoadPropose(bare, Sizing(bare, MODEL))
    assert said(unknown.propose(request(Stage.PROPOSE, fpm=two, workers=workers))) == {}
    assert unknown.reasons == {"agg": "insufficient_data"}
    assert said(plugin.propose(request(Stage.PROPOSE, fpm=two, workers=workers))) == {"agg=": 3}
    assert plugin.reasons == {"agg": "scale_up"}


def test_PL_607_one_silent_side_holds_only_itself() -> None:
    plugin = load("disagg")
    fpm = {"prefill": [engine("a", queued=20_000)]}
    assert said(plugin.propose(request(Stage.PROPOSE, fpm=fpm, workers={"prefill": state(1), "decode": state(1)}))) == {"prefill=": 2}
    assert plugin.reasons == {"prefill": "scale_up", "decode": "no_fpm_data"}


def test_PL_607_minimum_and_mixed_mode() -> None:
    quiet = {"agg": [engine("a"), engine("b"), engine("c")]}
    floor = load(pools={"agg": PoolSettings(min_replicas=3, limits=POOL.limits)})
    assert said(floor.propose(request(Stage.PROPOSE, fpm=quiet, workers={"agg": state(3)}))) == {}
    assert floor.reasons == {"agg": "no_change"}
    mixed = load(throughput=ThroughputSettings(enabled=True))
    assert said(mixed.propose(request(Stage.PROPOSE, fpm=quiet, workers={"agg": state(3)}))) == {}
    assert mixed.reasons == {"agg": "insufficient_data"}
    assert said(mixed.propose(request(Stage.PROPOSE, traffic=TRAFFIC, fpm=quiet, workers={"agg": state(3)}))) == {"agg=": 2}


def sla(mode: str, role_slo: SloSettings) -> LoadPropose:
    config = planner(mode, target="sla", load=LoadSettings(enabled=True), throughput=ThroughputSettings(enabled=False), slo=role_slo)
    plugin = LoadPropose(config, Sizing(config, MODEL))
    averages = plugin.sizing.averages
    averages.avg_isl.add(3000.0)
    averages.avg_num.add(4.0)
    averages.avg_len.add(3000.0)
    averages.avg_prefill_tokens.add(200.0)
    return plugin


def propose(plugin: LoadPropose, role: str, *engines: ForwardPass, traffic: TrafficMetrics | None = TRAFFIC) -> tuple[dict[str, Any], str]:
    ask = request(Stage.PROPOSE, fpm={role: list(engines)}, workers={role: state(len(engines))}, traffic=traffic)
    plugin.sizing.learn = lambda fpm: None  # type: ignore[method-assign]  # averages as they are set
    return said(plugin.propose(ask)), plugin.reasons[role]


def test_PL_607_sla_prefill() -> None:
    plugin = sla("prefill", SloSettings(500.0, None))
    over, idle = engine("a", queued=4000), engine("b")  # TTFT .71 s and .31 s
    assert propose(plugin, "prefill", over, engine("b", queued=4000)) == ({"prefill=": 3}, "scale_up")
    assert propose(plugin, "prefill", over, idle) == ({}, "no_change")
    # T0 .31, budget .8·.19 = .152; a queue of 700 doubled is .14
    assert propose(plugin, "prefill", engine("a", queued=700), idle) == ({"prefill=": 1}, "scale_down")
    assert propose(plugin, "prefill", engine("a", queued=800), idle) == ({}, "no_change")


def test_PL_607_sla_decode() -> None:
    plugin = sla("decode", SloSettings(None, 100.0))
    hot = engine("a", kv=90_000)  # .020 + .001 + .093
    assert propose(plugin, "decode", hot, engine("b", kv=90_000)) == ({"decode=": 3}, "scale_up")
    assert propose(plugin, "decode", hot, engine("b")) == ({}, "no_change")
    assert propose(plugin, "decode", engine("a", kv=27_000), engine("b")) == ({"decode=": 1}, "scale_down")  # .078 < .08
    assert propose(plugin, "decode", engine("a", kv=28_100), engine("b")) == ({}, "no_change")


def test_PL_607_sla_agg_combines() -> None:
    plugin = sla("agg", SloSettings(500.0, 150.0))
    calm = engine("a", kv=1000)
    assert propose(plugin, "agg", calm, engine("b", kv=1000)) == ({"agg=": 1}, "scale_down")
    assert propose(plugin, "agg", engine("a", queued=4000), engine("b", queued=4000)) == ({"agg=": 3}, "scale_up")
    assert propose(plugin, "agg", engine("a", queued=1500), engine("b", kv=1000)) == ({}, "no_change")  # prefill has no room to spare
    one = sla("agg", SloSettings(None, 150.0))
    assert propose(one, "agg", engine("a", queued=1500), engine("b")) == ({"agg=": 1}, "scale_down")
    unready = sla("agg", SloSettings(500.0, 150.0))
    unready.sizing.model = LinearPerf()
    assert propose(unready, "agg", calm, engine("b")) == ({}, "insufficient_data")
