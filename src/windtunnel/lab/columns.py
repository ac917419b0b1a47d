"""From the recorder's rows to the `requests` table: typed columns, the derived times, the marks of warm-up and cool-down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from windtunnel.events import PRIORITY_NAMES
from windtunnel.lab import stats, tables

# The order of a recorder's row; `turn` and `engine` are unpacked here.
RAW = ("request_id", "tenant", "priority", "model", "turn", "phase", "intended_s", "arrived_s", "dispatched_s", "started_s",
       "first_token_s", "ended_s", "input_tokens", "output_tokens", "cached_tokens", "replica", "prefill_replica", "outcome", "reason",
       "attempts", "deadline_s", "wasted_tokens", "engine", "predicted_start_s", "preempted")
_TURN = (("session", "session"), ("parent_session", "parent"), ("root_session", "root"), ("depth", "depth"), ("turn", "index"))
_ENGINE = ("preemptions", "recomputed_tokens", "swapped_blocks", "kv_wait_s", "kv_transfer_s", "kv_bytes",
           "reasoning_tokens", "tokens_source", "ttfo_s")
_KIND = {c.name: c.kind for c in tables.REQUESTS}
_TYPES = {name: pa.string() if _KIND[name] == "word" else tables.TYPES[_KIND[name]] for name in _KIND}


def batch_of(rows: Sequence[tuple[Any, ...]], pool_of: Mapping[str, str]) -> pa.RecordBatch:
    """One typed chunk of the recorder's rows, without the columns that are unknown in all of them."""
    raw: dict[str, Any] = dict(zip(RAW, zip(*rows)))
    turns, engines = raw.pop("turn"), raw.pop("engine")
    raw["priority"] = [PRIORITY_NAMES.get(p) or str(p) for p in raw["priority"]]
    raw["pool"] = [pool_of.get(r) for r in raw["replica"]]
    arrays = {name: _array(name, values) for name, values in raw.items()}
    n = len(rows)
    if any(t is not None for t in turns):
        for name, field in _TURN:
            arrays[name] = pa.array([getattr(t, field) if t is not None else None for t in turns], _TYPES[name])
    if any(engines):
        told = [e or {} for e in engines]
        for name in _ENGINE:
            arrays[name] = pa.array([e.get(name) for e in told], _TYPES[name])
    return pa.record_batch({name: _stored(name, a) for name, a in arrays.items() if a.null_count < n})


_HELD = (*(name for name in RAW if name not in ("turn", "engine")), "pool", *(name for name, _ in _TURN), *_ENGINE)


def _whole(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A chunk with all its columns, in one order."""
    n, names = batch.num_rows, set(batch.schema.names)
    return pa.record_batch({name: batch.column(name) if name in names else _stored(name, pa.nulls(n, _TYPES[name])) for name in _HELD})


def _stored(name: str, values: pa.Array) -> pa.Array:
    return values.dictionary_encode() if _KIND[name] == "word" and not pa.types.is_dictionary(values.type) else values


def _array(name: str, values: Sequence[Any]) -> pa.Array:
    """One typed column; a word that stands in every row is written once."""
    if _KIND[name] == "word" and len(set(values)) == 1:
        if values[0] is None:
            return pa.nulls(len(values), _TYPES[name])
        return pa.DictionaryArray.from_arrays(np.zeros(len(values), np.int32), pa.array(values[:1], _TYPES[name]))
    return pa.array(values, _TYPES[name])


def requests_table(batches: Sequence[pa.RecordBatch], superseded: set[int], late_waste: Mapping[int, int] | None = None) -> pa.Table:
    """The whole table from its chunks, without the rows that a retry replaced; nothing is marked yet.

    late_waste: tokens by row that came after the row was made.
    """
    if not batches:
        return tables.arrow_table("requests", {})
    raw = pa.Table.from_batches([_whole(batch) for batch in batches])
    if late_waste:
        i = raw.schema.get_field_index("wasted_tokens")
        wasted = raw.column(i).to_numpy().copy()
        wasted[list(late_waste)] += np.fromiter(late_waste.values(), wasted.dtype, len(late_waste))
        raw = raw.set_column(i, raw.schema.field(i), pa.array(wasted, raw.schema.field(i).type))
    if superseded:
        keep = np.ones(len(raw), dtype=bool)
        keep[list(superseded)] = False
        raw = raw.filter(pa.array(keep))
    raw = raw.unify_dictionaries().combine_chunks()
    given = {name: raw.column(name) for name in raw.column_names}
    given.update(derived(given))
    given["marked"] = pa.array(np.zeros(len(raw), dtype=bool))
    return tables.arrow_table("requests", given)


def from_rows(rows: Mapping[str, Sequence[Any]]) -> pa.Table:
    """A `requests` table from plain lists, as another tool's results have them; derived columns are computed where they are not given."""
    n = len(next(iter(rows.values())))
    start: dict[str, Sequence[Any]] = {"phase": ["profiling"] * n, "attempts": [1] * n, "marked": [False] * n}
    start |= {"priority": ["interactive"] * n} | dict(rows)
    table = tables.arrow_table("requests", start)
    given = {name: table.column(name) for name in table.column_names}
    for name, values in derived(given).items():
        if name not in rows:
            given[name] = values
    if "wasted_tokens" not in rows:
        lost = ~np.asarray(pc.equal(given["outcome"].cast(pa.string()), "success").fill_null(False))
        given["wasted_tokens"] = pa.array(np.where(lost, np.nan_to_num(_numbers(given["output_tokens"])), 0).astype("i8"))
    return tables.arrow_table("requests", given)


def _numbers(column: Any) -> np.ndarray:
    """float64 with NaN for unknown."""
    return np.asarray(column.cast(pa.float64()).fill_null(np.nan).to_numpy(), dtype="f8")


def derived(given: Mapping[str, Any]) -> dict[str, pa.Array]:
    """The times that follow from others. Latencies to the end are those of successes; unknown stays unknown."""
    arrived, ended, first = (_numbers(given[c]) for c in ("arrived_s", "ended_s", "first_token_s"))
    sent, started, intended = (_numbers(given[c]) for c in ("dispatched_s", "started_s", "intended_s"))
    tokens = _numbers(given["output_tokens"])
    success = np.asarray(pc.equal(given["outcome"].cast(pa.string()), "success").fill_null(False))
    done = np.where(success, ended, np.nan)
    e2e, ttft = done - arrived, first - arrived
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot = np.where(tokens >= 2, (e2e - ttft) / (tokens - 1), np.nan)
        per_token = np.where(tokens >= 1, e2e / tokens, np.nan)
    reasoned = np.nan_to_num(_numbers(given["reasoning_tokens"])) > 0
    told = _numbers(given["ttfo_s"])
    out = {
        "ttft_s": ttft, "ttfo_s": np.where(np.isnan(told) & ~reasoned, ttft, told), "tpot_s": tpot, "e2e_s": e2e,
        "e2e_per_token_s": per_token, "control_queue_s": sent - arrived, "engine_queue_s": started - sent,
        "queue_s": (sent - arrived) + (started - sent),
        "effective_ttft_s": first - intended, "effective_e2e_s": done - intended, "lag_s": arrived - intended,
    }
    return {name: pa.array(values, pa.float64(), from_pandas=True) for name, values in out.items()}


def marked(table: pa.Table, warmup_s: float | str, cooldown_s: float, planned_s: float | None) -> pa.Table:
    """The `requests` table with its warm-up and cool-down marked."""
    index = table.schema.get_field_index("marked")
    return table.set_column(index, table.schema.field(index), pa.array(marks(table, warmup_s, cooldown_s, planned_s)))


def marks(table: pa.Table, warmup_s: float | str, cooldown_s: float, planned_s: float | None) -> np.ndarray:
    """True for requests of the warm-up (seconds, or found by MSER-5 on TTFT) and of the last `cooldown_s`.

    planned_s: where the cool-down ends; None: at the last arrival.
    """
    arrived = _numbers(table.column("arrived_s"))
    out = np.zeros(len(arrived), dtype=bool)
    if warmup_s == "mser5":
        order = np.argsort(arrived, kind="stable")
        ttft = (_numbers(table.column("first_token_s")) - arrived)[order]
        seen = ~np.isnan(ttft)
        cut = stats.mser5(ttft[seen])
        if cut:
            out |= arrived < arrived[order][seen][cut]
    elif float(warmup_s):
        out |= arrived < float(warmup_s)
    if cooldown_s and len(arrived):
        out |= arrived >= (planned_s if planned_s is not None else float(arrived.max())) - cooldown_s
    return out
