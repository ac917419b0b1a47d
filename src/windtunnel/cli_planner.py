"""Commands that look at what a planner did: planner explain, planner audit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from windtunnel.cli import Answer, app
from windtunnel.cli_run import Sets, fly, load
from windtunnel.errors import ConfigError, RunCorruptError

if TYPE_CHECKING:
    from windtunnel.lab.run import Run

planner_app = App(name="planner", help="What a planner decided, and why.", version_flags=())
app.command(planner_app)


@planner_app.command(name="explain")
def planner_explain(what: str, /, *, tick: int | None = None, pool: str | None = None, since: float | None = None, until: float | None = None,
                    set_: Sets = (), variant: str | None = None, seed: int | None = None, allow_imports: bool = False) -> Answer:
    """Tell a planner's decisions in words: where something changed, or was held.

    Example: `windtunnel planner explain burst-diurnal --set duration_s=120`

    Args:
        what: A scenario (it is run), a run saved with --record decisions, its log, or an audit file.
        tick: Tell the whole chain of this tick instead.
        pool: Only this pool.
        since: Only ticks from this run second on.
        until: Only ticks up to this run second.
        variant: One of the scenario's `compare` variants.
        seed: Instead of the scenario's seed.
        allow_imports: Let plugins of the scenario import code.
    """
    from windtunnel.lab.planner_explain import timeline, timeline_text
    from windtunnel.lab.planner_log import planner_log
    from windtunnel.lab.planner_tick import tick_of, tick_text

    if not (since is None or until is None or since <= until):
        raise ConfigError(f"--since {since:g} and --until {until:g} leave nothing between them", hint="give --since the smaller one")
    source, code = _source(what, set_, variant, seed, allow_imports)
    if code:
        return Answer({"interrupted": what}, "interrupted: nothing is explained", code)
    log = planner_log(source)
    stretches = timeline(log, pool=pool, since_s=since, until_s=until)
    head = {"name": log.name, "planner": log.kind, "ticks": len(log.ticks), "pools": list(log.pools)}
    if tick is not None:
        records = [{**e.data, "kind": e.kind, "plugin_id": e.plugin_id, "component": e.component} for e in log.of_tick(tick) if e.kind != "plan"]
        return Answer({**head, "tick": tick_of(log, tick), "records": records}, tick_text(log, tick, pool))
    return Answer({**head, "timeline": [s.to_dict() for s in stretches]}, timeline_text(log, stretches))


@planner_app.command(name="audit")
def planner_audit(directory: Path, file: Path, /) -> Answer:
    """Write a saved run's planner notes as JSON lines with a header.

    Example: `windtunnel planner audit out/diurnal out/audit.jsonl`

    Args:
        directory: Where `run --out` saved it.
        file: The file to write.
    """
    from windtunnel.lab.run import Run

    run = Run.load(directory)
    written = run.planner_audit(file)
    return Answer({"audit": str(written), "records": len(run.planner.entries)}, str(written))


def _source(what: str, set_: tuple[str, ...], variant: str | None, seed: int | None, allow_imports: bool) -> tuple[Run | Path, int]:
    """What the decisions are read from, and the exit code of a signal that came while it flew."""
    from windtunnel.lab.planner_log import is_record

    path = Path(what)
    if path.is_dir() or path.suffix == ".jsonl" or is_record(path):
        _only_for_scenarios(set_=set_, variant=variant, seed=seed)
        if not path.exists():
            raise RunCorruptError("there is no such file", where=what)
        return path, 0
    chosen = load(what, set_, variant, allow_imports)
    if chosen.control.planner is None:
        raise ConfigError(f"{chosen.name} has no planner to explain", hint="give it a control.planner, or choose another variant")
    flight = chosen.start(seed=seed, record="decisions")
    code = fly(flight, chosen.duration_s, f"{chosen.name}: ")
    return flight.result(), code


def _only_for_scenarios(**given: Any) -> None:
    used = [name for name, value in given.items() if value not in (None, ())]
    if used:
        raise ConfigError(f"--{used[0].rstrip('_')} is for scenarios; a recorded run stays as it is")
