"""`sweep`: a scenario at many points of a grid, in processes; one row per point and replication."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from windtunnel.errors import ConfigInfeasibleError, ConfigValueError, SweepFailedError, WindtunnelError
from windtunnel.lab.summary import number
from windtunnel.policy.param import check_number

if TYPE_CHECKING:
    from windtunnel.lab.scenario import Scenario

Point = Mapping[str, Any]
Backend = Literal["inline", "loky", "threading"]
PERCENTILES = tuple(f"{column}.{stat}" for column in ("ttft_s", "tpot_s", "e2e_s") for stat in ("p50", "p95", "p99"))
OK, REFUSED, FAILED = "ok", "refused", "failed"


@dataclass(frozen=True, slots=True)
class Job:
    """One flight of one point, as what a worker needs and no more: the point as YAML text, and where its files are."""

    point_id: str
    text: str
    base: str
    replication: int


class Sweep:
    """table: one row per point and replication, in the order of the grid; paths: the columns that vary; points: the points themselves."""

    def __init__(self, name: str, points: Sequence[Point], table: pd.DataFrame) -> None:
        self.name, self.points, self.table = name, tuple(points), table
        self.paths = tuple(dict.fromkeys(path for point in points for path in point))

    def best(self, metric: str = "goodput_rps", largest: bool = True) -> Point:
        """The point with the largest (or least) mean of a metric over its replications; the first of equals.

        Raises ConfigValueError for a column that is not there, or where no point has a number.
        """
        if metric not in self.table:
            raise ConfigValueError("metric", f"{metric!r} is no column of the table")
        means = pd.to_numeric(self.table[metric], errors="coerce").groupby(self.table["point"], sort=False).mean()
        if means.isna().all():
            raise ConfigValueError("metric", f"no point has a {metric}")
        known = {int(i): float(mean) for i, mean in zip(self.table["point"].unique(), means.to_numpy()) if mean == mean}
        return self.points[(max if largest else min)(known, key=known.__getitem__)]

    def lines(self) -> list[str]:
        """The text twin."""
        counts = self.table["status"].value_counts()
        said = ", ".join(f"{counts[s]} {s}" for s in (OK, REFUSED, FAILED) if s in counts)
        shown = self.table.groupby("point", sort=True).first()
        out = [f"Sweep of {self.name}: {len(self.points)} points, {said}"]
        for i, point in enumerate(self.points):
            row = shown.loc[i].to_dict()
            what = ", ".join(f"{path.rpartition('.')[2]} {json.dumps(value)}" for path, value in point.items())
            good = f"good {number(row['goodput_rps'])} rps   ttft p99 {number(row['ttft_s.p99'])} s   {number(row['gpu_hours'])} GPU-h"
            out.append(f"  {what:40} {good if row['status'] == OK else row['error']}")
        return [*out, "next    .table · .best(metric)"]

    def __repr__(self) -> str:
        return "\n".join(self.lines())


def points_of(grid: Mapping[str, Iterable[Any]] | Iterable[Point]) -> list[Point]:
    """A mapping path → values as their product, the last path fastest; a list of mappings as it is."""
    if not isinstance(grid, Mapping):
        return [dict(point) for point in grid]
    axes = []
    for path, values in grid.items():
        if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
            raise ConfigValueError(f"grid.{path}", f"expected a list of values, got {values!r}")
        axes.append([(path, value) for value in values])
    return [dict(point) for point in itertools.product(*axes)]


def point_id(point: Point) -> str:
    """The first 12 hex digits of the SHA-256 of the sorted overrides."""
    text = json.dumps(dict(point), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def sweep(scenario: Scenario, grid: Mapping[str, Iterable[Any]] | Iterable[Point], *, replications: int = 1, backend: Backend = "loky",
          n_jobs: int = -1, progress: Callable[[int, int], None] | None = None) -> Sweep:
    """Fly every point of a grid over a scenario, with common random numbers.

    grid: path → values, or a list of points (path → value each); paths as in `with_`. n_jobs: processes, -1 for one per core; the table does
    not depend on it. progress: called with (flights done, of so many) after each. A point that cannot run is a row with status `refused`, one
    that breaks a row with status `failed`, each with its error. Raises ConfigError for a path or value that means nothing, before anything
    flies, and SweepFailedError if no flight came to its end.
    """
    check_number("replications", replications, lo=1, whole=True)
    if n_jobs == 0:
        raise ConfigValueError("n_jobs", "expected a number of processes, or -1 for one per core; got 0")
    points = points_of(grid)
    if not points:
        raise ConfigValueError("grid", "expected at least one point")
    jobs: list[Job] = []
    rows: list[dict[str, Any]] = []
    for i, point in enumerate(points):
        head = {"point": i, "point_id": point_id(point), **point, "seed": scenario.seed}
        try:
            made = scenario._changed(point, "grid") if point else scenario
            made.build_fleet()
        except ConfigInfeasibleError as error:
            rows += [head | {"replication": r, "status": REFUSED, "error": str(error), "cpu_s": 0.0} for r in range(replications)]
            continue
        jobs += [Job(head["point_id"], made.dump(), str(made._base), r) for r in range(replications)]
        rows += [head | {"seed": made.seed, "replication": r} for r in range(replications)]
    waiting = iter([row for row in rows if "status" not in row])
    for done, result in enumerate(_flown(jobs, backend, n_jobs), 1):
        next(waiting).update(result)
        if progress is not None:
            progress(done, len(jobs))
    table = _table(rows)
    if not (table["status"] == OK).any():
        raise SweepFailedError(f"no point of {len(points)} came to its end: {table['error'].iloc[0]}")
    return Sweep(scenario.name, points, table)


def _flown(jobs: Sequence[Job], backend: Backend, n_jobs: int) -> Iterator[dict[str, Any]]:
    """Results in the order of the jobs."""
    if backend == "inline" or n_jobs == 1:
        yield from map(fly, jobs)
        return
    from joblib import Parallel, delayed

    yield from Parallel(n_jobs=n_jobs, backend=backend, return_as="generator")(delayed(fly)(job) for job in jobs)


def fly(job: Job) -> dict[str, Any]:
    """One flight in a worker: its numbers, or what went wrong."""
    from windtunnel.lab.scenario import Scenario

    began = time.process_time()
    try:
        scenario = Scenario.load(job.text, allow_imports=True)
        scenario._base, scenario._marks = Path(job.base), {}  # the lines are those of our own dump
        run = scenario.run(replication=job.replication)
        numbers = {**run.summary().values, **{name: run.metric(name) for name in PERCENTILES}}
        return {"status": OK, "error": None, "cpu_s": time.process_time() - began, **numbers}
    except WindtunnelError as error:
        said = str(error)
    except Exception as error:  # the point's own fault, or a bug: it must not take the other points along
        said = f"{type(error).__name__}: {error}"
    return {"status": FAILED, "error": said, "cpu_s": time.process_time() - began}


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows)
    for name in ("goodput_rps", "ttft_s.p99", "gpu_hours", "status", "error"):
        if name not in table:
            table[name] = None
    table["error"] = table["error"].astype(object).where(table["error"].notna(), None)
    return table
