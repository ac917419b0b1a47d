"""Turns an engine's own step reports into events, in the words of the planner's contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from windtunnel.events import Event, StepReported
from windtunnel.policy.planning.contract import ForwardPass, StepLoad
from windtunnel.sim.agenda import ARRIVAL, Agenda
from windtunnel.sim.batching.reports import ForwardPass as EngineReport
from windtunnel.sim.faults import Faults
from windtunnel.sim.lifecycle import READY, SimReplica

REPORT_S = 1.0  # run s between two reports of a busy engine


def teller(name: str, replicas: Mapping[str, SimReplica], agenda: Agenda, deliver: Callable[[Event], None],
           faults: Faults | None = None) -> Callable[[EngineReport], None]:
    """What replica `name` calls with each report; those of replicas that do not serve are not told, and faults of metrics lose some.
    Delivered when the step is over."""
    counter = 0
    unsure = faults if faults is not None and faults.metrics else None

    def tell(report: EngineReport) -> None:
        nonlocal counter
        replica = replicas.get(name)
        if replica is None or replica.state != READY:
            return
        counter += 1
        late_s = 0.0 if unsure is None else unsure.report(name)
        if late_s is None:
            return
        waiting = replica.engine.waiting
        decodes_only = replica.pool.role == "decode"
        queued = StepLoad(0 if decodes_only else waiting, report.queued_prefill_tokens, 0, waiting if decodes_only else 0, report.queued_decode_kv)
        scheduled = StepLoad(report.prefill_seqs, report.prefill_tokens, 0, report.decode_seqs, report.decode_kv)
        event = StepReported(name, ForwardPass(name, 0, counter, report.at_s, report.step_s, scheduled, queued))
        agenda.at(agenda.now + late_s, ARRIVAL, lambda _: deliver(event))

    return tell
