"""Registration: the order of the checks, refusals that change nothing, eviction."""

from __future__ import annotations

from dataclasses import replace

import pytest

from windtunnel.errors import PluginRefusedError
from windtunnel.policy.planning.contract import (
    FpmData,
    HoldPolicy,
    ObservationData,
    Override,
    PipelineContext,
    PoolState,
    PredictionData,
    Stage,
    WorkerState,
)
from windtunnel.policy.planning.paths import parse, there
from windtunnel.policy.planning.plugin import Registration
from windtunnel.policy.planning.roster import Roster, RosterSettings

REG = Registration("a", Stage.PROPOSE)


@pytest.mark.parametrize(("change", "refusal"), [
    ({"protocol_version": "1"}, "protocol_version_malformed: 1"), ({"protocol_version": "1.0\n"}, "protocol_version_malformed: 1.0\n"),
    ({"protocol_version": "1.٣"}, "protocol_version_malformed: 1.٣"),
    ({"protocol_version": "1.10"}, "protocol_version_unsupported: requested=1.10, supported=[1.0,1.9]"),
    ({"protocol_version": "0.9"}, "protocol_version_unsupported: requested=0.9, supported=[1.0,1.9]"),
    ({"plugin_id": ""}, "invalid_field: plugin_id"), ({"plugin_id": "-a"}, "invalid_field: plugin_id"),
    ({"plugin_id": "é"}, "invalid_field: plugin_id"),
    ({"plugin_id": "a" * 129}, "invalid_field: plugin_id"), ({"stage": "execute"}, "invalid_field: stage"),
    ({"priority": -1}, "invalid_field: priority"), ({"priority": 2**31}, "invalid_field: priority"), ({"priority": True}, "invalid_field: priority"),
    ({"execution_interval_s": float("nan")}, "invalid_field: execution_interval_s"), ({"timeout_s": 0.0}, "invalid_field: timeout_s"),
    ({"execution_interval_s": -1.0}, "invalid_field: execution_interval_s"), ({"cooldown_s": float("inf")}, "invalid_field: cooldown_s"),
    ({"failure_threshold": 0}, "invalid_field: failure_threshold"), ({"hold_policy": 1}, "invalid_field: hold_policy"),
    ({"needs": ("predictions.nope",)}, "invalid_field: needs: unknown_path: predictions.nope"),
    ({"requires": ("",)}, "invalid_field: requires: unknown_path: "),
    ({"observation_window_s": 7.0}, "observation_window_misaligned: window=7 scale_interval=5"),
    ({"observation_window_s": -5.0}, "observation_window_misaligned: window=-5 scale_interval=5"),
    ({"observation_window_s": float("nan")}, "observation_window_misaligned"), ({"observation_window_s": 2.0}, "observation_window_misaligned"),
])
def test_PL_402_refusals(change, refusal):
    roster = Roster(RosterSettings(protocol_max="1.9"))
    before = roster.snapshot()
    with pytest.raises(PluginRefusedError) as refused:
        roster.register(replace(REG, **change), 0.0, external=True)
    assert refused.value.message.startswith(refusal) and roster.snapshot() is before and not roster.entries


def test_PL_402_first_failure_wins_and_ids_are_unique():
    roster = Roster()
    bad = Registration("", Stage.PROPOSE, protocol_version="x", observation_window_s=1.0)
    assert roster.refusal(bad, external=True).startswith("protocol_version_malformed")
    assert roster.refusal(bad).startswith("invalid_field: plugin_id")
    assert roster.refusal(replace(bad, plugin_id="a")).startswith("observation_window_misaligned")
    roster.register(REG, 0.0)
    assert roster.refusal(replace(REG, observation_window_s=1.0)).startswith("observation_window_misaligned")
    assert roster.refusal(REG) == "duplicate_plugin_id: must Unregister before re-Register"


def test_PL_401_order_is_never_reused_and_defaults_are_taken():
    roster = Roster(RosterSettings(5.0, timeout_s=2.0, failure_threshold=3, cooldown_s=9.0))
    first = roster.register(replace(REG, execution_interval_s=30.0), 0.0)
    assert (first.timeout_s, first.breaker.threshold, first.breaker.cooldown_s, first.hold_max_age_s, first.window_s) == (2.0, 3, 9.0, 90.0, 30.0)
    first.cache = Override(())
    assert roster.unregister("a") is first and first.cache is None and roster.unregister("a") is None
    again = roster.register(replace(REG, hold_policy=HoldPolicy.HOLD_LAST), 7.0)
    assert again.order == 2 and again.cache is None and again.anchor == 5.0 and again.hold_max_age_s == 50.0 and again.window_s == 5.0


def test_PL_315_windows_round_up_to_the_grid():
    roster = Roster(RosterSettings(5.0))
    assert roster.register(replace(REG, execution_interval_s=7.0), 0.0).window_s == 10.0
    assert roster.register(replace(REG, plugin_id="b", observation_window_s=15.0000001), 0.0).window_s == 15.0


def test_PL_302_predictors_by_priority_the_others_by_registration():
    roster = Roster()
    for name, stage, priority in (("a", Stage.PREDICT, 9), ("b", Stage.PREDICT, 1), ("c", Stage.PROPOSE, 9), ("d", Stage.PROPOSE, 1),
                                  ("e", Stage.PREDICT, 1)):
        roster.register(Registration(name, stage, priority), 0.0)
    snapshot = roster.snapshot()
    assert [e.plugin_id for e in snapshot.predict] == ["b", "e", "a"] and [e.plugin_id for e in snapshot.propose] == ["c", "d"]
    assert roster.snapshot() is snapshot


def test_PL_406_eviction_after_the_last_missed_beat():
    roster = Roster()
    roster.register(REG, 0.0, external=True)
    roster.register(replace(REG, plugin_id="ours"), 0.0)
    assert roster.sweep(30.0) == () and [e.plugin_id for e in roster.sweep(30.001)] == ["a"]
    assert "a" not in roster and "ours" in roster and roster.sweep(1e9) == ()
    roster.register(REG, 100.0, external=True)
    assert roster.heartbeat("a", 120.0) and not roster.heartbeat("nobody", 120.0)
    assert roster.heartbeat("a", 110.0) and roster.sweep(150.0) == () and roster.sweep(150.1)


@pytest.mark.parametrize(("path", "expected"), [
    ("predictions.predicted_num_req", True), ("predictions.predicted_isl", False), ("observations", True), ("observations.traffic", False),
    ("observations.workers.decode.ready", True), ("observations.workers.decode.expected", False), ("observations.workers.prefill", False),
    ("observations.fpm.decode", False), ("observations.fpm", True), ("proposal.reason", False), ("tick_id", True), ("predictions.source", True),
])
def test_PL_108_paths(path, expected):
    ctx = PipelineContext("", "d", ObservationData(None, FpmData({}), WorkerState({"decode": PoolState(ready=0)})), PredictionData(0.0))
    assert there(ctx, parse(path)) is expected


@pytest.mark.parametrize("path", ["", ".", "nope", "predictions.", "predictions..source", "observations.traffic.nope", "tick_id.x",
                                  "observations.workers.Decode", "observations.workers.decode.nope", "proposal.targets.0"])
def test_PL_108_unknown_paths_are_refused(path):
    with pytest.raises(ValueError, match="unknown_path"):
        parse(path)
