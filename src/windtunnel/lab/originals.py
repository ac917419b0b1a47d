"""Originals: what clients wanted, one row each, kept together over retries, redispatches and late answers.

An original's row is written at its last end. A client's retry takes its row over; a cancelled attempt may still tell how many tokens it
wasted; an answer to an older attempt changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from windtunnel import effects as fx
from windtunnel import events as ev
from windtunnel.lab import columns
from windtunnel.policy.preemption import PREEMPTED

CHUNK = 8192
CUT, STOPPED = "cut", "stopped"
# Of an original without success so far: its row, arrived_s, intended_s, attempts, wasted tokens.
Earlier = tuple[int, float, float | None, int, int]


class Row:
    """An original whose request is open, or whose last attempt is still letting go."""

    __slots__ = ("arrived_s", "attempts", "dispatch", "end", "first_token_s", "index", "intended_s", "live", "predicted_start_s", "preempted",
                 "prefill", "replica", "request", "sent_s", "started_s", "tokens", "wasted")

    def __init__(self, request: ev.Request) -> None:
        self.request = request
        self.arrived_s, self.intended_s = request.arrived_s, request.intended_s
        self.attempts = self.wasted = self.dispatch = self.preempted = 0  # attempts: of the submissions before this one
        self.live = False
        self.sent_s: float | None = None
        self.predicted_start_s: float | None = None
        self.started_s: float | None = None
        self.first_token_s: float | None = None
        self.replica: str | None = None
        self.prefill: str | None = None
        self.tokens: int | None = None
        self.end: tuple[float | None, str | None, str] | None = None  # when, outcome, reason
        self.index = -1  # of its row in the table, once that is written


class Originals:
    """Handlers by type of event and effect (`on`, `do`), called in the order of the log; `close`, then `table`.

    Rows are tuples until a few thousand have come, then typed columns: no object per request remains.
    """

    def __init__(self) -> None:
        self.open: dict[str, Row] = {}
        self.closing: dict[str, Row] = {}
        self.running = 0
        self.pool_of: dict[str, str] = {}
        self._rows: list[tuple[Any, ...]] = []
        self._batches: list[pa.RecordBatch] = []
        self._count = 0
        self._ended: dict[str, Earlier] = {}
        self._superseded: set[int] = set()
        self._left: dict[str, Row] = {}  # by origin: the last in `closing` that no retry has taken over
        self._newest: dict[str, Row] = {}  # by origin: the last submission of those that were retried
        self._late_waste: dict[int, int] = {}  # tokens that a zombie made after the row of its original was written
        self.on: dict[type, Callable[[float, Any], None]] = {
            ev.Arrived: self.arrived, ev.Finished: self._finished, ev.Failed: self._failed, ev.FirstToken: self._first_token,
            ev.Started: self._began, ev.ReplicaReady: self._replica, ev.ReplicaBooting: self._replica, ev.ReplicaGone: self._gone,
        }
        self.do: dict[type, Callable[[float, Any, Any], None]] = {
            fx.Dispatch: self._dispatched, fx.Reject: self._rejected, fx.Close: self._closed, fx.Cancel: self._stopped,
        }

    @property
    def waiting(self) -> int:
        """Open requests without a live attempt."""
        return len(self.open) - self.running + len(self.closing)

    def close(self, reason: str) -> None:
        """What is still open gets its row without an outcome or an end, for this reason."""
        for row in list(self.closing.values()):
            self._leave(row)
        for row in self.open.values():
            row.end = (None, None, reason)
            self._put(row)
        self.closing, self.open = {}, {}
        self._flush()

    def table(self) -> pa.Table:
        """The `requests` table."""
        return columns.requests_table(self._batches, self._superseded, self._late_waste)

    # -- events ---------------------------------------------------------------------------------------------------------------------

    def arrived(self, now: float, event: ev.Arrived) -> None:
        request = event.request
        row = self.open[request.id] = Row(request)
        if request.attempt > 1 and request.origin is not None:
            self._take_over(row, request.origin)

    def _take_over(self, row: Row, origin: str) -> None:
        """A client's retry: one row per original, so this submission's row replaces the earlier one."""
        self._newest[origin] = row
        earlier = self._ended.pop(origin, None)
        if earlier is not None:
            index, row.arrived_s, row.intended_s, row.attempts, row.wasted = earlier
            self._superseded.add(index)
            return
        old = self._left.pop(origin, None)
        if old is not None:
            row.arrived_s, row.intended_s, row.wasted = old.arrived_s, old.intended_s, old.wasted  # its last tokens come later
            row.attempts = old.attempts + (old.dispatch or 1)

    def gave_up(self, now: float, note: fx.Note) -> None:
        """The client stopped listening without a cancel: the original has ended, its submission lives on as a zombie."""
        for request_id in note.ids:
            row = self.open.pop(request_id, None)
            if row is not None:
                row.end = (now, str((note.data or {}).get("outcome", "local_timeout")), note.reason)
                self._close(row)

    def _close(self, row: Row) -> None:
        self.closing[row.request.id] = self._left[row.request.origin or row.request.id] = row

    def _finished(self, now: float, event: ev.Finished) -> None:
        row = self.open.get(event.request_id)
        if row is None:
            self._let_go(event)
            return
        if row.dispatch != event.dispatch or not row.live:
            return
        del self.open[event.request_id]
        self.running -= 1
        request = row.request
        row.index = self._count
        self._count += 1
        self._rows.append((
            request.origin or request.id, request.tenant, request.priority, request.model, request.turn, request.phase, row.intended_s,
            row.arrived_s, row.sent_s, event.started_s, event.first_token_s, now,
            request.input_tokens if event.input_tokens is None else event.input_tokens, event.output_tokens, event.cached_tokens,
            row.replica, row.prefill, "success", event.finish_reason, row.attempts + row.dispatch, request.deadline_s, row.wasted,
            event.engine, row.predicted_start_s, row.preempted,
        ))
        if len(self._rows) >= CHUNK:
            self._flush()

    def _failed(self, now: float, event: ev.Failed) -> None:
        row = self.open.get(event.request_id)
        if row is None:
            self._let_go(event)
        elif row.dispatch == event.dispatch and row.live:
            self._attempt_over(row, event)

    def _attempt_over(self, row: Row, event: ev.Failed | ev.Finished) -> None:
        row.live = False
        self.running -= 1
        row.tokens = event.output_tokens
        row.wasted += event.output_tokens or 0
        if event.started_s is not None:
            row.started_s = event.started_s
        if event.first_token_s is not None:
            row.first_token_s = event.first_token_s

    def _let_go(self, event: ev.Failed | ev.Finished) -> None:
        """The attempt of a request that was closed before has ended now."""
        row = self.closing.get(event.request_id)
        if row is None or row.dispatch != event.dispatch:
            return
        self._attempt_over(row, event)
        self._leave(row)

    def _first_token(self, now: float, event: ev.FirstToken) -> None:
        row = self.open.get(event.request_id)
        if row is not None and row.dispatch == event.dispatch:
            row.first_token_s = now

    def _began(self, now: float, event: ev.Started) -> None:
        row = self.open.get(event.request_id)
        if row is not None and row.dispatch == event.dispatch:
            row.started_s = now

    def _replica(self, now: float, event: ev.ReplicaReady | ev.ReplicaBooting) -> None:
        self.pool_of[event.replica] = event.pool

    def _gone(self, now: float, event: ev.ReplicaGone) -> None:
        if event.effective_at is not None and event.effective_at > now:
            return
        for row in [row for row in self.closing.values() if row.live and event.replica in (row.replica, row.prefill)]:
            row.live = False
            self.running -= 1
            self._leave(row)

    # -- effects --------------------------------------------------------------------------------------------------------------------

    def _dispatched(self, now: float, effect: fx.Dispatch, event: Any) -> None:
        row = self.open.get(effect.request.id) or self.closing.get(effect.request.id)
        if row is None:
            return
        if not row.live:  # after the loss of a replica it still counts as running
            row.live = True
            self.running += 1
        row.dispatch, row.sent_s, row.replica, row.prefill = effect.dispatch, now, effect.replica, effect.prefill
        if effect.predicted_start_s is not None:
            row.predicted_start_s = effect.predicted_start_s
        if effect.dispatch > 1:
            row.started_s = row.first_token_s = row.tokens = None

    def _rejected(self, now: float, effect: fx.Reject, event: Any) -> None:
        row = self.open.pop(effect.request_id, None)
        if row is not None:
            row.end = (now, effect.outcome, str(effect.denial.reason))
            self._put(row)
        elif (zombie := self.closing.get(effect.request_id)) is not None:
            self._leave(zombie)

    def _stopped(self, now: float, effect: fx.Cancel, event: Any) -> None:
        row = self.open.get(effect.request_id)
        if row is not None and effect.reason == PREEMPTED:
            row.preempted += 1

    def _closed(self, now: float, effect: fx.Close, event: Any) -> None:
        """A running attempt has yet to let go, and will say how many tokens were wasted; one on a lost replica never will."""
        row = self.open.pop(effect.request_id, None)
        if row is None:
            zombie = self.closing.get(effect.request_id)
            if zombie is not None and not zombie.live:
                self._leave(zombie)
            return
        row.end = (now, effect.outcome, effect.reason)
        if row.live and type(event) is not ev.ReplicaGone:
            self._close(row)
            return
        if row.live:
            row.live = False
            self.running -= 1
        self._put(row)

    # -- rows -----------------------------------------------------------------------------------------------------------------------

    def _leave(self, row: Row) -> None:
        """The last of a closed submission is known: its own row, or its tokens to the retry that took over."""
        request = row.request
        origin = request.origin or request.id
        del self.closing[request.id]
        if self._left.get(origin) is row:
            del self._left[origin]
        last, tokens = self._newest.get(origin, row), row.tokens or 0
        if last is row:
            self._put(row)
        elif last.index < 0:
            last.wasted += tokens
        elif tokens:
            self._late_waste[last.index] = self._late_waste.get(last.index, 0) + tokens

    def _put(self, row: Row) -> None:
        """Append an original that ended without success (so far: a retry may take it over)."""
        request = row.request
        ended_s, outcome, reason = row.end  # type: ignore[misc]
        origin, attempts = request.origin or request.id, row.attempts + (row.dispatch or 1)
        self._ended[origin] = (self._count, row.arrived_s, row.intended_s, attempts, row.wasted)
        row.index = self._count
        self._count += 1
        self._rows.append((
            origin, request.tenant, request.priority, request.model, request.turn, request.phase, row.intended_s, row.arrived_s, row.sent_s,
            row.started_s, row.first_token_s, ended_s, request.input_tokens, row.tokens, None, row.replica, row.prefill, outcome, reason,
            attempts, request.deadline_s, row.wasted, None, row.predicted_start_s, row.preempted,
        ))
        if len(self._rows) >= CHUNK:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._batches.append(columns.batch_of(self._rows, self.pool_of))
            self._rows = []
