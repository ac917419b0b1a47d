"""A fault that does not happen as it is written is told by the run itself, whatever it records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from windtunnel.cli_run import run_dict
from windtunnel.cockpit.cards import run_card
from windtunnel.lab.missed_faults import missed_lines
from windtunnel.lab.run import Run
from windtunnel.lab.scenario import Scenario

TEXT = """
windtunnel: 1
name: faulty
duration_s: 60
seed: 3
fleet: {pools: {chat: {model: Llama-3.1-8B, gpu: h100_sxm, replicas: 2, startup: {compile_s: 15}}}}
source: {kind: arrivals, rate_rps: 2, input_tokens: 100, output_tokens: 20}
"""


def fly(*faults: dict[str, Any], **changes: Any) -> Run:
    return Scenario.load(TEXT).with_({"faults": list(faults), **changes}).run()


def told(run: Run) -> list[str]:
    return missed_lines(run.meta.missed_faults)


@pytest.mark.parametrize(("fault", "line"), [
    ({"kind": "crash", "at_s": 30, "replicas": [7]}, "crash at 30 s missed: no replica 7 was ready"),
    ({"kind": "crash", "at_s": 30, "replicas": [7, 9, 7], "pool": "chat"}, "crash at 30 s missed: no replicas 7 and 9 of chat were ready"),
    ({"kind": "slow", "at_s": 30, "for_s": 5, "replicas": [0, 7]}, "slow at 30 s missed: no replica 7 was ready"),
    ({"kind": "slow", "at_s": 30, "for_s": 5, "count": 3}, "slow at 30 s missed: only 2 of the 3 replicas that it wanted were ready"),
    ({"kind": "slow", "at_s": 10, "every_s": 20, "for_s": 5, "replicas": [2]}, "slow 3 of 3 times, first at 10 s missed: no replica 2 was ready"),
    ({"kind": "errors", "at_s": 60}, "errors at 60 s did not happen: the run was over at 60 s"),
    ({"kind": "boot_slow", "at_s": 700}, "boot_slow at 700 s did not happen: the run was over at 60 s"),
    ({"kind": "pause", "at_s": 5, "replicas": list(range(10, 30))},
     "pause at 5 s missed: no replicas 10, 11, 12, 13, 14, 15, 16, 17 and 12 more were ready")])
def test_SJ_1_a_missed_fault_is_told_at_every_record_level(fault: dict[str, Any], line: str) -> None:
    runs = [fly(fault, record=level) for level in ("requests", "decisions", "full")]
    for run in runs:
        assert told(run) == [line]
        assert f"fault   {line}"[:60] in repr(run).replace("\n        ", " ")
    assert runs[0].requests.equals(runs[2].requests)


@pytest.mark.parametrize("fault", [
    {"kind": "crash", "at_s": 30, "replicas": [1]}, {"kind": "slow", "at_s": 0, "replicas": [0, 1, 0]}, {"kind": "slow", "at_s": 9, "count": 2},
    {"kind": "errors", "at_s": 9, "fraction": 0.0}, {"kind": "crash", "rate_per_h": 0.001},
    {"kind": "load", "at_s": 9}, {"kind": "boot_fail", "at_s": 0}])
def test_SJ_1_a_fault_that_found_all_it_names_is_not_told(fault: dict[str, Any]) -> None:
    run = fly(fault)
    assert told(run) == [] and "fault  " not in repr(run)


def test_SJ_1_several_faults_each_have_their_own_line() -> None:
    """The second crash finds all gone; the others boot meanwhile, so the last of all finds one."""
    run = fly({"kind": "crash", "at_s": 10, "replicas": [0]}, {"kind": "crash", "at_s": 12, "replicas": [0, 1]},
              {"kind": "crash", "at_s": 10, "every_s": 45, "count": 2}, {"kind": "slow", "at_s": 50, "count": 1})
    assert [row["fault"] for row in run.meta.missed_faults] == [1, 2]
    assert told(run)[0] == "crash at 12 s missed: no replicas 0 and 1 were ready"
    assert told(run)[1] == "crash 1 of 2 times, first at 10 s missed: only 1 of the 2 replicas that it wanted were ready"


def test_SJ_1_a_part_of_the_targets_is_still_hit() -> None:
    run = fly({"kind": "crash", "at_s": 30, "replicas": [0, 7]}, record="full")
    assert (run.replicas.gone_reason == "crash").sum() == 1
    assert run.notes[run.notes.stream == "fleet"].kind.tolist() == ["fault_missed", "fault_started"]


def test_SJ_1_missed_faults_are_kept_with_the_run(tmp_path: Path) -> None:
    run = fly({"kind": "crash", "at_s": 30, "replicas": [7]})
    again = Run.load(run.save(tmp_path / "r"))
    assert told(again) == told(run) != []
    assert json.loads(json.dumps(run_dict(again)))["missed_faults"] == [
        {"fault": 0, "kind": "crash", "pool": "", "at_s": 30.0, "times": 1, "replicas": [7], "found": 0, "asked": 1, "of": 1}]
    assert "no replica 7 was ready" in run_card(again)
    assert "no replica 7 was ready" in again.report(tmp_path / "r.html").read_text("utf-8")


def test_SJ_1_a_run_that_was_stopped_blames_no_fault() -> None:
    flight = Scenario.load(TEXT).with_({"faults": [{"kind": "crash", "at_s": 50, "replicas": [7]}]}).start()
    flight.cancel()
    assert not flight.result().complete and told(flight.result()) == []


def test_SJ_1_the_fast_form_of_a_scenario_tells_what_it_leaves_out() -> None:
    long = Scenario.load(TEXT).with_({"duration_s": 300, "faults": [{"kind": "crash", "at_s": 200}]})
    assert told(long.run()) == []
    assert told(long.fast().run()) == ["crash at 200 s did not happen: the run was over at 60 s"]
