"""Turns an engine's own step reports into events, in the words of the planner's contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from windtunnel.events import Event, StepReported
from windtunnel.policy.planning.contract import ForwardPass, StepLoad
from windtunnel.sim.agenda import ARRIVAL, Agenda
from windtunnel.sim.batching.reports import ForwardPass as EngineReport
from windtunnel.sim.fleet import READY, SimReplica

REPORT_S = 1.0  # run s between two reports of a busy engine


def teller(name: str, replicas: Mapping[str, SimReplica], agenda: Agenda, deliver: Callable[[Event], None]) -> Callable[[EngineReport], None]:
    """What replica `name` calls with each report; those of replicas that do not serve are not told. Delivered when the step is over."""
    counter = 0

    def tell(report: EngineReport) -> None:
        nonlocal counter
        replica = replicas.get(name)
        if replica is None or replica.state != READY:
            return
        counter += 1
        waiting = replica.engine.waiting
        decodes_only = replica.pool.role == "decode"
        queued = StepLoad(0 if decodes_only else waiting, report.queued_prefill_tokens, 0, waiting if decodes_only else 0, report.queued_decode_kv)
        scheduled = StepLoad(report.prefill_seqs, report.prefill_tokens, 0, report.decode_seqs, report.decode_kv)
        event = StepReported(name, ForwardPass(name, 0, counter, report.at_s, report.step_s, scheduled, queued))
        agenda.at(agenda.now, ARRIVAL, lambda _: deliver(event))

    return tell
