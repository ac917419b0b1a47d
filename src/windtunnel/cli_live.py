"""Commands that touch real engines: drive, engine up|down, stop."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from windtunnel.cli import INTERRUPTED, TERMINATED, Answer, app
from windtunnel.cli_run import Sets, load, run_dict
from windtunnel.lab.destination import check_run

Mode = Literal["shadow", "dry_run", "armed"]
CapTexts = Annotated[tuple[str, ...], Parameter(name="--cap", help="Bound, e.g. max_in_flight=8; repeatable.", show_default=False)]
engine_app = App(name="engine", help="A small real engine on this machine, for trying things out.", version_flags=())
app.command(engine_app)


@app.command
def drive(scenario: str, /, *, fleet: Path, mode: Mode = "dry_run", arm: str | None = None, scaling: bool = False, cap: CapTexts = (),
          set_: Sets = (), variant: str | None = None, seed: int | None = None, name: str | None = None, out: Path | None = None,
          metrics: str | None = None) -> Answer:
    """Drive real engines with a scenario's control and source.

    Example: `windtunnel drive azure-chat --fleet fleet.yaml --mode dry_run --set duration_s=10`

    Args:
        scenario: Its control, source and duration are used, not its simulated fleet.
        fleet: File that names the engines.
        mode: dry_run answers in this process and sends nothing; armed needs --arm and --cap.
        arm: The phrase `ARM <fleet name>`.
        scaling: Let scaling effects out, too (phrase `ARM <fleet name> SCALING`).
        variant: One of the scenario's `compare` variants.
        seed: Instead of the scenario's seed.
        name: Name of the live run, for `windtunnel stop`.
        out: Directory that the run is saved to.
        metrics: [HOST:]PORT at which Prometheus may scrape the planner's metrics while it runs.
    """
    from windtunnel.lab.metrics_door import metrics_door
    from windtunnel.lab.world_live import Live
    from windtunnel.live.fleet import LiveFleet

    if out is not None:
        check_run(out, overwrite=False)
    chosen, engines = load(scenario, set_, variant), LiveFleet.load(fleet)
    seed = chosen.seed if seed is None else seed
    world = Live(engines, mode=mode, phrase=arm, caps=caps(cap), scaling=scaling, seed=seed)
    pools = engines.pool_facts()
    control = chosen.build_control(pools=pools, seed=seed, wants=world.wants)
    source = chosen.build_source(seed=seed, model=pools[0].model, live=True)
    terminated: list[int] = []

    def terminate(number: int, _: Any) -> None:
        terminated.append(number)
        world.stop()

    old = signal.signal(signal.SIGTERM, terminate)
    try:
        with metrics_door(control, metrics):
            made = world.run(control, source, name=name or chosen.name, scenario=chosen, **chosen.meta(pools))
    finally:
        signal.signal(signal.SIGTERM, old)
    result = run_dict(made)
    if out is not None:
        result["saved"] = str(made.save(out))
    return Answer(result, repr(made), TERMINATED if terminated else INTERRUPTED if world.why == "interrupted" else 0)


def caps(texts: tuple[str, ...]) -> Any:
    """Caps from name=value texts; None without any."""
    from dataclasses import fields

    from windtunnel.errors import ConfigError, ConfigUnknownKeyError
    from windtunnel.lab.yamlfile import scalar
    from windtunnel.live.gate import Caps

    known = tuple(f.name for f in fields(Caps))
    given = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--cap {text}: expected name=value", hint=f"names: {', '.join(known)}")
        if key not in known:
            raise ConfigUnknownKeyError("--cap", key, known=known)
        given[key] = scalar(value)
    if not given:
        return None
    if "max_in_flight" not in given:
        raise ConfigError("--cap: max_in_flight is missing", hint="--cap max_in_flight=8")
    return Caps(**given)


@app.command
def stop(run: str | None = None, /, *, cut: bool = False) -> Answer:
    """Stop a live run, or all of this user's.

    Example: `windtunnel stop`

    Args:
        run: Name of the live run; left out: all of them.
        cut: End the streams in flight, too.
    """
    from windtunnel.live import stopfile

    stopped = stopfile.request_stop(run, cut=cut)
    return Answer({"stopped": stopped}, "\n".join(f"{one}: stop requested" for one in stopped) or "no live run")


@engine_app.command(name="up")
def engine_up(kind: Literal["llamacpp"] = "llamacpp", /, *, port: int = 8090, parallel: int = 2, ctx: int = 4096, model: str = "tiny",
              threads: int | None = None) -> Answer:
    """Start a llama.cpp server that runs until `engine down`.

    Example: `windtunnel engine up llamacpp --port 8090`

    Args:
        kind: The engine; llama.cpp is the one that comes as a wheel.
        port: Where it listens, on this machine only.
        parallel: Requests at once.
        ctx: Context tokens of all of them together.
        model: tiny (random weights), gemma3-270m, or a GGUF file.
        threads: CPU threads; left out: one for tiny, all for other models.
    """
    from windtunnel.live import llamacpp_server

    server = llamacpp_server.start(port, parallel, ctx, model, threads=threads, owned=False)
    result = {"url": server.url, "port": server.port, "pid": server.pid, "model": model}
    return Answer(result, f"{server.url} serves {model} (process {server.pid}); windtunnel engine down --port {server.port}")


@engine_app.command(name="down")
def engine_down(*, port: int | None = None) -> Answer:
    """Stop the llama.cpp server at a port, or all that `engine up` started.

    Example: `windtunnel engine down`

    Args:
        port: Where it listens; left out: all.
    """
    from windtunnel.live import llamacpp_server

    stopped = llamacpp_server.stop(port)
    return Answer({"stopped": stopped}, "\n".join(f"{p}: stopped" for p in stopped) or "no server runs")


@engine_app.command(name="list")
def engine_list() -> Answer:
    """List the llama.cpp servers that run.

    Example: `windtunnel engine list`
    """
    from windtunnel.live import llamacpp_server

    servers = llamacpp_server.running()
    return Answer({"servers": servers}, "\n".join(f"{s['url']}  {s['model']}  process {s['pid']}" for s in servers) or "no server runs")
