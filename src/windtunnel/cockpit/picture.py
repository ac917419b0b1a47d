"""A figure as a notebook value: live with plotly, still readable as SVG or as a sentence where nothing runs."""

from __future__ import annotations

import json
from typing import Any

import plotly.graph_objects as go

from windtunnel.cockpit.figures.spec import FigureSpec
from windtunnel.cockpit.line_svg import draw


class Offline(go.Figure):
    """`plotly.graph_objects.Figure` whose mime bundle is text, a still picture if there is one, and plotly JSON, with what the renderer
    adds that somebody has chosen (`pio.renderers.default`): else no HTML frame, no outside request. text: what it shows, in sentences."""

    _repr_html_ = None  # plotly's own HTML shows an empty frame offline
    _ipython_display_ = None  # plotly's own display would send the JSON alone: pages exported from a notebook would stay empty

    def __init__(self, data: Any, layout: dict[str, Any], text: str, **more: Any) -> None:
        super().__init__(data=data, layout={**layout, "template": "none"}, **more)
        object.__setattr__(self, "text", text)

    def __repr__(self) -> str:
        return str(self.text)

    def _still(self) -> dict[str, str]:
        return {}

    def _repr_mimebundle_(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Data and layout with plain lists, as notebooks store them."""
        plain = {"text/plain": repr(self), **self._still(), "application/vnd.plotly.v1+json": dict(json.loads(self.to_json()))}
        return {**super()._repr_mimebundle_(*args, **kwargs), **plain}


class Picture(Offline):
    """A figure of its spec; its still picture is an SVG."""

    def __init__(self, spec: FigureSpec, theme: str = "light") -> None:
        super().__init__(spec.plotly_traces(theme), spec.layout(theme), f"{spec.title}: {spec.text}", skip_invalid=False)
        object.__setattr__(self, "spec", spec)

    def _still(self) -> dict[str, str]:
        return {"image/svg+xml": draw(self.spec)}
