"""Better or worse, and by how much, in words: the lines of a comparison and its winner."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from windtunnel.lab.summary import number

HIGHER = frozenset({"goodput_rps", "good_fraction", "success_fraction", "jain", "prefix_hit_rate", "utilisation", "slo_attainment"})
LOWER = frozenset({"rejected_fraction", "timeout_fraction", "failed_fraction", "gpu_hours", "kwh", "j_per_output_token", "wasted_tokens",
                   "scale_reversals", "eta_mape"})
BETTER, WORSE, SAME = "better", "worse", "no difference shown"
NO_INTERVAL = "different arrivals, one run each: no interval"


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


def verdict(metric: str, a: float | None, b: float | None, lo: float | None, hi: float | None, usable: bool) -> str:
    """better or worse iff the interval excludes 0; by order where one side is infinite or has no value."""
    sign = direction(metric)
    if not usable:
        worst = -math.inf if sign > 0 else math.inf
        x, y = (worst if a is None else a), (worst if b is None else b)
        return SAME if x == y or not sign else (BETTER if (y - x) * sign > 0 else WORSE)
    if lo is None or hi is None or not sign or lo <= 0.0 <= hi:
        return SAME
    return BETTER if (lo > 0.0) == (sign > 0) else WORSE


def winner(lines: Mapping[str, Sequence[Line]], baseline: str, primary: str, level: float) -> str:
    """One sentence on the primary metric; what got worse is named in its second half."""
    found = {name: next(line for line in of if line.metric == primary) for name, of in lines.items()}
    ahead = [n for n, line in found.items() if line.verdict == BETTER]
    if ahead:
        sign = direction(primary)
        name = max(ahead, key=lambda n: sign * _order(found[n].candidate, sign))
        return f"{name} is better than {baseline}: {_change(found[name], level)}{_price(lines[name], primary)}."
    behind = [n for n, line in found.items() if line.verdict == WORSE]
    if behind and len(behind) == len(found):
        name = behind[0]
        return f"{baseline} is better than {name}: {name} has {_change(found[name], level)}."
    line = next(iter(found.values()))
    if line.method == "none":
        why = f" ({NO_INTERVAL})" if line.same_source is False else ""
        return f"No difference shown in {primary}{why}; try replications=5{_bills(lines)}."
    if line.method == "one_seed":
        return f"No difference shown in {primary} with one seed; try replications=5{_bills(lines)}."
    return f"No difference shown in {primary} with {line.n} replications; try replications={max(20, 4 * line.n)}{_bills(lines)}."


def _bills(lines: Mapping[str, Sequence[Line]]) -> str:
    """Of candidates that are as good as the baseline: whose GPU-hours differ by a percent or more."""
    said = []
    for name, of in lines.items():
        pct = next((line.delta_pct for line in of if line.metric == "gpu_hours" and line.same_source is not False), None)
        if pct is not None and abs(pct) >= 1:
            said.append(f"{name} costs {abs(pct):.0f} % {'more' if pct > 0 else 'less'} GPU-hours")
    return "; " + ", ".join(said) if said else ""


def _order(value: float | None, sign: int) -> float:
    return value if value is not None else -math.inf * sign


def _change(line: Line, level: float) -> str:
    if line.delta is None:
        return f"{line.metric} {number(line.candidate)} instead of {number(line.baseline)}"
    words = {"paired": f"{line.n} paired replications", "one_seed": "one seed, block bootstrap", "welch": f"{line.n} runs each"}
    how = words.get(line.method, "")
    bounds = f" ({100 * level:g} % CI {_signed(line.lo, plus='')} to {_signed(line.hi, plus='')}, {how})" if line.lo is not None else ""
    return f"{line.metric} {_signed(line.delta)}{bounds}"


def _price(lines: Sequence[Line], primary: str) -> str:
    """The second half: everything that got worse; a higher cost also where it is one number without an interval."""
    worse = []
    for line in lines:
        dearer = line.metric in ("gpu_hours", "usd") and line.lo is None and (line.delta or 0.0) > 0.0
        if line.metric == primary or not (line.verdict == WORSE or dearer):
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
    """Three significant digits, at least two decimals below 10 so that differences line up; tiny ones with an exponent."""
    if 0 < abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.2f}" if 0.1 <= abs(value) < 10 else number(value)


def _cut(name: str, width: int = 9) -> str:
    return name if len(name) <= width else "…" + name[1 - width :]


def text_head(baseline: str, candidate: str, level: float) -> str:
    """The heading of a text table."""
    interval = f"{100 * level:g} % interval"
    names = f"{'metric':<17} {_cut(baseline):>9} {_cut(candidate):>9}"
    return f"{names} {'delta':>8} {'%':>7} {interval:>18} {'n':>3} {'method':<8} verdict"


def word_of(line: Line) -> str:
    """The verdict as tables write it: two numbers that differ, without an interval, are neither equal nor shown to differ."""
    return "no interval" if line.lo is None and line.delta and line.verdict == SAME else "no difference" if line.verdict == SAME else line.verdict


def text_line(line: Line) -> str:
    """One row of a text table, at most 100 columns but for very large numbers."""
    interval = "–" if line.lo is None else f"{_compact(line.lo)} … {_compact(line.hi)}"  # type: ignore[arg-type]
    pct = "–" if line.delta_pct is None else f"{line.delta_pct:+.1f}"
    delta = "–" if line.delta is None else _signed(line.delta)
    values = f"{_cut(line.metric, 17):<17} {number(line.baseline):>9} {number(line.candidate):>9}"
    return f"{values} {delta:>8} {pct:>7} {interval:>18} {line.n:>3} {line.method:<8} {word_of(line)}"
