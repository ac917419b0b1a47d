"""The statistics card of a trace: what is in it, before anything is run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windtunnel.sources.traces.open import Trace
from windtunnel.sources.traces.row import NAMES, all_null, values_of

PEAK_S = 60.0


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token counts of one side; percentiles interpolate linearly."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: int


@dataclass(frozen=True, slots=True)
class Card:
    """Statistics of a trace; unknown is None.

    span_s: first to last arrival; mean_rps: rows with a time / span; peak_rps: of the busiest 60 s, None if the span is shorter;
    gaps_cv: population CV of the gaps between arrivals in order of time; hit_bound: share of prompt blocks that were seen before,
    which no prefix cache can beat; skipped: bad rows by code; nulls: unknown values by column; fresh_tails: prompts with tokens
    after their last block; tenants: share by name.
    """

    name: str
    format: str
    rows: int
    sessions: int
    turns_per_session: float | None
    span_s: float | None
    mean_rps: float | None
    peak_rps: float | None
    gaps_cv: float | None
    out_of_order: int
    input: Lengths
    output: Lengths | None
    tenants: Mapping[str, float]
    block_size: int | None
    unique_blocks: int
    hit_bound: float | None
    fresh_tails: int
    skipped: Mapping[str, int]
    nulls: Mapping[str, int]

    def lines(self) -> list[tuple[str, str]]:
        """Label and text of each line."""
        span = "-" if self.span_s is None else f"{self.span_s:,.3f} s, {self.out_of_order} out of order"
        out = [("rows", f"{self.rows:,}"), ("span", span),
               ("rate", f"mean {_n(self.mean_rps)} rps, peak {_n(self.peak_rps)} rps (60 s), CV of gaps {_n(self.gaps_cv)}"),
               ("input tokens", _lengths(self.input)), ("output tokens", _lengths(self.output))]
        if self.sessions:
            out.append(("sessions", f"{self.sessions:,}, {_n(self.turns_per_session)} turns each"))
        if self.tenants:
            out.append(("tenants", ", ".join(f"{name} {share:.1%}" for name, share in self.tenants.items())))
        if self.unique_blocks:
            text = f"{self.unique_blocks:,} unique of {self.block_size or '?'} tokens, at most {_n(self.hit_bound)} of all can hit"
            out.append(("blocks", text + (f", {self.fresh_tails} prompts longer" if self.fresh_tails else "")))
        if self.skipped:
            out.append(("skipped", ", ".join(f"{code} {n}" for code, n in self.skipped.items())))
        partly = [f"{name} {n}" for name, n in self.nulls.items() if n < self.rows]
        return [*out, ("unknown", ", ".join(partly))] if partly else out

    def to_dict(self) -> dict[str, Any]:
        """All numbers as plain data."""
        return asdict(self)

    def __repr__(self) -> str:
        return "\n".join([f"Trace {self.name} ({self.format})", *(f"  {label:<13} {text}" for label, text in self.lines())])

    def _repr_html_(self) -> str:
        left = 'style="text-align:left"'
        rows = "".join(f'<tr><th scope="row" {left}>{escape(label)}</th><td {left}>{escape(text)}</td></tr>'
                       for label, text in self.lines())
        return f"<table><caption>Trace {escape(self.name)} ({escape(self.format)})</caption><tbody>{rows}</tbody></table>"


class _Tally:
    def __init__(self) -> None:
        self.times: list[NDArray[np.float64]] = []
        self.inputs: list[NDArray[np.int32]] = []
        self.outputs: list[NDArray[np.int32]] = []
        self.tenants, self.sessions, self.nulls = Counter[str](), Counter[str](), Counter[str]()
        self.blocks: list[NDArray[np.int64]] = []

    def add(self, trace: Trace) -> None:
        for batch in trace.batches():
            for name in NAMES:
                self.nulls[name] += batch.column(name).null_count
            self.times.append(batch.column("arrival_s").drop_null().to_numpy())
            self.inputs.append(batch.column("input_tokens").to_numpy())
            self.outputs.append(batch.column("output_tokens").drop_null().to_numpy())
            for name, counter in (("tenant", self.tenants), ("session", self.sessions)):
                if not all_null(batch, name):
                    counter.update(value for value in values_of(batch, name) if value is not None)
            if not all_null(batch, "blocks"):
                self.blocks.append(batch.column("blocks").flatten().to_numpy())


def card(trace: Trace) -> Card:
    """Read the trace once and describe it."""
    tally = _Tally()
    tally.add(trace)
    times = np.concatenate(tally.times)
    ordered = np.sort(times, kind="stable")
    inputs, outputs = np.concatenate(tally.inputs), np.concatenate(tally.outputs)
    span = float(ordered[-1] - ordered[0]) if times.size else None
    blocks = np.concatenate(tally.blocks) if tally.blocks else np.empty(0, np.int64)
    unique = int(np.unique(blocks).size)
    in_sessions, tenants = tally.sessions.total(), tally.tenants.total()
    faults = trace.faults
    return Card(
        trace.name, trace.format, int(inputs.size), len(tally.sessions), in_sessions / len(tally.sessions) if in_sessions else None,
        span, times.size / span if span else None, _peak(ordered), _gaps_cv(ordered), _out_of_order(times), _lengths_of(inputs),
        _lengths_of(outputs) if outputs.size else None, {name: n / tenants for name, n in tally.tenants.most_common()},
        trace.block_size, unique, 1.0 - unique / blocks.size if blocks.size else None, faults.fresh_tails if faults else 0,
        dict(faults.bad) if faults else {}, {name: n for name, n in tally.nulls.items() if n})


def _peak(ordered: NDArray[np.float64]) -> float | None:
    if not ordered.size or ordered[-1] - ordered[0] < PEAK_S:
        return None
    inside = np.searchsorted(ordered, ordered + PEAK_S, side="left") - np.arange(ordered.size)
    return float(inside.max() / PEAK_S)


def _gaps_cv(ordered: NDArray[np.float64]) -> float | None:
    gaps = np.diff(ordered)
    return float(gaps.std() / gaps.mean()) if gaps.size and gaps.mean() > 0 else None


def _out_of_order(times: NDArray[np.float64]) -> int:
    return int((times[1:] < np.maximum.accumulate(times)[:-1]).sum()) if times.size else 0


def _lengths_of(counts: NDArray[np.int32]) -> Lengths:
    p50, p95, p99 = (float(q) for q in np.percentile(counts, (50, 95, 99)))
    return Lengths(float(counts.mean()), p50, p95, p99, int(counts.max()))


def _lengths(sides: Lengths | None) -> str:
    if sides is None:
        return "unknown"
    return f"mean {_n(sides.mean)}, p50 {_n(sides.p50)}, p95 {_n(sides.p95)}, p99 {_n(sides.p99)}, max {sides.max:,}"


def _n(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
