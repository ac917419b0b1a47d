"""The two worlds behind one interface: `Simulated(fleet)` and `Live(fleet)`; `world.run(control, source) -> Run`."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from windtunnel.lab.recorder import Recorder
from windtunnel.lab.run import Run, RunMeta
from windtunnel.policy.control import Control
from windtunnel.sim.driver import Progress, SimDriver
from windtunnel.sim.fleet import FleetConfig
from windtunnel.sources.source import Source

if TYPE_CHECKING:
    from windtunnel.lab.scenario import Scenario


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

    def cancel(self) -> None:
        """Stop at the next slice; `result()` is then a valid run with `complete=False`."""
        self._driver.cancel()

    @property
    def progress(self) -> Progress:
        return self._driver.progress()

    def result(self) -> Run:
        """The run; runs to the end first if it has not been cancelled. Raises what a policy raised, after closing the record."""
        if self._run is None:
            if not self._driver.progress().done:
                self.advance()
            self._driver.finish()
            meta, driver = self._meta, self._driver
            meta.complete = driver.complete
            meta.cpu_s, meta.wall_s = self._cpu_s, time.perf_counter() - self._wall0
            tables = self._recorder.close(driver.agenda.now, complete=driver.complete)
            self._run = Run(meta, tables, scenario=self._scenario)
            if driver.error is not None:
                driver.error.run = self._run  # type: ignore[attr-defined]
        if self._driver.error is not None:
            raise self._driver.error
        return self._run


class Simulated:
    """The simulated world: virtual time, deterministic.

    record: "requests" (one row per request), "decisions" (plus one row per effect) or "full" (plus every event, for replay).
    until: run seconds after which nothing arrives; check: assert conservation after every event; step_every: no fast-forward (an oracle).
    """

    def __init__(self, fleet: FleetConfig, *, seed: int = 0, replication: int = 0, record: str = "requests", check: bool = False,
                 until: float | None = None, grace_s: float = 30.0, sample_s: float = 1.0, step_every: bool = False) -> None:
        self.fleet, self.seed, self.replication, self.record = fleet, seed, replication, record
        self._options: dict[str, Any] = {
            "seed": seed, "replication": replication, "until": until, "grace_s": grace_s, "sample_s": sample_s, "check": check,
            "step_every": step_every,
        }

    def __repr__(self) -> str:
        pools = ", ".join(f"{p.name}: {p.replicas} × {p.model} on {p.gpu}" for p in self.fleet.pools.values())
        return f"Simulated({pools}; seed {self.seed})  SIMULATED"

    def run(self, control: Control, source: Source, **names: Any) -> Run:
        """Fly to the end and return the record."""
        return self.start(control, source, **names).result()

    def start(self, control: Control, source: Source, *, name: str = "run", scenario: Scenario | None = None, **meta: Any) -> Flight:
        """A steppable flight. `meta`: further fields of the run's header (slo, control_spec, scenario_digest, planned_s)."""
        recorder = Recorder(self.record)
        header = RunMeta(
            name=name, world="simulated", mode="simulated", seed=self.seed, replication=self.replication, record=self.record,
            provenance=" · ".join(dict.fromkeys(p.provenance for p in self.fleet.pools.values() if p.provenance)),
            loop=source.loop, started_at=datetime.now(UTC).isoformat(timespec="microseconds"), **meta,
        )
        if self.record == "full":
            recorder.open_log(header, control)
        return Flight(SimDriver(control, source, self.fleet, recorder, **self._options), recorder, header, scenario)
