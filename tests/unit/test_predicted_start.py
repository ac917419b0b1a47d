"""When a queued request is expected to start, who is told, and how far off it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from windtunnel import Run, Scenario, replay
from windtunnel.effects import Dispatch
from windtunnel.events import Arrived, Cancelled, Finished, ReplicaReady, Request
from windtunnel.lab.metrics import Requests
from windtunnel.lab.scalars import prediction_error
from windtunnel.policy.admission.limit import Fixed
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.control import Control
from windtunnel.policy.lane import Lane
from windtunnel.policy.param import BuildContext
from windtunnel.policy.queueing.bounded import BoundedQueue
from windtunnel.policy.queueing.classes import Classes
from windtunnel.policy.queueing.edf import Edf
from windtunnel.policy.queueing.fair import FairTaskQueue, Queue
from windtunnel.policy.queueing.fifo import FifoQueue
from windtunnel.policy.queueing.lifo import AdaptiveLifo
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.least import LeastOutstanding

CTX = BuildContext()


class Bench:
    """One slot; `serve` ends what runs."""

    def __init__(self, queue: Queue) -> None:
        self.lane = Lane("chat", queue=queue, admission=RequestAdmission(Fixed(1).build(CTX)), router=LeastOutstanding(), cap=1)
        self.control, self.now = Control(lanes=(self.lane,), fleet=Fleet()), 0.0
        self.sent: list[Dispatch] = []
        self.do(ReplicaReady("chat-0", "chat", slots=1))

    def do(self, event: Any) -> None:
        for effect in self.control.handle(event, self.now):
            if isinstance(effect, Dispatch):
                self.sent.append(effect)

    def arrive(self, id: str, priority: int = 0, deadline_s: float | None = None) -> None:
        self.do(Arrived(Request(id, "t", "m", priority, self.now, 10, 10, deadline_s=deadline_s)))

    def serve(self, at: float) -> None:
        self.now, last = at, self.sent[-1]
        self.do(Finished(last.request.id, last.dispatch, "chat-0", 5, 10, 0, at, at))

    def warm(self) -> float:
        """A rate is known after two completions; what it then says, at run second 3."""
        for n in range(3):
            self.arrive(f"w{n}")
        for n in range(3):
            self.serve(float(n + 1))
        rate_rps = self.lane.admission.completion_rate("chat", self.now)
        assert rate_rps is not None
        assert [d.predicted_start_s for d in self.sent] == [None, None, None], "no rate was known"
        self.sent.clear()
        return rate_rps


@pytest.mark.parametrize("queue", [FifoQueue, FairTaskQueue, lambda: BoundedQueue(FifoQueue())])
def test_QP_11_a_dispatch_tells_the_start_that_was_expected_when_it_was_queued(queue: Callable[[], Queue]) -> None:
    bench = Bench(queue())
    rate_rps = bench.warm()
    for n in range(4):
        bench.arrive(f"r{n}")
    for n in range(3):
        bench.serve(4.0 + n)
    told = [d.predicted_start_s for d in bench.sent]
    assert told == [None, 3.0 + 0 / rate_rps, 3.0 + 1 / rate_rps, 3.0 + 2 / rate_rps], "the first did not wait"
    assert told[1:] == sorted(told[1:])  # type: ignore[type-var]


def test_QP_11_an_old_rate_is_no_promise() -> None:
    bench = Bench(FifoQueue())
    bench.warm()
    bench.now = 60.0
    bench.arrive("a")
    bench.arrive("b")
    bench.serve(61.0)
    assert bench.sent[-1].request.id == "b" and bench.sent[-1].predicted_start_s is None


@pytest.mark.parametrize(("queue", "ahead"), [
    (Classes("strict").build(CTX), {"b0": 0, "i0": 0, "b1": 2, "i1": 1}),
    (Classes("ageing", promote_after_s=10.0).build(CTX), {"b0": 0, "i0": 0, "b1": 2, "i1": 1}),
    (Classes("weighted").build(CTX), {"b0": 0, "i0": 1, "b1": 2, "i1": 3}),
    (Edf().build(CTX), {"b0": 0, "i0": 1, "b1": 2, "i1": 3}),
    (AdaptiveLifo(interval_s=1.0).build(CTX), {"b0": 0, "i0": 1, "b1": 2, "i1": 3}),
])
def test_QP_11_work_ahead_is_what_the_queue_serves_before_it(queue: Queue, ahead: dict[str, int]) -> None:
    bench = Bench(queue)
    rate_rps = bench.warm()
    bench.arrive("runs")
    for id in ahead:
        bench.arrive(id, priority=int(id[0] == "b"))
    told = {o.request.id: o.predicted_start_s for o in bench.control.flow.open.values() if o.request.id != "runs"}
    assert told == {id: 3.0 + n / rate_rps for id, n in ahead.items()}


def test_QP_11_newest_first_has_nobody_ahead_while_backlogged_and_edf_counts_what_is_due_before() -> None:
    bench = Bench(AdaptiveLifo(interval_s=1.0).build(CTX))
    bench.warm()
    for id in ("runs", "a", "b"):
        bench.arrive(id)
    bench.now = 4.5
    bench.arrive("c")
    assert bench.control.flow.open["c"].predicted_start_s == 4.5
    due = Bench(Edf().build(CTX))
    rate_rps = due.warm()
    for id, deadline_s in (("runs", None), ("late", 90.0), ("soon", 50.0), ("later", 95.0), ("never", None), ("tie", 90.0)):
        due.arrive(id, deadline_s=deadline_s)
    told = {o.request.id: o.predicted_start_s for o in due.control.flow.open.values() if o.request.id != "runs"}
    assert told == {id: 3.0 + n / rate_rps for id, n in {"late": 0, "soon": 0, "later": 2, "never": 3, "tie": 2}.items()}


def test_QP_11_a_redispatch_tells_nothing_and_who_leaves_has_no_error() -> None:
    bench = Bench(FifoQueue())
    bench.warm()
    for id in ("runs", "a", "b"):
        bench.arrive(id)
    bench.do(Cancelled("a"))
    bench.serve(4.0)
    assert [d.request.id for d in bench.sent] == ["runs", "b"] and bench.sent[-1].predicted_start_s is not None
    bench.control.check()


STATION = """
windtunnel: 1
name: queueing
duration_s: 400
seed: 3
fleet: {pools: {chat: {model: Llama-3.1-8B, gpu: h100_sxm, replicas: 1, service: {servers: 4}}}}
source: {kind: arrivals, rate_rps: 8, input_tokens: 16, output_tokens: 16, service_s: {kind: exp, mean: 0.45}}
control: {queue: {kind: fifo}, admission: {limit: {kind: fixed, limit: 4}}, routing: {kind: least_outstanding}}
"""


def test_QP_11_its_error_is_a_number_of_the_run_and_told_where_requests_wait(tmp_path: Path) -> None:
    run = Scenario.load(STATION).run(record="full")
    rows = run.requests
    waited = rows[rows.predicted_start_s.notna()]
    values = run.summary().values
    assert len(waited) == values["eta_n"] > 1000
    error = (waited.predicted_start_s - waited.dispatched_s).abs() / (waited.dispatched_s - waited.arrived_s)
    assert values["eta_mape"] == pytest.approx(error.mean(), rel=1e-12)
    assert 0.0 < values["eta_mape"] < 0.6, "first come, first served at a steady rate: better than no guess"
    long = waited[(waited.dispatched_s - waited.arrived_s) > 3.0]
    assert len(long) > 100 and error[long.index].mean() < 0.25, "many ahead: their services average out"
    (line,) = [line for line in run.summary().lines() if line.startswith("queue")]
    assert f"ETA off by {100 * values['eta_mape']:.1f} %" in line and f"n {len(waited):,}" in line and len(line) <= 80
    assert "predicted start off by" in run.summary()._repr_html_()
    replay(run)
    again = Run.load(run.save(tmp_path / "run"))
    assert again.summary().values["eta_mape"] == values["eta_mape"]
    by = run.summary(by="priority").by
    assert by is not None and by.eta_mape.iloc[0] == values["eta_mape"]


def test_QP_11_nothing_is_said_where_nobody_waits() -> None:
    run = Scenario.load(STATION).with_({"source": {"kind": "arrivals", "rate_rps": 0.2, "input_tokens": 16, "output_tokens": 16,
                                                   "service_s": 0.1}, "duration_s": 60}).run()
    values = run.summary().values
    assert (values["eta_mape"], values["eta_n"]) == (None, 0)
    assert not [line for line in run.summary().lines() if line.startswith("queue")]
    assert run.requests.predicted_start_s.isna().all()


def test_QP_11_runs_saved_before_it_was_recorded_have_no_error() -> None:
    table = Scenario.load(STATION).with_({"duration_s": 20}).run().tables.arrow("requests")
    assert prediction_error(Requests(table))[1] > 10
    assert prediction_error(Requests(table.drop_columns(["predicted_start_s"]))) == (None, 0)
