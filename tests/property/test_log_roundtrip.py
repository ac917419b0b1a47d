"""Any event and effect written to a log reads back equal, and writes the same bytes again."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from windtunnel import effects as fx
from windtunnel import events as ev
from windtunnel.lab import codec
from windtunnel.lab.log import LogReader, LogWriter
from windtunnel.policy.admission.denial import Reason, make_denial
from windtunnel.policy.routing.turns import TurnRef

HEADER = {
    "windtunnel_log": 1,
    "run_id": "x",
    "world": "live",
    "mode": "armed",
    "started_at": "",
    "clock_zero": 0.0,
    "seed": 0,
    "replication": 0,
    "level": "full",
    "control": {},
    "control_class": "c",
    "needs": [],
    "scenario_digest": "",
    "code_digest": "d",
    "first_seq": 1,
    "continues": False,
}
text = st.text(max_size=12)
seconds = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12)
count = st.integers(0, 2**62)


def maybe(of: st.SearchStrategy) -> st.SearchStrategy:  # type: ignore[type-arg]
    return st.none() | of


plain = st.dictionaries(text, st.none() | st.booleans() | count | seconds | text | st.lists(count, max_size=3), max_size=3)
turns = st.builds(
    TurnRef,
    text,
    count,
    maybe(st.booleans()),
    maybe(text),
    maybe(text),
    st.integers(0, 5),
    maybe(st.sampled_from(["fork", "spawn"])),
    st.lists(text, max_size=2).map(tuple),
    maybe(text),
)
requests = st.builds(
    ev.Request,
    text,
    text,
    text,
    st.integers(0, 9),
    seconds,
    maybe(count),
    maybe(count),
    maybe(count),
    maybe(text),
    st.integers(1, 9),
    st.frozensets(text, max_size=3),
    maybe(seconds),
    maybe(seconds),
    st.sampled_from(["chat", "embedding"]),
    maybe(text),
    maybe(text),
    maybe(st.lists(count, max_size=5).map(tuple)),
    maybe(text),
    maybe(turns),
    st.lists(st.tuples(text, text), max_size=2).map(tuple),
    st.none(),
    st.sampled_from(["profiling", "warmup"]),
    st.booleans(),
    st.just("secret"),
    st.builds(ev.Truth, count),
)
events = st.one_of(
    st.builds(ev.Arrived, requests),
    st.builds(ev.Cancelled, maybe(text), maybe(text), text, text),
    st.builds(ev.Started, text, count, text),
    st.builds(ev.FirstToken, text, count, text),
    st.builds(ev.Progressed, text, st.lists(st.tuples(text, count), max_size=3).map(tuple)),
    st.builds(ev.Finished, text, count, text, maybe(count), maybe(count), maybe(count), maybe(seconds), maybe(seconds), text, maybe(plain)),
    st.builds(ev.Failed, text, count, text, text, text, maybe(count), maybe(seconds), maybe(count), maybe(seconds), maybe(seconds)),
    st.builds(ev.ReplicaBooting, text, text, text, text),
    st.builds(ev.ReplicaReady, text, text, text, seconds, maybe(count), maybe(count), maybe(seconds), maybe(plain)),
    st.builds(ev.ReplicaGone, text, text, maybe(seconds)),
    st.builds(ev.Scraped, text, st.builds(ev.Scrape, seconds, maybe(count), maybe(count), maybe(seconds))),
    st.builds(ev.PoolsObserved, plain),
    st.builds(ev.ScaleAnswered, count, text, text),
    st.builds(ev.Answered, count, st.lists(text, max_size=2).map(tuple)),
    st.builds(ev.Woke, text),
    st.builds(ev.Commanded, text, maybe(plain)),
)
denials = st.builds(lambda reason, after: make_denial("queue", reason, retry_after_s=after), st.sampled_from(list(Reason)), maybe(seconds))
effects = st.one_of(
    st.builds(fx.Dispatch, requests, count, text, text, text, maybe(text), count, maybe(count), maybe(seconds)),
    st.builds(fx.Reject, text, denials, text, text),
    st.builds(fx.Close, text, text, text, text, maybe(seconds)),
    st.builds(fx.Cancel, text, count, text, text),
    st.builds(fx.ScaleTo, count, st.lists(st.tuples(text, count), max_size=3).map(tuple), text, text),
    st.builds(fx.Drain, text, maybe(seconds), text, st.booleans()),
    st.builds(fx.WakeAt, maybe(seconds), text),
    st.builds(fx.Ask, count, st.lists(text, max_size=2).map(tuple), seconds),
    st.builds(fx.Note, text, text, count, st.lists(text, max_size=2).map(tuple), text, maybe(plain)),
)


@settings(max_examples=150, deadline=None)
@given(events, seconds)
def test_RC_2_events_read_back_equal_and_write_the_same_bytes(event: object, now: float) -> None:
    line = codec.canonical(codec.event_object(5, now, event))
    read = codec.event_of(json.loads(line))
    assert read == event and type(read) is type(event)
    assert codec.canonical(codec.event_object(5, now, read)) == line
    assert b"secret" not in line and line.count(b"\n") == 1


@settings(max_examples=150, deadline=None)
@given(effects)
def test_RC_2_effects_read_back_equal_and_write_the_same_bytes(effect: object) -> None:
    line = codec.canonical(codec.effect_object(5, 0, effect))
    read = codec.effect_of(json.loads(line), lambda _: effect.request)  # type: ignore[attr-defined]
    assert read == effect
    assert codec.canonical(codec.effect_object(5, 0, read)) == line


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(events, st.lists(effects, max_size=3)), max_size=8))
def test_RC_2_whole_logs_read_back(steps: list[tuple[object, list[object]]]) -> None:
    writer = LogWriter(HEADER)
    for seq, (event, made) in enumerate(steps, 1):
        writer.step(seq, float(seq), event, made)
    writer.close()
    reader = LogReader(writer.data())
    read = list(reader.steps())
    assert reader.complete and reader.events == len(steps) and reader.effects == sum(len(made) for _, made in steps)
    assert [codec.event_of(s.event) for s in read] == [event for event, _ in steps]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 10_000))
def test_RC_3_a_log_cut_anywhere_reads_as_a_prefix(cut: int) -> None:
    writer = LogWriter(HEADER)
    for seq in range(1, 20):
        writer.step(seq, float(seq), ev.Woke("é"), [fx.WakeAt(seq + 1.0, "q")])
    writer.close()
    data = writer.data()
    head = data.index(b"\n") + 1
    data = data[: head + cut % (len(data) - head)]
    reader = LogReader(data)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        seqs = [s.seq for s in reader.steps()]
    assert seqs == list(range(1, len(seqs) + 1)) and not reader.complete
