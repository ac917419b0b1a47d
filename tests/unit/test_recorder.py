"""The recorder: one row per original request, whatever happened to its submissions and attempts."""

from __future__ import annotations

import math
from typing import Any

import pytest

from windtunnel.effects import NOTHING, Cancel, Close, Dispatch, Note, Reject, ScaleTo, WakeAt
from windtunnel.errors import ConfigValueError, RunNotRecordedError
from windtunnel.events import Arrived, Cancelled, Failed, Finished, FirstToken, ReplicaGone, ReplicaReady, Request, Started, Woke
from windtunnel.lab.originals import CHUNK
from windtunnel.lab.recorder import Recorder
from windtunnel.lab.run import Run
from windtunnel.lab.run_meta import RunMeta
from windtunnel.policy.admission.denial import make_denial
from windtunnel.policy.routing.turns import TurnRef


class Script:
    """A recorder fed by hand."""

    def __init__(self, level: str = "requests", **options: Any) -> None:
        self.recorder, self.seq = Recorder(level, **options), 0

    def __call__(self, now: float, event: Any, *effects: Any, verdicts: Any = None) -> Script:
        self.seq += 1
        self.recorder.step(self.seq, now, event, effects or NOTHING, verdicts)
        return self

    def run(self, now: float = 10.0, complete: bool = True) -> Run:
        return Run(RunMeta("script", complete=complete), self.recorder.close(now, complete=complete))

    def rows(self, now: float = 10.0, complete: bool = True) -> dict[str, dict[str, Any]]:
        frame = self.run(now, complete).requests
        return {row["request_id"]: row for row in frame.astype(object).where(frame.notna(), None).to_dict("records")}


def request(id: str, at: float, **more: Any) -> Request:
    return Request(id, "acme", "m", 0, at, 100, **more)


def dispatch(of: Request, n: int = 1, replica: str = "chat-0") -> Dispatch:
    return Dispatch(of, n, replica, "g0-1", "least_requests")


def rejected(of: Request, reason: str = "queue_full", state: str = "rejected") -> Reject:
    return Reject(of.id, make_denial("queue", reason), state, "rate_limited")


def test_a_success_has_every_time_and_count() -> None:
    a = request("a", 1.0, intended_s=0.75, deadline_s=9.0, turn=TurnRef("s1", 2, None, "s0", "s0", 1))
    script = Script()
    script(0.0, ReplicaReady("chat-0", "chat", slots=4))
    script(1.0, Arrived(a), dispatch(a))
    script(3.0, Finished("a", 1, "chat-0", 11, 104, 64, 1.5, 2.0, "stop", {"preemptions": 1, "recomputed_tokens": 20}))
    row = script.rows()["a"]
    wanted = {
        "tenant": "acme",
        "priority": "interactive",
        "model": "m",
        "session": "s1",
        "parent_session": "s0",
        "root_session": "s0",
        "depth": 1,
        "turn": 2,
        "phase": "profiling",
        "marked": False,
        "intended_s": 0.75,
        "arrived_s": 1.0,
        "dispatched_s": 1.0,
        "started_s": 1.5,
        "first_token_s": 2.0,
        "ended_s": 3.0,
        "ttft_s": 1.0,
        "ttfo_s": 1.0,
        "e2e_s": 2.0,
        "tpot_s": 0.1,
        "e2e_per_token_s": 2 / 11,
        "control_queue_s": 0.0,
        "engine_queue_s": 0.5,
        "queue_s": 0.5,
        "effective_ttft_s": 1.25,
        "effective_e2e_s": 2.25,
        "lag_s": 0.25,
        "input_tokens": 104,
        "output_tokens": 11,
        "cached_tokens": 64,
        "pool": "chat",
        "replica": "chat-0",
        "outcome": "success",
        "reason": "stop",
        "attempts": 1,
        "deadline_s": 9.0,
        "preemptions": 1,
        "recomputed_tokens": 20,
        "wasted_tokens": 0,
    }
    assert {k: row[k] for k in wanted} == {k: pytest.approx(v) if isinstance(v, float) else v for k, v in wanted.items()}
    assert row["prefill_replica"] is row["kv_wait_s"] is row["reasoning_tokens"] is None


def test_EE_10_a_clients_retries_are_one_row_of_the_original() -> None:
    a = request("a", 1.0)
    again = request("a!2", 2.0, origin="a", attempt=2)
    third = request("a!3", 5.0, origin="a", attempt=3)
    script = Script()(1.0, Arrived(a), rejected(a))(2.0, Arrived(again), dispatch(again))
    script(
        3.0, Failed("a!2", 1, "chat-0", "provider_failure", "reset", output_tokens=7), Close("a!2", "failed", "provider_failure", "reset")
    )
    script(5.0, Arrived(third), dispatch(third))(6.0, Finished("a!3", 1, "chat-0", 5, first_token_s=5.5))
    rows = script.rows()
    assert list(rows) == ["a"]
    assert (rows["a"]["outcome"], rows["a"]["attempts"], rows["a"]["wasted_tokens"]) == ("success", 3, 7)
    assert (rows["a"]["arrived_s"], rows["a"]["ttft_s"], rows["a"]["e2e_s"]) == (1.0, 4.5, 5.0)


def test_EE_11_redispatches_count_as_attempts_and_late_events_as_nothing() -> None:
    a = request("a", 1.0)
    script = Script()(1.0, Arrived(a), dispatch(a))
    script(2.0, Failed("a", 1, "chat-0", "provider_failure", "reset"), dispatch(a, 2, "chat-1"))
    script(2.5, Finished("a", 1, "chat-0", 99))  # of the first attempt: too late
    script(3.0, Finished("a", 2, "chat-1", 5, first_token_s=2.75))(3.5, Finished("a", 2, "chat-1", 5))
    rows = script.rows()
    assert len(rows) == 1
    assert (rows["a"]["attempts"], rows["a"]["replica"], rows["a"]["output_tokens"], rows["a"]["dispatched_s"]) == (2, "chat-1", 5, 2.0)


def test_EE_21_tokens_of_a_cancelled_attempt_are_known_when_it_lets_go() -> None:
    a, b = request("a", 1.0), request("b", 1.0)
    script = Script()(1.0, Arrived(a), dispatch(a))(1.0, Arrived(b), dispatch(b))
    script(2.0, Cancelled("a"), Close("a", "cancelled", "local_cancelled", "cancelled"), Cancel("a", 1, "chat-0", "cancelled"))
    script(2.5, Failed("a", 1, "chat-0", "local_cancelled", "cancelled", None, None, 9, 1.25, 1.5))
    script(3.0, Cancelled("b"), Close("b", "cancelled", "local_cancelled", "cancelled"), Cancel("b", 1, "chat-0", "cancelled"))
    rows = script.rows()
    assert (rows["a"]["ended_s"], rows["a"]["output_tokens"], rows["a"]["wasted_tokens"], rows["a"]["ttft_s"]) == (2.0, 9, 9, 0.5)
    assert rows["a"]["e2e_s"] is None and rows["b"]["output_tokens"] is None  # b's engine never answered: unknown, not 0
    assert rows["b"]["outcome"] == "local_cancelled"


def test_DV_8_a_lost_replica_ends_its_requests_without_an_answer() -> None:
    a, b, c = request("a", 1.0), request("b", 1.0), request("c", 1.0)
    script = Script("decisions")
    for r in (a, b, c):
        script(1.0, Arrived(r), dispatch(r))
    script(1.5, Cancelled("c"), Close("c", "cancelled", "local_cancelled", "cancelled"), Cancel("c", 1, "chat-0", "cancelled"))
    script(2.0, ReplicaGone("chat-0", "crash"), Close("a", "failed", "provider_failure", "crash"), dispatch(b, 2, "chat-1"))
    script(3.0, Finished("b", 2, "chat-1", 4))
    assert script.recorder._originals.running == 0
    rows = script.rows()
    assert (rows["a"]["outcome"], rows["a"]["reason"], rows["a"]["ended_s"]) == ("provider_failure", "crash", 2.0)
    assert (rows["b"]["attempts"], rows["c"]["outcome"]) == (2, "local_cancelled")


def test_a_retry_may_arrive_before_the_old_attempt_has_let_go() -> None:
    a, again = request("a", 1.0), request("a!2", 2.0, origin="a", attempt=2)
    script = Script()(1.0, Arrived(a), dispatch(a))
    script(
        2.0,
        Cancelled("a", None, "timeout", "local_timeout"),
        Close("a", "cancelled", "local_timeout", "timeout"),
        Cancel("a", 1, "chat-0", "timeout"),
    )
    script(2.0, Arrived(again), dispatch(again))(2.5, Failed("a", 1, "chat-0", "local_cancelled", "timeout", output_tokens=3))
    script(4.0, Finished("a!2", 1, "chat-0", 5))
    rows = script.rows()
    assert list(rows) == ["a"]
    assert (rows["a"]["outcome"], rows["a"]["attempts"], rows["a"]["wasted_tokens"], rows["a"]["arrived_s"]) == ("success", 2, 3, 1.0)


@pytest.mark.parametrize(("complete", "reason"), [(True, "cut"), (False, "stopped")])
def test_open_requests_are_cut_at_the_end(complete: bool, reason: str) -> None:
    a, b = request("a", 1.0), request("b", 2.0)
    script = Script()(1.0, Arrived(a), dispatch(a))(1.5, Started("a", 1, "chat-0"))(1.75, FirstToken("a", 1, "chat-0"))(2.0, Arrived(b))
    rows = script.rows(complete=complete)
    assert [(r["outcome"], r["ended_s"], r["reason"]) for r in rows.values()] == [(None, None, reason)] * 2
    assert (rows["a"]["started_s"], rows["a"]["ttft_s"], rows["a"]["e2e_s"], rows["b"]["dispatched_s"]) == (1.5, 0.75, None, None)


def test_cut_requests_count_as_offered_and_failed() -> None:
    a = request("a", 1.0)
    v = Script()(1.0, Arrived(a), dispatch(a)).run().summary().values
    assert (v["offered"], v["failed"], v["failed_fraction"], v["success_fraction"]) == (1, 1, 1.0, 0.0)


def test_RC_1_levels_hold_their_tables_only() -> None:
    a = request("a", 1.0)

    def flown(level: str) -> Run:
        script = Script(level)(
            1.0, Arrived(a), dispatch(a), WakeAt(9.0, "queue"), Note("selected", "scheduler", 1, ("a",), "why", {"x": 1})
        )
        return script(2.0, Finished("a", 1, "chat-0", 5)).run()

    few = flown("requests")
    with pytest.raises(RunNotRecordedError, match='decisions needs record: decisions; this run has "requests"'):
        _ = few.decisions
    with pytest.raises(RunNotRecordedError, match='steps needs record: full; this run has "requests"'):
        _ = few.steps
    assert flown("decisions").decisions["effect"].tolist() == ["Dispatch"]
    full = flown("full")
    assert full.decisions["effect"].tolist() == ["Dispatch", "WakeAt", "Note"]
    assert full.notes[["stream", "kind", "correlation", "detail"]].values.tolist() == [["scheduler", "selected", '["a"]', '{"x": 1}']]
    assert len(full.steps) == 0
    assert Recorder("requests").wants == frozenset() and Recorder("decisions").wants == {"planner"} < Recorder("full").wants


def test_decisions_say_what_was_decided_in_which_state() -> None:
    a, b = request("a", 1.0), request("b!2", 1.5, origin="b", attempt=2)
    script = Script("decisions", control_name="shadow")(0.0, ReplicaReady("chat-0", "chat"))(1.0, Arrived(a), dispatch(a))
    script(1.5, Arrived(b), rejected(b), verdicts=("not armed",))
    script(2.0, Woke("planner"), ScaleTo(1, (("chat", 2),), "d1", "demand"))(
        3.0, Woke("planner"), ScaleTo(2, (("chat", 3),), "d2", "demand")
    )
    rows = script.run().decisions
    assert rows["effect"].tolist() == ["Dispatch", "Reject", "ScaleTo", "ScaleTo"]
    assert rows["request_id"].fillna("").tolist() == ["a", "b", "", ""] and rows["attempt"].fillna(0).tolist() == [1, 2, 0, 0]
    assert rows["pool"].tolist()[0] == "chat" and rows["reason"].tolist() == ["least_requests", "queue_full", "demand", "demand"]
    assert rows[["queue_len", "in_flight"]].values.tolist() == [[1, 0], [1, 1], [0, 1], [0, 1]]
    assert rows["applied"].tolist() == [True, False, True, True] and set(rows["control"]) == {"shadow"}
    assert rows["value"].tolist()[2:] == [2.0, 3.0] and rows["value_before"].tolist()[3] == 2.0
    assert rows["cause"].tolist() == ["Arrived", "Arrived", "Woke", "Woke"] and rows["cause_seq"].tolist() == [2, 3, 4, 5]


def test_series_and_replicas_are_always_kept() -> None:
    script = Script()
    script.recorder.sample(1.0, "waiting", "chat", 3)
    script.recorder.replica_row({"replica": "chat-0", "pool": "chat", "gpu_seconds": 7.0, "ready_s": 0.0, "mystery": 1})
    run = script.run()
    assert run.series.values.tolist() == [[1.0, "waiting", "chat", 3.0]]
    assert run.replicas["gpu_seconds"].tolist() == [7.0] and run.replicas["usd"].isna().all()
    assert run.metric("gpu_hours") == pytest.approx(7 / 3600)


def test_many_rows_keep_their_order_across_chunks() -> None:
    script, n = Script(), CHUNK * 2 + 100
    for i in range(n):
        a = request(f"r{i}", float(i))
        script(float(i), Arrived(a), *((dispatch(a, 1, f"chat-{i % 3}"),) if i % 5 else (rejected(a),)))
        if i % 5:
            script(float(i), Finished(a.id, 1, f"chat-{i % 3}", i % 7, first_token_s=float(i)))
    frame = script.run(float(n)).requests
    assert frame["request_id"].tolist() == [f"r{i}" for i in range(n)]
    assert frame["replica"].tolist()[1] == "chat-1" and math.isnan(frame["replica"].tolist()[0])
    assert (frame["outcome"] == "rate_limited").sum() == len(range(0, n, 5))


def test_a_retry_of_a_row_in_an_earlier_chunk_replaces_it() -> None:
    script, a = Script(), request("a", 0.0)
    script(0.0, Arrived(a), rejected(a))
    for i in range(CHUNK):
        b = request(f"b{i}", 1.0)
        script(1.0, Arrived(b), rejected(b))
    again = request("a!2", 5.0, origin="a", attempt=2)
    script(5.0, Arrived(again), dispatch(again))(6.0, Finished("a!2", 1, "chat-0", 3))
    frame = script.run().requests
    assert len(frame) == CHUNK + 1
    assert frame[frame["request_id"] == "a"][["outcome", "arrived_s"]].values.tolist() == [["success", 0.0]]


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ConfigValueError, match="record: expected one of requests, decisions, full"):
        Recorder("everything")
