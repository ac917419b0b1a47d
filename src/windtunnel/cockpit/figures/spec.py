"""What a figure is before anything draws it: traces by role, titles with units, a sentence, and the table behind it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from windtunnel.cockpit import palette
from windtunnel.cockpit.decimate import decimate, decimate_steps


@dataclass(frozen=True)
class Trace:
    """One line or area. role: colour by meaning; group: colour by order instead; dash: solid, dash or dot."""

    name: str
    x: np.ndarray
    y: np.ndarray
    role: str = "other"
    group: int | None = None
    step: bool = False
    stack: bool = False
    dash: str = "solid"
    marker: str | None = None

    def shown(self) -> tuple[np.ndarray, np.ndarray]:
        """x and y after decimation, as float32."""
        keep = decimate_steps(self.x, self.y) if self.step else decimate(self.y)
        return self.x[keep].astype("float32"), self.y[keep].astype("float32")

    def colour(self, theme: str) -> str:
        return palette.colour(self.role, theme) if self.group is None else palette.series_colour(self.group, theme)


@dataclass(frozen=True)
class FigureSpec:
    """A figure as data. text: one or two sentences with numbers; lines: (y, label) drawn dotted; y_range: fixed range or None;
    counts: whole things on the y axis, which has no marks between them."""

    name: str
    title: str
    y_title: str
    traces: tuple[Trace, ...]
    text: str
    x_title: str = "run time, s"
    subtitle: str = ""
    lines: tuple[tuple[float, str], ...] = ()
    bands: tuple[tuple[float, float, str], ...] = ()
    y_range: tuple[float, float] | None = None
    log_x: bool = False
    counts: bool = False
    table: pd.DataFrame = field(default_factory=pd.DataFrame)

    def layout(self, theme: str = "light") -> dict[str, Any]:
        """The plotly layout."""
        out = palette.layout(theme)
        sub = f"<br><span style='font-size:11px'>{self.subtitle}</span>" if self.subtitle else ""
        out["title"] = {"text": f"<b>{self.title}</b>{sub}", "font": {"size": 15}, "x": 0, "xref": "paper", "y": 0.97, "yanchor": "top"}
        out["margin"] = {**out["margin"], "t": 92 if self.subtitle else 76}
        out["xaxis"]["title"]["text"] = self.x_title
        out["yaxis"]["title"]["text"] = self.y_title
        if self.log_x:
            out["xaxis"] |= {"type": "log", "dtick": "D2" if self._decades() < 3 else 1}
        if self.counts and max((float(np.nanmax(t.y, initial=0.0)) for t in self.traces), default=0.0) <= 8:
            out["yaxis"]["dtick"] = 1
        if self.y_range:
            out["yaxis"]["range"] = list(self.y_range)
        grey = palette.TEXT[theme]
        out["shapes"] = [
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": {"color": grey, "width": 1, "dash": "dot"}}
            for y, _ in self.lines
        ] + [
            {"type": "rect", "x0": a, "x1": b, "yref": "paper", "y0": 0, "y1": 1, "fillcolor": grey, "opacity": 0.08, "line": {"width": 0}}
            for a, b, _ in self.bands
        ]
        out["annotations"] = [
            {"xref": "paper", "x": 1, "y": y, "text": label, "showarrow": False, "xanchor": "right", "yanchor": "bottom", "font": {"size": 11}}
            for y, label in self.lines
        ] + [
            {"x": a, "yref": "paper", "y": 0, "text": label, "showarrow": False, "xanchor": "left", "yanchor": "bottom", "font": {"size": 10}}
            for a, _, label in self.bands
        ]
        return out

    def _decades(self) -> float:
        """How many powers of ten the x values span."""
        xs = np.concatenate([t.x[t.x > 0] for t in self.traces]) if self.traces else np.ones(1)
        return float(np.log10(xs.max() / xs.min())) if len(xs) else 0.0

    def plotly_traces(self, theme: str = "light") -> list[dict[str, Any]]:
        """Traces as plotly JSON with decimated NumPy arrays."""
        out = []
        for t in self.traces:
            x, y = t.shown()
            ink = t.colour(theme)
            trace: dict[str, Any] = {"type": "scatter", "name": t.name, "x": x, "y": y}
            if t.marker:
                trace |= {"mode": "markers", "marker": {"symbol": t.marker, "size": 8, "color": ink}}
            else:
                line = {"color": ink, "width": 2, "dash": t.dash, "shape": "hv" if t.step else "linear"}
                trace |= {"mode": "lines", "line": line, "connectgaps": False}
            if t.stack:
                trace |= {"stackgroup": "one", "line": {**trace["line"], "width": 0.5}}
            out.append(trace)
        return out


def nice(x: float) -> float:
    """The next of 1, 2, 5 × 10^k that is not below x (x > 0)."""
    exponent = float(np.floor(np.log10(x)))
    for digit in (1.0, 2.0, 5.0, 10.0):
        if digit * 10**exponent >= x * (1 - 1e-12):
            return float(digit * 10**exponent)
    return float(10 ** (exponent + 1))


def windows(span_s: float) -> float:
    """Width in s of the windows of a run of `span_s` seconds: about 120 of them, at least 1 s."""
    return max(1.0, nice(max(span_s, 1e-9) / 120))
