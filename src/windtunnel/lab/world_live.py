"""The live world: `Live(fleet).run(control, source) -> Run`, with the same interface as the simulated one."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from windtunnel.errors import ArmRefusedError
from windtunnel.lab.log import LogWriter, header_of
from windtunnel.lab.plugin_failures import plugin_failures
from windtunnel.lab.recorder import Recorder, wants_of
from windtunnel.lab.run import Run
from windtunnel.lab.run_meta import RunMeta
from windtunnel.live.driver import LiveDriver
from windtunnel.live.fleet import LiveFleet
from windtunnel.live.gate import Caps
from windtunnel.policy.control import Control
from windtunnel.sources.source import Source

if TYPE_CHECKING:
    from windtunnel.lab.scenario import Scenario

LATE_S = 0.010  # p99 lateness of open-loop arrivals above which a live run calls itself degraded


class Live:
    """The live world: real time, real engines; always recorded in full, so that every flight can be replayed.

    mode: "dry_run" (default: nothing is sent, a stand-in answers), "armed" (needs `phrase` "ARM <fleet name>" and `caps`), or "shadow".
    While a flight runs, `stop()` works from any thread, and `driver` shows progress and views.
    """

    def __init__(self, fleet: LiveFleet, mode: str = "dry_run", *, phrase: str | None = None, caps: Caps | None = None, scaling: bool = False,
                 seed: int = 0, stop_grace_s: float = 30.0) -> None:
        self.fleet, self.seed, self._asked_mode = fleet, seed, mode
        self._consent: dict[str, Any] = {"mode": mode, "phrase": phrase, "caps": caps, "scaling": scaling}
        self._stop_grace_s = stop_grace_s
        self.driver: LiveDriver | None = None
        self._flight: LiveFlight | None = None

    wants = wants_of("full")

    def __repr__(self) -> str:
        pools = ", ".join(f"{p.name}: {p.replicas} × {p.model}" for p in self.fleet.pool_facts())
        return f"Live({self.fleet.name}; {pools})  {self.mode.replace('_', ' ').upper()}"

    @property
    def mode(self) -> str:
        """shadow, dry_run, armed or stopped: what effects see."""
        return self.driver.mode if self.driver is not None else self._asked_mode

    @property
    def why(self) -> str:
        """What ended the last flight, or ""."""
        return self.driver.progress().why if self.driver is not None else ""

    def run(self, control: Control, source: Source, **names: Any) -> Run:
        """Fly until the source is done or something stops it; returns the record. Ctrl-C stops; a second one cuts the streams."""
        return self.start(control, source, **names).result()

    def start(self, control: Control, source: Source, *, name: str = "live", scenario: Scenario | None = None, log: Path | None = None,
              **meta: Any) -> LiveFlight:
        """Take off in a thread of its own and return at once. log: where the log is written while flying (a temporary folder if left out)."""
        header = RunMeta(name=name, world="live", mode=self._asked_mode, seed=self.seed, record="full", loop=source.loop,
                         provenance=f"real engines of {self.fleet.name}" if self._asked_mode == "armed" else "stand-in engines",
                         started_at=datetime.now(UTC).isoformat(timespec="microseconds"), **meta)
        path = log or Path(mkdtemp(prefix="windtunnel-")) / "log.jsonl"
        recorder = Recorder("full", log=LogWriter(header_of(header, control), path, threaded=True))
        self.driver = LiveDriver(control, source, self.fleet, recorder, seed=self.seed, name=name, stop_grace_s=self._stop_grace_s, **self._consent)
        self._flight = LiveFlight(self.driver, recorder, header, scenario)
        return self._flight

    def arm(self, phrase: str, caps: Caps | None = None, *, scaling: bool = False) -> Any:
        """Let effects out of a flight under way; ArmRefusedError, which changes nothing, if phrase, caps or a check is not right."""
        if self.driver is None:
            raise ArmRefusedError("nothing is running yet; start the run first")
        return self.driver.arm(phrase, caps, scaling=scaling)

    def stop(self, cut: bool = False) -> None:
        """End the flight; never raises."""
        if self.driver is not None:
            self.driver.stop(cut)


class LiveFlight:
    """A live run under way; `result()` waits for its end."""

    def __init__(self, driver: LiveDriver, recorder: Recorder, meta: RunMeta, scenario: Scenario | None) -> None:
        self._driver, self._recorder, self._meta, self._scenario = driver, recorder, meta, scenario
        self._cpu0, self._wall0 = time.process_time(), time.perf_counter()
        self._run: Run | None = None
        driver.start()

    @property
    def progress(self) -> Any:
        """How far it is."""
        return self._driver.progress()

    def stop(self, cut: bool = False) -> None:
        """End it; never raises."""
        self._driver.stop(cut)

    def result(self) -> Run:
        """Wait for the end and return the record; raises what broke the run, if anything did, after closing the record."""
        if self._run is None:
            self._wait()
            driver, meta = self._driver, self._meta
            lag_s = driver.progress().lag_p99_s
            meta.complete, meta.degraded = driver.complete, lag_s is not None and lag_s > LATE_S
            meta.cpu_s, meta.wall_s = time.process_time() - self._cpu0, time.perf_counter() - self._wall0
            meta.plugin_failures = plugin_failures(driver.control)
            self._run = Run(meta, self._recorder.close(driver.now, complete=driver.complete), scenario=self._scenario)
        if self._driver.error is not None:
            raise self._driver.error
        return self._run

    def _wait(self) -> None:
        driver = self._driver
        while not driver.progress().done or not driver.wait(0.2):
            try:
                driver.wait()
            except KeyboardInterrupt:
                driver.stop(cut=driver.mode == "stopped", why="interrupted")
