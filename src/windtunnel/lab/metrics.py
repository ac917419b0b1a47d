"""Metrics: statistics of columns, good requests, the time base, and the expressions that name them.

Percentiles interpolate linearly between order statistics (position (n-1)·p); std is that of the population; latency statistics cover
successes. `adj_*` percentiles add every other request as +infinity, so that refusing the slow ones cannot improve them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from windtunnel.errors import ConfigMetricError
from windtunnel.lab import tables
from windtunnel.policy.param import check_number

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
PERCENTILES: Mapping[str, float] = {f"p{p}": p / 100.0 for p in (1, 5, 10, 25, 50, 75, 90, 95, 99)}
STATS = ("avg", "min", "max", "std", *PERCENTILES, "count", "sum")
ADJUSTED: Mapping[str, float] = {f"adj_{name}": q for name, q in PERCENTILES.items() if q >= 0.5}
NUMERIC = tuple(c.name for c in tables.REQUESTS if c.kind in ("float", "int"))
LATENCIES = ("ttft_s", "ttfo_s", "tpot_s", "e2e_s", "e2e_per_token_s", "control_queue_s", "engine_queue_s", "queue_s", "effective_ttft_s",
             "effective_e2e_s")


class Requests:
    """A `requests` table as arrays: numbers as float64 with NaN for unknown, words as codes. Columns are converted when first asked for."""

    def __init__(self, table: pa.Table, keep: Mask | None = None) -> None:
        self._table = table.unify_dictionaries()
        self._numbers: dict[str, Floats] = {}
        self._words: dict[str, tuple[NDArray[np.int32], list[str]]] = {}
        counted = ~self.flags("marked") & self.is_word("phase", "profiling")
        self.keep: Mask = counted if keep is None else counted & keep

    def __len__(self) -> int:
        return int(self.keep.sum())

    def has(self, name: str) -> bool:
        """Is there such a column? One that was added later is missing from older runs."""
        return name in self._table.column_names

    def flags(self, name: str) -> Mask:
        """A whole column of booleans, unknown as False."""
        return np.asarray(self._table.column(name).fill_null(False).combine_chunks().to_numpy(zero_copy_only=False), dtype=bool)

    def only(self, keep: Mask) -> Requests:
        """The same arrays, fewer rows counted."""
        out = object.__new__(Requests)
        out._table, out._numbers, out._words, out.keep = self._table, self._numbers, self._words, self.keep & keep
        return out

    def number(self, name: str) -> Floats:
        """A whole numeric column, all rows."""
        found = self._numbers.get(name)
        if found is None:
            column = self._table.column(name).cast(pa.float64())
            if column.null_count:
                column = column.fill_null(math.nan)
            found = self._numbers[name] = np.asarray(column.to_numpy(), dtype="f8")
        return found

    def words(self, name: str) -> tuple[NDArray[np.int32], list[str]]:
        """(code per row, -1 unknown; the words)."""
        found = self._words.get(name)
        if found is None:
            column = self._table.column(name)
            if not pa.types.is_dictionary(column.type):
                column = column.dictionary_encode()
            chunk = column.combine_chunks()
            if isinstance(chunk, pa.ChunkedArray):
                chunk = chunk.chunk(0) if chunk.num_chunks else pa.array([], tables.TYPES["word"])
            codes = np.asarray(pc.fill_null(chunk.indices, -1).to_numpy(zero_copy_only=False), dtype=np.int32)
            found = self._words[name] = (codes, chunk.dictionary.to_pylist())
        return found

    def is_word(self, name: str, *wanted: str) -> Mask:
        codes, words = self.words(name)
        return np.isin(codes, [i for i, w in enumerate(words) if w in wanted])

    @property
    def ids(self) -> list[str]:
        """Ids of all rows."""
        return self._table.column("request_id").to_pylist()  # type: ignore[no-any-return]

    @cached_property
    def success(self) -> Mask:
        return self.is_word("outcome", "success")

    def values(self, name: str) -> Floats:
        """The counted, known values of a column; of successes only where the column is a latency."""
        keep = self.keep & self.success if name in LATENCIES else self.keep
        x = self.number(name)[keep]
        return x[~np.isnan(x)]


def statistics(values: Floats, wanted: Sequence[str] = STATS) -> dict[str, float | None]:
    """The wanted statistics of values without NaN, plus `n`; all None but `count` and `n` if there are none."""
    n = len(values)
    out: dict[str, float | None] = {"n": n}
    quantiles = [s for s in wanted if s in PERCENTILES]
    if quantiles and n:
        found = np.percentile(values, [100.0 * PERCENTILES[s] for s in quantiles])
        out.update(zip(quantiles, map(float, found)))
    for name in wanted:
        if name == "count":
            out[name] = n
        elif name in PERCENTILES:
            out.setdefault(name, None)
        else:
            out[name] = _simple(values, name) if n else None
    return out


def _simple(values: Floats, name: str) -> float:
    match name:
        case "avg":
            return float(values.mean())
        case "min":
            return float(values.min())
        case "max":
            return float(values.max())
        case "std":
            return float(values.std())
    return float(values.sum())


def adjusted(values: Floats, others: int, q: float) -> float | None:
    """Upper order statistic (index ceil((n-1)·q)) of values and `others` times +infinity; None without any."""
    n = len(values) + others
    if not n:
        return None
    index = math.ceil((n - 1) * q - 1e-9)
    return math.inf if index >= len(values) else float(np.partition(values, index)[index])


def bounds_of(slo: Mapping[str, Any] | None) -> dict[str | None, dict[str, float]]:
    """The SLO by priority class (None: every class): column → bound, seconds. `attainment` is a target share, no bound.

    Raises ConfigValueError for a bound that is no number above 0.
    """
    given = {k: v for k, v in (slo or {}).items() if k != "attainment" and v is not None}
    if any(isinstance(v, Mapping) for v in given.values()):
        classes = {name: bounds for name, bounds in given.items() if isinstance(bounds, Mapping)}
        return {name: {k: _bound(f"slo.{name}.{k}", b) for k, b in v.items() if k != "attainment" and b is not None} for name, v in classes.items()}
    return {None: {k: _bound(f"slo.{k}", v) for k, v in given.items()}} if given else {}


def _bound(name: str, value: Any) -> float:
    check_number(name, value, above=0.0)
    return float(value)


@dataclass(frozen=True, slots=True)
class Good:
    """Which rows are good (success and every bound met) and, per bound, which met it or were not asked."""

    good: Mask
    met: Mapping[str, Mask]


def goods(rows: Requests, slo: Mapping[str, Any] | None) -> Good:
    """Good rows. An unknown value fails its bound, except `tpot_s` of a reply of 0 or 1 tokens, which is not asked."""
    success = rows.success
    good = success.copy()
    met: dict[str, Mask] = {}
    for priority, bounds in bounds_of(slo).items():
        of_class = np.ones(len(success), dtype=bool) if priority is None else rows.is_word("priority", priority)
        for column, bound in bounds.items():
            if column not in NUMERIC:
                raise ConfigMetricError(f'slo: "{column}" is no column of requests')
            with np.errstate(invalid="ignore"):
                ok = rows.number(column) <= bound
            if column == "tpot_s":
                ok |= np.nan_to_num(rows.number("output_tokens"), nan=2.0) < 2
            ok |= ~of_class
            good &= ok
            met[column] = met[column] & ok if column in met else success & ok
    return Good(good, met)
