"""`Run`: the record of a flight. Tables, summary, metrics; saved as Parquet with a manifest, loaded with its hashes checked."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from windtunnel.errors import ConfigMetricError, RunCorruptError, RunNotRecordedError
from windtunnel.lab import columns, itl, metrics, render, stats, store
from windtunnel.lab.decisions import plans_of
from windtunnel.lab.expression import Expression
from windtunnel.lab.metrics import Requests
from windtunnel.lab.missed_faults import missed_lines
from windtunnel.lab.planner_audit import write_audit
from windtunnel.lab.planner_log import PlannerLog, planner_log
from windtunnel.lab.plugin_failures import failure_lines
from windtunnel.lab.run_meta import RunMeta
from windtunnel.lab.stats import Interval
from windtunnel.lab.summary import Summary, names_of, number, timing_lines, wrapped
from windtunnel.lab.tables import Tables
from windtunnel.lab.window import left_out

if TYPE_CHECKING:
    from windtunnel.lab.scenario import Scenario


class Run:
    """The record of one flight; never changes. Tables are pandas frames, read or made when first asked for.

    requests, decisions, replicas, steps, series, notes: raise RunNotRecordedError if the record level does not hold them.
    """

    def __init__(self, meta: RunMeta, tables: Tables, scenario: Scenario | None = None, *, directory: Path | None = None) -> None:
        self.meta, self.tables, self.directory = meta, tables, directory
        self._scenario = scenario
        self._summary: Summary | None = None
        self._planner: PlannerLog | None = None
        if directory is None and (meta.warmup_s or meta.cooldown_s):
            tables.change("requests", lambda t: columns.marked(t, meta.warmup_s, meta.cooldown_s, meta.planned_s))

    # -- what it says about itself ----------------------------------------------------------------------------------------------------

    id = property(lambda self: self.meta.run_id)
    world = property(lambda self: self.meta.world)
    mode = property(lambda self: self.meta.mode)
    seed = property(lambda self: self.meta.seed)
    replication = property(lambda self: self.meta.replication)
    complete = property(lambda self: self.meta.complete)
    degraded = property(lambda self: self.meta.degraded)
    provenance = property(lambda self: self.meta.provenance)

    @property
    def scenario(self) -> Scenario | None:
        """The scenario it was made from, or None; a loaded run reads its resolved `scenario.yaml`."""
        if self._scenario is None and self.directory is not None and (path := self.directory / "scenario.yaml").exists():
            from windtunnel.lab.scenario import Scenario

            self._scenario = Scenario.load(path)
        return self._scenario

    @property
    def scenario_text(self) -> str:
        """The resolved scenario as YAML, "" without one. Of a loaded run it is what was saved: to read it asks for no file and runs no code."""
        if self._scenario is not None:
            return self._scenario.dump(resolved=True)
        path = None if self.directory is None else self.directory / "scenario.yaml"
        return path.read_text("utf-8") if path is not None and path.exists() else ""

    # -- tables -------------------------------------------------------------------------------------------------------------------

    @property
    def requests(self) -> pd.DataFrame:
        """One row per original request."""
        return self.tables.frame("requests")

    @property
    def decisions(self) -> pd.DataFrame:
        """One row per effect; needs record: decisions."""
        return self.tables.frame("decisions")

    @property
    def replicas(self) -> pd.DataFrame:
        """One row per life of a replica."""
        return self.tables.frame("replicas")

    @property
    def steps(self) -> pd.DataFrame:
        """One row per run of equal engine steps; needs record: full."""
        return self.tables.frame("steps")

    @property
    def series(self) -> pd.DataFrame:
        """One row per sample."""
        return self.tables.frame("series")

    @property
    def notes(self) -> pd.DataFrame:
        """One row per note of a policy; needs record: decisions, which keeps the planner's; full keeps all."""
        return self.tables.frame("notes")

    @property
    def plans(self) -> pd.DataFrame:
        """One row per pool and tick of the planner, from the decisions; needs record: decisions."""
        return plans_of(self.decisions)

    # -- numbers ------------------------------------------------------------------------------------------------------------------

    def summary(self, slo: Mapping[str, Any] | None = None, *, by: str | None = None, window: tuple[float, float] | None = None) -> Summary:
        """The run in numbers. slo None: the scenario's; by: tenant, priority, pool or phase; window: arrivals in [from, to) run seconds."""
        if slo is None and by is None and window is None:
            if self._summary is None:
                self._summary = Summary(self)
            return self._summary
        return Summary(self, slo, by=by, window=window)

    def metric(self, expression: str) -> float | None:
        """One number by name: a scalar (`goodput_rps`) or `column.stat[filters]` (`ttft_s.p99[tenant=acme,t=120..300]`); None without data.

        Raises ConfigMetricError for an expression that means nothing.
        """
        found = Expression.parse(expression, names_of(self.meta.slo))
        if found.name == "itl_s":
            return self._itl(found)
        if not found.stat:
            return self._scalar(found)
        rows = Requests(self.tables.arrow("requests"))
        part = rows.only(found.keep(rows))
        values = part.values(found.name)
        if found.stat in metrics.ADJUSTED:
            lost = len(part) - int((part.keep & part.success).sum())
            return metrics.adjusted(values, lost, metrics.ADJUSTED[found.stat])
        return metrics.statistics(values, (found.stat,))[found.stat]

    def interval(self, expression: str, level: float = 0.95) -> Interval:
        """Steady-state interval of a column's mean or percentile (`ttft_s.p99[tenant=acme]`) within this one run, by batch means.

        Twenty batches by completion order, ten if neighbours are correlated; `reliable` is False if they still are, or if there are fewer
        values than batches. What warm-up and cool-down marked is left out. Raises ConfigMetricError for any other expression.
        """
        found = Expression.parse(expression, names_of(self.meta.slo))
        quantile = metrics.PERCENTILES.get(found.stat)
        if found.stat != "avg" and quantile is None:
            raise ConfigMetricError(f"{expression} has no batch means", hint="ask for column.avg or a percentile, such as ttft_s.p99")
        rows = Requests(self.tables.arrow("requests"))
        part = rows.only(found.keep(rows))
        keep = part.keep & part.success if found.name in metrics.LATENCIES else part.keep
        order = np.argsort(part.number("ended_s"), kind="stable")  # who never ended comes last
        values = part.number(found.name)[order][keep[order]]
        return stats.batch_means(values[~np.isnan(values)], level=level, quantile=quantile)

    def _itl(self, found: Expression) -> float | None:
        if not itl.recorded(self.tables):
            needs = "itl: true or record: full, and engines that report their steps"
            raise RunNotRecordedError(f'itl_s needs {needs}; this run has "{self.tables.level}"')
        rows = Requests(self.tables.arrow("requests"))
        seconds, counts = itl.Gaps(self.tables, rows).of(rows.only(found.keep(rows)).keep)
        return itl.statistics(seconds, counts, (found.stat,))[found.stat]

    def _scalar(self, found: Expression) -> float | None:
        if not found.filters:
            value = (self.summary() if found.t is None else self.summary(window=found.t)).values.get(found.name)
        else:
            value = Summary(self, window=found.t, only=found.keep).values.get(found.name)
        return None if value is None or isinstance(value, str) else float(value)

    # -- looks --------------------------------------------------------------------------------------------------------------------

    def figure(self, name: str, **options: Any) -> Any:
        """A picture by name; needs the cockpit."""
        return render.figure(self, name, **options)

    def report(self, path: str | Path, **options: Any) -> Path:
        """One HTML file with everything; needs the cockpit."""
        return render.report(self, Path(path), **options)

    def lines(self) -> list[str]:
        """The text twin, line by line, at most 80 columns each."""
        summary, meta = self.summary(), self.meta
        offered = summary.values["offered"]
        badge = meta.world.upper() if meta.world == "simulated" else f"LIVE {meta.mode}"
        head = f"Run {self.id}   {badge}   {number(summary.values['window_s'])} s, {offered:,} requests, seed {meta.seed}"
        notes = [word for word, so in (("INCOMPLETE", not meta.complete), ("DEGRADED", meta.degraded)) if so]
        out = [head + ("   " + " ".join(notes) if notes else ""), *summary.lines()]
        if cut := left_out(self):
            out.append(f"cut     {cut}")
        out += [f"plugin  {line}" for line in failure_lines(meta.plugin_failures)]
        out += [f"fault   {line}" for line in missed_lines(meta.missed_faults)]
        out.extend(timing_lines(meta.provenance))
        out.append('next    run.summary(by="tenant").by · run.requests · run.save("runs/x")')
        return [part for line in out for part in wrapped(line)]

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        return render.html(self)

    # -- the planner --------------------------------------------------------------------------------------------------------------

    @property
    def planner(self) -> PlannerLog:
        """What the planner did, tick by tick; needs record: decisions. Raises ConfigError if none ran."""
        if self._planner is None:
            self._planner = planner_log(self)
        return self._planner

    def planner_audit(self, path: str | Path, *, started_at: str | None = None) -> Path:
        """Write the planner's notes as JSON lines with a header. started_at: instead of the run's wall-clock start."""
        return write_audit(self, path, started_at=started_at)

    # -- saving and loading -----------------------------------------------------------------------------------------------------------

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Write the run's directory: tables as Parquet, summary, manifest, scenario, log. All or nothing.

        Raises ConfigFileError if the directory exists and is not a run, or is one and `overwrite` is False.
        """
        target = Path(directory)
        made = store.begin(target, overwrite=overwrite)
        try:
            store.write(self, made)
            store.commit(made, target)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        return target

    @classmethod
    def load(cls, directory: str | Path, *, verify: bool = True) -> Run:
        """Read a saved run. verify: check every file's hash.

        Raises RunCorruptError naming a missing or altered file, RunVersionError if a newer windtunnel wrote it.
        """
        where = Path(directory)
        found = store.read(where, verify=verify)
        try:
            given = {f.name: found["meta"][f.name] for f in dataclasses.fields(RunMeta) if f.name in found["meta"]}
            meta, end_s = RunMeta(**given), float(found["end_s"])
        except (KeyError, TypeError, ValueError) as e:
            raise RunCorruptError(f"manifest.json does not say {e}", where=str(where)) from None
        names = [n.removesuffix(".parquet") for n in found["files"] if n.endswith(".parquet")]
        return cls(meta, Tables.from_directory(meta.record, where, names, end_s=end_s), directory=where)
