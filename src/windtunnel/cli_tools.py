"""Helper commands: scenario list|show|check, schema, trace card, doctor."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from cyclopts import App

from windtunnel.cli import Answer, app, code_digest, version
from windtunnel.cli_run import Sets, load

scenario_app = App(name="scenario", help="Scenario files: list, show, check.", version_flags=())
trace_app = App(name="trace", help="Request traces.", version_flags=())
app.command(scenario_app)
app.command(trace_app)


@app.command(name="compile")
def compile_(*, remove: bool = False) -> Answer:
    """Compile the hot path (mypyc and a C compiler, a minute or two): simulations take about half the time, and give the same.

    Sources that change later are noticed: then plain Python runs until this is called again.

    Example: `windtunnel compile`

    Args:
        remove: Forget the compiled form instead.
    """
    from windtunnel import compiled, compiler

    if remove:
        compiler.remove()
        return Answer({"compiled": False}, "plain Python runs from now on")
    made = compiler.build()
    return Answer({"compiled": True, "now": made}, f"{len(compiled.MODULES)} modules {'compiled' if made else 'are compiled already'}")


@scenario_app.command(name="list")
def scenario_list() -> Answer:
    """List the scenarios in ./sims and in the package, with the question that each answers.

    Example: `windtunnel scenario list`
    """
    from windtunnel.errors import ConfigError
    from windtunnel.lab.locate import bundled
    from windtunnel.lab.scenario import Scenario

    found = {}
    for name, path in bundled().items():
        try:
            made = Scenario.load(path)
            found[name] = {"path": str(path), "question": made.question, "variants": list(made.compare)}
        except ConfigError as error:
            found[name] = {"path": str(path), "error": str(error)}
    text = "\n".join(f"{name:24} {entry.get('question') or entry.get('error', '')}" for name, entry in found.items())
    return Answer({"scenarios": found}, text or "no scenarios found")


@scenario_app.command(name="show")
def scenario_show(scenario: str, /, *, set_: Sets = (), variant: str | None = None, resolved: bool = False) -> Answer:
    """Print a scenario as YAML.

    Example: `windtunnel scenario show azure-chat --resolved`

    Args:
        scenario: A file, a bundled name, or `file@variant`.
        variant: One of the scenario's `compare` variants.
        resolved: Write out every default.
    """
    made = load(scenario, set_, variant)
    return Answer({"scenario": made.resolved(), "digest": made.digest}, made.dump(resolved=resolved).rstrip())


@scenario_app.command(name="check")
def scenario_check(*scenarios: str, set_: Sets = ()) -> Answer:
    """Check scenarios, their variants, files and feasibility, without simulating.

    Example: `windtunnel scenario check azure-chat`

    Args:
        scenarios: Files or bundled names.
    """
    from windtunnel.errors import ConfigError
    from windtunnel.lab.scenario import variants

    if not scenarios:
        raise ConfigError("scenario check needs a scenario", hint="windtunnel scenario check azure-chat")
    checked = {}
    for name in scenarios:
        for variant, made in variants(load(name, set_)):
            made.build_fleet()
            made.build_control()
            made.build_source()
            checked[name if variant == "base" else f"{name}@{variant}"] = made.digest
    return Answer({"checked": checked}, "\n".join(f"{name}: ok ({digest[:8]})" for name, digest in checked.items()))


@scenario_app.command(name="timing")
def scenario_timing(scenario: str, out: Path, /, *, pool: str | None = None, set_: Sets = (), variant: str | None = None) -> Answer:
    """Write the step times of a pool as an NPZ grid, which the replay of ai-dynamo reads.

    Example: `windtunnel scenario timing azure-chat chat.npz`

    Args:
        scenario: A file, a bundled name, or `file@variant`.
        out: The NPZ file.
        pool: Which pool; left out: the first.
        variant: One of the scenario's `compare` variants.
    """
    from windtunnel.errors import ConfigError
    from windtunnel.lab.timing_grid import write_timing_grid
    from windtunnel.sim.service import ServiceConfig

    pools = load(scenario, set_, variant).build_fleet().pools
    name = pool or next(iter(pools))
    if name not in pools:
        raise ConfigError(f'no pool "{name}"', hint=f"there are {', '.join(pools)}")
    if isinstance(pools[name].engine, ServiceConfig):
        raise ConfigError(f"pool {name} serves in seconds and has no step times")
    made = write_timing_grid(out, pools[name].step_model)
    return Answer({"saved": str(made), "pool": name, "timing": pools[name].provenance}, f"{made}: {name}, {pools[name].provenance}")


@app.command
def schema() -> Answer:
    """Print the JSON schema of scenario files (draft 2020-12).

    Example: `windtunnel schema`
    """
    from windtunnel.lab.scenario import Scenario
    from windtunnel.lab.scenario import schema as made
    from windtunnel.lab.schema import schema_text

    return Answer(made(), schema_text(Scenario).rstrip("\n"))


@trace_app.command(name="card")
def trace_card(file: Path, /, *, format: str = "auto") -> Answer:
    """Print what a trace holds: counts, span, lengths, prefixes.

    Example: `windtunnel trace card data/traces/azure2023_conv.csv.gz`

    Args:
        file: A trace of any known format.
        format: Its format; auto looks at the file.
    """
    from dataclasses import asdict

    from windtunnel.sources.traces.open import open_trace

    made = open_trace(file, format).card()
    return Answer(asdict(made), repr(made))


@trace_app.command(name="convert")
def trace_convert(file: Path, out: Path, /, *, format: str = "auto") -> Answer:
    """Write a trace in another format: Mooncake JSONL (.jsonl) or our own Parquet (.parquet).

    Example: `windtunnel trace convert data/traces/azure2023_conv.csv.gz conv.jsonl`

    Args:
        file: A trace of any known format.
        out: The new file; its suffix says the format.
        format: Format of the old one; auto looks at the file.
    """
    from windtunnel.sources.traces.open import open_trace

    trace = open_trace(file, format)
    trace.write(out)
    rows = open_trace(out).card().rows
    return Answer({"saved": str(out), "rows": rows}, f"{out}: {rows:,} requests")


@app.command
def doctor() -> Answer:
    """Print versions, extras and data files that are found, and what is missing.

    Example: `windtunnel doctor`
    """
    from windtunnel import compiled
    from windtunnel.lab.locate import bundled, data_folders

    packages = {}
    for name in ("numpy", "pandas", "pyarrow", "simpy", "pydantic", "httpx", "plotly", "cyclopts"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = "missing"
    extras = {extra: all(find_spec(module) is not None for module in modules) for extra, modules in _EXTRAS.items()}
    files = sum(1 for folder in data_folders(Path())[-1:] if folder.is_dir() for path in folder.rglob("*") if path.is_file())
    result = {"version": version(), "code_digest": code_digest(), "python": platform.python_version(), "platform": platform.platform(),
              "executable": sys.executable, "packages": packages, "extras": extras, "compiled": compiled.in_use(),
              "data_files": files, "scenarios": len(bundled())}
    missing = [name for name, found in packages.items() if found == "missing"]
    lines = [version(), f"python {result['python']} on {result['platform']}", *(f"  {k} {v}" for k, v in packages.items()),
             f"hot path: {'compiled' if compiled.in_use() else 'plain Python, ' + str(compiled.why_not())}",
             "extras " + ", ".join(f"{name} {'yes' if found else 'no'}" for name, found in extras.items()),
             f"{files} data files, {result['scenarios']} scenarios"]
    return Answer(result, "\n".join(lines), 1 if missing else 0)


_EXTRAS = {
    "lab": ("jupyterlab",), "gateway": ("starlette", "uvicorn"), "grpc": ("grpc",), "compiled": ("mypyc",), "tune": ("optuna",), "cluster": ("dask",),
           "k8s": ("kr8s",), "wasm": ("wasmtime",), "engine-llamacpp": ("xllamacpp",)}
