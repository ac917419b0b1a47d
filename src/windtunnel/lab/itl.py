"""The gaps between tokens, exactly: the multiset of them all, or of some requests, from who decoded in which steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from windtunnel.lab.metrics import PERCENTILES, Floats, Mask, Requests
from windtunnel.lab.tables import Tables
from windtunnel.sim.tokens import weighted_percentiles

Ints = NDArray[np.int64]
NEEDS = ("steps", "decodes")


class Gaps:
    """Gaps between tokens of a recorded run. `of(mask)` is a weighted multiset in O(steps + requests), whatever the number of tokens.

    Several tokens that come in one step are one gap. Needs the tables `steps` and `decodes`; `recorded` says whether they are there.
    """

    def __init__(self, tables: Tables, rows: Requests) -> None:
        steps, decodes = tables.arrow("steps"), tables.arrow("decodes").unify_dictionaries()
        row_of = {id: i for i, id in enumerate(rows.ids)}
        self._row = np.array([row_of.get(id, -1) for id in decodes.column("request_id").to_pylist()], dtype=np.int64)
        self._t, self._first = (_floats(decodes.column(name)) for name in ("t_s", "first_s"))
        self._step0, self._steps = (np.asarray(decodes.column(name).to_numpy(), dtype=np.int64) for name in ("step0", "steps"))
        self._replica = np.array(decodes.column("replica").to_pylist(), dtype=object)
        self._ends = _ends(steps)

    def of(self, keep: Mask) -> tuple[Floats, Ints]:
        """(seconds, how many) of the requests in the mask, which is over all rows of `requests`."""
        mine = (self._row >= 0) & keep[self._row]
        seconds, counts = [np.empty(0)], [np.empty(0, dtype=np.int64)]
        for name, ends in self._ends.items():
            at = np.flatnonzero(mine & (self._replica == name))
            step0, steps, first = self._step0[at], self._steps[at], self._first[at]
            first = np.where(np.isnan(first), ends[np.minimum(step0 + 1, len(ends) - 1)], first)
            seconds.append(first - self._t[at])
            counts.append(np.ones(len(at), dtype=np.int64))
            change = np.zeros(len(ends) + 1, dtype=np.int64)  # who goes on from step to step
            np.add.at(change, np.minimum(step0 + 2, len(ends)), 1)
            np.add.at(change, np.minimum(step0 + steps + 1, len(ends)), -1)
            going = np.cumsum(change)[1 : len(ends)]
            seconds.append(np.diff(ends)[going > 0])
            counts.append(going[going > 0])
        return np.concatenate(seconds), np.concatenate(counts)


def recorded(tables: Tables) -> bool:
    """Does the run hold what gaps between tokens are made from?"""
    return all(name in tables.names for name in NEEDS)


def statistics(seconds: Floats, counts: Ints, wanted: Sequence[str]) -> dict[str, float | None]:
    """The wanted statistics of the multiset written out, plus `n`; all None but `count` and `n` without a gap, and for those unknown here."""
    n = int(counts.sum())
    out: dict[str, float | None] = {"n": n, **dict.fromkeys(wanted)}
    quantiles = [s for s in wanted if s in PERCENTILES]
    out.update(zip(quantiles, weighted_percentiles(seconds, counts, [100.0 * PERCENTILES[s] for s in quantiles])))
    if "count" in out:
        out["count"] = n
    if n:
        mean = float(seconds @ counts) / n
        known = {"avg": mean, "min": float(seconds.min()), "max": float(seconds.max()), "sum": float(seconds @ counts),
                 "std": float(np.sqrt((seconds - mean) ** 2 @ counts / n))}
        out.update({s: known[s] for s in wanted if s in known})
    return out


def _ends(steps: object) -> dict[str, Floats]:
    """By replica: when each step with decodes ended, at its number; NaN at 0."""
    table = steps.unify_dictionaries()  # type: ignore[attr-defined]
    replica = np.array(table.column("replica").to_pylist(), dtype=object)
    out: dict[str, Floats] = {}
    t, a, b = (_floats(table.column(name)) for name in ("t_s", "a_s", "b_s"))
    k = np.asarray(table.column("steps").to_numpy(), dtype=np.int64)
    for name in dict.fromkeys(replica.tolist()):
        mine = (replica == name) & (k > 0)
        n = k[mine]
        j = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n) + 1.0
        ends = np.repeat(t[mine], n) + (j * np.repeat(a[mine], n) + np.repeat(b[mine], n) * (j * (j - 1.0) * 0.5))
        out[name] = np.concatenate([[np.nan], ends])
    return out


def _floats(column: object) -> Floats:
    return np.asarray(column.fill_null(np.nan).to_numpy(), dtype="f8")  # type: ignore[attr-defined]
