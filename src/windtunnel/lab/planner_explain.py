"""A planner's decisions in words: a timeline with one line where something changed or was held for a new reason, and the story of one tick."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from windtunnel.errors import ConfigValueError
from windtunnel.lab.planner_log import PlannerLog
from windtunnel.lab.planner_why import moved, reasons_of, sentence
from windtunnel.lab.summary import number

Range = tuple[float, float] | None


@dataclass(slots=True)
class Stretch:
    """Equal ticks of one pool, folded. *_rps, wanted: (least, most) over them, None if never known; move: another count was planned."""

    pool: str
    first: int
    last: int
    from_s: float
    to_s: float
    move: bool
    baseline: int | None
    planned: int | None
    ready: int | None
    starting: int | None
    expected: int | None
    why: str
    reasons: tuple[str, ...]
    winner: str
    clamps: tuple[str, ...]
    action: str
    demand_rps: Range = None
    forecast_rps: Range = None
    wanted: Range = None
    key: tuple[Any, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        out = asdict(self)
        del out["key"]
        return out


def timeline(log: PlannerLog, *, pool: str | None = None, since_s: float | None = None, until_s: float | None = None) -> list[Stretch]:
    """The ticks of [since_s, until_s] in order, equal ones of a pool folded. Raises ConfigValueError for a pool that the planner does not size."""
    pools = log.pools
    if pool is not None and pool not in pools:
        raise ConfigValueError("pool", f'the planner sizes no pool "{pool}"', hint=f"pools: {', '.join(pools) or 'none'}")
    out: list[Stretch] = []
    newest: dict[str, Stretch] = {}
    for tick in log.ticks:
        if not (since_s is None or tick["now"] >= since_s) or not (until_s is None or tick["now"] <= until_s):
            continue
        for name in pools:
            row = tick["components"].get(name)
            if row is None or pool not in (None, name):
                continue
            one, former = _stretch(tick, name, row), newest.get(name)
            if former is not None and former.key == one.key and not one.move:
                _fold(former, one)
            else:
                newest[name] = one
                out.append(one)
    return out


def _stretch(tick: Mapping[str, Any], name: str, row: Mapping[str, Any]) -> Stretch:
    move, reasons = moved(row), reasons_of(row)
    clamps = tuple(row.get("clamps") or ())
    key = (tick["action"], move, row["planned"], row.get("winner"), reasons, clamps, row.get("starting"))
    return Stretch(name, tick["tick"], tick["tick"], tick["now"], tick["now"], move, row["baseline"], row["planned"], row.get("ready"),
                   row.get("starting"), row.get("expected"), sentence(row), tuple(word for _, word in reasons), row.get("winner") or "", clamps,
                   tick["action"], _one(tick["observed"].get("rps")), _one(tick["forecast"].get("rps")), _one(row.get("proposed")), key)


def _one(value: float | None) -> Range:
    return None if value is None else (value, value)


def _fold(into: Stretch, more: Stretch) -> None:
    into.last, into.to_s, into.ready, into.expected = more.last, more.to_s, more.ready, more.expected
    into.demand_rps = _span(into.demand_rps, more.demand_rps)
    into.forecast_rps = _span(into.forecast_rps, more.forecast_rps)
    into.wanted = _span(into.wanted, more.wanted)


def _span(a: Range, b: Range) -> Range:
    return b if a is None else a if b is None else (min(a[0], b[0]), max(a[1], b[1]))


# -- as text ------------------------------------------------------------------------------------------------------------------------------

HEAD = ("tick", "time, s", "pool", "demand/s", "forecast/s", "ready", "plan", "why")


def timeline_text(log: PlannerLog, stretches: Sequence[Stretch]) -> str:
    """A table, one line per stretch; the pool is left out if there is only one, the forecast if there is none."""
    head = f"{log.name}: {log.kind} planner, {len(log.ticks)} ticks, {_moves(stretches)}"
    if not stretches:
        return f"{head}\nno tick in this part of the run"
    rows = [_cells(s) for s in stretches]
    told = {"pool": len({s.pool for s in stretches}) > 1, "forecast/s": any(s.forecast_rps is not None for s in stretches)}
    shown = [i for i, name in enumerate(HEAD) if told.get(name, True)]
    widths = {i: max(len(HEAD[i]), *(len(row[i]) for row in rows)) for i in shown}
    lines = ["  ".join(cells[i].ljust(widths[i]) for i in shown).rstrip() for cells in (HEAD, *rows)]
    return "\n".join([head, *_failing(log), *lines])


def _failing(log: PlannerLog) -> list[str]:
    """A line per plugin whose calls failed, which the pipeline goes on without."""
    failed = Counter((str(plugin), str(kind)) for tick in log.ticks for plugin, kind in tick.get("failed", ()))
    return [f"plugin {plugin} failed in {n} of {len(log.ticks)} ticks ({kind}); --tick of one of them says more"
            for (plugin, kind), n in failed.most_common()]


def _moves(stretches: Sequence[Stretch]) -> str:
    ups = sum(1 for s in stretches if s.move and (s.planned or 0) > (s.baseline or 0))
    downs = sum(s.move for s in stretches) - ups
    return f"{ups} up, {downs} down"


def _cells(s: Stretch) -> tuple[str, ...]:
    ticks = str(s.first) if s.first == s.last else f"{s.first}–{s.last}"
    times = _seconds(s.from_s) if s.first == s.last else f"{_seconds(s.from_s)}–{_seconds(s.to_s)}"
    ready = "–" if s.ready is None else str(s.ready) + (f"+{s.starting}" if s.starting else "")
    return ticks, times, s.pool, _range(s.demand_rps), _range(s.forecast_rps), ready, _plan(s), s.why


def _seconds(value: float) -> str:
    return f"{value:,.6g}"


def _range(r: Range) -> str:
    if r is None:
        return "–"
    low, high = number(r[0]), number(r[1])
    return low if low == high else f"{low}–{high}"


def plan_text(s: Stretch) -> str:
    """ "2 → 4" or "hold 2"; ? is an unknown count."""
    base, planned = ("?" if n is None else n for n in (s.baseline, s.planned))
    return f"{base} → {planned}" if s.move else f"hold {planned}"


def _plan(s: Stretch) -> str:
    text = plan_text(s)
    if s.move:
        return text
    wants = s.wanted
    if wants is None or (wants[0] == wants[1] == s.planned):
        return text
    return f"{text} (wants {wants[0]:.0f}{'' if wants[0] == wants[1] else f'–{wants[1]:.0f}'})"


def columns(rows: Iterable[Sequence[str]], indent: str = "") -> list[str]:
    """Rows of words as lines, each word under the one above."""
    rows = [tuple(row) for row in rows]
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows), default=0))]
    return [(indent + "  ".join(word.ljust(widths[i]) for i, word in enumerate(row))).rstrip() for row in rows]
