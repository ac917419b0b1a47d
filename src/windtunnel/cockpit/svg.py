"""Small inline SVG: sparklines for cards. No script, no style sheet, no outside reference."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import isfinite

POINTS = 120


def sparkline(values: Sequence[float | None], label: str, *, width: int = 160, height: int = 28, colour: str = "#0072B2") -> str:
    """A line over equally spaced values; unknown ones leave a gap. `label` is its accessible name. Empty without two values."""
    some = [v for v in values if v is not None and isfinite(v)]
    if len(values) < 2 or len(some) < 2:
        return ""
    step = -(-len(values) // POINTS)
    kept = [_mean(values[i:i + step]) for i in range(0, len(values), step)]
    lo, hi = min(0.0, min(some)), max(some)
    span, dx = (hi - lo) or 1.0, (width - 2) / max(len(kept) - 1, 1)
    path, pen = [], "M"
    for i, v in enumerate(kept):
        if v is None:
            pen = "M"
            continue
        path.append(f"{pen}{1 + i * dx:.1f} {height - 2 - (v - lo) / span * (height - 4):.1f}")
        pen = "L"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
            f'aria-label="{escape(label, quote=True)}"><path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="1.5"/></svg>')


def _mean(values: Sequence[float | None]) -> float | None:
    some = [v for v in values if v is not None and isfinite(v)]
    return sum(some) / len(some) if some else None
