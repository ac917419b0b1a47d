"""Time per output token over the run, against its bound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from windtunnel.cockpit.figures.spec import FigureSpec
from windtunnel.cockpit.figures.ttft import percentile_figure

if TYPE_CHECKING:
    from windtunnel.lab.run import Run


def build(run: Run, *, baseline: Run | None = None, slo: dict[str, Any] | None = None) -> FigureSpec:
    """Percentiles of the time per output token, s, by window."""
    return percentile_figure(run, baseline, slo, name="itl", column="tpot_s", title="TPOT", unit="time per output token, s")
