"""Plugins of other processes in a simulated world: their stand-ins answer, after a modelled delay; what the door needs to know is plain data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from windtunnel import Run, Scenario, replay
from windtunnel.errors import ConfigImportError, PlannerConfigError
from windtunnel.lab import codec
from windtunnel.lab.registry import refuse_imports
from windtunnel.policy.planning.contract import TrafficMetrics
from windtunnel.policy.planning.demand import TrafficMeter
from windtunnel.policy.planning.outside import ExternalPlugin, Outside

sys.path.append(str(Path(__file__).resolve().parents[2] / "sims" / "plugins"))

STAND_IN = {"module": "scheduled_floor", "class": "ScheduledFloor", "kwargs": {"windows": []}}


def floor(**more: Any) -> dict[str, Any]:
    return {"plugin_id": "floor", "stage": "constrain", "endpoint": "unix:/tmp/nobody.sock", "token": "env:NOT_SET_ANYWHERE", **more}


def scenario(*externals: dict[str, Any], **more: Any) -> Scenario:
    planner = {"kind": "pipeline", "throughput": {"enabled": True, "interval_s": 10}, "load": {"enabled": True, "interval_s": 5},
               "plugins": {"external": list(externals)}, **more}
    changes = {"duration_s": 30.0, "warmup_s": 0.0, "source.rate_rps": 5, "record": "full", "control.planner": planner}
    return Scenario.load("overload").with_(changes)


def lines(run: Run) -> list[dict[str, Any]]:
    log = run.tables.log
    return [codec.json.loads(line) for line in (log if isinstance(log, bytes) else log.read_bytes()).splitlines()]  # type: ignore[union-attr]


def test_PL_301_a_stand_in_answers_for_an_external_plugin_after_its_delay() -> None:
    run = scenario(floor(stand_in={**STAND_IN, "call": {"delay_s": 1.5}})).run()
    answers = [a for line in lines(run) if line.get("e") == "Answered" for a in line["items"]]
    assert len(answers) >= 4 and {a["plugin_id"] for a in answers} == {"floor"}
    assert {a["finished_at"] - a["started_at"] for a in answers} == {1.5} and all("stage" in a for a in answers)
    assert replay(run).effects > 10


def test_PL_301_modelled_failures_and_delays_beyond_the_timeout() -> None:
    late = floor(timeout_s=1.0, stand_in={**STAND_IN, "call": {"delay_s": 1.5}})
    never = {**floor(stand_in={**STAND_IN, "call": {"failure_rate": 1.0, "error": "serialization"}}), "plugin_id": "never"}
    run = scenario(late, never).run()
    answers = [a for line in lines(run) if line.get("e") == "Answered" for a in line["items"]]
    assert {(a["plugin_id"], a["error"]["kind"]) for a in answers} == {("floor", "timeout"), ("never", "serialization")}


def test_PL_301_without_a_stand_in_a_simulated_world_says_so() -> None:
    with pytest.raises(PlannerConfigError, match=r"floor is in another process.*stand_in: \{module"):
        scenario(floor()).run()


def test_a_stand_in_is_code_and_is_imported_only_if_that_is_allowed() -> None:
    with pytest.raises(ConfigImportError, match="antigravity"):
        refuse_imports({"planner": {"plugins": {"external": [floor(stand_in={**STAND_IN, "module": "antigravity"})]}}})
    assert "antigravity" not in sys.modules
    refuse_imports({"planner": {"plugins": {"external": [floor()]}}})


def test_PL_407_what_a_live_driver_opens_is_plain_data() -> None:
    made = scenario(floor(tls={"ca": "ca.pem"})).build_control().planner.outside
    assert made == Outside((ExternalPlugin("floor", "unix:/tmp/nobody.sock", "env:NOT_SET_ANYWHERE", {"ca": "ca.pem"}),))


def test_PL_803_a_logs_header_has_neither_addresses_nor_secrets_and_still_replays() -> None:
    registry = {"enabled": True, "listen": "unix:/tmp/secret-door.sock", "protocol_max": "1.3",
                "auth": {"sources": [{"kind": "static_secret", "secrets": {"file:/etc/secret-place": "team"}}]}}
    made = scenario(floor(stand_in=STAND_IN, tls={"ca": "secret-ca.pem"}), registry=registry)
    assert made.build_control().planner.outside.registry.listen == "unix:/tmp/secret-door.sock"
    run = made.run()
    header = str(lines(run)[0])
    assert "'endpoint': 'unix:'" in header and not {w for w in ("nobody.sock", "secret", "NOT_SET_ANYWHERE") if w in header}
    agreed = replay(run)
    assert agreed.effects > 10 and agreed.control.planner.roster.settings.protocol_max == "1.3"  # type: ignore[union-attr]


def test_PL_502_windows_forgotten_before_a_longer_one_was_asked_for_are_unknown_not_zero() -> None:
    meter = TrafficMeter(5.0, 10.0)
    for k in range(20):
        meter.observe(TrafficMetrics(5.0, 10.0), 5.0 * (k + 1))
    assert meter.window(100.0, 10.0) == TrafficMetrics(10.0, 20.0)
    meter.remember(40.0, 100.0)
    assert meter.window(100.0, 40.0, 0.9) is None
    known = meter.window(100.0, 40.0, 0.1)
    assert known is not None and known.num_req == 10.0 * known.duration_s / 5.0 and known.coverage < 0.5
    for k in range(20, 28):
        meter.observe(TrafficMetrics(5.0, 10.0), 5.0 * (k + 1))
    assert meter.window(140.0, 40.0) == TrafficMetrics(40.0, 80.0)


def test_PL_403_history_gives_the_windows_that_are_over() -> None:
    meter = TrafficMeter(5.0, 30.0)
    assert meter.history(10.0, 0.0) == [] == meter.history(10.0, 4.9)
    for k in range(5):
        meter.observe(TrafficMetrics(5.0, float(k)), 5.0 * (k + 1))
    assert [w.num_req for w in meter.history(10.0, 25.0)] == [3.0, 7.0]
    assert [w.num_req for w in meter.history(5.0, 26.0)] == [0.0, 1.0, 2.0, 3.0, 4.0]
    meter.unread(5.0, 15.0)
    assert [w.num_req for w in meter.history(5.0, 26.0)] == [0.0, 3.0, 4.0]
