"""Live figures in a notebook: one loader of plotly.js per kernel, and small widgets whose state is the whole picture.

plotly's own FigureWidget keeps only its first state, so a reloaded page shows old data; here the picture is a synced trait.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import anywidget
import numpy as np
import traitlets

from windtunnel.cockpit.figures.spec import FigureSpec

STATIC = files("windtunnel.cockpit") / "static"


@cache
def _loader_module() -> str:
    """plotly.min.js of the installed package, run only where no page-wide Plotly exists yet."""
    source = (files("plotly") / "package_data" / "plotly.min.js").read_text()
    return (
        "export default { render({ el }) { if (globalThis.Plotly) return; "
        "const run = new Function(PLOTLY_SOURCE); run.call(globalThis); } };\n"
        f"const PLOTLY_SOURCE = {_js_string(source)};\n"
    )


def _js_string(text: str) -> str:
    import json

    return json.dumps(text).replace("</", "<\\/")


class PlotLoader(anywidget.AnyWidget):  # type: ignore[misc]
    """Brings plotly.js into the page once; no network. Put one into every layout that holds `Plot`s."""

    _esm = traitlets.Unicode("").tag(sync=True)

    def __init__(self) -> None:
        super().__init__(_esm=_loader_module())


class Plot(anywidget.AnyWidget):  # type: ignore[misc]
    """One figure. `spec` is the whole picture (rev, traces, layouts of both themes, text); set it through `publish`."""

    _esm = STATIC / "plot.js"
    spec = traitlets.Dict().tag(sync=True)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        if data is not None:
            data["text/plain"] = self.spec.get("text", "figure")
        return bundle


def wire(spec: FigureSpec, rev: int) -> dict[str, Any]:
    """The form that crosses to the page: arrays as float32 bytes, a layout per theme."""
    traces = []
    for light, dark in zip(spec.plotly_traces("light"), spec.plotly_traces("dark")):
        x, y = light.pop("x"), light.pop("y")
        dark.pop("x"), dark.pop("y")
        traces.append({"x": _bytes(x), "y": _bytes(y), "light": light, "dark": dark})
    return {
        "rev": rev, "traces": traces, "layout_light": spec.layout("light"), "layout_dark": spec.layout("dark"), "text": f"{spec.title}. {spec.text}",
        "caption": spec.text,
    }


def _bytes(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values, dtype="<f4").tobytes()


def publish(plots: dict[str, Plot], specs: dict[str, FigureSpec], rev: int) -> None:
    """Show all figures of one run, with one revision number: the only place that sets `spec`."""
    for name, plot in plots.items():
        plot.spec = wire(specs[name], rev)
