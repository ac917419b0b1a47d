"""Replaying logs of a real control into a fresh one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chat_request import chat_request

from windtunnel.errors import PolicyError, RunNotRecordedError, RunReplayError
from windtunnel.events import Arrived, Failed, Finished, ReplicaReady, Woke
from windtunnel.lab.digest import code_digest
from windtunnel.lab.log import LogWriter, header_of
from windtunnel.lab.recorder import Recorder
from windtunnel.lab.replay import replay
from windtunnel.lab.run import Run
from windtunnel.lab.run_meta import RunMeta
from windtunnel.policy.control import Control
from windtunnel.policy.presets import default_control


def fresh(header: Any = None) -> Control:
    return default_control(["chat"], initial_limit=1, cap=1)


EVENTS = [
    (0.0, ReplicaReady("chat-0", "chat", slots=8)),
    (1.0, Arrived(chat_request("a", "t1", 1.0))),
    (1.2, Arrived(chat_request("b", "t1", 1.2))),
    (1.5, Arrived(chat_request("c", "t2", 1.5, deadline_s=9.0))),
    (2.0, Finished("a", 1, "chat-0", 64)),
    (2.6, Failed("c", 1, "chat-0", "rate_limited", "http_429", 429, 1.0)),
    (3.0, Finished("a", 1, "chat-0", 64)),
    (3.6, Woke("requests")),
    (4.4, Finished("b", 1, "chat-0", 10)),
    (9.0, Woke("queue")),
]


def flown(meta: RunMeta | None = None, events: Any = EVENTS) -> Run:
    control, recorder = fresh(), Recorder("full")
    meta = meta or RunMeta("trace", record="full", control_spec={})
    recorder.open_log(meta, control)
    for seq, (now, event) in enumerate(events, 1):
        recorder.step(seq, now, event, control.handle(event, now))
    meta.complete = True
    return Run(meta, recorder.close(9.0))


def changed(old: bytes, new: bytes) -> bytes:
    """The log of the worked trace with something altered and no end line."""
    log = flown().tables.log
    assert isinstance(log, bytes) and old in log
    return b"".join(log.replace(old, new).splitlines(keepends=True)[:-1])


def test_RC_4_the_worked_trace_replays(tmp_path: Path) -> None:
    run = flown()
    assert isinstance(run.tables.log, bytes) and run.tables.log.count(b"\n") == 1 + 10 + 6 + 1
    result = replay(run, fresh)
    assert (result.events, result.effects, result.complete, result.same_code) == (10, 6, True, True)
    assert result.control.view().counts.completed == 2
    assert "agrees: 10 events, 6 effects (same code)" in repr(result)
    assert replay(run.save(tmp_path / "run"), fresh()).to_dict() == result.to_dict()
    assert replay(tmp_path / "run" / "log.jsonl", fresh).events == 10
    assert replay(Run.load(tmp_path / "run"), fresh).events == 10


def test_RC_4_the_first_difference_is_told() -> None:
    data = changed(
        b'"f":"Dispatch","i":0,"lease_id":"g0-3","reason":"least_requests","replica":"chat-0"',
        b'"f":"Dispatch","i":0,"lease_id":"g0-3","reason":"least_requests","replica":"chat-1"',
    )
    with pytest.raises(RunReplayError) as error:
        replay(data, fresh)
    e = error.value
    assert str(e) == (
        "replay differs at seq 8 (t 3.6 s, Woke requests)\n"
        "  effect 0 recorded: Dispatch b → chat-1 (least_requests)\n"
        "  effect 0 replayed: Dispatch b → chat-0 (least_requests)      differs in: replica\n"
        f"code digest recorded {code_digest()[:8]}, now {code_digest()[:8]}; 7 events before it agree"
    )
    assert (e.seq, e.index, e.field, e.recorded, e.replayed) == (
        8,
        0,
        "replica",
        "Dispatch b → chat-1 (least_requests)",
        "Dispatch b → chat-0 (least_requests)",
    )
    assert e.exit_code == 1


@pytest.mark.parametrize(
    ("old", "new", "field", "told"),
    [
        (b'"f":"WakeAt","i":0,"key":"queue"', b'"f":"WakeAt","i":0,"key":"watch"', "key", "WakeAt queue at 9.0"),
        (b'"at":3.6', b'"at":3.7', "at", "WakeAt requests at 3.6"),
        (b'"retry_after_s":1.0,"state"', b'"retry_after_s":2.0,"state"', "retry_after_s", "retry_after_s=1.0"),
        (b'{"at":9.0,"c":4,"f":"WakeAt","i":0,"key":"queue"}\n', b"", "effect", "WakeAt queue at 9.0"),
        (
            b'{"at":9.0,"c":4,"f":"WakeAt","i":0,"key":"queue"}\n',
            b'{"c":4,"f":"Drain","i":0,"replica":"chat-0"}\n',
            "effect",
            "WakeAt queue at 9.0",
        ),
    ],
)
def test_RC_4_differences_name_their_field(old: bytes, new: bytes, field: str, told: str) -> None:
    with pytest.raises(RunReplayError) as error:
        replay(changed(old, new), fresh)
    assert error.value.field == field and told in error.value.replayed


def test_RC_4_an_effect_too_many_in_the_log() -> None:
    extra = b'{"c":9,"f":"WakeAt","i":0,"key":"x"}\n'
    data = changed(b'{"e":"Woke","key":"queue"', extra + b'{"e":"Woke","key":"queue"')
    with pytest.raises(RunReplayError, match=r"effect 0 replayed: nothing"):
        replay(data, fresh)


def test_RC_4_applied_and_why_are_what_the_world_did_not_what_was_decided() -> None:
    data = changed(b'{"c":2,"dispatch":1', b'{"applied":false,"why":"cap_requests","c":2,"dispatch":1')
    assert replay(data, fresh).events == 10


def test_RC_4_another_code_digest_alone_is_no_error() -> None:
    result = replay(changed(code_digest().encode(), b"3f9c21ab" * 8), fresh)
    assert not result.same_code and "code 3f9c21ab then" in repr(result) and "cut off" in repr(result)


def test_RC_3_the_last_step_of_a_cut_log_may_lack_effects() -> None:
    lines = flown().tables.log.splitlines(keepends=True)  # type: ignore[union-attr]
    upto = next(i for i, line in enumerate(lines) if b'"s":6' in line) + 1
    result = replay(b"".join(lines[:upto]), fresh)
    assert result.events == 6 and not result.complete


def test_DV_4_a_recorded_exception_is_reproduced() -> None:
    control = fresh()
    writer = LogWriter(header_of(RunMeta("trace", record="full"), control))
    twice = [*EVENTS[:2], (1.1, EVENTS[1][1])]
    for seq, (now, event) in enumerate(twice, 1):
        try:
            writer.step(seq, now, event, control.handle(event, now))
        except PolicyError as e:
            writer.error(seq, now, event, e)
    writer.close()
    assert replay(writer.data(), fresh).events == 3
    healed = writer.data().replace(b'"x":"PolicyError"', b'"x":"KeyError"').splitlines(keepends=True)[:-1]
    with pytest.raises(RunReplayError, match="effect 0 recorded: KeyError"):
        replay(b"".join(healed), fresh)


def test_RC_3_a_log_without_its_beginning_cannot_be_replayed(tmp_path: Path) -> None:
    data = changed(b'"first_seq":1', b'"first_seq":81234')
    with pytest.raises(RunReplayError, match="log starts at seq 81234; replay needs seq 1"):
        replay(data, fresh)


def test_a_run_without_a_log_says_what_it_needs() -> None:
    recorder = Recorder("requests")
    with pytest.raises(RunNotRecordedError, match='log needs record: full; this run has "requests"'):
        replay(Run(RunMeta("x"), recorder.close(0.0)), fresh)
