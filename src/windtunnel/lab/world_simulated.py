"""The simulated world: `Simulated(fleet).run(control, source) -> Run`. It knows nothing of HTTP; the other one is `world_live`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from windtunnel.lab.plugin_failures import plugin_failures
from windtunnel.lab.recorder import Recorder
from windtunnel.lab.run import Run
from windtunnel.lab.run_meta import RunMeta
from windtunnel.policy.control import Control
from windtunnel.sim.driver import Progress, SimDriver
from windtunnel.sim.fault_config import Fault
from windtunnel.sim.fleet_config import FleetConfig
from windtunnel.sources.source import Source

if TYPE_CHECKING:
    from windtunnel.lab.scenario import Scenario

EVERY_S = 0.1  # wall seconds between two reports of a flight's progress


@contextmanager
def _bar(meta: RunMeta) -> Iterator[Callable[[Progress], None]]:
    """A bar of run seconds on stderr, with how many requests have ended."""
    from tqdm import tqdm

    planned_s = meta.planned_s
    with tqdm(total=None if planned_s is None else round(planned_s, 1), desc=meta.name, unit="s", mininterval=EVERY_S) as bar:
        def tell(at: Progress) -> None:
            bar.n = round(at.now if planned_s is None else min(at.now, planned_s), 1)
            if at.done and planned_s is not None:
                bar.n = round(planned_s, 1)
            bar.set_postfix_str(f"{at.finished:,} requests", refresh=False)
            bar.refresh()

        yield tell


class Flight:
    """A simulation under way: `advance(budget_s)` until `.done`, `cancel()` from any thread, then `result()`."""

    def __init__(self, driver: SimDriver, recorder: Recorder, meta: RunMeta, scenario: Scenario | None = None) -> None:
        self._driver, self._recorder, self._meta, self._scenario = driver, recorder, meta, scenario
        self._wall0, self._cpu_s = time.perf_counter(), 0.0
        self._run: Run | None = None

    def advance(self, budget_s: float = float("inf")) -> Progress:
        """Simulate for about `budget_s` wall seconds. However it is sliced, the log is the same byte for byte."""
        before = time.process_time()
        try:
            return self._driver.advance(budget_s)
        finally:
            self._cpu_s += time.process_time() - before

    def watch(self, progress: Callable[[Progress], None] | bool = True) -> Run:
        """Run to the end and tell how far it is at most ten times a wall second, and once at the end: `progress(Progress)`, or a bar."""
        with _bar(self._meta) if progress is True else nullcontext(progress or None) as tell:
            while True:
                at = self.advance(EVERY_S)
                if tell is not None:
                    tell(at)
                if at.done:
                    return self.result()

    def cancel(self) -> None:
        """Stop at the next slice; `result()` is then a valid run with `complete=False`."""
        self._driver.cancel()

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return self._driver.progress()

    def result(self) -> Run:
        """The run; runs to the end first if it has not been cancelled. Raises what a policy raised, after closing the record."""
        if self._run is None:
            if not self._driver.progress().done:
                self.advance()
            self._driver.finish()
            meta, driver = self._meta, self._driver
            meta.complete, meta.provenance = driver.complete, timing_of(driver.fleet.config)
            meta.plugin_failures = plugin_failures(driver.control)
            if driver.faults is not None and driver.complete:
                meta.missed_faults = driver.faults.missed.rows(driver.agenda.now)
            meta.cpu_s, meta.wall_s = self._cpu_s, time.perf_counter() - self._wall0
            tables = self._recorder.close(driver.agenda.now, complete=driver.complete)
            self._run = Run(meta, tables, scenario=self._scenario)
            if driver.error is not None:
                driver.error.run = self._run  # type: ignore[attr-defined]
        if self._driver.error is not None:
            raise self._driver.error
        return self._run


def timing_of(fleet: FleetConfig) -> str:
    """Where the step times of all pools come from, as known by now."""
    return " · ".join(dict.fromkeys(p.timing for p in fleet.pools.values() if p.provenance))


class Simulated:
    """The simulated world: virtual time, deterministic.

    record: "requests" (one row per request), "decisions" (plus one row per effect) or "full" (plus every event, for replay).
    itl: keep what the exact gaps between tokens are made from (always with "full"; some 6 % more CPU).
    until: run seconds after which nothing arrives; check: assert conservation after every event; step_every: no fast-forward (an oracle).
    """

    def __init__(self, fleet: FleetConfig, *, seed: int = 0, replication: int = 0, record: str = "requests", check: bool = False,
                 until: float | None = None, grace_s: float = 30.0, sample_s: float = 1.0, step_every: bool = False,
                 faults: Sequence[Fault] = (), itl: bool = False) -> None:
        self.fleet, self.seed, self.replication, self.record = fleet, seed, replication, record
        self._options: dict[str, Any] = {
            "seed": seed, "replication": replication, "until": until, "grace_s": grace_s, "sample_s": sample_s, "check": check,
            "step_every": step_every, "faults": tuple(faults), "itl": itl or record == "full",
        }

    def __repr__(self) -> str:
        pools = ", ".join(f"{p.name}: {p.replicas} × {p.model} on {p.gpu}" for p in self.fleet.pools.values())
        return f"Simulated({pools}; seed {self.seed})  SIMULATED"

    def run(self, control: Control, source: Source, **names: Any) -> Run:
        """Fly to the end and return the record."""
        return self.start(control, source, **names).result()

    def start(self, control: Control, source: Source, *, name: str = "run", scenario: Scenario | None = None, **meta: Any) -> Flight:
        """A steppable flight. `meta`: further fields of the run's header (slo, control_spec, scenario_digest, planned_s)."""
        recorder = Recorder(self.record, itl=self._options["itl"])
        header = RunMeta(
            name=name, world="simulated", mode="simulated", seed=self.seed, replication=self.replication, record=self.record,
            provenance=timing_of(self.fleet),
            loop=source.loop, started_at=datetime.now(UTC).isoformat(timespec="microseconds"), **meta,
        )
        if self.record == "full":
            recorder.open_log(header, control)
        return Flight(SimDriver(control, source, self.fleet, recorder, **self._options), recorder, header, scenario)
