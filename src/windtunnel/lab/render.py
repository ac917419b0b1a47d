"""The one late binding to the cockpit: figures, reports and HTML. Without it there is the text twin."""

from __future__ import annotations

import html as _html
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from windtunnel.errors import ExtraMissingError

RENDERER = "windtunnel.cockpit"


def _part(name: str, what: str) -> ModuleType:
    """A module of the renderer; ExtraMissingError if it (or what it needs) is not installed."""
    try:
        return import_module(f"{RENDERER}.{name}")
    except ImportError:
        raise ExtraMissingError(what, "lab") from None


def figure(run: Any, name: str, **options: Any) -> Any:
    """The run's picture `name`: a plotly figure that also shows as SVG or text. Raises ExtraMissingError without a renderer."""
    figures, picture = _part("figures", "figure"), _part("picture", "figure")
    theme = options.pop("theme", "light")
    if name == "planner":  # rows of its own kind, not the lines of one plot
        return _part("figures.planner", "figure").planner_timeline(run, theme)
    return picture.Picture(figures.build(name, run, **options), theme)


def report(subject: Any, path: Path, **options: Any) -> Path:
    """The HTML report of a run or comparison at `path`. Raises ExtraMissingError without a renderer."""
    made = _part("report", "report")
    write = made.comparison_report if hasattr(subject, "first_runs") else made.run_report
    return Path(write(subject, path, **options))


def html(subject: Any) -> str:
    """`subject` as static HTML by the renderer's cards; its text twin, escaped, without one."""
    try:
        cards = _part("cards", "html")
    except ExtraMissingError:
        return f"<pre>{_html.escape(repr(subject))}</pre>"
    return str(cards.html(subject))


def comparison_table(comparison: Any) -> str:
    """The comparison's table as HTML; its text twin without a renderer."""
    try:
        return str(_part("cards", "html").comparison_table(comparison))
    except ExtraMissingError:
        return f"<pre>{_html.escape(repr(comparison))}</pre>"
