"""The benchmark artifact of a pipeline run: what went in, each task's times, what came out, and the numbers derived from them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from windtunnel.lab.capacity_plan import capacity_plan
from windtunnel.lab.run import Run
from windtunnel.policy.tasks.bounded_borrow import BoundedBorrow
from windtunnel.policy.tasks.record import TIMELINE
from windtunnel.policy.tasks.task import SUBMISSION
from windtunnel.sources.pipeline import PipelineSource

HARNESS_VERSION = "1"
Row = Mapping[str, Any]


class Part(BaseModel):
    """A part of the artifact: no unknown keys, no infinities, never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Stats(Part):
    """Of one derived number over all attempts and iterations; percentile = sorted value at index round((n - 1) q)."""

    mean: float
    p50: float
    p95: float
    min: float
    max: float
    std: float


class Iteration(Part):
    """One run. timeline: a row per attempt of a task, times in run s; output_hashes: by column, over values and stable order only."""

    wall_time_seconds: float = Field(ge=0)
    timeline: tuple[dict[str, Any], ...]
    final_task_snapshot: dict[str, Any]
    final_request_snapshot: dict[str, Any]
    output_hashes: dict[str, str]


class Artifact(Part):
    """What a benchmark leaves behind; `write` also makes a CSV of the timelines and a short Markdown."""

    scenario_id: str = Field(min_length=1)
    artifact_schema_version: Literal["1"] = "1"
    scenario_version: str
    harness_version: str = HARNESS_VERSION
    baseline_sha: str | None = None
    candidate_sha: str | None = None
    inputs: dict[str, Any]
    provider_script: dict[str, Any]
    clock_script: dict[str, Any]
    capacity_plan: dict[str, Any]
    iterations: tuple[Iteration, ...] = Field(min_length=1)
    derived_metrics: dict[str, Stats]

    def to_csv(self) -> str:
        """The timelines, one row per attempt, with the iteration's number."""
        out = io.StringIO()
        columns = list(dict.fromkeys(key for i in self.iterations for row in i.timeline for key in row))
        writer = csv.DictWriter(out, ["iteration", *columns], lineterminator="\n")
        writer.writeheader()
        for n, iteration in enumerate(self.iterations):
            writer.writerows({"iteration": n, **row} for row in iteration.timeline)
        return out.getvalue()

    def to_markdown(self) -> str:
        """A heading and the table of derived numbers."""
        head = f"# {self.scenario_id}\n\n{len(self.iterations)} iterations, wall {fmean(i.wall_time_seconds for i in self.iterations):.3f} s\n\n"
        rows = [f"| {name} | " + " | ".join(f"{v:.6g}" for v in (s.mean, s.p50, s.p95, s.min, s.max, s.std)) + " |"
                for name, s in self.derived_metrics.items()]
        return head + "| | mean | p50 | p95 | min | max | std |\n|---|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n"

    def write(self, path: str | Path) -> Path:
        """`path` as JSON, and beside it the same name with .csv and .md."""
        path = Path(path)
        path.write_text(json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
        path.with_suffix(".csv").write_text(self.to_csv(), "utf-8")
        path.with_suffix(".md").write_text(self.to_markdown(), "utf-8")
        return path

    @classmethod
    def read(cls, path: str | Path) -> Artifact:
        """A written artifact, checked again. Raises pydantic's ValidationError."""
        return cls.model_validate_json(Path(path).read_text("utf-8"))


def artifact_of(scenario_id: str, flights: Sequence[tuple[Run, PipelineSource]], *, baseline_sha: str | None = None,
                candidate_sha: str | None = None, provider_script: Mapping[str, Any] | None = None,
                overridden: Collection[str] = ()) -> Artifact:
    """The artifact of finished runs of one pipeline scenario, one iteration each. overridden: fields of the plan that the benchmark set."""
    iterations, numbers = [], dict[str, list[float]]()
    for run, source in flights:
        timeline = timeline_of(run, source)
        iterations.append(Iteration(
            wall_time_seconds=max((r["task_lease_released_at"] for r in timeline), default=0.0), timeline=tuple(timeline),
            final_task_snapshot=source.scheduler.snapshot(), final_request_snapshot=_requests(run, source), output_hashes=source.output_hashes()))
        for name, values in derived(timeline, source).items():
            numbers.setdefault(name, []).extend(values)
    run, source = flights[0]
    scenario = run.scenario
    return Artifact(
        scenario_id=scenario_id, scenario_version=run.meta.scenario_digest or "", baseline_sha=baseline_sha, candidate_sha=candidate_sha,
        inputs={"seed": run.meta.seed, "scenario": None if scenario is None else scenario.resolved()},
        provider_script=dict(provider_script or {"provenance": run.meta.provenance}),
        clock_script={"world": run.meta.world, "unit": "s", "clock": "virtual" if run.meta.world == "simulated" else "monotonic"},
        capacity_plan=capacity_plan(run, source, overridden).to_json(), iterations=tuple(iterations),
        derived_metrics={name: stats(values) for name, values in numbers.items() if values})


def stats(values: Sequence[float]) -> Stats:
    """Mean, percentiles by the nearest rank, extremes and population standard deviation; needs at least one value."""
    ordered = sorted(values)
    n = len(ordered)
    return Stats(mean=fmean(ordered), p50=ordered[round((n - 1) * 0.5)], p95=ordered[round((n - 1) * 0.95)], min=ordered[0], max=ordered[-1],
                 std=pstdev(ordered))


def timeline_of(run: Run, source: PipelineSource) -> list[dict[str, Any]]:
    """The scheduler's timeline with the request stage's times from the run's own table; a task without a request has none of them."""
    import pandas as pd

    table = run.requests.set_index("request_id")[["arrived_s", "dispatched_s", "started_s", "ended_s"]]
    times = {key: [None if pd.isna(v) else float(v) for v in row] for key, *row in table.itertuples()}
    rows = []
    for row in source.scheduler.timeline or ():
        merged: dict[str, Any] = dict(row) | {key: row.get(key) for key in TIMELINE}
        found = [times[i] for i in source.request_ids[row["task_lease_id"]] if i in times]
        arrived, dispatched, started, ended = ([v for v in column if v is not None] for column in zip(*found)) if found else ([], [], [], [])
        merged["request_wait_started_at"] = min(arrived, default=None)
        merged["request_wait_completed_at"] = merged["request_lease_acquired_at"] = min(dispatched, default=None)
        merged["model_request_started_at"] = min(started, default=None)
        merged["model_request_completed_at"] = merged["request_lease_released_at"] = max(ended, default=None) if dispatched else None
        rows.append(merged)
    return rows


def derived(timeline: Sequence[Row], source: PipelineSource) -> dict[str, list[float]]:
    """Numbers per attempt, or one per run."""
    scheduler = source.scheduler
    capacity = scheduler.admission.view().limits[SUBMISSION]
    leased = [r["task_lease_acquired_at"] for r in timeline]
    return {
        "ready_queue_wait": [r["selected_at"] - r["ready_enqueued_at"] for r in timeline],
        "task_admission_wait": [r["task_lease_acquired_at"] - r["selected_at"] for r in timeline],
        "ready_to_lease_gap": [r["task_lease_acquired_at"] - r["ready_enqueued_at"] for r in timeline],
        "ready_idle_gap": [scheduler.ready_idle_gap_s],
        "active_capacity_integral": [sum(r["task_lease_released_at"] - at for r, at in zip(timeline, leased)) / capacity],
        "root_over_admission_debt": [float(root_over_admission(timeline, source))],
        "hidden_scheduler_resource_waiters": [float(sum(r["worker_spawned_at"] < at for r, at in zip(timeline, leased)))],
    }


def root_over_admission(timeline: Sequence[Row], source: PipelineSource) -> int:
    """Root tasks admitted above their strict share of `submission` once the first downstream task was ready."""
    scheduler = source.scheduler
    columns, resolver = scheduler.tracker.graph.columns, scheduler.resolver
    below = [r["dependency_ready_at"] for r in timeline if columns[r["column"]].upstreams]
    if not below:
        return 0
    first, limit, over = min(below), scheduler.admission.view().limits[SUBMISSION], 0
    rivals = sum(g.weight for g in {resolver.group(name) for name, c in columns.items() if c.upstreams})
    for name in (name for name, c in columns.items() if not c.upstreams):
        share = BoundedBorrow().share(resolver.group(name), limit, rivals)
        over += sum(at >= first and active > share for at, active in _active([r for r in timeline if r["column"] == name]))
    return over


def _active(rows: Sequence[Row]) -> list[tuple[float, int]]:
    """At each lease, how many are held with it; a release at the same time comes first."""
    events = sorted([(r["task_lease_acquired_at"], 1) for r in rows] + [(r["task_lease_released_at"], -1) for r in rows])
    out, active = [], 0
    for at, by in events:
        active += by
        if by > 0:
            out.append((at, active))
    return out


def _requests(run: Run, source: PipelineSource) -> dict[str, Any]:
    mine = {i for ids in source.request_ids.values() for i in ids}
    outcomes = run.requests.loc[run.requests.request_id.isin(mine), "outcome"].value_counts()
    return {"requests": len(mine), "open": len(source._owner), "outcomes": {str(k): int(v) for k, v in sorted(outcomes.items())}}
