"""One HTML file that tells a run or a comparison: verdict, inputs, numbers, figures, provenance. No network, prints to paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha1
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from windtunnel.cockpit import figures, html_parts, palette
from windtunnel.cockpit.badge import badge
from windtunnel.cockpit.cards import fmt, numbers
from windtunnel.cockpit.figures.spec import FigureSpec
from windtunnel.cockpit.planner_report import planner_section
from windtunnel.lab.missed_faults import missed_lines
from windtunnel.lab.plugin_failures import failure_lines
from windtunnel.lab.window import left_out

if TYPE_CHECKING:
    from windtunnel.lab.compare import Comparison
    from windtunnel.lab.run import Run

SHOWN = ("load", "goodput", "ttft", "itl", "queue", "limit", "replicas", "tenants", "latency_cdf")
STYLE = f"""
:root {{ color-scheme: light; --ink: {palette.TEXT["light"]}; --rule: #d9dde2; --soft: #f5f7f9; }}
body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 1080px; margin: 0 auto; padding: 24px; background: #fff; }}
h1 {{ font-size: 26px; margin: 8px 0; }} h2 {{ font-size: 19px; margin: 36px 0 8px; border-bottom: 1px solid var(--rule); padding-bottom: 4px; }}
.verdict {{ font-size: 18px; background: var(--soft); border-left: 4px solid #0072B2; padding: 10px 14px; margin: 16px 0; }}
.bad {{ border-left-color: #a33; font-size: 15px; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 8px 0; max-width: 100%; }}
caption {{ text-align: left; font-size: 13px; padding-bottom: 4px; }}
th, td {{ padding: 4px 12px; border-bottom: 1px solid var(--rule); text-align: right; }}
th:first-child, td:first-child, .words th, .words td {{ text-align: left; }} thead th {{ background: var(--soft); }}
.grid {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 16px; }}
figure {{ margin: 0; break-inside: avoid; border: 1px solid var(--rule); border-radius: 6px; padding: 6px; min-width: 0; }}
figcaption {{ font-size: 13px; padding: 0 10px 8px; }} pre {{ background: var(--soft); padding: 12px; overflow-x: auto; font-size: 12.5px; }}
.scroll {{ overflow-x: auto; }} .muted {{ color: #555; font-size: 13px; }}
@media print {{ body {{ max-width: none; }} .grid {{ grid-template-columns: 1fr; }} }}
"""


# drawn after the whole page is laid out, so that every figure knows its width
DRAW = """
for (const data of document.querySelectorAll("script[data-for]")) {
  const [traces, layout] = JSON.parse(data.textContent);
  Plotly.newPlot(data.dataset.for, traces, layout, { responsive: true, displayModeBar: false });
}
"""


def run_report(run: Run, path: str | Path, *, baseline: Run | None = None, planner: bool | None = None) -> Path:
    """Write the report of one run; figures with a pinned baseline if one is given.

    planner: with what the planner did; None: if one ran and was recorded; True raises if none was.
    """
    body = [_head(run.meta.name, run), f'<p class="verdict">{escape(verdict(run))}</p>', _failing(run), _inputs(run), _summary(run)]
    body += [_figures(run, baseline), _tenants(run), planner_section(run, planner), _replicas(run), _provenance(run)]
    return _write(path, run.meta.name, body)


def comparison_report(comparison: Comparison, path: str | Path) -> Path:
    """Write the report of a comparison: the winner, the table, then each candidate's figures over the baseline."""
    runs: list[tuple[str, Run]] = comparison.first_runs()
    (base_name, base), rest = runs[0], runs[1:]
    body = [_head(" against ".join(name for name, _ in reversed(runs)), base)]
    body += [f'<p class="verdict">{escape(comparison.sentence)}</p>', "<h2>Numbers</h2>", f'<div class="scroll">{comparison.table_html()}</div>']
    for name, run in rest:
        body.append(f"<h2>{escape(name)} over {escape(base_name)} (pinned, dashed)</h2>")
        body.append(_figures(run, base, heading=False))
    for name, run in runs:
        body += [f"<h2>{escape(name)}: how it was made</h2>", _inputs(run, heading=False), _tenants(run)]
        body += [_replicas(run, heading=False), _provenance(run, heading=False)]
    return _write(path, "comparison", body)


def verdict(run: Run) -> str:
    """One sentence: the run against its SLO."""
    values = run.summary().values
    good, offered = values.get("good_fraction"), values.get("offered") or 0
    if not offered or good is None:
        return "Nothing was offered, so there is nothing to judge."
    target = float((run.meta.slo or {}).get("attainment", 0.99))
    word = "meets" if good >= target else "misses"
    return f"{fmt(good, 'share')} of {int(offered):,} offered requests were good: the run {word} its target of {100 * target:g} %."


def _write(path: str | Path, title: str, body: Sequence[str]) -> Path:
    out = Path(path)
    out.parent.mkdir(parents=True, exist_ok=True)
    plotly = (files("plotly") / "package_data" / "plotly.min.js").read_text().replace("</script", "<\\/script")
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)} · windtunnel</title><style>{STYLE}</style><script>{plotly}</script></head>'
        f'<body><main>{"".join(body)}</main><script>{DRAW}</script></body></html>'
    )
    out.write_text(page, encoding="utf-8")
    return out


def _head(title: str, run: Run) -> str:
    question = run.meta.question
    return f"{badge(run.meta.mode)}<h1>{escape(title)}</h1>" + (f"<p>{escape(question)}</p>" if question else "")


def _failing(run: Run) -> str:
    """What a reader has to know before the numbers."""
    planned = f" of {run.meta.planned_s:g} s" if run.meta.planned_s else ""
    told = [] if run.complete else [f"This run was stopped at {run.tables.end_s:.4g} s{planned}: the numbers are of what had happened by then."]
    told += ["The load generator was late: latencies are worse than the engines were."] if run.degraded else []
    told += [f"Planner plugin {line}." for line in failure_lines(run.meta.plugin_failures)]
    told += [f"Fault: {line}." for line in missed_lines(run.meta.missed_faults)]
    return "".join(f'<p class="verdict bad">{escape(text)}</p>' for text in told)


def _inputs(run: Run, heading: bool = True) -> str:
    m = run.meta
    rows = [("seed", m.seed), ("record level", m.record), ("planned", f"{m.planned_s:g} s" if m.planned_s else "until the source is exhausted"),
            ("loop", m.loop), ("SLO", _slo_text(m.slo)), ("left out", left_out(run) or "nothing"),
            ("CPU", f"{m.cpu_s:.2f} s" if m.cpu_s else "–")]
    cells = "".join(f"<tr><td>{escape(str(k))}</td><td>{escape(str(v))}</td></tr>" for k, v in rows)
    return ("<h2>Inputs</h2>" if heading else "") + f"<table>{cells}</table>"


def _slo_text(slo: Mapping[str, Any]) -> str:
    """Bounds as people say them: TTFT ≤ 1 s; per class if there are some."""
    parts = []
    for name, bound in slo.items():
        if isinstance(bound, Mapping):
            parts.append(f"{name}: {_slo_text(bound)}")
        elif name == "attainment":
            parts.append(f"for {100 * bound:g} %")
        else:
            parts.append(f"{name.removesuffix('_s').upper()} ≤ {fmt(bound, 's')}")
    return ", ".join(parts) or "none"


def _summary(run: Run) -> str:
    return f'<h2>Summary</h2><div class="scroll">{numbers(run.summary())}</div>'


def _figures(run: Run, baseline: Run | None, heading: bool = True) -> str:
    specs = [figures.build(name, run, baseline=baseline) for name in SHOWN]
    prefix = sha1(repr((run.meta.name, run.meta.started_at, baseline is None)).encode()).hexdigest()[:8]
    parts = [_figure(spec, f"{prefix}-{spec.name}") for spec in specs if _tells(spec)]
    return ("<h2>Figures</h2>" if heading else "") + f'<div class="grid">{"".join(parts)}</div>'


def _tells(spec: FigureSpec) -> bool:
    """Is there something to see? One tenant is no comparison, and what serves in seconds has no time per token."""
    if spec.name == "itl":
        return any(float(np.nanmax(t.y, initial=0.0)) > 0 for t in spec.traces)
    return bool(spec.traces) and not (spec.name == "tenants" and len(spec.traces) < 2)


def _figure(spec: FigureSpec, box: str) -> str:
    traces = [{**t, "x": _plain(t["x"]), "y": _plain(t["y"])} for t in spec.plotly_traces()]
    return html_parts.figure(box, traces, spec.layout(), f"{spec.title}. {spec.text}", spec.text)


def _plain(values: Any) -> list[float | None]:
    return [None if v != v else float(f"{v:.6g}") for v in values.tolist()]


def _tenants(run: Run) -> str:
    if run.requests["tenant"].nunique() < 2:
        return ""
    table = run.summary(by="tenant").by
    return "" if table is None else f'<h2>Tenants</h2><div class="scroll">{html_parts.table(table, "one row per tenant")}</div>'


def _replicas(run: Run, heading: bool = True) -> str:
    wanted = ["replica", "pool", "gpu", "requested_s", "ready_s", "gone_s", "gone_reason", "requests", "busy_s", "preemptions", "usd"]
    table = run.replicas[[c for c in wanted if c in run.replicas]]
    return ("<h2>Replicas</h2>" if heading else "") + f'<div class="scroll">{html_parts.table(table.head(50), "one row per replica life")}</div>'


def _provenance(run: Run, heading: bool = True) -> str:
    yaml = escape(run.scenario_text)
    text = escape(run.meta.provenance or "no provenance recorded")
    block = f"<details><summary>resolved scenario</summary><pre>{yaml}</pre></details>" if yaml else ""
    return ("<h2>Provenance</h2>" if heading else "") + f'<p class="muted">step times: {text}</p>{block}'
