"""The planner block: defaults, intervals, refusals with dotted paths, plugins, runtime changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from windtunnel.errors import PlannerConfigError
from windtunnel.lab.forecast_models import Arima, forecaster
from windtunnel.lab.planner_config import read_planner
from windtunnel.policy.planning.contract import HoldPolicy, Stage
from windtunnel.policy.planning.forecast import Forecaster
from windtunnel.policy.planning.plugin import PlannerPlugin
from windtunnel.policy.planning.predictor_settings import PredictorSettings
from windtunnel.policy.planning.settings import PlannerSettings, check_reconfigurable
from windtunnel.policy.planning.settings_blocks import (
    BudgetSettings,
    LoadSettings,
    PoolSettings,
    SloSettings,
    StabiliseSettings,
    ThroughputSettings,
)

WHOLE = """
mode: disagg
target: throughput
slo: {ttft_ms: 500, itl_ms: 50}
pools:
  prefill: {gpus: 1, min_replicas: 1, max_replicas: null, watts_per_replica: null, boot_s: 60, limits: {max_num_batched_tokens: null}}
  decode: {component: dec}
budget: {max_gpus: 8, min_gpus: -1, power_w: null}
advisory: false
throughput: {enabled: null, interval_s: 180, target_utilisation: 0.8, max_step: 8, floor_at_observed: true, drain_s: null}
load: {enabled: null, interval_s: 5, scale_down_sensitivity: 80, min_observations: 5, max_samples: 64, cells: 16}
predictor: {model: kalman, log1p: false, horizon: provisioning, quantile: null, kalman: {q_level: 1.0}, holt_winters: {season_len: null},
            prophet: {window: 50}}
speculative_nextn: 0
stabilise: {enabled: true, period_s: 15}
reconcile: {enabled: false, pd_ratio_tolerance: 0.25}
scheduling: {scale_interval_s: null, tick_max_duration_s: 30, tie_break: registration, min_coverage: 0.5, fpm_max_age_s: null}
plugins: {in_process: [], external: [], defaults: {timeout_s: 5.0, failure_threshold: 5, cooldown_s: 30.0}}
registry: {enabled: false, listen: null, auth: {sources: [], admin_subjects: []}, protocol_min: "1.0"}
scaler: {kind: none, drain_timeout_s: 120}
"""
AGG = {"agg": {}}


class Echo(PlannerPlugin):
    """A plugin that can be imported from here."""

    def __init__(self, n: int = 1) -> None:
        self.n = n

    def propose(self, request: Any) -> Any:
        return request


def entry(**kw: Any) -> dict[str, Any]:
    return {"module": __name__, "class": "Echo", "plugin_id": "echo", "stage": "propose", **kw}


def parts(block: dict[str, Any]) -> Any:
    spec = read_planner(block)
    return spec.parts(spec.settings())


def test_PL_901_the_block_of_the_documentation_reads() -> None:
    made = read_planner(yaml.safe_load(WHOLE)).settings()
    assert (made.mode, made.roles, made.component("decode"), made.component("prefill")) == ("disagg", ("prefill", "decode"), "dec", "prefill")
    assert (made.load_on, made.throughput_on, made.scale_interval_s) == (True, False, 5.0)
    assert made.slo.bounds.ttft_s == 0.5
    plain = read_planner({"pools": AGG}).settings()
    assert plain == PlannerSettings(pools={"agg": PoolSettings()})


@pytest.mark.parametrize(("throughput", "load", "want"), [
    ((True, 180), (True, 5), 5.0), ((True, 180), (True, 7.5), 7.5), ((True, 180), (False, 5), 180.0),
])
def test_PL_901_scale_interval(throughput: tuple[bool, float], load: tuple[bool, float], want: float) -> None:
    made = PlannerSettings(pools={"agg": PoolSettings()}, throughput=ThroughputSettings(*throughput), load=LoadSettings(*load))
    assert made.scale_interval_s == want
    off = replace(made, throughput=ThroughputSettings(False), load=LoadSettings(False), other_proposers=True)
    assert off.scale_interval_s == 5.0


@pytest.mark.parametrize(("target", "on"), [("sla", (True, False)), ("throughput", (False, True)), ("latency", (False, True))])
def test_PL_902_loops_by_target(target: Any, on: tuple[bool, bool]) -> None:
    made = PlannerSettings(target=target, pools={"agg": PoolSettings()})
    assert (made.throughput_on, made.load_on) == on
    both = replace(made, throughput=ThroughputSettings(True), load=LoadSettings(True))
    assert (both.throughput_on, both.load_on) == (True, True)


@pytest.mark.parametrize(("block", "path"), [
    ({"pools": AGG, "mod": 1}, "planner.mod: unknown key"),
    ({"pools": AGG, "load": {"cell": 4}}, "planner.load.cell: unknown key"),
    ({"pools": {"agg": {"gpu": 4}}}, "planner.pools.agg.gpu: unknown key"),
    ({"pools": AGG, "load": {"interval_s": float("nan")}}, "planner.load.interval_s"),
    ({"pools": AGG, "load": {"interval_s": float("inf")}}, "planner.load.interval_s"),
    ({"pools": AGG, "load": {"interval_s": -1}}, "planner.load.interval_s"),
    ({"pools": AGG, "load": {"interval_s": "5"}}, "planner.load.interval_s"),
    ({"pools": AGG, "load": {"interval_s": True}}, "planner.load.interval_s"),
    ({"pools": AGG, "load": {"cells": 15}}, "planner.load.cells"),
    ({"pools": AGG, "load": {"scale_down_sensitivity": 101}}, "planner.load.scale_down_sensitivity"),
    ({"pools": AGG, "budget": {"max_gpus": 4, "min_gpus": 5}}, "planner.budget.min_gpus"),
    ({"pools": {"agg": {"gpus": 4, "min_replicas": 3}}, "budget": {"max_gpus": 11}}, "planner.budget.max_gpus"),
    ({"pools": {"agg": {"min_replicas": -1}}}, "planner.pools.agg.min_replicas"),
    ({"pools": {"agg": {"min_replicas": 3, "max_replicas": 2}}}, "planner.pools.agg.max_replicas"),
    ({"pools": {"agg": {"limits": {"max_num_seqs": 0}}}}, "planner.pools.agg.limits.max_num_seqs"),
    ({"pools": {"agg": {}, "other": {}}}, "planner.pools.other"),
    ({"pools": AGG, "predictor": {"quantile": 1.0}}, "planner.predictor.quantile"),
    ({"pools": AGG, "predictor": {"model": "oracle"}}, "planner.predictor.model"),
    ({"pools": AGG, "plugins": {"defaults": {"timeout_s": 31}}}, "planner.plugins.defaults.timeout_s"),
    ({"pools": AGG, "plugins": {"in_process": [entry(timeout_s=31.0)]}}, "planner.plugins.in_process.0.timeout_s"),
    ({"pools": AGG, "plugins": {"in_process": [entry(), entry()]}}, "planner.plugins.in_process.1.plugin_id"),
    ({"pools": AGG, "plugins": {"in_process": [entry(plugin_id="builtin_x")]}}, "planner.plugins.in_process.0.plugin_id"),
    ({"pools": AGG, "plugins": {"in_process": [entry(observation_window_s=7.0)]}}, "planner.plugins.in_process.0.observation_window_s"),
    ({"pools": AGG, "plugins": {"in_process": [entry(stage="guess")]}}, "planner.plugins.in_process.0.stage"),
    ({"pools": AGG, "target": "load"}, "planner.load.decode_up"),
    ({"pools": AGG, "load": {"decode_up": 0.5, "decode_down": 0.5}}, "planner.load.decode_down"),
    ({"pools": AGG, "mode": "disagg"}, "planner.pools.agg"),
    ({"pools": {"prefill": {"component": "x"}, "decode": {"component": "x"}}, "mode": "disagg"}, "planner.pools"),
    ({"pools": AGG, "budget": {"power_w": 100}}, "planner.pools.agg.watts_per_replica"),
    ({"pools": AGG, "registry": {"enabled": True}}, "planner.registry.listen"),
    ({"pools": AGG, "registry": {"enabled": True, "listen": "unix:/x"}}, "planner.registry.auth.sources"),
    ({"pools": AGG, "load": {"enabled": False}}, "planner_does_nothing"),
    ({"pools": AGG, "throughput": {"enabled": True, "interval_s": 5}}, "planner.load.interval_s"),
    ({"pools": AGG, "scheduling": {"scale_interval_s": 3}}, "planner.scheduling.scale_interval_s"),
    ({"pools": AGG, "throughput": {"target_utilisation": 1.2}}, "planner.throughput.target_utilisation"),
    ({"pools": AGG, "stabilise": {"up_factor": 0.5}}, "planner.stabilise.up_factor"),
    ({"pools": AGG, "reconcile": {"pd_ratio_tolerance": 1.0}}, "planner.reconcile.pd_ratio_tolerance"),
    ({"pools": AGG, "predictor": {"holt_winters": {"alpha": 2.0}}}, "planner.predictor.holt_winters.alpha"),
    ({}, "planner.pools"), ({"pools": {"agg": object()}}, "planner: expected plain data"),
])
def test_PL_903_refusals_name_the_path(block: dict[str, Any], path: str) -> None:
    with pytest.raises(PlannerConfigError) as caught:
        read_planner(block)
    assert str(caught.value).startswith(path)


def test_PL_904_in_process_plugins_load() -> None:
    block = {"pools": AGG, "load": {"enabled": False}, "plugins": {
        "in_process": [entry(kwargs={"n": 7}, hold_policy="hold_last", timeout_s=2.0)], "disabled": ["builtin_stabilise"]}}
    built, (echo,) = parts(block)
    assert echo.plugin.n == 7
    reg = echo.registration
    assert (reg.stage, reg.hold_policy, reg.timeout_s, reg.failure_threshold, reg.cooldown_s) == (Stage.PROPOSE, HoldPolicy.HOLD_LAST, 2.0, 5, 30.0)
    assert [a.registration.plugin_id for a in built.attached] == ["builtin_budget_constrain"]


@pytest.mark.parametrize(("bad", "why"), [
    ({"module": "no.such"}, "cannot make"), ({"class": "Missing"}, "cannot make"), ({"kwargs": {"m": 1}}, "cannot make"),
    ({"stage": "constrain"}, "has no method constrain"),
])
def test_PL_904_plugins_that_cannot_be_made(bad: dict[str, Any], why: str) -> None:
    with pytest.raises(PlannerConfigError, match=why):
        parts({"pools": AGG, "plugins": {"in_process": [entry(**bad)]}})


def test_PL_905_what_may_change_at_run_time() -> None:
    old = PlannerSettings(pools={"agg": PoolSettings()})
    check_reconfigurable(old, replace(old, slo=SloSettings(100.0, 10.0), budget=BudgetSettings(16), predictor=PredictorSettings("constant"),
                                      stabilise=StabiliseSettings(False), pools={"agg": PoolSettings(min_replicas=2)}))
    for new, path in ((replace(old, target="sla"), "planner.target"), (replace(old, pools={"agg": PoolSettings(gpus=2)}), "planner.pools.agg"),
                      (replace(old, pools={"agg": PoolSettings(max_replicas=3)}), "planner.pools.agg.max_replicas")):
        with pytest.raises(PlannerConfigError, match=path):
            check_reconfigurable(old, new)


def test_PL_506_prophet_is_refused() -> None:
    with pytest.raises(PlannerConfigError, match='extra "forecast"'):
        forecaster(PredictorSettings("prophet"))


def test_PL_506_arima_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("windtunnel.lab.forecast_models.find_spec", lambda name: None)
    with pytest.raises(PlannerConfigError, match="forecast"):
        forecaster(PredictorSettings("arima"))


def test_PL_506_arima_of_short_and_constant_series() -> None:
    pytest.importorskip("statsmodels")
    short = Forecaster(forecaster(PredictorSettings("arima"))(), 1.0)
    for i, value in enumerate([5.0, 9.0]):
        short.observe(value, float(i))
    assert short.predict(1.0).mean == 9.0  # type: ignore[union-attr]
    constant = Forecaster(Arima(), 1.0)
    for i in range(10):
        constant.observe(7.0, float(i))
    assert constant.predict(3.5).mean == pytest.approx(7.0)  # type: ignore[union-attr]


@pytest.mark.slow
def test_PL_506_arima_fits_and_follows_a_ramp() -> None:
    pytest.importorskip("statsmodels")
    ramp = Forecaster(Arima(), 1.0)
    for i in range(12):
        ramp.observe(100.0 + 5.0 * i + (i % 3), float(i))
    ramp.observe(None, 12.0)
    found = ramp.predict(1.5)
    assert found is not None and found.mean > 155.0 and found.model_ready


def test_PL_904_a_disabled_plugin_is_a_built_in_one() -> None:
    with pytest.raises(PlannerConfigError, match=r"planner.plugins.disabled.0: expected one of builtin_load_predict, .*, got 'nope'"):
        read_planner({"pools": AGG, "plugins": {"disabled": ["nope"]}})
    assert "builtin_stabilise" in read_planner({"pools": AGG, "plugins": {"disabled": ["builtin_stabilise"]}}).settings().disabled
