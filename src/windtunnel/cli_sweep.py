"""`windtunnel sweep`: a scenario at many points, in processes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from windtunnel.cli import Answer, app, options, say
from windtunnel.cli_run import Sets, load
from windtunnel.errors import ConfigError
from windtunnel.lab.destination import check_file

Grid = Annotated[tuple[str, ...], Parameter(name=("--grid", "-g"), help="path=v1,v2,…; repeatable, the last fastest.", show_default=False)]


@app.command
def sweep(scenario: str, /, *, grid: Grid = (), set_: Sets = (), variant: str | None = None, replications: int = 1, jobs: int = -1,
          csv: Path | None = None) -> Answer:
    """Simulate a scenario at every point of a grid.

    Example: `windtunnel sweep overload -g source.rate_rps=20,30 --set duration_s=20`

    Args:
        scenario: A file, a bundled name, or `file@variant`.
        variant: One of the scenario's `compare` variants.
        replications: Repetitions of each point, with common random numbers.
        jobs: Processes; -1: one per core.
        csv: File that the whole table is written to.
    """
    from windtunnel.lab.overrides import changes_of
    from windtunnel.lab.sweep import sweep as swept

    if csv is not None:
        check_file(csv)
    axes: dict[str, list[Any]] = {}
    for text in grid:
        path, sign, values = text.partition("=")
        if not sign:
            raise ConfigError(f"--grid {text}: expected path=v1,v2", hint="windtunnel sweep overload -g source.rate_rps=20,30")
        axes[path] = next(iter(changes_of([f"{path}=[{values}]"]).values()))
    if not axes:
        raise ConfigError("sweep needs a grid", hint="windtunnel sweep overload -g source.rate_rps=20,30")

    def tell(done: int, of: int) -> None:
        if options.progress:
            say(f"{done} of {of}")

    made = swept(load(scenario, set_, variant), axes, replications=replications, n_jobs=jobs, progress=tell)
    result: dict[str, Any] = {"points": [dict(p) for p in made.points], "table": made.table.to_dict("records")}
    if csv is not None:
        csv.parent.mkdir(parents=True, exist_ok=True)
        made.table.to_csv(csv, index=False)
        result["saved"] = str(csv)
    return Answer(result, repr(made))
