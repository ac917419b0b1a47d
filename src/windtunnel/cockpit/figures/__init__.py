"""Figures by name. Each is a pure function of a run; the same name looks the same in notebook, cockpit and report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from windtunnel.cockpit.figures import goodput, latency_cdf, limit, load, queue, replicas, tenants, tpot, ttft
from windtunnel.cockpit.figures.spec import FigureSpec
from windtunnel.errors import ConfigValueError

if TYPE_CHECKING:
    from windtunnel.lab.run import Run

FIGURES: dict[str, Callable[..., FigureSpec]] = {
    "load": load.build, "queue": queue.build, "ttft": ttft.build, "itl": tpot.build, "limit": limit.build, "replicas": replicas.build,
    "goodput": goodput.build, "tenants": tenants.build, "latency_cdf": latency_cdf.build,
}


def build(name: str, run: Run, *, baseline: Run | None = None, slo: dict[str, Any] | None = None) -> FigureSpec:
    """The figure `name` of a run, optionally over a pinned baseline. Unknown names raise ConfigValueError with the list."""
    if name not in FIGURES:
        close = get_close_matches(name, FIGURES, 1)
        hint = f'did you mean "{close[0]}"?' if close else f"figures: {', '.join(FIGURES)}, planner"
        raise ConfigValueError("figure", f'unknown figure "{name}"', hint=hint)
    made = FIGURES[name](run, baseline=baseline, slo=slo)
    return replace(made, bands=_left_out(run)) if not made.log_x else made


def _left_out(run: Run) -> tuple[tuple[float, float, str], ...]:
    """Warm-up and cool-down, which are drawn and are in no number."""
    rows = run.requests
    marked = rows["marked"].fillna(False).to_numpy(dtype=bool)
    if not marked.any():
        return ()
    arrived = rows["arrived_s"].to_numpy(dtype=float)
    counted = arrived[~marked]
    if not len(counted):
        return ((float(arrived.min()), float(arrived.max()), "left out"),)
    early, late = marked & (arrived < counted.min()), marked & (arrived > counted.max())
    bands = [(0.0, float(counted.min()), "warm-up")] if early.any() else []
    return (*bands, *([(float(counted.max()), float(arrived.max()), "cool-down")] if late.any() else []))
