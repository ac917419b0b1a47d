"""A figure as a notebook value: live with plotly, still readable as SVG or as a sentence where nothing runs."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from windtunnel.cockpit.figures.spec import FigureSpec
from windtunnel.cockpit.line_svg import draw


class Picture(go.Figure):
    """`plotly.graph_objects.Figure` whose mime bundle is text, a static SVG and plotly JSON; no HTML frame, no outside request."""

    _repr_html_ = None  # plotly's own HTML shows an empty frame offline

    def __init__(self, spec: FigureSpec, theme: str = "light") -> None:
        super().__init__(data=spec.plotly_traces(theme), layout={**spec.layout(theme), "template": "none"}, skip_invalid=False)
        object.__setattr__(self, "spec", spec)

    def __repr__(self) -> str:
        return f"{self.spec.title}: {self.spec.text}"

    def _repr_mimebundle_(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {
            "text/plain": repr(self),
            "image/svg+xml": draw(self.spec),
            "application/vnd.plotly.v1+json": self.to_plotly_json_plain(),
        }

    def to_plotly_json_plain(self) -> dict[str, Any]:
        """Data and layout with plain lists, as notebooks store them."""
        import json

        return dict(json.loads(self.to_json()))
