"""Cards: numbers as people read them, and the static HTML of runs, summaries and comparisons.

Everything that came from outside (tenants, ids, reasons, names) is escaped. No script, no outside reference; it works without a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from windtunnel.cockpit.badge import badge
from windtunnel.cockpit.svg import sparkline
from windtunnel.lab.missed_faults import missed_lines
from windtunnel.lab.plugin_failures import failure_lines
from windtunnel.lab.verdicts import word_of

if TYPE_CHECKING:
    from windtunnel.lab.compare import Comparison, Line
    from windtunnel.lab.run import Run
    from windtunnel.lab.summary import Summary

ROWS = 60  # of any one table: a card stays below 60 KB
_SHARES = ("share", "fraction", "%")
_MONEY = ("usd", "USD")
_CELL = "padding:2px 10px;text-align:right;border-bottom:1px solid #d9dde2;"
_LEFT = _CELL.replace("text-align:right", "text-align:left")


def fmt(value: float | None, unit: str = "") -> str:
    """A number with its unit, as all cards and figures write it.

    unit: "s" (142 ms, 1.31 s, 7 min 40 s), "share" (98.9 %), "usd" (two decimals, three significant digits below 1), or any word that
    stands behind the number. Three significant digits, thousands with a comma; None is –, infinity inf.
    """
    if value is None or value is pd.NA or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if unit == "s":
        return _seconds(float(value))
    if unit in _SHARES:
        return f"{100.0 * value:.1f} %"
    if unit in _MONEY:
        return f"{f'{value:,.2f}' if abs(value) >= 1 or value == 0 else _significant(float(value))} USD"
    text = f"{value:,}" if isinstance(value, int | np.integer) else _significant(float(value))
    return f"{text} {unit}" if unit else text


def _significant(value: float) -> str:
    """Three significant digits without an exponent."""
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    rounded = round(value, digits)
    digits = max(0, 2 - math.floor(math.log10(abs(rounded))))  # 0.9996 is 1.00
    return f"{rounded:,.{digits}f}"


def _seconds(value: float) -> str:
    size = abs(value)
    if size == 0:
        return "0 s"
    if size < 0.9995:
        return f"{_significant(value * 1e3)} ms"
    if size < 119.95:
        return f"{_significant(value)} s"
    minutes, seconds = divmod(round(size), 60)
    return f"{'-' if value < 0 else ''}{minutes} min {seconds} s"


UNITS: dict[str, str] = {
    "goodput_rps": "rps", "offered_rps": "rps", "request_rps": "rps", "gpu_hours": "GPU-h", "usd": "usd", "usd_per_hour": "usd",
    "usd_per_1k_good": "usd", "usd_per_mtok": "usd", "output_tps": "tokens/s", "input_tps": "tokens/s", "total_tps": "tokens/s",
}


def unit_of(metric: str) -> str:
    """The unit word of a metric's name, for `fmt`."""
    name = metric.split("[")[0].split(".")[0]
    if name in UNITS:
        return UNITS[name]
    if name.endswith("_fraction") or name in ("slo_attainment", "utilisation", "prefix_hit_rate", "eta_mape", "jain"):
        return "" if name == "jain" else "share"
    return "s" if name.endswith("_s") else "tokens" if name.endswith("_tokens") else ""


def html(subject: Any) -> str:
    """The card of a Run, Summary or Comparison; the text twin of anything else."""
    for kind, card in _CARDS.items():
        if type(subject).__name__ == kind:
            return card(subject)
    return f"<pre>{escape(repr(subject))}</pre>"


def run_card(run: Run) -> str:
    """Badge, name, numbers, sparklines of load and latency, provenance, what to call next."""
    mode = run.meta.world if run.meta.world == "simulated" else run.meta.mode
    words = [w for w, so in (("INCOMPLETE", not run.complete), ("DEGRADED", run.degraded)) if so]
    values = run.summary().values
    facts = [f"{fmt(values['window_s'], 's')}", f"{values['offered']:,} requests", f"seed {run.seed}", *words]
    foot = "".join(f'<p style="color:#a33">planner plugin {escape(line)}</p>' for line in failure_lines(run.meta.plugin_failures))
    foot += "".join(f'<p style="color:#a33">fault: {escape(line)}</p>' for line in missed_lines(run.meta.missed_faults))
    foot += f"<p>timing: {escape(run.provenance)}</p>" if run.provenance else ""
    return (f'<div style="font-family:sans-serif">{badge(mode)} <b>{escape(run.id)}</b> <span>{escape(" · ".join(facts))}</span>'
            f"{numbers(run.summary())}{_sparks(run)}{foot}{_next(run)}</div>")


def summary_card(summary: Summary) -> str:
    """The numbers; with `by` also one row per group."""
    groups = ""
    if summary.by is not None:
        wanted = [summary.by.columns[0], "offered", "good_fraction", "goodput_rps", "ttft_s.p50", "ttft_s.p99", "tpot_s.p99", "output_tps"]
        cells = [[_any(row[c], c) for c in wanted] for _, row in summary.by.head(ROWS).iterrows()]
        groups = table([str(c) for c in wanted], cells, f"by {summary.by.columns[0]}")
    return f'<div style="font-family:sans-serif">{numbers(summary)}{groups}{_next(summary)}</div>'


def comparison_card(comparison: Comparison) -> str:
    """The winner in words, then the table."""
    winner = f"<p><b>{escape(comparison.winner)}</b></p>"
    return f'<div style="font-family:sans-serif">{winner}{comparison_table(comparison)}{_next(comparison)}</div>'


def comparison_table(comparison: Comparison) -> str:
    """One table per candidate: metric, both values, difference with interval, verdict with arrow and word."""
    out = []
    for name, lines in comparison.by_candidate().items():
        head = ["metric", comparison.baseline, name, "delta", "%", f"{100 * comparison.level:g} % interval", "n", "method", "verdict"]
        out.append(table(head, [_line(line) for line in lines], f"{name} against {comparison.baseline}"))
    return "".join(out)


def _line(line: Line) -> list[str]:
    unit = unit_of(line.metric)
    interval = "–" if line.lo is None else f"{fmt(line.lo, unit)} … {fmt(line.hi, unit)}"
    pct = "–" if line.delta_pct is None else f"{line.delta_pct:+.1f}"
    arrow = {"better": "▲ ", "worse": "▼ "}.get(line.verdict, "")
    values = [fmt(v, unit) for v in (line.baseline, line.candidate, line.delta)]
    return [line.metric, *values, pct, interval, str(line.n), line.method, arrow + word_of(line)]


def numbers(summary: Summary) -> str:
    """Load, latencies and cost as a table; n beside every statistic."""
    v = summary.values
    load = [["offered", fmt(v["offered"]), fmt(v["offered_rps"], "rps")],
            ["good", fmt(v["good_fraction"], "share"), fmt(v["goodput_rps"], "rps")],
            ["rejected", fmt(v["rejected_fraction"], "share"), ""], ["timed out", fmt(v["timeout_fraction"], "share"), ""],
            ["failed", fmt(v["failed_fraction"], "share"), ""], ["output", fmt(v["output_tps"], "tokens/s"), ""],
            ["GPU-hours", fmt(v["gpu_hours"]), fmt(v["usd"], "usd")]]
    if v["eta_n"]:
        load.append(["predicted start off by", fmt(v["eta_mape"], "share"), f"n {v['eta_n']:,}"])
    stats = summary.table
    rows = []
    for name in ("ttft_s", "tpot_s", "e2e_s", "control_queue_s"):
        s: dict[Any, Any] = stats.loc[name].to_dict()
        if name == "tpot_s" and not (s["max"] or 0) > 0:
            continue  # what serves in seconds has no time per token
        n = int(s["n"])
        star = "*" if 0 < n < 100 else ""
        met = v.get(f"slo_attainment.{name}")
        rows.append([name, *(fmt(s[p], "s") + (star if p == "p99" else "") for p in ("p50", "p95", "p99")), f"{n:,}", fmt(met, "share")])
    basis = f"rates over {fmt(v['window_s'], 's')} ({v['basis']})"
    head = ["latency", "p50", "p95", "p99", "n", "meets its bound"]
    return table(["", "", basis], load, "load") + table(head, rows, "latency of successes")


def _sparks(run: Run) -> str:
    """Requests arrived and median TTFT over 60 equal stretches of the run."""
    rows = run.requests
    if len(rows) < 2:
        return ""
    arrived = rows["arrived_s"].to_numpy()
    edges = np.linspace(arrived.min(), arrived.max() + 1e-9, 61)
    slot = np.clip(np.searchsorted(edges, arrived, side="right") - 1, 0, 59)
    counts = np.bincount(slot, minlength=60).astype(float)
    medians = pd.Series(rows["ttft_s"].to_numpy()).groupby(slot).median().reindex(range(60))
    ttft = [None if math.isnan(v) else float(v) for v in medians]
    shown = [("arrivals", sparkline(counts.tolist(), "arrivals over the run")),
             ("ttft p50", sparkline(ttft, "median TTFT over the run", colour="#D55E00"))]
    return "".join(f'<span style="margin-right:18px">{name} {line}</span>' for name, line in shown if line)


def _next(subject: Any) -> str:
    """The last line of the text twin: calls that work as written."""
    last = repr(subject).rsplit("\n", 1)[-1]
    return f"<p><code>{escape(last.removeprefix('next').strip())}</code></p>" if last.startswith("next") else ""


def _any(value: Any, name: str) -> str:
    if isinstance(value, int | float | np.number):
        return fmt(value, unit_of(name))  # type: ignore[arg-type]
    return "–" if value is None else str(value)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """An HTML table of plain texts, all escaped; at most 60 rows."""
    top = "".join(f'<th scope="col" style="{_LEFT if i == 0 else _CELL}">{escape(h)}</th>' for i, h in enumerate(head))
    cells = ("".join(f'<td style="{_LEFT if i == 0 else _CELL}">{escape(c)}</td>' for i, c in enumerate(row)) for row in rows[:ROWS])
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    more = f"<p>and {len(rows) - ROWS:,} more rows</p>" if len(rows) > ROWS else ""
    return (f'<table style="border-collapse:collapse;margin:6px 0"><caption style="text-align:left">{escape(caption)}</caption>'
            f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>{more}")


_CARDS: dict[str, Callable[[Any], str]] = {"Run": run_card, "Summary": summary_card, "Comparison": comparison_card}
