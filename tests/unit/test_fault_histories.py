"""Histories of runs with faults: sound, and the fleet recovers when the trigger is gone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from driver_flights import scenario

from windtunnel.lab.history import violations

RECOVERS: dict[str, list[dict[str, Any]]] = {
    "crash": [{"kind": "crash", "at_s": 10, "count": 1}], "spot": [{"kind": "spot", "at_s": 10, "count": 1, "notice_s": 3, "unavailable_s": 5}],
    "slow": [{"kind": "slow", "at_s": 10, "for_s": 8, "factor": 6}], "pause": [{"kind": "pause", "at_s": 10, "for_s": 6}],
    "errors": [{"kind": "errors", "at_s": 10, "for_s": 6, "p": 0.7}], "load": [{"kind": "load", "at_s": 10, "for_s": 6, "factor": 5}],
    "overlap": [{"kind": "slow", "at_s": 8, "for_s": 8, "factor": 4}, {"kind": "slow", "at_s": 10, "for_s": 8, "factor": 2},
                {"kind": "pause", "at_s": 12, "for_s": 2}, {"kind": "errors", "at_s": 9, "for_s": 8, "p": 0.3}],
}


@pytest.mark.parametrize("name", RECOVERS)
def test_SJ_2_the_history_is_sound_and_the_fleet_recovers_when_the_trigger_is_gone(name: str) -> None:
    run = scenario(record="full", duration_s=60, faults=RECOVERS[name]).run(check=True)
    plain = scenario(duration_s=60).run()
    assert violations(run) == []
    late, usual = (r.requests[r.requests.arrived_s > 40] for r in (run, plain))
    assert (late.outcome == "success").all()
    assert late.ttft_s.median() == pytest.approx(usual.ttft_s.median(), rel=0.25)
    assert late.tpot_s.median() == pytest.approx(usual.tpot_s.median(), rel=0.25)


def test_SJ_2_a_broken_history_is_said_sentence_by_sentence() -> None:
    run = scenario(record="full", duration_s=3).run()
    assert isinstance(run.tables.log, bytes)
    lines = run.tables.log.splitlines(keepends=True)
    finish = next(i for i, line in enumerate(lines) if b'"Finished"' in line)
    arrive = next(i for i, line in enumerate(lines) if b'"Arrived"' in line)
    later = next(i for i, line in enumerate(lines) if i > finish and b'"Finished"' in line)
    for at, event, sentence in ((later, lines[finish], "after its end"), (finish, b'{"s":0,"t":0.0,"e":"Woke","key":"x"}', "ended 0 times"),
                                (arrive, b'{"s":0,"t":0.0,"e":"Woke","key":"x"}', "never arrived")):
        where = {key: json.loads(lines[at])[key] for key in "st"}
        forged = json.dumps({**json.loads(event), **where}).encode() + b"\n"
        run.tables.log = b"".join([*lines[:at], forged, *lines[at + 1 : -1]])  # without the digest at its end
        assert any(sentence in said for said in violations(run)), sentence
