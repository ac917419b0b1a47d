"""Commands that simulate and look at runs: run, compare, show, report, replay."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Container, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from windtunnel.cli import INTERRUPTED, TERMINATED, Answer, app, options, say
from windtunnel.errors import ConfigError
from windtunnel.lab.destination import check_file, check_run
from windtunnel.policy.param import check_number

if TYPE_CHECKING:
    from windtunnel.lab.run import Run
    from windtunnel.lab.scenario import Scenario
    from windtunnel.lab.world_simulated import Flight

Level = Literal["requests", "decisions", "full"]
Sets = Annotated[tuple[str, ...], Parameter(name="--set", help="Override path=value; repeatable, left to right.", show_default=False)]
SLICE_S = 0.25
LINE_EVERY_S = 30.0
MISSED = 1  # exit code of an expectation that did not hold


@app.command
def run(scenario: str, /, *, set_: Sets = (), variant: str | None = None, seed: int | None = None, replication: int = 0,
        record: Level | None = None, out: Path | None = None, report: Path | None = None, check: bool = False, conserve: bool = False,
        overwrite: bool = False, allow_imports: bool = False) -> Answer:
    """Simulate a scenario and print what came of it.

    Example: `windtunnel run azure-chat --set duration_s=30 --seed 7`

    Args:
        scenario: A file, a bundled name, or `file@variant`.
        variant: One of the scenario's `compare` variants.
        seed: Instead of the scenario's seed.
        replication: Independent repetition with the same seed, from 0.
        record: What is kept: requests, decisions or full.
        out: Directory that the run is saved to.
        report: HTML file that a report is written to.
        check: Evaluate the scenario's `expect` and exit with 1 if one of it is missed.
        conserve: Assert conservation of requests after every event.
        overwrite: Replace a run that is already in --out.
        allow_imports: Let `kind: pkg.mod:Class` import code.
    """
    chosen = load(scenario, set_, variant, allow_imports)
    if check and not chosen.expect:
        raise ConfigError(f"{chosen.name} expects nothing that --check could evaluate", hint="write expect: in the scenario")
    if out is not None:
        check_run(out, overwrite=overwrite)
    if report is not None:
        check_file(report)
    flight = chosen.start(seed=seed, replication=replication, record=record, check=conserve)
    stopped = fly(flight, chosen.duration_s)
    made = flight.result()
    result = run_dict(made)
    if out is not None:
        result["saved"] = str(made.save(out, overwrite=overwrite))
    if report is not None:
        result["report"] = str(made.report(report))
    if stopped:
        return Answer(result, f"{made!r}\ninterrupted: the run is incomplete", stopped)
    if not check:
        return Answer(result, repr(made))
    from windtunnel.lab.expect import check_expectations, expectation_table

    checked = check_expectations(made, chosen.expect)
    result["expect"] = [asdict(c) for c in checked]
    return Answer(result, f"{made!r}\n\n{expectation_table(checked)}", 0 if all(c.holds for c in checked) else MISSED)


@app.command
def compare(*runs: str, set_: Sets = (), replications: int = 1, seed: int | None = None, out: Path | None = None,
            report: Path | None = None) -> Answer:
    """Compare scenarios, variants and saved runs side by side.

    Example: `windtunnel compare tenant-flood tenant-flood@fair --set duration_s=20`

    Args:
        runs: Scenarios, `file@variant`, or directories of saved runs. One scenario alone means it and all its variants.
        replications: Repetitions of each scenario, with common random numbers.
        seed: Instead of the scenarios' seeds.
        out: Directory that the first run of each side is saved under, in place of the runs there.
        report: HTML file with the table and the figures of both sides.
    """
    from windtunnel.lab.compare import compare as compared
    from windtunnel.lab.scenario import Scenario

    if not runs:
        raise ConfigError("compare needs something to compare", hint="windtunnel compare a.yaml a.yaml@six")
    check_number("--replications", replications, lo=1, whole=True)
    chosen = _sides(runs, set_)
    folders = {} if out is None else _folders(out, chosen)
    for folder in folders.values():
        check_run(folder, overwrite=True)
    if report is not None:
        check_file(report)
    sides: dict[str, list[Run]] = {}
    for label, made in chosen.items():
        if not isinstance(made, Scenario):
            sides[label] = [made]
            continue
        sides[label] = []
        for r in range(replications):
            flight = made.start(seed=seed, replication=r)
            code = fly(flight, made.duration_s, f"{label}: ")
            if code:
                return Answer({"interrupted": label}, f"interrupted while {label} flew; nothing was compared", code)
            sides[label].append(flight.result())
    comparison = compared(sides)
    result, text = comparison.to_dict(), repr(comparison)
    if out is not None:
        result["saved"] = saved = {label: str(sides[label][0].save(folder, overwrite=True)) for label, folder in folders.items()}
        text += "".join(f"\nsaved   {path}" for path in saved.values())
    if report is not None:
        result["report"] = str(comparison.report(report))
        text += f"\nreport  {report}"
    return Answer(result, text)


@app.command
def show(directory: Path, /) -> Answer:
    """Print a saved run.

    Example: `windtunnel show out/azure`

    Args:
        directory: Where `run --out` saved it.
    """
    from windtunnel.lab.run import Run

    made = Run.load(directory)
    return Answer(run_dict(made), repr(made))


@app.command
def report(directory: Path, file: Path, /, *, planner: bool = False) -> Answer:
    """Write the HTML report of a saved run.

    Example: `windtunnel report out/azure out/azure.html`

    Args:
        directory: Where `run --out` saved it.
        file: The HTML file to write.
        planner: Insist on the planner's part, which is there anyway if one ran.
    """
    from windtunnel.lab.run import Run

    written = Run.load(directory).report(file, planner=planner or None)
    return Answer({"report": str(written), "bytes": written.stat().st_size}, str(written))


@app.command
def replay(log: Path, /, *, control: str | None = None, set_: Sets = ()) -> Answer:
    """Feed a recorded log into a fresh control; the decisions must be equal.

    Example: `windtunnel replay out/azure`

    Args:
        log: A log.jsonl, or the directory of a run recorded at level full.
        control: Scenario whose control decides instead: what would it have decided?
    """
    from windtunnel.lab.replay import replay as replayed

    other = None if control is None else _other_control(load(control, set_))
    agreed = replayed(log, other)
    return Answer(agreed.to_dict(), repr(agreed))


def _other_control(chosen: Scenario) -> Any:
    """Header → the scenario's control over the pools of the log."""
    from windtunnel.lab.build import control_from_header

    return lambda header: control_from_header(header, chosen.control)


def load(scenario: str, set_: tuple[str, ...], variant: str | None = None, allow_imports: bool = False) -> Scenario:
    """The scenario that the command line means."""
    from windtunnel.lab.scenario import Scenario

    return Scenario.load(scenario, overrides=set_, variant=variant, allow_imports=allow_imports)


def fly(flight: Flight, planned_s: float | None, label: str = "") -> int:
    """Simulate to the end, with progress; SIGINT and SIGTERM stop it between events. The exit code for the signal, 0 without one."""
    caught: list[int] = []

    def stop(number: int, _: Any) -> None:
        if caught:  # the second one means now
            raise KeyboardInterrupt
        caught.append(number)
        flight.cancel()

    old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    began = told = time.monotonic()
    try:
        while True:
            progress = flight.advance(SLICE_S)
            if progress.done:
                break
            now = time.monotonic()
            told = _tell(label, progress, planned_s, now - began, told, now)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    if options.progress:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    return {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}[signal.Signals(caught[0])] if caught else 0


def _tell(label: str, progress: Any, planned_s: float | None, spent_s: float, told: float, now: float) -> float:
    share = f" ({100 * min(1.0, progress.now / planned_s):.0f} %)" if planned_s else ""
    text = f"{label}{progress.now:.0f} s simulated{share}, {progress.finished:,} requests ended, {progress.in_flight:,} open, {spent_s:.0f} s"
    if options.progress:
        print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)
        return now
    if now - told >= LINE_EVERY_S and not (options.quiet or options.json):
        say(text)
        return now
    return told


def run_dict(made: Run) -> dict[str, Any]:
    """A run as plain data: summary, seed, provenance, CPU seconds."""
    meta = made.meta
    return {"summary": made.summary().to_dict(), "cpu_s": meta.cpu_s, "wall_s": meta.wall_s, "provenance": meta.provenance,
            "seed": meta.seed, "replication": meta.replication, "name": meta.name, "complete": meta.complete,
            "plugin_failures": {plugin_id: list(counts) for plugin_id, counts in meta.plugin_failures.items()},
            "missed_faults": [dict(row) for row in meta.missed_faults]}


def _sides(runs: tuple[str, ...], set_: tuple[str, ...]) -> dict[str, Scenario | Run]:
    """Label → scenario or saved run; one scenario alone stands for itself and its variants. Raises ConfigError for fewer than two."""
    from windtunnel.lab.run import Run
    from windtunnel.lab.scenario import Scenario, variants

    found: list[tuple[str, Scenario | Run]] = [(what, Run.load(what) if Path(what).is_dir() else load(what, set_)) for what in runs]
    if len(found) == 1 and isinstance(found[0][1], Scenario):
        found = list(variants(found[0][1]))
    if len(found) < 2:
        raise ConfigError(f"{runs[0]} has nothing to be compared with", hint="name a second scenario or run, or a scenario with variants")
    out: dict[str, Scenario | Run] = {}
    for label, made in found:
        out[_free(label, out)] = made
    return out


def _folders(out: Path, labels: Iterable[str]) -> dict[str, Path]:
    """Label → a folder of its own below `out`."""
    taken: dict[str, str] = {}
    for label in labels:
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(label).name)
        taken[_free(name, taken, "-")] = label
    return {label: out / name for name, label in taken.items()}


def _free(label: str, taken: Container[str], sign: str = " #") -> str:
    """The label, numbered if it stands for something already."""
    n = 2
    name = label
    while name in taken:
        name, n = f"{label}{sign}{n}", n + 1
    return name
