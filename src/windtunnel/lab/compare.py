"""`compare`: two or more runs (or scenarios, replicated) in one table, with an interval of each difference and a winner in words.

Common random numbers: the same seed gives the same arrivals, lengths, boots and faults, so differences are taken pair by pair.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from windtunnel.errors import ConfigValueError
from windtunnel.lab import bootstrap, render, stats
from windtunnel.lab.run import Run
from windtunnel.lab.summary import number

if TYPE_CHECKING:
    from windtunnel.lab.scenario import Scenario

DEFAULT = ("good_fraction", "goodput_rps", "ttft_s.p50", "ttft_s.p99", "tpot_s.p99", "e2e_s.p99", "rejected_fraction", "jain", "gpu_hours",
           "usd_per_1k_good")
HIGHER = frozenset({"goodput_rps", "good_fraction", "success_fraction", "jain", "prefix_hit_rate", "utilisation", "slo_attainment"})
LOWER = frozenset({"rejected_fraction", "timeout_fraction", "failed_fraction", "gpu_hours", "kwh", "wasted_tokens", "scale_reversals"})
BETTER, WORSE, SAME = "better", "worse", "no difference shown"
COLUMNS = ("metric", "baseline", "candidate", "delta", "delta_pct", "lo", "hi", "n", "method", "same_source", "verdict")
NO_INTERVAL = "different arrivals, one run each: no interval"


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


def direction(metric: str) -> int:
    """+1 higher is better, -1 lower is better, 0 neutral."""
    name = metric.split("[")[0].split(".")[0]
    if name in HIGHER or name.endswith(("_tps", "_rps")):
        return 1
    latency = name.endswith("_s") and name not in ("window_s", "makespan_s", "arrived_s", "intended_s")
    return -1 if name in LOWER or name.startswith("usd") or latency else 0


@dataclass(frozen=True, slots=True)
class Line:
    """One metric of one candidate against the baseline. lo, hi: interval of delta, None without one."""

    metric: str
    baseline: float | None
    candidate: float | None
    delta: float | None
    delta_pct: float | None
    lo: float | None
    hi: float | None
    n: int
    method: str
    same_source: bool | None
    verdict: str


class Comparison:
    """table: one row per candidate and metric; winner: one sentence; names: baseline first."""

    def __init__(self, lines: Mapping[str, Sequence[Line]], baseline: str, primary: str, level: float, items: Mapping[str, Runs]) -> None:
        self._lines, self.baseline, self.primary, self.level, self.items = dict(lines), baseline, primary, level, items
        self.names = (baseline, *lines)
        self.winner = _winner(self)

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
            out.append(f"{'metric':<18} {_cut(self.baseline):>11} {_cut(name):>11} {'delta':>9} {'%':>7} {f'{100 * self.level:g} % interval':>19}  {'n':>3} {'method':<8}")
            out += [_text(line) for line in lines]
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

    items: a sequence or a mapping name → item; an item is a Run, Runs, a list of runs or a Scenario. metrics: expressions, default the usual ten, those with data. slo: instead of each run's.
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

    return Runs([Run(dataclasses.replace(r.meta, slo=dict(slo)), r.tables, r.scenario, directory=r.directory or None) for r in runs], runs.name)


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
    interval = _interval(metric, pairing, base, other, level) if usable and delta is not None else None
    pct = 100.0 * delta / abs(a) if delta is not None and a else None
    n = len(base) if pairing.method in ("paired", "one_seed") else min(len(base), len(other))
    lo, hi = (interval.lo, interval.hi) if interval else (None, None)
    method = pairing.method if interval or not usable else "none"
    return Line(metric, a, b, delta, pct, lo, hi, n, method, pairing.same_source, _verdict(metric, a, b, lo, hi, usable))


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


def _verdict(metric: str, a: float | None, b: float | None, lo: float | None, hi: float | None, usable: bool) -> str:
    """better or worse iff the interval excludes 0; by order where one side is infinite or has no value."""
    sign = direction(metric)
    if not usable:
        worst = -math.inf if sign > 0 else math.inf
        x, y = (worst if a is None else a), (worst if b is None else b)
        return SAME if x == y or not sign else (BETTER if (y - x) * sign > 0 else WORSE)
    if lo is None or hi is None or not sign or lo <= 0.0 <= hi:
        return SAME
    return BETTER if (lo > 0.0) == (sign > 0) else WORSE


# -- words ------------------------------------------------------------------------------------------------------------------------

def _winner(comparison: Comparison) -> str:
    """One sentence on the primary metric; what got worse is named in its second half."""
    primary = comparison.primary
    found = {name: comparison.line(primary, name) for name in comparison.names[1:]}
    ahead = [n for n, line in found.items() if line.verdict == BETTER]
    if ahead:
        sign = direction(primary)
        name = max(ahead, key=lambda n: sign * _order(found[n].candidate, sign))
        return f"{name} is better than {comparison.baseline}: {_change(found[name], comparison.level)}{_price(comparison._lines[name], primary)}."
    behind = [n for n, line in found.items() if line.verdict == WORSE]
    if behind and len(behind) == len(found):
        name = behind[0]
        return f"{comparison.baseline} is better than {name}: {name} has {_change(found[name], comparison.level)}."
    line = next(iter(found.values()))
    if line.method == "none":
        why = f" ({NO_INTERVAL})" if line.same_source is False else ""
        return f"No difference shown in {primary}{why}; try replications=5."
    if line.method == "one_seed":
        return f"No difference shown in {primary} with one seed; try replications=5."
    return f"No difference shown in {primary} with {line.n} {'replications' if line.n != 1 else 'replication'}; try replications={max(20, 4 * line.n)}."


def _order(value: float | None, sign: int) -> float:
    return value if value is not None else -math.inf * sign


def _change(line: Line, level: float) -> str:
    if line.delta is None:
        return f"{line.metric} {number(line.candidate)} instead of {number(line.baseline)}"
    how = {"paired": f"{line.n} paired replications", "one_seed": "one seed, block bootstrap", "welch": f"{line.n} runs each"}.get(line.method, "")
    bounds = f" ({100 * level:g} % CI {_signed(line.lo, plus='')} to {_signed(line.hi, plus='')}, {how})" if line.lo is not None else ""
    return f"{line.metric} {_signed(line.delta)}{bounds}"


def _price(lines: Sequence[Line], primary: str) -> str:
    """The second half: everything that got worse."""
    worse = []
    for line in lines:
        if line.verdict != WORSE or line.metric == primary:
            continue
        by = "more" if line.delta_pct is None else f"{abs(line.delta_pct):.0f} %"
        word = {"gpu_hours": "GPU-hours", "usd": "USD"}.get(line.metric)
        if word:
            worse.append(f"it costs {by if by == 'more' else by + ' more'} {word}")
        else:
            worse.append(f"{line.metric} is {by + ' worse' if by != 'more' else 'worse'}")
    return "; " + ", ".join(worse) if worse else ""


def _signed(value: float | None, plus: str = "+") -> str:
    if value is None:
        return "–"
    return (plus if value > 0 else "") + _compact(value)


def _compact(value: float) -> str:
    """Three significant digits, at least two decimals below 10 so that differences line up."""
    return f"{value:.2f}" if 0.1 <= abs(value) < 10 else number(value)


def _cut(name: str, width: int = 11) -> str:
    return name if len(name) <= width else name[: width - 1] + "…"


def _text(line: Line) -> str:
    interval = "–" if line.lo is None else f"{_compact(line.lo)} … {_compact(line.hi)}"  # type: ignore[arg-type]
    pct = "–" if line.delta_pct is None else f"{line.delta_pct:+.1f}"
    word = {SAME: "no diff. shown"}.get(line.verdict, line.verdict)
    delta = "–" if line.delta is None else _signed(line.delta)
    return (f"{_cut(line.metric, 18):<18} {number(line.baseline):>11} {number(line.candidate):>11} {delta:>9} {pct:>7} {interval:>19}  {line.n:>3} "
            f"{line.method:<8} {word}")[:100].rstrip()


def _plain(value: Any) -> Any:
    return "inf" if isinstance(value, float) and value == math.inf else None if isinstance(value, float) and not math.isfinite(value) else value
