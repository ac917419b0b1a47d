"""The recorder: what happened and what was decided, appended to columns as it happens, by record level.

`requests`: one row per original request, at its last end; `decisions`: also one row per effect except WakeAt and Note; `full`: also those,
the notes, the engines' steps and the log. A step costs about a microsecond at level `requests`: dictionary look-ups and one tuple per request,
turned into typed columns every few thousand rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from windtunnel import effects as fx
from windtunnel import events as ev
from windtunnel.errors import ConfigValueError
from windtunnel.lab import columns, tables
from windtunnel.lab.decisions import DecisionRows
from windtunnel.lab.log import LogWriter, header_of
from windtunnel.lab.tables import LEVELS, Tables

if TYPE_CHECKING:
    from windtunnel.lab.run import RunMeta

CHUNK = 8192
STREAMS = frozenset({"scheduler", "request", "routing", "session", "planner", "fleet"})
CUT = "cut"


def wants_of(level: str) -> frozenset[str]:
    """The note streams that a record level keeps."""
    return STREAMS if level == "full" else frozenset()


class Row:
    """An original whose request is open, or whose last attempt is still letting go."""

    __slots__ = ("arrived_s", "attempts", "dispatch", "end", "first_token_s", "heir", "intended_s", "live", "prefill", "replica", "request",
                 "sent_s", "started_s", "tokens", "wasted")

    def __init__(self, request: ev.Request) -> None:
        self.request = request
        self.arrived_s, self.intended_s = request.arrived_s, request.intended_s
        self.attempts = self.wasted = self.dispatch = 0  # attempts: of the submissions before this one
        self.live = False
        self.sent_s = self.replica = self.prefill = self.started_s = self.first_token_s = self.tokens = self.end = self.heir = None


class Recorder:
    """Takes every handled event with its effects, in order; `close` gives the tables.

    control_name: "main" or a shadow's name. log: a live run's writer; a simulated run at level `full` calls `open_log`.
    """

    def __init__(self, level: str = "requests", *, control_name: str = "main", log: LogWriter | None = None) -> None:
        if level not in LEVELS:
            raise ConfigValueError("record", f"expected one of {', '.join(LEVELS)}, got {level!r}")
        self.level, self.log = level, log
        self._open: dict[str, Row] = {}
        self._closing: dict[str, Row] = {}
        self._rows: list[tuple[Any, ...]] = []
        self._batches: list[pa.RecordBatch] = []
        self._count = self._running = 0
        self._ended: dict[str, tuple[int, float, float | None, int, int]] = {}  # origin without success: index, arrived, intended, attempts, wasted
        self._superseded: set[int] = set()
        self._pool_of: dict[str, str] = {}
        self._series: tuple[list[float], list[str], list[str], list[float]] = ([], [], [], [])
        self._replicas: list[dict[str, Any]] = []
        self._steps: list[pa.Table] = []
        self._details = DecisionRows(control_name, everything=level == "full") if level != "requests" else None
        self._slow = self._details is not None or log is not None
        self._on: dict[type, Callable[[float, Any], None]] = {
            ev.Arrived: self._arrived, ev.Finished: self._finished, ev.Failed: self._failed, ev.FirstToken: self._first_token,
            ev.Started: self._began, ev.ReplicaReady: self._replica, ev.ReplicaBooting: self._replica, ev.ReplicaGone: self._gone,
        }
        self._do: dict[type, Callable[[float, Any, Any], None]] = {fx.Dispatch: self._dispatched, fx.Reject: self._rejected, fx.Close: self._closed}

    @property
    def wants(self) -> frozenset[str]:
        """The note streams that this level keeps."""
        return wants_of(self.level)

    def open_log(self, meta: RunMeta, control: Any) -> None:
        """Keep a log in memory, with the header of this run."""
        self.log, self._slow = LogWriter(header_of(meta, control)), True

    # -- what a world tells -----------------------------------------------------------------------------------------------------------

    def step(self, seq: int, now: float, event: ev.Event, effects: Sequence[fx.Effect], verdicts: Sequence[str | None] | None = None) -> None:
        """One handled event; verdicts: None = all applied, else per effect None or the reason for which it was held back."""
        on = self._on.get(type(event))
        if on is not None:
            on(now, event)
        if self._slow:
            self._slow_step(seq, now, event, effects, verdicts)
            return
        for effect in effects:
            do = self._do.get(type(effect))
            if do is not None:
                do(now, effect, event)

    def error(self, seq: int, now: float, event: ev.Event, error: BaseException) -> None:
        """The control raised on this event: the log keeps both, and the arrival counts as a request."""
        if type(event) is ev.Arrived and event.request.id not in self._open:
            self._arrived(now, event)
        if self.log is not None:
            self.log.error(seq, now, event, error)

    def sample(self, now: float, name: str, key: str, value: float) -> None:
        """One row of the series table."""
        times, names, keys, values = self._series
        times.append(now)
        names.append(name)
        keys.append(key)
        values.append(value)

    def replica_row(self, row: Mapping[str, Any], /) -> None:
        """One life of a replica: columns of the replicas table."""
        self._replicas.append(dict(row))

    def pieces(self, replica: str, rows: Mapping[str, Any]) -> None:
        """Runs of equal engine steps of one replica: columns of the steps table, `replica` apart. Kept at level `full`."""
        if self.level == "full":
            n = len(next(iter(rows.values()), ()))
            self._steps.append(tables.arrow_table("steps", {"replica": [replica] * n, **rows}))

    def close(self, now: float, *, complete: bool = True) -> Tables:
        """The tables. What is still open is recorded as cut: no outcome, no end, reason `cut`. complete: False for a run that was stopped."""
        for row in self._closing.values():
            self._put(row)
        for row in self._open.values():
            row.end = (None, None, CUT if complete else "stopped")
            self._put(row)
        self._closing, self._open = {}, {}
        self._flush()
        if self.log is not None:
            self.log.close()
        made: dict[str, Callable[[], pa.Table]] = {
            "requests": self._requests,
            "replicas": lambda: tables.rows_table("replicas", self._replicas),
            "series": lambda: tables.arrow_table("series", dict(zip(("t_s", "name", "key", "value"), self._series))),
        }
        if self._details is not None:
            made["decisions"] = self._details.decisions
            if self.level == "full":
                made["notes"] = self._details.notes
                made["steps"] = lambda: pa.concat_tables([tables.arrow_table("steps", {}), *self._steps]).unify_dictionaries()
        log = self.log
        kept = None if log is None else (log.bytes() if log.path is None else log.path)
        return Tables(self.level, made, end_s=now, log=kept)

    # -- events ---------------------------------------------------------------------------------------------------------------------

    def _arrived(self, now: float, event: ev.Arrived) -> None:
        request = event.request
        row = self._open[request.id] = Row(request)
        if request.attempt > 1 and request.origin is not None:
            self._take_over(row, request.origin)

    def _take_over(self, row: Row, origin: str) -> None:
        """A client's retry: one row per original, so this submission's row replaces the earlier one."""
        earlier = self._ended.pop(origin, None)
        if earlier is not None:
            index, row.arrived_s, row.intended_s, row.attempts, row.wasted = earlier
            self._superseded.add(index)
            return
        for old in self._closing.values():
            if (old.request.origin or old.request.id) == origin and old.heir is None:
                old.heir = row  # its tokens come later
                row.arrived_s, row.intended_s, row.wasted = old.arrived_s, old.intended_s, old.wasted
                row.attempts = old.attempts + (old.dispatch or 1)
                return

    def _finished(self, now: float, event: ev.Finished) -> None:
        row = self._open.get(event.request_id)
        if row is None:
            self._let_go(event)
            return
        if row.dispatch != event.dispatch or not row.live:
            return
        del self._open[event.request_id]
        self._running -= 1
        request = row.request
        self._count += 1
        self._rows.append((
            request.origin or request.id, request.tenant, request.priority, request.model, request.turn, request.phase, row.intended_s,
            row.arrived_s, row.sent_s, event.started_s, event.first_token_s, now,
            request.input_tokens if event.input_tokens is None else event.input_tokens, event.output_tokens, event.cached_tokens, row.replica,
            row.prefill, "success", event.finish_reason, row.attempts + row.dispatch, request.deadline_s, row.wasted, event.engine,
        ))
        if len(self._rows) >= CHUNK:
            self._flush()

    def _failed(self, now: float, event: ev.Failed) -> None:
        row = self._open.get(event.request_id)
        if row is None:
            self._let_go(event)
        elif row.dispatch == event.dispatch and row.live:
            self._attempt_over(row, event)

    def _attempt_over(self, row: Row, event: ev.Failed | ev.Finished) -> None:
        row.live = False
        self._running -= 1
        row.tokens = event.output_tokens
        row.wasted += event.output_tokens or 0
        if event.started_s is not None:
            row.started_s = event.started_s
        if event.first_token_s is not None:
            row.first_token_s = event.first_token_s

    def _let_go(self, event: ev.Failed | ev.Finished) -> None:
        """The attempt of a request that was closed before has ended now."""
        row = self._closing.get(event.request_id)
        if row is None or row.dispatch != event.dispatch:
            return
        del self._closing[event.request_id]
        self._attempt_over(row, event)
        if row.heir is not None:
            row.heir.wasted += event.output_tokens or 0
        else:
            self._put(row)

    def _first_token(self, now: float, event: ev.FirstToken) -> None:
        row = self._open.get(event.request_id)
        if row is not None and row.dispatch == event.dispatch:
            row.first_token_s = now

    def _began(self, now: float, event: ev.Started) -> None:
        row = self._open.get(event.request_id)
        if row is not None and row.dispatch == event.dispatch:
            row.started_s = now

    def _replica(self, now: float, event: ev.ReplicaReady | ev.ReplicaBooting) -> None:
        self._pool_of[event.replica] = event.pool

    def _gone(self, now: float, event: ev.ReplicaGone) -> None:
        if event.effective_at is not None and event.effective_at > now:
            return
        for request_id in [i for i, row in self._closing.items() if row.replica == event.replica]:
            row = self._closing.pop(request_id)
            self._running -= 1
            if row.heir is None:
                self._put(row)

    # -- effects --------------------------------------------------------------------------------------------------------------------

    def _dispatched(self, now: float, effect: fx.Dispatch, event: Any) -> None:
        row = self._open.get(effect.request.id)
        if row is None:
            return
        if not row.live:  # after the loss of a replica it still counts as running
            row.live = True
            self._running += 1
        row.dispatch, row.sent_s, row.replica, row.prefill = effect.dispatch, now, effect.replica, effect.prefill
        if effect.dispatch > 1:
            row.started_s = row.first_token_s = row.tokens = None

    def _rejected(self, now: float, effect: fx.Reject, event: Any) -> None:
        row = self._open.pop(effect.request_id, None)
        if row is not None:
            row.end = (now, effect.outcome, str(effect.denial.reason))
            self._put(row)

    def _closed(self, now: float, effect: fx.Close, event: Any) -> None:
        """A running attempt has yet to let go, and will say how many tokens were wasted; one on a lost replica never will."""
        row = self._open.pop(effect.request_id, None)
        if row is None:
            return
        row.end = (now, effect.outcome, effect.reason)
        if row.live and type(event) is not ev.ReplicaGone:
            self._closing[effect.request_id] = row
            return
        if row.live:
            row.live = False
            self._running -= 1
        self._put(row)

    # -- rows -----------------------------------------------------------------------------------------------------------------------

    def _put(self, row: Row) -> None:
        """Append an original that ended without success (so far: a retry may take it over)."""
        request = row.request
        ended_s, outcome, reason = row.end  # type: ignore[misc]
        origin, attempts = request.origin or request.id, row.attempts + (row.dispatch or 1)
        self._ended[origin] = (self._count, row.arrived_s, row.intended_s, attempts, row.wasted)
        self._count += 1
        self._rows.append((
            origin, request.tenant, request.priority, request.model, request.turn, request.phase, row.intended_s, row.arrived_s, row.sent_s,
            row.started_s, row.first_token_s, ended_s, request.input_tokens, row.tokens, None, row.replica, row.prefill, outcome, reason,
            attempts, request.deadline_s, row.wasted, None,
        ))
        if len(self._rows) >= CHUNK:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._batches.append(columns.batch_of(self._rows, self._pool_of))
            self._rows = []

    def _requests(self) -> pa.Table:
        return columns.requests_table(self._batches, self._superseded)

    def _slow_step(self, seq: int, now: float, event: ev.Event, effects: Sequence[fx.Effect], verdicts: Sequence[str | None] | None) -> None:
        details = self._details
        for i, effect in enumerate(effects):
            if details is not None:
                waiting = len(self._open) - self._running + len(self._closing)
                row = self._open.get(getattr(effect, "request_id", None) or getattr(getattr(effect, "request", None), "id", ""))
                details.add(seq, now, event, effect, row.request if row is not None else None, self._pool_of, waiting, self._running,
                            verdicts is None or verdicts[i] is None)
            do = self._do.get(type(effect))
            if do is not None:
                do(now, effect, event)
        if self.log is not None:
            self.log.step(seq, now, event, effects, verdicts)
