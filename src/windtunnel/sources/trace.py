"""A trace as a source: its rows become requests, at their own times or at a rate."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from windtunnel.effects import Close, Reject
from windtunnel.errors import ConfigValueError, TraceEmptyError, TraceFormatError
from windtunnel.events import PRIORITIES, Event, Request, Truth
from windtunnel.policy.routing.turns import TurnRef
from windtunnel.sources.arrivals import FixedSchedule, RequestRate
from windtunnel.sources.dist import Floats
from windtunnel.sources.source import THROTTLED, Ask, Loop, Throttle
from windtunnel.sources.traces.lines import OnError
from windtunnel.sources.traces.open import Operation, Trace, open_trace
from windtunnel.sources.traces.ops import operation_of
from windtunnel.sources.traces.prompts import Prompts
from windtunnel.sources.traces.row import SCHEMA, TraceRow, all_null, floats_of, rebatch, values_of, with_column

SORTED_IN_MEMORY = 262_144  # rows; a longer trace is read twice, and held as a whole only if it is out of order


class TraceSource:
    """The requests of a trace: an open loop.

    trace: a path, a `Trace` or rows. ops: operations or plain data (see `traces.ops`). load: `FixedSchedule` (the rows' own times;
    `zero` is short for its offset) or `RequestRate`, which replaces them in order. rng: a NumPy generator or seed for that rate.
    seed: of the operations' choices. tenant, priority, model: of rows that have none. bound="output": the client asks for exactly
    the recorded number of output tokens, as replaying load generators do. prompts: makes message content for real engines.
    block_size: tokens of the trace's prefix blocks, or None. dropped: rows before the offset, counted while streaming.
    """

    loop: Loop = "open"
    needs: frozenset[str] = frozenset()
    endless = False

    def __init__(self, trace: Trace | Iterable[TraceRow] | str | Path, *, name: str = "trace", model: str = "", format: str = "auto",
                 on_error: OnError = "raise", ops: Sequence[Operation | Mapping[str, Any]] = (), tenant: str = "default",
                 priority: int | str = 0, bound: Literal["output"] | None = "output", zero: float | Literal["first"] = "first",
                 load: FixedSchedule | RequestRate | None = None, rng: np.random.Generator | int = 0, seed: int = 0,
                 prompts: Prompts | None = None) -> None:
        if bound not in ("output", None):
            raise ConfigValueError("bound", f'expected "output" or None, got {bound!r}')
        if isinstance(trace, (str, Path)):
            trace = open_trace(trace, format, on_error)
        elif not isinstance(trace, Trace):
            trace = Trace.from_rows(trace, name=name)
        self.trace = trace.apply(*(operation_of(op, f"ops.{i}") for i, op in enumerate(ops)), seed=seed)
        self.name, self.model, self.block_size, self.dropped = name, model, self.trace.block_size, 0
        self._tenant, self._priority, self._bounded, self._prompts = tenant, _priority(priority), bound == "output", prompts
        self._load, self._rng, self._exhausted = load if load is not None else FixedSchedule(zero), rng, False
        most = self._load.max_in_flight
        self._throttle = None if most is None else Throttle(name, self._requests(), most)
        self.needs = frozenset() if most is None else THROTTLED

    def stream(self) -> Iterator[Request] | None:
        return None if self._throttle else self._requests()

    def start(self, now: float) -> Sequence[Ask]:
        return self._throttle.start(now) if self._throttle else ()

    def handle(self, what: Event | Reject | Close, now: float) -> Sequence[Ask]:
        return self._throttle.handle(what, now) if self._throttle else ()

    def done(self) -> bool:
        return self._throttle.done() if self._throttle else self._exhausted

    def _requests(self) -> Iterator[Request]:
        self.dropped, sent = 0, 0
        for batch in self._timed(_in_order(self.trace)):
            sent += batch.num_rows
            yield from self._of_batch(batch)
        if not sent:
            raise TraceEmptyError(f"all {self.dropped} rows come before the schedule begins", where=self.trace.name)
        self._exhausted = True

    def _timed(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The batches with run seconds as their arrival times."""
        if isinstance(self._load, RequestRate):
            yield from _at_rate(batches, self._load, self._rng)
            return
        offset = self._load.offset
        for batch in batches:
            times = floats_of(batch, "arrival_s")
            if offset == "first":
                offset = float(times[0])
            first = int(np.searchsorted(times, offset, side="left"))
            self.dropped += first
            if first < batch.num_rows:
                yield with_column(batch, "arrival_s", times - offset).slice(first)

    def _of_batch(self, batch: pa.RecordBatch) -> Iterator[Request]:
        model, nobody = self.model, frozenset[str]()
        ids = values_of(batch, "request_id")
        times = values_of(batch, "arrival_s")
        outputs = values_of(batch, "output_tokens")
        if not self.trace.own_ids:
            prefix = f"{self.name}-"
            ids = [prefix + id_ for id_ in ids]
        inputs = values_of(batch, "input_tokens")
        blocks = values_of(batch, "blocks")
        for id_, tenant, m, priority, t, i, bound, deadline, b, turn, content, o in zip(
                ids, _filled(batch, "tenant", self._tenant), _filled(batch, "model", model), self._priorities(batch), times, inputs,
                outputs if self._bounded else repeat(None), _deadlines(batch), blocks, _turns(batch), self._contents(batch, ids), outputs):
            yield Request(id_, tenant, m, priority, t, i, bound, None, None, 1, nobody, t, deadline, "chat", None, None, b, None, turn, (),
                          None, "profiling", False, content, None if o is None else Truth(o, None, None))

    def _priorities(self, batch: pa.RecordBatch) -> Iterable[int]:
        if all_null(batch, "priority"):
            return repeat(self._priority)
        return [self._priority if name is None else PRIORITIES[name] for name in values_of(batch, "priority")]

    def _contents(self, batch: pa.RecordBatch, ids: Sequence[str]) -> Iterable[Any]:
        if self._prompts is None:
            return repeat(None)
        columns = (values_of(batch, name) for name in ("input_tokens", "blocks", "messages"))
        return (self._prompts.content(id_, n, b) if m is None else {"messages": json.loads(m)} for id_, n, b, m in zip(ids, *columns))


def _priority(value: int | str) -> int:
    if isinstance(value, str) and value in PRIORITIES:
        return PRIORITIES[value]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigValueError("priority", f"expected {', '.join(PRIORITIES)} or an int >= 0, got {value!r}")
    return value


def _filled(batch: pa.RecordBatch, name: str, default: str) -> Iterable[str]:
    if all_null(batch, name):
        return repeat(default)
    return [default if value is None else value for value in values_of(batch, name)]


def _deadlines(batch: pa.RecordBatch) -> Iterable[float | None]:
    if all_null(batch, "deadline_in_s"):
        return repeat(None)
    return [None if span is None else t + span for t, span in zip(values_of(batch, "arrival_s"), values_of(batch, "deadline_in_s"))]


def _turns(batch: pa.RecordBatch) -> Iterable[TurnRef | None]:
    if all_null(batch, "session"):
        return repeat(None)
    columns = (values_of(batch, name) for name in ("session", "turn", "parent_session", "branch", "subagent_type"))
    return [None if session is None else
            TurnRef(session, turn or 0, None, parent, parent or session, 0 if parent is None else 1, branch, (), kind)
            for session, turn, parent, branch, kind in zip(*columns)]


def _at_rate(batches: Iterator[pa.RecordBatch], load: RequestRate, rng: np.random.Generator | int) -> Iterator[pa.RecordBatch]:
    generator = deepcopy(rng) if isinstance(rng, np.random.Generator) else np.random.default_rng(rng)  # a second stream is the same
    times, ready = load.times(generator), np.empty(0)
    for batch in batches:
        if not all_null(batch, "session"):
            raise TraceFormatError("a rate cannot replace the times of a trace with sessions: their turns follow each other")
        while ready.size < batch.num_rows and (more := next(times, None)) is not None:
            ready = np.concatenate((ready, more))
        n = min(ready.size, batch.num_rows)
        if n:
            yield with_column(batch.slice(0, n), "arrival_s", ready[:n])
        if n < batch.num_rows:
            return
        ready = ready[n:]


def _in_order(trace: Trace) -> Iterator[pa.RecordBatch]:
    """The batches in order of arrival, equal times in file order."""
    held: list[pa.RecordBatch] = []
    rows, last, ordered = 0, -np.inf, True
    for batch in trace.batches():
        times = _times_of(batch, trace)
        ordered = ordered and bool(times[0] >= last and (times[1:] >= times[:-1]).all())
        rows, last = rows + batch.num_rows, times[-1]
        if rows <= SORTED_IN_MEMORY:
            held.append(batch)
    if rows > SORTED_IN_MEMORY:
        held = []
        if ordered:
            yield from trace.batches()
            return
        held = list(trace.batches())
    table = pa.Table.from_batches(held, SCHEMA)
    _check_ids(table, trace)
    if not ordered:
        table = table.take(pa.array(np.argsort(table.column("arrival_s").to_numpy(), kind="stable")))
    yield from rebatch(table)


def _times_of(batch: pa.RecordBatch, trace: Trace) -> Floats:
    if batch.column("arrival_s").null_count:
        raise TraceFormatError("some rows have a delay after an earlier turn instead of a time; only rows with a time of their own can be "
                               "replayed", where=trace.name)
    return floats_of(batch, "arrival_s")


def _check_ids(table: pa.Table, trace: Trace) -> None:
    if not trace.own_ids:
        return
    seen: set[str] = set()
    for id_ in table.column("request_id").to_pylist():
        if id_ in seen:
            raise TraceFormatError(f"request_id {id_!r} occurs twice", where=trace.name)
        seen.add(id_)
