"""`compare`: two or more runs (or scenarios, replicated) in one table, with an interval of each difference and a winner in words.

Common random numbers: the same seed gives the same arrivals, lengths, boots and faults, so differences are taken pair by pair.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from windtunnel.errors import ConfigValueError
from windtunnel.lab import bootstrap, render, stats
from windtunnel.lab.run import Run
from windtunnel.lab.verdicts import NO_INTERVAL, Line, direction, text_head, text_line, verdict, winner

if TYPE_CHECKING:
    from windtunnel.lab.scenario import Scenario

__all__ = ["Comparison", "Line", "Runs", "compare", "direction", "replicate"]
DEFAULT = ("good_fraction", "goodput_rps", "ttft_s.p50", "ttft_s.p99", "tpot_s.p99", "e2e_s.p99", "rejected_fraction", "jain", "gpu_hours",
           "usd_per_1k_good")
COLUMNS = ("metric", "baseline", "candidate", "delta", "delta_pct", "lo", "hi", "n", "method", "same_source", "verdict")


class Runs(Sequence[Run]):
    """Replications of one scenario; `name` is what comparisons call it."""

    def __init__(self, runs: Sequence[Run], name: str = "") -> None:
        if not runs:
            raise ConfigValueError("runs", "expected at least one run")
        self.runs, self.name = tuple(runs), name or runs[0].meta.name

    def __getitem__(self, index: Any) -> Any:
        return self.runs[index]

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def __repr__(self) -> str:
        return f"Runs {self.name}: {len(self)} replications"


def replicate(scenario: Scenario, n: int, first: int = 0) -> Runs:
    """Replications first … first + n - 1 of the scenario's seed: equal but for their random draws."""
    if n < 1:
        raise ConfigValueError("n", f"expected at least 1, got {n!r}")
    return Runs([scenario.run(replication=first + i) for i in range(n)], scenario.name)


class Comparison:
    """table: one row per candidate and metric; winner: one sentence; names: baseline first."""

    def __init__(self, lines: Mapping[str, Sequence[Line]], baseline: str, primary: str, level: float, items: Mapping[str, Runs]) -> None:
        self._lines, self.baseline, self.primary, self.level, self.items = dict(lines), baseline, primary, level, items
        self.names = (baseline, *lines)
        self.winner = winner(self._lines, baseline, primary, level)

    @property
    def table(self) -> pd.DataFrame:
        """metric, baseline, candidate, delta, delta_pct, lo, hi, n, method, same_source, verdict; with several candidates also `name`."""
        rows = [{"name": name, **{c: getattr(line, c) for c in COLUMNS}} for name, lines in self._lines.items() for line in lines]
        frame = pd.DataFrame(rows, columns=["name", *COLUMNS])
        return frame if len(self._lines) > 1 else frame.drop(columns="name")

    @property
    def sentence(self) -> str:
        """The winner in words."""
        return self.winner

    def by_candidate(self) -> dict[str, Sequence[Line]]:
        """The table's rows by candidate."""
        return dict(self._lines)

    def first_runs(self) -> list[tuple[str, Run]]:
        """The first run of each item, baseline first: what figures and reports show."""
        return [(name, self.items[name][0]) for name in self.names]

    def table_html(self) -> str:
        """The table as HTML, one row per metric and candidate."""
        return render.comparison_table(self)

    def report(self, path: str | Path, **options: Any) -> Path:
        """One HTML file with winner, numbers and figures; needs the cockpit."""
        return render.report(self, Path(path), **options)

    def line(self, metric: str, name: str | None = None) -> Line:
        """The row of a metric (of candidate `name`, default the first)."""
        lines = self._lines[name or self.names[1]]
        found = next((line for line in lines if line.metric == metric), None)
        if found is None:
            raise ConfigValueError("metric", f"{metric!r} was not compared")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data; +infinity is "inf"."""
        rows = {name: [{c: _plain(getattr(line, c)) for c in COLUMNS} for line in lines] for name, lines in self._lines.items()}
        return {"baseline": self.baseline, "primary": self.primary, "level": self.level, "winner": self.winner, "candidates": rows}

    def lines(self) -> list[str]:
        """The text twin, at most 100 columns wide."""
        out = [self.winner]
        for name, lines in self._lines.items():
            out += [text_head(self.baseline, name, self.level), *map(text_line, lines)]
        if any(line.method == "none" and line.same_source is False for lines in self._lines.values() for line in lines):
            out.append(NO_INTERVAL)
        out.append("next    .table · .line(metric) · .winner")
        return out

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        return render.html(self)


def compare(items: Any, metrics: Sequence[str] | None = None, primary: str = "goodput_rps", replications: int = 5,
            slo: Mapping[str, Any] | None = None, level: float = 0.95) -> Comparison:
    """Compare runs, replicated runs or scenarios (flown here, `replications` times each); the first is the baseline.

    items: a sequence or a mapping name → item; an item is a Run, Runs, a list of runs or a Scenario.
    metrics: expressions, default the usual ten, those with data. slo: instead of each run's.
    Raises ConfigValueError for fewer than two items, ConfigMetricError for an unknown metric.
    """
    flown = {name: _with_slo(runs, slo) for name, runs in _items(items, replications).items()}
    if len(flown) < 2:
        raise ConfigValueError("items", f"expected at least 2 to compare, got {len(flown)}")
    (baseline, base), *others = flown.items()
    wanted = tuple(dict.fromkeys((primary, *(metrics if metrics is not None else DEFAULT))))
    values = {name: {m: [r.metric(m) for r in runs] for m in wanted} for name, runs in flown.items()}
    if metrics is None:
        wanted = tuple(m for m in wanted if m == primary or any(v is not None for of in values.values() for v in of[m]))
        wanted = tuple(m for m in (*DEFAULT, primary) if m in wanted)
        wanted = tuple(dict.fromkeys(wanted))
    lines = {}
    for name, runs in others:
        pairing = _Pairing(base, runs)
        lines[name] = [_line(m, pairing, values[baseline][m], values[name][m], level) for m in wanted]
    return Comparison(lines, baseline, primary, level, flown)


def _items(items: Any, replications: int) -> dict[str, Runs]:
    pairs = list(items.items()) if isinstance(items, Mapping) else [("", item) for item in items]
    out: dict[str, Runs] = {}
    for given, item in pairs:
        runs = _runs(item, replications)
        name, n = given or runs.name, 2
        while name in out:
            name, n = f"{given or runs.name}-{n}", n + 1
        out[name] = runs
    return out


def _runs(item: Any, replications: int) -> Runs:
    if isinstance(item, Runs):
        return item
    if isinstance(item, Run):
        return Runs([item])
    return Runs(item) if isinstance(item, list | tuple) else replicate(item, replications)


def _with_slo(runs: Runs, slo: Mapping[str, Any] | None) -> Runs:
    if slo is None:
        return runs
    import dataclasses

    judged = [Run(dataclasses.replace(r.meta, slo=dict(slo)), r.tables, r._scenario, directory=r.directory) for r in runs]
    return Runs(judged, runs.name)


class _Pairing:
    """How two sets of runs are compared: paired, one_seed, welch or none, the first that applies; and which runs go together."""

    def __init__(self, base: Runs, other: Runs) -> None:
        index_a = {(r.seed, r.replication): i for i, r in enumerate(base)}
        index_b = {(r.seed, r.replication): i for i, r in enumerate(other)}
        simulated = all(r.world == "simulated" for r in (*base, *other))
        keys = sorted(index_a.keys() & index_b.keys()) if simulated else []
        self.pairs = [(index_a[k], index_b[k]) for k in keys]
        self.base, self.other = base, other
        first = self.pairs[0] if self.pairs else (0, 0)
        self.one = (base[first[0]], other[first[1]])
        self.same_source = bootstrap.same_arrivals(*self.one)
        open_loop = all(r.meta.loop == "open" for r in self.one)
        if len(self.pairs) >= 2:
            self.method = "paired"
        elif self.pairs and self.same_source and open_loop:
            self.method = "one_seed"
        elif not self.pairs and len(base) >= 2 and len(other) >= 2:
            self.method = "welch"
        else:
            self.method = "none"


def _line(metric: str, pairing: _Pairing, base: list[float | None], other: list[float | None], level: float) -> Line:
    if pairing.method in ("paired", "one_seed"):
        base, other = [base[i] for i, _ in pairing.pairs], [other[j] for _, j in pairing.pairs]
    a, b = _mean(base), _mean(other)
    usable = all(v is not None and math.isfinite(v) for v in (*base, *other))
    delta = b - a if a is not None and b is not None and math.isfinite(a) and math.isfinite(b) else None
    if delta is not None and math.isclose(a, b, rel_tol=1e-12):  # type: ignore[arg-type]
        delta = 0.0  # the last digit of a sum in another order is no difference
    interval = _interval(metric, pairing, base, other, level) if usable and delta is not None else None
    pct = 100.0 * delta / abs(a) if delta is not None and a else None
    n = len(base) if pairing.method in ("paired", "one_seed") else min(len(base), len(other))
    lo, hi = (interval.lo, interval.hi) if interval else (None, None)
    method = pairing.method if interval or not usable else "none"
    return Line(metric, a, b, delta, pct, lo, hi, n, method, pairing.same_source, verdict(metric, a, b, lo, hi, usable))


def _interval(metric: str, pairing: _Pairing, base: list[Any], other: list[Any], level: float) -> stats.Interval | None:
    if pairing.method == "paired":
        return stats.paired(base, other, level)
    if pairing.method == "welch":
        return stats.welch(base, other, level)
    if pairing.method == "one_seed":
        return bootstrap.difference(metric, *pairing.one, level=level)
    return None


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) and all(map(math.isfinite, known)) else \
        (math.inf if known and math.inf in known else None)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "inf" if value == math.inf else None
    return value
