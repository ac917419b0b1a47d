"""For tests: requests drawn for one engine, and step models of every kind to serve them with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from windtunnel.sim.catalog import gpu, model
from windtunnel.sim.stepmodels.affine import Affine
from windtunnel.sim.stepmodels.model import StepModel
from windtunnel.sim.stepmodels.roofline import Roofline
from windtunnel.sim.stepmodels.table import Table
from windtunnel.sim.stepmodels.vidur import VidurRoofline

MODELS: dict[str, StepModel] = {
    "affine": Affine(6.1e-3, 2.63e-5, 2.1e-5, 2.4e-6, 1.1e-9),
    "table": Table(((1, 5.1e-3), (4, 6.3e-3), (32, 9.7e-3)), 2.17e-5, 1.3e-7),
    "table_by_context": Table(((1, 20, 5.1e-3), (1, 64.5, 5.3e-3), (1, 150, 6.9e-3), (3, 8, 5.9e-3), (3, 90, 5.4e-3), (3, 170, 8.8e-3),
                               (6, 33, 6.1e-3), (6, 110.25, 9.3e-3)), 2.17e-5),
    "table_ceil": Table(((2, 16, 5.1e-3), (2, 64, 5.9e-3), (2, 130, 7.7e-3), (5, 40, 6.2e-3), (5, 80.5, 8.3e-3)), 2.17e-5, mode="ceil"),
    "roofline": Roofline(model("Llama-3.1-8B"), gpu("h100_sxm")),
    "vidur": VidurRoofline(),
}
TOLERANCE_S = 1e-9
PROMPTS = st.one_of(st.just(1), st.integers(1, 40), st.integers(41, 260))
OUTPUTS = st.one_of(st.just(0), st.just(1), st.integers(2, 60))


@dataclass(frozen=True)
class Job:
    """A request. cancel_after_s: after its arrival; group: its requests share a prefix, -1: with nobody."""

    at_s: float
    prompt: int
    output: int
    cancel_after_s: float | None = None
    group: int = -1
    priority: int = 0


def jobs_of(drawn: Iterable[tuple[Any, ...]]) -> list[Job]:
    """drawn: seconds since the one before, then the job's other fields."""
    now, jobs = 0.0, []
    for wait_s, *rest in drawn:
        now += wait_s
        jobs.append(Job(now, *rest))
    return jobs
