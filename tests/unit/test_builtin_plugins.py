"""The built-in planner plugins: prediction, throughput, reconciling, budgets, registration."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_requests import MODEL, TRAFFIC, engine, planner, request, said, state

from windtunnel.policy.planning.budget_constrain import BudgetConstrain
from windtunnel.policy.planning.builtins import BUILTINS, build_plugins
from windtunnel.policy.planning.contract import ForwardPass, HoldPolicy, PoolState, PredictionData, Stage, StageRequest, TrafficMetrics
from windtunnel.policy.planning.feed_forward import replicas_needed
from windtunnel.policy.planning.load_predict import LoadPredict
from windtunnel.policy.planning.perf_model import LinearPerf
from windtunnel.policy.planning.predictor_settings import PredictorSettings
from windtunnel.policy.planning.reconcile import Reconcile, balance
from windtunnel.policy.planning.settings_blocks import (
    BudgetSettings,
    LoadSettings,
    PoolSettings,
    ReconcileSettings,
    SloSettings,
    ThroughputSettings,
)
from windtunnel.policy.planning.sizing import Sizing
from windtunnel.policy.planning.throughput import ThroughputPropose

AHEAD = PredictionData(1800.0, 3000.0, 150.0, window_s=180.0, horizon_s=180.0)


# -- prediction -------------------------------------------------------------------------------------------------------------------


def predictor(**kw: Any) -> LoadPredict:
    config = planner(predictor=PredictorSettings(model="moving_mean"), **kw)
    return LoadPredict(config, Sizing(config, MODEL), 180.0)


def test_PL_510_predicts_rate_and_lengths_with_window_and_horizon() -> None:
    plugin = predictor()
    traffic = TrafficMetrics(180.0, 100.0, isl=10.0, osl=20.0, kv_hit_rate=0.5, accept_length=2.0, isl_count=1, osl_count=1,
                             kv_hit_tokens=1, accept_forwards=1)
    plugin.predict(request(Stage.PREDICT, 180.0, traffic=traffic))
    idle = TrafficMetrics(180.0, 50.0)
    found = plugin.predict(request(Stage.PREDICT, 360.0, traffic=idle, workers={"agg": state(4, boot_s=200.0)})).predictions
    assert found == PredictionData(75.0, 10.0, 20.0, 0.5, 2.0, 180.0, 200.0, "builtin_load_predict")


def test_PL_510_no_traffic_is_no_answer() -> None:
    plugin = predictor()
    response = plugin.predict(request(Stage.PREDICT))
    assert (response.predictions, response.reason, plugin.reason) == (None, "no_traffic_data", "no_traffic_data")
    assert plugin.predict(request(Stage.PREDICT, 360.0, traffic=TrafficMetrics(180.0, 0.0))).predictions is None  # idle since the start


def test_PL_307_a_repeated_tick_takes_its_window_once() -> None:
    plugin = predictor()
    plugin.predict(request(Stage.PREDICT, 180.0, traffic=TrafficMetrics(180.0, 10.0)))
    plugin.predict(request(Stage.PREDICT, 185.0, traffic=TrafficMetrics(180.0, 90.0)))
    found = plugin.predict(request(Stage.PREDICT, 365.0, traffic=TrafficMetrics(180.0, 30.0))).predictions
    assert found is not None and found.predicted_num_req == 20.0


def test_PL_504_partly_known_windows_count_by_their_rate() -> None:
    found = predictor().predict(request(Stage.PREDICT, traffic=TrafficMetrics(90.0, 45.0, coverage=0.5))).predictions
    assert found is not None and found.predicted_num_req == 90.0


def test_PL_505_bootstrap_feeds_history_and_skips_the_idle_start() -> None:
    plugin = predictor()
    plugin.bootstrap([TrafficMetrics(180.0, 40.0), TrafficMetrics(180.0, 60.0)], 180.0, {})
    found = plugin.predict(request(Stage.PREDICT, traffic=TrafficMetrics(180.0, 0.0))).predictions
    assert found is not None and found.predicted_num_req == 50.0


# -- throughput -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "queue", "fits", "drain", "rho", "mu", "n"), [
    (10, 0, 25, 300, 0.8, 1, 13), (10, 600, 25, 300, 0.8, 1, 15), (4, 0, 0, 300, 0.8, 1, 5), (8, 0, 0, 300, 0.8, 1, 10),
    (0, 30, 0, 300, 0.8, 1, 1), (0, 0, 0, 300, 0.8, 1, 2),
])
def test_PL_605_worked_numbers(rate: float, queue: float, fits: float, drain: float, rho: float, mu: float, n: int) -> None:
    assert replicas_needed(rate, queue, fits, drain, rho, mu, 2 if rate == queue == 0 else 0) == n


@given(rate=st.floats(0, 1e3), queue=st.floats(0, 1e5), drain=st.floats(1, 1e4), rho=st.floats(0.1, 1), mu=st.floats(0.01, 100))
def test_PL_T11_feed_forward_is_bounded(rate: float, queue: float, drain: float, rho: float, mu: float) -> None:
    n = replicas_needed(rate, queue, 0.0, drain, rho, mu)
    assert n <= (rate + queue / drain) / (rho * mu) + 1
    assert replicas_needed(0.0, 0.0, 0.0, drain, rho, mu) == 0
    assert n == replicas_needed(rate, queue, 0.0, drain, rho, mu)  # nothing in it depends on pending replicas


def throughput(bounding: bool = False, mode: str = "agg", model: LinearPerf = MODEL, **kw: Any) -> ThroughputPropose:
    config = planner(mode, throughput=ThroughputSettings(enabled=True, **kw), load=LoadSettings(enabled=bounding))
    plugin = ThroughputPropose(config, Sizing(config, model))
    plugin.waiting = lambda: 0
    return plugin


def test_PL_606_set_alone_and_floor_with_the_load_loop() -> None:
    ask = request(Stage.PROPOSE, traffic=TRAFFIC, workers={"agg": state(10)}, predictions=AHEAD)
    alone, bound = throughput(), throughput(True)
    assert said(alone.propose(ask)) == {"agg=": 12}  # 10 rps over 0.8 · 1.134752
    assert alone.reasons == {"agg": "scale"}
    assert said(bound.propose(ask)) == {"agg>=": 12} and bound.reasons == {"agg": "set_lower_bound"}
    same = throughput()
    same.propose(request(Stage.PROPOSE, traffic=TRAFFIC, workers={"agg": state(12)}, predictions=AHEAD))
    assert same.reasons == {"agg": "no_change"}


def test_PL_606_step_cap_then_minimum() -> None:
    plugin = throughput()
    assert said(plugin.propose(request(Stage.PROPOSE, traffic=TRAFFIC, workers={"agg": state(2)}, predictions=AHEAD))) == {"agg=": 10}
    assert plugin.reasons == {"agg": "step_capped"}
    none = PredictionData(0.0, 3000.0, 150.0, window_s=180.0)
    idle = TrafficMetrics(180.0, 0.0)
    assert said(plugin.propose(request(Stage.PROPOSE, traffic=idle, workers={"agg": state(30)}, predictions=none))) == {"agg=": 22}
    assert said(plugin.propose(request(Stage.PROPOSE, traffic=idle, workers={"agg": state(3)}, predictions=none))) == {"agg=": 1}


def test_PL_605_observed_rate_is_a_floor() -> None:
    low = PredictionData(180.0, 3000.0, 150.0, window_s=180.0)
    ask = request(Stage.PROPOSE, traffic=TRAFFIC, workers={"agg": state(12)}, predictions=low)
    assert said(throughput().propose(ask)) == {"agg=": 12}
    assert said(throughput(floor_at_observed=False).propose(ask)) == {"agg=": 4}  # 2 needed, at most 8 fewer


def test_PL_605_backlog_counts_in_both_queues_and_an_unknown_one_takes_nothing_away() -> None:
    def ask(fpm: dict[str, list[ForwardPass]] | None) -> StageRequest:
        return request(Stage.PROPOSE, traffic=TRAFFIC, workers={"agg": state(14)}, predictions=AHEAD, fpm=fpm)

    plugin = throughput()
    plugin.waiting = lambda: 300
    assert said(plugin.propose(ask(None))) == {"agg=": 14}  # + (300 - 2.5) / 120 rps
    assert said(plugin.propose(ask({"agg": [engine("a", waiting=150), engine("b", waiting=150)]}))) == {"agg=": 17}
    plugin.waiting = lambda: 0
    assert said(plugin.propose(ask(None))) == {"agg=": 14}  # it was known and is not any more
    plugin.waiting = lambda: None
    assert plugin.queue["agg"] == (None, pytest.approx(2.5))


def test_PL_606_model_and_partner_not_ready() -> None:
    plugin = throughput(mode="disagg", model=LinearPerf((0.010, 0.0001)))
    ask = request(Stage.PROPOSE, traffic=TRAFFIC, workers={"prefill": state(), "decode": state()}, predictions=AHEAD)
    assert said(plugin.propose(ask)) == {}
    assert plugin.reasons == {"prefill": "partner_not_ready", "decode": "model_not_ready"}


def test_PL_606_unknown_demand_keeps_the_bound_for_a_while() -> None:
    plugin = throughput(True)
    full = request(Stage.PROPOSE, 180.0, traffic=TRAFFIC, workers={"agg": state(10)}, predictions=AHEAD)
    assert said(plugin.propose(full)) == {"agg>=": 12}
    for at in (360.0, 720.0):
        assert said(plugin.propose(request(Stage.PROPOSE, at, workers={"agg": state(10)}))) == {"agg>=": 12}
        assert plugin.reasons == {"agg": "no_traffic_data"}
    assert said(plugin.propose(request(Stage.PROPOSE, 725.0, workers={"agg": state(10)}))) == {}
    alone = throughput()
    alone.propose(full)
    assert said(alone.propose(request(Stage.PROPOSE, 360.0, workers={"agg": state(10)}))) == {}


def test_PL_606_failed_prediction_and_unknown_counts() -> None:
    config = planner(target="sla")
    plugin = ThroughputPropose(config, Sizing(config, MODEL), lambda: "predict_failed")
    plugin.propose(request(Stage.PROPOSE, traffic=TRAFFIC, workers={"agg": state()}))
    assert plugin.reasons == {"agg": "predict_failed"}
    assert said(throughput().propose(request(Stage.PROPOSE, traffic=TRAFFIC, predictions=AHEAD))) == {}
    assert said(throughput(True).propose(request(Stage.PROPOSE, traffic=TRAFFIC, predictions=AHEAD))) == {"agg>=": 12}


def test_PL_604_a_slo_that_cannot_be_met_is_told() -> None:
    plugin = ThroughputPropose(config := planner(target="sla", slo=SloSettings(1.0, 1.0)), Sizing(config, MODEL))
    plugin.propose(request(Stage.PROPOSE, traffic=TRAFFIC, workers={"agg": state()}, predictions=AHEAD))
    assert plugin.eligible == {"agg": False} and plugin.capacity_rps["agg"] > 0


# -- reconcile and budget bounds --------------------------------------------------------------------------------------------------


def test_PL_608_balance() -> None:
    assert balance(4, 4, 1.0, 1.0, 0.25) == (None, None)
    assert balance(2, 4, 1.0, 1.0, 0.25) == (3, None)
    assert balance(8, 4, 1.0, 1.0, 0.25) == (None, 7)
    assert balance(1, 10, 4.0, 1.0, 0.2) == (2, None)  # ceil(.25 · 10 · .8)


def test_PL_608_reconcile_uses_capacities_and_accepts_what_is_unknown() -> None:
    config = planner("disagg", reconcile=ReconcileSettings(True, 0.25))
    plugin = Reconcile(config, Sizing(config, MODEL))
    ask = request(Stage.RECONCILE, traffic=TRAFFIC, proposal={"prefill": 9, "decode": 2})
    # 3.2258 rps per prefill replica, 1.858 per decode replica at most: r = .55, so 9 prefill keep 13 decode busy
    prefill_rps = plugin.sizing.capacity("prefill", plugin.sizing.shape(None, TRAFFIC)).rps  # type: ignore[union-attr]
    decode_rps = plugin.sizing.capacity("decode", plugin.sizing.shape(None, TRAFFIC)).rps  # type: ignore[union-attr]
    want = balance(9, 2, prefill_rps, decode_rps, 0.25)[1]
    assert want is not None and want > 2
    assert said(plugin.reconcile(ask)) == {"decode>=": want}
    assert said(plugin.reconcile(request(Stage.RECONCILE, proposal={"prefill": 9, "decode": 2}))) == {}
    assert said(plugin.reconcile(request(Stage.RECONCILE, traffic=TRAFFIC, proposal={"prefill": 9, "decode": None}))) == {}


def constrain(workers: dict[str, PoolState], **kw: Any) -> dict[str, Any]:
    config = planner("disagg", **kw)
    response = BudgetConstrain(config, Sizing(config, MODEL)).constrain(request(Stage.CONSTRAIN, workers=workers))
    return said(response)


def test_PL_608_budget_bounds() -> None:
    workers, eight = {"prefill": state(2), "decode": state(2)}, BudgetSettings(max_gpus=8)
    assert constrain(workers, budget=eight) == {"prefill>=": 1, "prefill<=": 7, "decode>=": 1, "decode<=": 7}
    assert constrain(workers) == {"prefill>=": 1, "decode>=": 1}
    capped = {"prefill": PoolSettings(gpus=4, min_replicas=0, max_replicas=1), "decode": PoolSettings(gpus=2, min_replicas=2)}
    assert constrain(workers, budget=eight, pools=capped) == {"prefill<=": 1, "decode>=": 2, "decode<=": 4}
    starting = {"prefill": PoolState(0, 2, starting=2), "decode": PoolState(1, 1)}
    least = {"prefill": PoolSettings(min_replicas=3), "decode": PoolSettings(min_replicas=3)}
    assert constrain(starting, pools=least) == {"prefill>=": 2, "decode>=": 3}


# -- registration -----------------------------------------------------------------------------------------------------------------


def test_PL_510_606_607_611_registrations() -> None:
    mixed = planner(throughput=ThroughputSettings(enabled=True), load=LoadSettings(enabled=True), reconcile=ReconcileSettings(True))
    built = build_plugins(mixed, perf_model=MODEL)
    by_id = {a.registration.plugin_id: a.registration for a in built.attached}
    assert tuple(by_id) == BUILTINS
    assert {i: (r.stage.value, r.priority, r.execution_interval_s) for i, r in by_id.items()} == {
        "builtin_load_predict": ("predict", 1000, 180.0), "builtin_throughput_propose": ("propose", 20, 180.0),
        "builtin_load_propose": ("propose", 10, 5.0), "builtin_reconcile": ("reconcile", 100, 0.0),
        "builtin_budget_constrain": ("constrain", 100, 0.0), "builtin_stabilise": ("constrain", 100, 0.0),
    }
    assert by_id["builtin_throughput_propose"].hold_policy is HoldPolicy.HOLD_LAST
    sla_only = build_plugins(planner(target="sla", disabled=frozenset({"builtin_stabilise"})))
    assert [a.registration.plugin_id for a in sla_only.attached] == [
        "builtin_load_predict", "builtin_throughput_propose", "builtin_budget_constrain"]
    assert sla_only.attached[1].registration.hold_policy is HoldPolicy.ACCEPT_WHEN_IDLE
    assert sla_only.plugin("builtin_stabilise") is None and isinstance(sla_only.plugin("builtin_load_predict"), LoadPredict)


@settings(max_examples=60, deadline=None)
@given(baseline=st.integers(1, 30), rate=st.floats(0, 40), waiting=st.integers(0, 5000), drop=st.sampled_from(["traffic", "predictions", "workers"]))
def test_PL_T9_losing_an_observation_never_takes_replicas_away(baseline: int, rate: float, waiting: int, drop: str) -> None:
    traffic = TrafficMetrics(180.0, rate * 180, isl=3000.0, osl=150.0, isl_count=1, osl_count=1)
    known: dict[str, Any] = {"traffic": traffic, "workers": {"agg": state(baseline)},
                             "predictions": PredictionData(rate * 180, 3000.0, 150.0, window_s=180.0)}
    plans = []
    for given_data in (known, {**known, drop: None}):
        plugin = throughput()
        plugin.waiting = lambda: waiting
        plans.append(said(plugin.propose(request(Stage.PROPOSE, **given_data))).get("agg=", baseline))
    assert plans[1] >= min(baseline, plans[0])  # type: ignore[type-var,operator]
