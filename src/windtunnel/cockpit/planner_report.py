"""The planner's part of a report: its picture, its score, what was clamped, and every decision with its reason."""

from __future__ import annotations

from collections import Counter
from hashlib import sha1
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd

from windtunnel.cockpit import html_parts
from windtunnel.cockpit.cards import fmt
from windtunnel.cockpit.figures.planner import drawn, sentences
from windtunnel.cockpit.figures.planner_rows import STATES, state_of
from windtunnel.lab.planner_explain import Stretch, plan_text, timeline
from windtunnel.lab.planner_log import PlannerLog
from windtunnel.lab.planner_score import log_or_none, planner_score
from windtunnel.lab.planner_why import reasons_of, sentence, short

if TYPE_CHECKING:
    from windtunnel.lab.run import Run

SHOWN = 120


def planner_section(run: Run, wanted: bool | None = None) -> str:
    """HTML, "" without a planner. wanted: True raises ConfigError or RunNotRecordedError if there is nothing to show, False shows nothing."""
    if wanted is False:
        return ""
    log = run.planner if wanted else log_or_none(run)
    if log is None:
        return ""
    traces, layout = drawn(run)
    box = "planner-" + sha1(repr((run.meta.name, run.meta.started_at)).encode()).hexdigest()[:8]
    text = sentences(run)
    parts = ["<h2>Planner</h2>", f'<p class="verdict">{escape(text)}</p>', _score(run), html_parts.figure(box, traces, layout, text, _legend(log)),
             _holds(log), _clamps(log), _decisions(log)]
    return "".join(parts)


def _legend(log: PlannerLog) -> str:
    return (f"{log.kind} planner, {len(log.ticks)} ticks. The perfect fleet has, in each window, just the replicas that the demand of that "
            "window needs, and boots at once: nobody can do better, the distance to it is the regret.")


def _score(run: Run) -> str:
    s = planner_score(run)
    share = "" if s.regret_share is None else f" ({100 * s.regret_share:+.0f} %)"
    rows = [("good requests", fmt(s.good_fraction, "share")), ("goodput", fmt(s.goodput_rps, "requests/s")), ("used", fmt(s.gpu_hours, "GPU-hours")),
            ("perfect fleet", fmt(s.perfect_gpu_hours, "GPU-hours")), ("regret", fmt(s.regret_gpu_hours, "GPU-hours") + share),
            ("turned back within 10 min", fmt(s.flaps)), ("steps up / down", f"{fmt(s.ups)} / {fmt(s.downs)}"),
            ("forecasts off by", fmt(s.wape, "share"))]
    if s.capacity_rps:
        rows.append(("one replica serves", ", ".join(f"{pool} {fmt(rps, 'requests/s')}" for pool, rps in s.capacity_rps.items())))
    cells = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table><caption>what it came to</caption>{cells}</table>"


def _holds(log: PlannerLog) -> str:
    """How many ticks ended how, by reason."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for s in timeline(log):
        counts[s.pool, STATES[state_of(s)][2], s.why] += s.last - s.first + 1
    rows = [{"pool": pool, "ticks": n, "outcome": state, "why": why} for (pool, state, why), n in counts.most_common(20)]
    frame = pd.DataFrame(rows, columns=["pool", "ticks", "outcome", "why"])
    return f'<div class="scroll">{html_parts.table(frame, "ticks by reason", words=True)}</div>'


WHAT = {"clamped": "clamp", "bounds_conflict": "conflict", "set_dropped": "dropped", "final_used": "final", "rejected": "rejected",
        "plugin_failed": "failure", "tie_broken": "tie"}


def _clamps(log: PlannerLog) -> str:
    """Bounds that bit, conflicts, and what went wrong, once per kind with its count."""
    found: dict[tuple[str, ...], list[Any]] = {}
    for e in log.entries:
        if e.kind not in WHAT:
            continue
        key = (WHAT[e.kind], str(e.data.get("stage", "")), e.component, _clamp_text(e.kind, e.plugin_id, e.data))
        seen = found.setdefault(key, [0, e.t, e.t])
        seen[0], seen[2] = seen[0] + 1, e.t
    for tick in log.ticks:
        for pool, row in tick["components"].items():
            for word in row["plan_reasons"]:
                if word.startswith(("gpu_budget", "power", "budget_", "replica_floor")):
                    text = sentence({**row, "plan_reasons": [word], "clamps": [], "winner": ""}) if reasons_of(row) else word
                    seen = found.setdefault(("boundary", "", pool, text), [0, tick["now"], tick["now"]])
                    seen[0], seen[2] = seen[0] + 1, tick["now"]
    if not found:
        return '<p class="muted">No bound bit, nothing conflicted, nothing failed.</p>'
    rows = [{"what": what, "stage": stage, "pool": pool, "who and how": text, "ticks": n, "first, s": first, "last, s": last}
            for (what, stage, pool, text), (n, first, last) in sorted(found.items(), key=lambda item: -item[1][0])[:40]]
    return f'<div class="scroll">{html_parts.table(pd.DataFrame(rows), "clamps, conflicts and failures", words=True)}</div>'


def _clamp_text(kind: str, plugin_id: str, data: Any) -> str:
    who = short(plugin_id)
    match kind:
        case "clamped":
            return f"{data['bound']} of {who}"
        case "bounds_conflict":
            return f"floor {data['floor']} of {short(data['floor_owner'])} over ceiling {data['ceiling']} of {short(data['ceiling_owner'])}"
        case "plugin_failed":
            return f"{who}: {data['error']} {data['message']}".strip()
        case "rejected":
            return f"{who}: {data['reason']}"
        case "tie_broken":
            return f"{who} before {short(str(data['loser']))}: {data['value']} instead of {data['other']}"
    return who


def _decisions(log: PlannerLog) -> str:
    """Every stretch of equal ticks; of a long run the moves and what is around them."""
    stretches = timeline(log)
    shown = stretches if len(stretches) <= SHOWN else _around_moves(stretches)
    rows = [{"ticks": str(s.first) if s.first == s.last else f"{s.first}–{s.last}", "from, s": s.from_s, "pool": s.pool,
             "demand, 1/s": _mean(s.demand_rps), "plan": plan_text(s).replace(" ", "\u00a0"), "why": s.why} for s in shown]
    left = f"{len(shown)} of {len(stretches)} stretches of equal ticks, those around moves" if len(shown) < len(stretches) else "equal ticks folded"
    body = html_parts.table(pd.DataFrame(rows), left, words=True)
    return f'<details><summary>every decision and its reason</summary><div class="scroll">{body}</div></details>'


def _around_moves(stretches: list[Stretch]) -> list[Stretch]:
    keep = {i for j, s in enumerate(stretches) if s.move for i in (j - 1, j, j + 1)}
    return [s for i, s in enumerate(stretches) if i in keep][:SHOWN]


def _mean(r: tuple[float, float] | None) -> str:
    if r is None:
        return "–"
    return f"{r[0]:.3g}" if r[0] == r[1] else f"{r[0]:.3g}–{r[1]:.3g}"
