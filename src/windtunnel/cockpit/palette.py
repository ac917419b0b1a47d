"""Colours by role (colour-blind safe), and the two figure templates. Nothing here touches plotly's global state."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

# role -> (on light, on dark); every line colour has a contrast of at least 3 : 1 against its ground
ROLES: dict[str, tuple[str, str]] = {
    "offered": ("#595959", "#BFBFBF"),
    "p50": ("#0072B2", "#56B4E9"),
    "admitted": ("#0072B2", "#56B4E9"),
    "ready": ("#0072B2", "#56B4E9"),
    "good": ("#00805F", "#2CC79B"),
    "rejected": ("#D55E00", "#FF8A3D"),
    "p99": ("#D55E00", "#FF8A3D"),
    "booting": ("#B86E00", "#E69F00"),
    "limit": ("#B86E00", "#E69F00"),
    "p95": ("#B0568C", "#E59CC4"),
    "draining": ("#B0568C", "#E59CC4"),
    "shadow": ("#2E86C1", "#56B4E9"),
    "other": ("#1A1A1A", "#F2F2F2"),
}
GROUND = {"light": "#FFFFFF", "dark": "#111418"}
TEXT = {"light": "#1A1A1A", "dark": "#E6E6E6"}
GRID = {"light": "#E3E6EA", "dark": "#2B3036"}
# groups without a role of their own (tenants, pools), in order of size; the last is for "others"
SERIES: tuple[tuple[str, str], ...] = (
    ("#0072B2", "#56B4E9"), ("#D55E00", "#FF8A3D"), ("#00805F", "#2CC79B"), ("#B0568C", "#E59CC4"), ("#B86E00", "#E69F00"),
    ("#5B5BD6", "#A5A5FF"), ("#6B6B6B", "#BFBFBF"), ("#1A1A1A", "#F2F2F2"),
)
BADGES: dict[str, tuple[str, str, str]] = {  # ground, text, shape
    "simulated": ("#0072B2", "#FFFFFF", "◇"),
    "shadow": ("#595959", "#FFFFFF", "◌"),
    "dry_run": ("#E69F00", "#000000", "△"),
    "armed": ("#D55E00", "#000000", "●"),
    "stopped": ("#000000", "#FFFFFF", "■"),
}


def colour(role: str, theme: str = "light") -> str:
    """The colour of a role in a theme; unknown roles are `other`."""
    return ROLES.get(role, ROLES["other"])[theme == "dark"]


def series_colour(n: int, theme: str = "light") -> str:
    """The colour of the n-th group."""
    return SERIES[min(n, len(SERIES) - 1)][theme == "dark"]


def contrast(a: str, b: str) -> float:
    """WCAG 2 contrast ratio of two #RRGGBB colours."""
    def luminance(c: str) -> float:
        channels = (int(c[i : i + 2], 16) / 255 for i in (1, 3, 5))
        r, g, bl = (x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in channels)
        return 0.2126 * r + 0.7152 * g + 0.0722 * bl

    hi, lo = sorted((luminance(a), luminance(b)), reverse=True)
    return (hi + 0.05) / (lo + 0.05)


def layout(theme: str = "light") -> dict[str, Any]:
    """The common layout of all figures in one theme."""
    axis: dict[str, Any] = {
        "gridcolor": GRID[theme], "linecolor": GRID[theme], "zeroline": False, "ticks": "outside", "tickcolor": GRID[theme],
        "title": {"font": {"size": 13}}, "tickfont": {"size": 12}, "automargin": True,
    }
    return {
        "paper_bgcolor": GROUND[theme], "plot_bgcolor": GROUND[theme], "font": {"color": TEXT[theme], "size": 13, "family": "sans-serif"},
        "margin": {"l": 64, "r": 24, "t": 64, "b": 52}, "hovermode": "x unified",
        "xaxis": deepcopy(axis), "yaxis": {**deepcopy(axis), "rangemode": "tozero"},
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0, "font": {"size": 12}}, "height": 320,
    }
