"""When engines begin and end what was admitted to them: told in the record of the request stream, and nowhere else."""

from __future__ import annotations

import json
from collections import Counter

from windtunnel.effects import Note
from windtunnel.events import Arrived, Cancelled, Failed, Finished, ReplicaReady, Request, Started
from windtunnel.lab.scenario import Scenario
from windtunnel.policy.admission.lease import RequestLease
from windtunnel.policy.admission.limit import Fixed
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.control import Control
from windtunnel.policy.param import BuildContext
from windtunnel.policy.presets import default_control

TEXT = """
windtunnel: 1
name: small
duration_s: 20
warmup_s: 0
seed: 3
fleet: {pools: {chat: {model: Llama-3.1-8B, gpu: h100_sxm, replicas: 1, engine: {max_num_seqs: 4}}}}
source: {kind: arrivals, rate_rps: 6, input_tokens: 200, output_tokens: 80}
control: {admission: {limit: {kind: fixed, limit: 8}}, routing: {kind: least_outstanding}}
"""
KINDS = ("model_request_started", "model_request_completed")


def notes_of(control: Control, event: object, now: float) -> list[tuple[str, tuple[str, ...], str]]:
    return [(e.kind, e.ids, e.reason) for e in control.handle(event, now) if type(e) is Note]  # type: ignore[arg-type]


def flown() -> Control:
    control = default_control(pools=("p",), wants=frozenset({"request"}))
    control.handle(ReplicaReady("r", "p", slots=4), 0.0)
    control.handle(Arrived(Request("a", "t", "m", 0, 0.0, 10)), 0.0)
    return control


def test_EV_3_an_attempt_is_said_to_begin_and_to_end_once() -> None:
    control = flown()
    begun = notes_of(control, Started("a", 1, "r"), 1.0)
    lease = begun[0][1]
    assert begun == [("model_request_started", lease, "")] and len(lease) == 1
    assert notes_of(control, Started("a", 1, "r"), 1.5) == [], "the other side of a pair begins it no second time"
    ended = notes_of(control, Finished("a", 1, "r", 5), 2.0)
    assert [kind for kind, *_ in ended][:1] == ["model_request_completed"] and ended[-1] == ("request_lease_released", lease, "success")
    assert ended[0] == ("model_request_completed", lease, "success"), "completed before the lease comes back"


def test_EV_3_what_no_engine_began_is_not_completed() -> None:
    control = flown()
    kinds = [kind for kind, *_ in notes_of(control, Failed("a", 1, "r", "rate_limited", "http_429", 429, 1.0), 1.0)]
    assert "request_lease_released" in kinds and not set(KINDS) & set(kinds)
    for late in (Started("a", 1, "r"), Started("never", 1, "r")):
        assert notes_of(control, late, 2.0) == []
    assert control.late_events == 0, "nothing is decided by it"


def test_EV_3_one_that_is_stopped_is_completed_when_the_engine_lets_go() -> None:
    control = flown()
    control.handle(Cancelled("a"), 0.5)
    assert [k for k, *_ in notes_of(control, Started("a", 1, "r"), 0.5)] == ["model_request_started"], "the engine had begun it by then"
    assert ("model_request_completed", "local_cancelled") in [
        (k, why) for k, _, why in notes_of(control, Failed("a", 1, "r", "local_cancelled", "cancelled"), 0.7)]


def test_EV_3_nothing_is_asked_for_nor_said_unless_it_is_recorded() -> None:
    quiet = default_control(pools=("p",))
    assert "started" not in quiet.needs and "started" in flown().needs
    admission = RequestAdmission(Fixed(2).build(BuildContext()))
    admission.register("r", 2, 0.0)
    lease = admission.try_acquire("r", 0.0)
    assert isinstance(lease, RequestLease)
    before = admission.snapshot("r", 0.0)
    admission.began(lease, 0.0)
    assert admission.drain_notes() == [] and admission.snapshot("r", 0.0) == before


def test_EV_3_a_recorded_run_tells_every_attempt_at_its_times_and_changes_none() -> None:
    scenario = Scenario.load(TEXT)
    run, plain = scenario.run(record="full", check=True), scenario.run(record="decisions", check=True)
    columns = ["request_id", "dispatched_s", "started_s", "first_token_s", "ended_s", "outcome"]
    assert run.requests[columns].equals(plain.requests[columns])
    notes = run.notes[run.notes["kind"].isin(KINDS)]
    served = run.requests[run.requests["outcome"] == "success"]
    assert len(served) > 60 and Counter(notes["kind"]) == dict.fromkeys(KINDS, len(served))
    leases = [json.loads(ids)[0] for ids in notes["correlation"]]
    assert set(Counter(leases).values()) == {2}
    for kind, column in zip(KINDS, ("started_s", "ended_s"), strict=True):
        assert sorted(notes.loc[notes["kind"] == kind, "t_s"]) == sorted(served[column])
    assert not (plain.notes["stream"] == "request").any(), "one level lower none is made"
