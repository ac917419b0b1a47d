"""Checking a history: what must hold in any run, whatever broke in it. Reads the log of a run that was recorded in full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from windtunnel import events as ev
from windtunnel.errors import RunNotRecordedError
from windtunnel.lab import codec
from windtunnel.lab.logread import LogReader

if TYPE_CHECKING:
    from windtunnel.lab.run import Run


def violations(run: Run) -> list[str]:
    """One sentence per broken rule; empty if the history is sound. Raises RunNotRecordedError unless the run has `record: full`.

    Each request ends exactly once (or is still open at the end of an incomplete run); nothing follows the end of an attempt; an attempt
    on a replica that is not ready is answered with a failure; every row of the `requests` table is one original.
    """
    history = _History()
    if run.tables.log is None:
        raise RunNotRecordedError(f'a history needs record: full; this run has "{run.tables.level}"')
    for step in LogReader(run.tables.log).steps():
        history.event(step.now, codec.event_of(step.event))
        for effect in step.effects:
            history.effect(step.now, effect)
    return history.verdict(run)


class _History:
    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.arrived: dict[str, str] = {}  # submission to original
        self.ends: Counter[str] = Counter()
        self.running: dict[tuple[str, int], tuple[str, bool]] = {}  # attempt: its replica, and whether that was ready
        self.prefilled_on: dict[tuple[str, int], str] = {}  # attempts whose prompt is another replica's work, as long as it is
        self.over: set[tuple[str, int]] = set()
        self.lost: set[tuple[str, int]] = set()  # with their replica: what was under way by then may still arrive
        self.ready: set[str] = set()

    def event(self, now: float, event: Any) -> None:
        kind = type(event)
        if kind is ev.Arrived:
            if event.request.id in self.arrived:
                self.wrong.append(f"{now:.6f} s: request {event.request.id} arrived twice")
            self.arrived[event.request.id] = event.request.origin or event.request.id
        elif kind is ev.ReplicaReady:
            self.ready.add(event.replica)
        elif kind is ev.ReplicaGone:
            self.ready.discard(event.replica)
            if event.effective_at is None or event.effective_at <= now:
                for attempt in [a for a, (replica, _) in self.running.items() if event.replica in (replica, self.prefilled_on.get(a))]:
                    self.lost.add(attempt)
                    del self.running[attempt]
        elif kind is ev.HandedOver:
            self.prefilled_on.pop((event.request_id, event.dispatch), None)
        elif kind in (ev.Started, ev.FirstToken, ev.Finished, ev.Failed):
            self._of_attempt(now, event, kind)

    def _of_attempt(self, now: float, event: Any, kind: type) -> None:
        attempt = (event.request_id, event.dispatch)
        name = f"{event.request_id}/{event.dispatch}"
        if attempt in self.lost:
            return
        if attempt in self.over:
            self.wrong.append(f"{now:.6f} s: {kind.__name__} of {name} after its end")
        elif attempt not in self.running:
            self.wrong.append(f"{now:.6f} s: {kind.__name__} of {name}, which was never dispatched")
        elif kind is not ev.Failed and not self.running[attempt][1]:
            self.wrong.append(f"{now:.6f} s: {kind.__name__} of {name} on {event.replica}, which was not ready")
        if kind is ev.Finished and attempt in self.running and not self.ends[event.request_id]:
            self.ends[event.request_id] += 1
        if kind in (ev.Finished, ev.Failed):
            self._over(attempt)

    def effect(self, now: float, effect: Mapping[str, Any]) -> None:
        kind = effect["f"]
        if kind == "Dispatch":
            request_id, dispatch = effect["request"], effect["dispatch"]
            attempt = (request_id, dispatch)
            if attempt in self.running or attempt in self.over or attempt in self.lost:
                self.wrong.append(f"{now:.6f} s: {request_id}/{dispatch} was dispatched twice")
            if self.ends[request_id]:
                self.wrong.append(f"{now:.6f} s: {request_id} was dispatched after its end")
            pair = [effect["replica"], *([effect["prefill"]] if effect.get("prefill") else ())]
            self.running[attempt] = (pair[0], self.ready.issuperset(pair))
            if len(pair) > 1:
                self.prefilled_on[attempt] = pair[1]
        elif kind in ("Reject", "Close"):
            self.ends[effect["request_id"]] += 1

    def _over(self, attempt: tuple[str, int]) -> None:
        self.running.pop(attempt, None)
        self.over.add(attempt)

    def verdict(self, run: Run) -> list[str]:
        out = list(self.wrong)
        for request_id in self.arrived:
            if self.ends[request_id] != 1 and (self.ends[request_id] or run.complete):
                out.append(f"request {request_id} ended {self.ends[request_id]} times")
        out += [f"request {request_id} ended and never arrived" for request_id in self.ends if request_id not in self.arrived]
        out += [f"attempt {i}/{d} never ended" for i, d in self.running] if run.complete else []
        rows = run.requests.request_id
        if len(rows) != rows.nunique() or set(rows) != set(self.arrived.values()):
            out.append(f"{len(rows)} rows of {rows.nunique()} requests; {len(set(self.arrived.values()))} originals arrived")
        return out
