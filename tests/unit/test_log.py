"""The log: canonical lines, segments, crash safety, what it refuses."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from windtunnel.effects import Dispatch, Drain, Reject, WakeAt
from windtunnel.errors import RunCorruptError, RunVersionError
from windtunnel.events import Arrived, Failed, Finished, PoolsObserved, ReplicaReady, Request, Scrape, Scraped, Truth, Woke
from windtunnel.lab import codec
from windtunnel.lab.log import LogReader, LogWriter
from windtunnel.policy.admission.denial import make_denial

HEADER = {
    "windtunnel_log": 1,
    "run_id": "x",
    "world": "simulated",
    "mode": "simulated",
    "started_at": "2026-01-01T00:00:00.000000Z",
    "clock_zero": 0.0,
    "seed": 0,
    "replication": 0,
    "level": "full",
    "control": None,
    "control_class": "c",
    "needs": [],
    "scenario_digest": "",
    "code_digest": "d",
    "first_seq": 1,
    "continues": False,
}
A = Request(
    "a", "acme", "m", 0, 1.0, 100, blocks=(3, 4), labels=(("k", "v"),), tried=frozenset({"chat-1"}), content=object(), truth=Truth(5)
)


def written(path: Path | None = None, n: int = 3, **options: Any) -> LogWriter:
    writer = LogWriter(HEADER, path, **options)
    writer.step(1, 1.0, Arrived(A), [Dispatch(A, 1, "chat-0", "g0-1", "least_requests"), WakeAt(9.0, "queue")], (None, "cap_requests"))
    for seq in range(2, n + 1):
        writer.step(seq, float(seq), Woke("queue"), ())
    writer.close()
    return writer


def test_RC_2_lines_are_canonical_and_hold_no_content_or_truth() -> None:
    lines = written().data().decode().splitlines()
    assert json.loads(lines[0]) == HEADER
    assert lines[1] == (
        '{"e":"Arrived","request":{"arrived_s":1.0,"blocks":[3,4],"id":"a","input_tokens":100,"labels":[["k","v"]],"model":"m","priority":0,'
        '"tenant":"acme","tried":["chat-1"]},"s":1,"t":1.0}'
    )
    assert (
        lines[2] == '{"c":1,"dispatch":1,"f":"Dispatch","i":0,"lease_id":"g0-1","reason":"least_requests","replica":"chat-0","request":"a"}'
    )
    assert lines[3] == '{"applied":false,"at":9.0,"c":1,"f":"WakeAt","i":1,"key":"queue","why":"cap_requests"}'
    before = "".join(line + "\n" for line in lines[:-1]).encode()
    assert json.loads(lines[-1]) == {"end": 3, "events": 3, "effects": 2, "sha256": hashlib.sha256(before).hexdigest()}


def test_RC_2_refuses_nan_and_writes_half_surrogates() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        codec.canonical(codec.event_object(1, float("nan"), Woke("x")))
    assert codec.canonical({"k": float("1e22")}) == b'{"k":1e+22}\n'
    assert codec.canonical({"k": "é"}) == '{"k":"é"}\n'.encode()
    assert codec.canonical({"k": "\ud800"}) == b'{"k":"\\ud800"}\n'
    assert codec.plain({"a": float("inf"), 3: {2, 1}}) == {"a": "inf", "3": [1, 2]}


def test_reading_gives_back_steps_with_their_effects() -> None:
    reader = LogReader(written().data())
    steps = list(reader.steps())
    assert reader.complete and (reader.events, reader.effects) == (3, 2)
    assert [(s.seq, s.now, len(s.effects)) for s in steps] == [(1, 1.0, 2), (2, 2.0, 0), (3, 3.0, 0)]
    event = codec.event_of(steps[0].event)
    assert event == Arrived(A) and event.request.content is None
    assert codec.effect_of(steps[0].effects[0], {"a": A}.__getitem__) == Dispatch(A, 1, "chat-0", "g0-1", "least_requests")


@pytest.mark.parametrize(
    "event",
    [
        Scraped("c-0", Scrape(1.0, 3, None, 0.5)),
        ReplicaReady("c-0", "c", weight=2.0, facts={"gpu": "x"}),
        Failed("a", 1, "c-0", "rate_limited", "http_429", 429, 1.0),
        Finished("a", 1, "c-0", None, engine={"preemptions": 1}),
        PoolsObserved({"c": {"ready": 2}}),
    ],
    ids=lambda e: type(e).__name__,
)
def test_every_field_survives(event: Any) -> None:
    line = json.loads(codec.canonical(codec.event_object(7, 1.5, event)))
    assert codec.event_of(line) == event


def test_a_denial_survives() -> None:
    reject = Reject("a", make_denial("queue", "queue_full", retry_after_s=1.0, diagnostics={"n": 3}), "rejected", "rate_limited")
    line = json.loads(codec.canonical(codec.effect_object(7, 0, reject)))
    assert codec.effect_of(line, lambda _: A) == reject
    assert codec.effect_of({"c": 1, "i": 0, "f": "Drain", "replica": "c-0", "undo": True}, lambda _: A) == Drain("c-0", undo=True)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({"s": 1, "t": 1.0, "e": "Woken", "key": "x"}, "unknown event 'Woken'"),
        ({"s": 1, "t": 1.0, "e": "Woke", "key": "x", "kay": 1}, "Woke has no field 'kay'"),
        ({"s": 1, "t": 1.0, "e": "Woke"}, "Woke lacks 'key'"),
        ({"s": 1, "t": 1.0, "e": "Arrived", "request": {"id": "a", "truth": 1}}, "Request has no field 'truth'"),
        ({"s": 1, "t": 1.0, "e": "Progressed", "replica": "c", "counts": 3}, "field 'counts' is not understood"),
    ],
)
def test_RC_2_unknown_is_refused(line: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RunCorruptError, match=sentence):
        codec.event_of(line)


@pytest.mark.parametrize("torn", [b'{"s":4,"t":4.0,"e":"Wo', b'{"s":4,"t":4.0,"e":"Woke","key":"q"}', b"\x00\x00\n"])
def test_RC_3_a_torn_tail_is_cut_off_with_its_offset(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "log.jsonl"
    written(path)
    whole = path.read_bytes().splitlines(keepends=True)[:-1]
    path.write_bytes(b"".join(whole) + torn)
    reader = LogReader(path)
    with pytest.warns(RuntimeWarning, match=f"cut off at byte {sum(map(len, whole))}"):
        steps = list(reader.steps())
    assert not reader.complete and [s.seq for s in steps] == [1, 2, 3]
    assert not steps[-1].whole and steps[0].whole


def test_a_log_without_its_end_line_is_incomplete(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    written(path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    reader = LogReader(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(reader.steps())) == 3
    assert not reader.complete


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda b: b.replace(b'"t":2.0', b'"t":2.5'), "log.jsonl:7: the bytes before do not have the recorded SHA-256"),
        (lambda b: b.replace(b'"s":2,', b'"s":2 2,'), "log.jsonl:5: not a JSON object"),
        (lambda b: b.replace(b'"s":3,', b'"s":5,'), "log.jsonl:6: seq 5 follows seq 2"),
        (lambda b: b.replace(b'"c":1,"dispatch"', b'"c":9,"dispatch"'), "log.jsonl:3: an effect without its event"),
        (lambda b: b.replace(b'"i":1', b'"i":3'), "log.jsonl:4: effect 3 where 1 was due"),
        (lambda b: b.replace(b'"seed":0', b'"sead":0'), "log.jsonl:1: unknown key 'sead'"),
        (lambda b: b'{"s":1}\n' + b, "log.jsonl:1: no header"),
        (lambda b: b"", "log.jsonl:1: no header"),
    ],
)
def test_RC_3_damage_before_the_tail_names_file_and_line(tmp_path: Path, change: Any, where: str) -> None:
    path = tmp_path / "log.jsonl"
    written(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(RunCorruptError) as error:
        list(LogReader(path).steps())
    assert where in str(error.value)


def test_a_newer_format_and_a_missing_log_are_refused(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(codec.canonical({**HEADER, "windtunnel_log": 2}))
    with pytest.raises(RunVersionError, match="the log has format 2; this is format 1"):
        LogReader(tmp_path)
    with pytest.raises(RunCorruptError, match="there is no log here"):
        LogReader(tmp_path / "nowhere")


def test_RC_3_rotation_makes_segments_that_read_as_one(tmp_path: Path) -> None:
    writer = written(tmp_path / "log.jsonl", 400, rotate_bytes=4096)
    assert len(writer.paths) > 3 and writer.paths[1].name == "log-00001.jsonl"
    second = json.loads(writer.paths[1].read_bytes().splitlines()[0])
    assert second["continues"] and second["first_seq"] > 1
    reader = LogReader(tmp_path)
    assert [s.seq for s in reader.steps()] == list(range(1, 401))
    assert reader.complete


def test_RC_3_the_writer_thread_writes_while_the_owner_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    writer = LogWriter(HEADER, path, threaded=True)
    for seq in range(1, 2001):
        writer.step(seq, float(seq), Woke("queue"), ())
    deadline = 200
    while writer.behind_s and deadline:
        deadline -= 1
        writer._wake.set()
        writer._thread.join(0.01)  # type: ignore[union-attr]
    on_disk = path.read_bytes()
    assert on_disk.endswith(b"\n") and on_disk.count(b"\n") == 2001
    writer.close()
    writer.close()
    reader = LogReader(path)
    assert len(list(reader.steps())) == 2000 and reader.complete and writer.failure is None


def test_RC_3_a_disk_that_fails_is_told(tmp_path: Path) -> None:
    writer = LogWriter(HEADER, tmp_path / "log.jsonl")
    writer._file.close()

    class Full:
        def write(self, data: bytes) -> None:
            raise OSError(28, "No space left on device")

        flush = close = lambda self: None

        def fileno(self) -> int:
            raise OSError(28, "No space left on device")

    writer._file = Full()
    writer.step(1, 1.0, Woke("queue"), ())
    writer.close()
    assert writer.failure is not None and writer.failure.errno == 28
