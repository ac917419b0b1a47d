"""`Summary`: a run in numbers. Every value has one definition; n stands beside every statistic."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from windtunnel.errors import ConfigValueError
from windtunnel.lab import itl, metrics, scalars
from windtunnel.lab.metrics import ADJUSTED, STATS, Mask, Requests

if TYPE_CHECKING:
    from windtunnel.lab.run import Run

GROUPS = ("tenant", "priority", "pool", "phase")
TABLE_ROWS = ("ttft_s", "tpot_s", "e2e_s", "e2e_per_token_s", "control_queue_s", "engine_queue_s", "input_tokens", "output_tokens")
_LINES = ("ttft_s", "tpot_s", "e2e_s")


class Summary:
    """values: flat name → number or None; table: metric × statistic; by: one row per group; text: what `print` shows.

    slo: column → bound (or per priority class); window: (from, to) run seconds of the arrivals that count, None for all;
    only: which rows count, None for all.
    """

    def __init__(self, run: Run, slo: Mapping[str, Any] | None = None, *, by: str | None = None, window: tuple[float, float] | None = None,
                 only: Callable[[Requests], Mask] | None = None) -> None:
        if by is not None and by not in GROUPS:
            raise ConfigValueError("by", f'expected one of {", ".join(GROUPS)}, got {by!r}')
        self._meta, self.slo, self._by, self.window = run.meta, dict(run.meta.slo or {}) if slo is None else dict(slo), by, window
        rows = Requests(run.tables.arrow("requests"))
        if window is not None:
            arrived = rows.number("arrived_s")
            rows = rows.only((arrived >= window[0]) & (arrived < window[1]))
        if only is not None:
            rows = rows.only(only(rows))
        self.values: dict[str, Any] = scalars.scalars_of(run, rows, self.slo, window)
        self._stats = {name: metrics.statistics(rows.values(name)) for name in TABLE_ROWS}
        self._gaps = itl.Gaps(run.tables, rows) if itl.recorded(run.tables) else None
        if self._gaps is not None:
            self._stats["itl_s"] = found = itl.statistics(*self._gaps.of(rows.keep), STATS)
            self.values |= {f"itl_s.{s}": found[s] for s in ("p50", "p90", "p99")}
        lost = len(rows) - int(self.values["completed"])
        for name in _LINES:
            reached = rows.values(name)
            self._stats[name] |= {s: metrics.adjusted(reached, lost, q) for s, q in ADJUSTED.items()}
        self.by = self._groups(run, rows) if by is not None else None

    @property
    def table(self) -> pd.DataFrame:
        """One row per metric, one column per statistic, `n` first; unknown NA. SI seconds and tokens."""
        names = ["n", *(s for s in STATS if s != "count"), *ADJUSTED]
        return pd.DataFrame({s: [x.get(s) for x in self._stats.values()] for s in names}, index=pd.Index(list(self._stats), name="metric"))

    def _groups(self, run: Run, rows: Requests) -> pd.DataFrame:
        """One row per group: all scalars that are defined for a part of the requests, and the usual percentiles."""
        codes, words = rows.words(self._by or "")
        out = []
        for code in sorted(set(codes[rows.keep].tolist()), key=lambda c: words[c] if c >= 0 else ""):
            part = rows.only(codes == code)
            found: dict[str, Any] = {self._by or "": words[code] if code >= 0 else None}
            found |= scalars.part_of(run, part, self.slo, self.window)
            for name in _LINES:
                stat = metrics.statistics(part.values(name), ("p50", "p99"))
                found |= {f"{name}.p50": stat["p50"], f"{name}.p99": stat["p99"], f"{name}.n": stat["n"]}
            if self._gaps is not None:
                stat = itl.statistics(*self._gaps.of(part.keep), ("p50", "p99"))
                found |= {"itl_s.p50": stat["p50"], "itl_s.p99": stat["p99"], "itl_s.n": stat["n"]}
            out.append(found)
        return pd.DataFrame(out)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: every scalar, the statistics by metric, and the names that the command line prints. +infinity is "inf"."""
        v = self.values
        out = dict(v)
        for name, found in self._stats.items():
            out[name] = {"mean": found["avg"], **{s: found[s] for s in ("p50", "p95", "p99", "n")}}
        out |= {"requests": v["offered"], "output_tokens_per_s": v["output_tps"], "cost_usd": v["usd"]}
        return {k: _json(x) for k, x in out.items()}

    @property
    def text(self) -> str:
        """The lines, one under another."""
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """load, ttft_s, tpot_s, e2e_s where it is bounded or nothing is told token by token, cost: at most 80 columns each."""
        v = self.values
        good = f"   good {number(v['goodput_rps'])} rps ({share(v['good_fraction'])})" if v["offered"] else ""
        load = f"load    offered {number(v['offered_rps'])} rps{good}   rejected {share(v['rejected_fraction'])}   {v['basis']}"
        out = [load]
        timed = bool(self._stats["tpot_s"]["max"])  # stations serve in seconds and tell no tokens
        for name in ("ttft_s", *(("tpot_s",) if timed else ()), *(("itl_s",) if self._stats.get("itl_s", {}).get("n") else ()),
                     *(("e2e_s",) if not timed or _bound(self.slo, "e2e_s") else ())):
            s = self._stats[name]
            mark = "*" if s["n"] and s["n"] < 100 else ""  # type: ignore[operator]
            line = f"{name:<7} p50 {number(s['p50']):<7} p95 {number(s['p95']):<7} p99 {number(s['p99']) + mark:<7}"
            bound = _bound(self.slo, name)
            met = v.get(f"slo_attainment.{name}")
            line += f" SLO {bound:<6} {share(met)}" if bound else ""
            out.append(f"{line}  n {s['n']:,}")
        if v["eta_n"]:
            w = self._stats["control_queue_s"]
            out.append(f"queue   p50 {number(w['p50']):<7} p95 {number(w['p95']):<7} p99 {number(w['p99']):<7} "
                       f"ETA off by {share(v['eta_mape'])}  n {v['eta_n']:,}")
        priced = v["usd"] is not None
        cost = f"cost    {number(v['gpu_hours'])} GPU-h"
        if priced:
            cost += f"   {number(v['usd'])} USD   {number(v['usd_per_1k_good'])} USD per 1k good"
        if v["gpu_hours"] is not None:
            out.append(cost)
        return out

    def __repr__(self) -> str:
        lines = (f"Summary of {self._meta.run_id}   {self.values['offered']:,} requests", self.text,
                 *(part for line in timing_lines(self._meta.provenance) for part in wrapped(line)))
        return "\n".join((*lines, "next    .values · .table · .to_dict()"))

    def _repr_html_(self) -> str:
        from windtunnel.lab import render

        return render.html(self)


STATES = ("extrapolated", "uncalibrated", "partly_uncalibrated", "calibrated")  # of step times, the least to be trusted first


def timing_lines(provenance: str) -> tuple[str, ...]:
    """Where the times come from, on one line, how far to trust them first."""
    parts = [part.split(":")[0] for pool in provenance.split(" · ") for part in pool.split(" | ")]
    state = next((f"{state}: " for state in STATES if state in parts), "")
    line = f"timing  {state}{provenance}"
    return (line,) if provenance else ()


def _bound(slo: Mapping[str, Any], name: str) -> str:
    """The bound of a column as text: one number, or those of the classes joined by /."""
    found = [b[name] for b in metrics.bounds_of(slo).values() if name in b]
    return "/".join(f"{b:g}" for b in found)


def number(value: float | None) -> str:
    """Three significant digits in SI units; None –."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    if digits > 9:
        return f"{value:.2e}"
    text = f"{value:.{digits}f}"
    return text


def wrapped(line: str, width: int = 80) -> list[str]:
    """A line as several that fit, the further ones under the first one's second word."""
    return textwrap.wrap(line, width, subsequent_indent=" " * 8, break_on_hyphens=False) or [line]


def share(value: float | None) -> str:
    """A share in 0..1 as text in percent; "–" for unknown."""
    return "–" if value is None else f"{100 * value:.1f} %"


def _json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _json(v) for k, v in value.items()}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def names_of(slo: Mapping[str, Any] | None) -> Sequence[str]:
    """The scalar names that an expression may use with this SLO."""
    return (*scalars.NAMES, *(f"slo_attainment.{c}" for b in metrics.bounds_of(slo).values() for c in b))
