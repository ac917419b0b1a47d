"""The one late binding to the cockpit: figures, reports and HTML. Without it there is the text twin."""

from __future__ import annotations

import html as _html
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from windtunnel.errors import ExtraMissingError

RENDERER = "windtunnel.cockpit"


def _part(name: str) -> ModuleType | None:
    """A module of the renderer, None if it (or what it needs) is not installed."""
    try:
        return import_module(f"{RENDERER}.{name}" if name else RENDERER)
    except ImportError:
        return None


def figure(subject: Any, name: str, **options: Any) -> Any:
    """`subject`'s picture `name`, by the renderer's `figure`. Raises ExtraMissingError without a renderer."""
    draw = getattr(_part(""), "figure", None)
    if draw is None:
        raise ExtraMissingError("figure", "lab")
    return draw(subject, name, **options)


def report(subject: Any, path: Path, **options: Any) -> Path:
    """`subject`'s report at `path`, by the renderer's `report`. Raises ExtraMissingError without a renderer."""
    write = getattr(_part(""), "report", None)
    if write is None:
        raise ExtraMissingError("report", "lab")
    return Path(write(subject, path, **options))


def html(subject: Any) -> str:
    """`subject` as static HTML by the renderer's cards; its text twin, escaped, without one."""
    cards = _part("cards")
    if cards is None:
        return f"<pre>{_html.escape(repr(subject))}</pre>"
    return str(cards.html(subject))
