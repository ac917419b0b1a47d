"""The time base of a run's rates, and what was open at once within it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from windtunnel.lab.metrics import Floats, Requests

if TYPE_CHECKING:
    from windtunnel.lab.run import Run


class Window:
    """The time base: [start, start + window_s). basis: planned, elapsed, padded, or given by the caller.

    planned: duration, or the last intended arrival of an open loop; elapsed: the last terminal event; both from the start of the phase,
    which is the end of the warm-up. A run that was stopped early has elapsed until then. A closed loop that stopped by counts is padded by
    what failed requests would still have occupied.
    """

    def __init__(self, run: Run, rows: Requests, window: tuple[float, float] | None) -> None:
        meta, keep = run.meta, rows.keep
        arrived, ended = rows.number("arrived_s"), rows.number("ended_s")
        self.start = _phase_start(meta, rows) if window is None else window[0]
        last = float(np.nanmax(ended[keep])) if keep.any() and not np.isnan(ended[keep]).all() else self.start
        self.makespan_s = max(0.0, last - self.start)
        if window is not None:
            self.window_s, self.basis = window[1] - window[0], "given"
            return
        planned = _planned(meta, rows, arrived) - self.start
        if not meta.complete and 0.0 < run.tables.end_s < self.start + planned:  # stopped before its time was over
            planned = 0.0
            self.makespan_s = max(self.makespan_s, run.tables.end_s - self.start)
        self.window_s, self.basis = (planned, "planned") if planned >= self.makespan_s else (self.makespan_s, "elapsed")
        if meta.loop == "closed" and meta.planned_s is None and meta.concurrency:
            pad = _pad(rows, arrived, ended, meta.concurrency)
            if pad > 0.0:
                self.window_s, self.basis = self.window_s + pad, "padded"


def _phase_start(meta: Any, rows: Requests) -> float:
    """Where the warm-up ends: as given, or at the first counted arrival if it was found by MSER-5."""
    if meta.warmup_s != "mser5":
        return float(meta.warmup_s)
    counted = rows.number("arrived_s")[rows.keep]
    marked = rows.number("arrived_s")[rows.flags("marked")]
    if not len(counted) or not len(marked) or marked.min() > counted.min():
        return 0.0
    return float(counted.min())


def left_out(run: Run) -> str:
    """What warm-up and cool-down took out of every number, in words; "" if nothing."""
    meta, rows = run.meta, Requests(run.tables.arrow("requests"))
    marked = int(rows.flags("marked").sum())
    if not marked:
        return ""
    ends = []
    if meta.warmup_s:
        found = ", found by MSER-5," if meta.warmup_s == "mser5" else ""
        ends.append(f"warm-up to {_phase_start(meta, rows):.4g} s{found}")
    if meta.cooldown_s:
        ends.append(f"the last {meta.cooldown_s:g} s")
    return f"{' and '.join(ends)}: {marked:,} requests in no number"


def _planned(meta: Any, rows: Requests, arrived: Floats) -> float:
    if meta.planned_s is not None:
        return float(meta.planned_s) - float(meta.cooldown_s)
    if meta.loop != "open" or not rows.keep.any():
        return 0.0
    intended: Floats = np.where(np.isnan(rows.number("intended_s")), arrived, rows.number("intended_s"))
    return float(intended[rows.keep].max())


def _pad(rows: Requests, arrived: Floats, ended: Floats, concurrency: float) -> float:
    won = rows.keep & rows.success
    if not won.any():
        return 0.0
    usual = float(np.median((ended - arrived)[won]))
    occupied = (ended - arrived)[rows.keep & ~rows.success]
    unused = np.maximum(0.0, usual - occupied[~np.isnan(occupied)])
    return float(unused.sum()) / concurrency


def occupancy(rows: Requests, base: Window) -> dict[str, float | None]:
    """Time-weighted means and maxima of requests in flight and waiting, from the requests' own times. All rows count: they were there."""
    arrived, sent, ended = rows.number("arrived_s"), rows.number("dispatched_s"), rows.number("ended_s")
    end = base.start + base.window_s
    until = np.where(np.isnan(ended), end, ended)
    left_queue = np.where(np.isnan(sent), until, sent)
    flying = ~np.isnan(sent)
    flight, wait = (sent[flying], until[flying]), (arrived, left_queue)
    return {
        "in_flight.avg": _mean_open(*flight, base), "in_flight.max": _max_open(*flight),
        "waiting.avg": _mean_open(*wait, base), "waiting.max": _max_open(*wait),
    }


def _mean_open(start: Floats, end: Floats, base: Window) -> float | None:
    if base.window_s <= 0.0:
        return None
    lo, hi = base.start, base.start + base.window_s
    return float(np.maximum(0.0, np.minimum(end, hi) - np.maximum(start, lo)).sum()) / base.window_s


def _max_open(start: Floats, end: Floats) -> int:
    """The most intervals open at once; an interval of no length does not count."""
    some = end > start
    if not some.any():
        return 0
    starts, ends = np.sort(start[some]), np.sort(end[some])
    return int((np.arange(1, len(starts) + 1) - np.searchsorted(ends, starts, side="right")).max())
