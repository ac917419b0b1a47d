"""A planner plugin to copy: never fewer than so many replicas at certain times.

In the planner's own process:

    ScheduledFloor([Window("chat", 4, start_s=28_800, end_s=64_800)])

In a process of its own, asked over gRPC:

    python sims/plugins/scheduled_floor.py --listen unix:/tmp/floor.sock --floor chat=4@28800-64800

The same, registering itself with a running planner, again whenever it was forgotten, and taking its leave on SIGTERM:

    python sims/plugins/scheduled_floor.py --listen unix:/tmp/floor.sock --floor chat=4@28800-64800 \\
        --register unix:/tmp/planner.sock --token env:PLANNER_SECRET

It is a CONSTRAIN plugin: it sees what the other plugins made of the tick and answers with lower bounds. It depends on the planner's
contract alone, and takes its time from the question, so it decides the same in simulation, in replay and live.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from windtunnel.policy.planning.contract import (
    Accept,
    ComponentTarget,
    HoldPolicy,
    Override,
    OverrideType,
    Stage,
    StageRequest,
    StageResponse,
)
from windtunnel.policy.planning.plugin import Registration


@dataclass(frozen=True)
class Window:
    """At least `replicas` of `component` while start_s <= run time < end_s; with `every_s` the window comes back (86400: daily)."""

    component: str
    replicas: int
    start_s: float
    end_s: float
    every_s: float | None = None

    def __post_init__(self) -> None:
        if self.replicas < 0 or not 0 <= self.start_s < self.end_s:
            raise ValueError(f"{self.component}: expected replicas >= 0 and 0 <= start_s < end_s, got {self}")

    def holds(self, now: float) -> bool:
        t = now if self.every_s is None else now % self.every_s
        return self.start_s <= t < self.end_s


class ScheduledFloor:
    """Answers `at least n` for the windows that hold, and accepts otherwise."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self.windows = tuple(windows)

    def constrain(self, request: StageRequest) -> StageResponse:
        floors: dict[str, int] = {}
        for window in self.windows:
            if window.holds(request.tick_at):
                floors[window.component] = max(floors.get(window.component, 0), window.replicas)
        if not floors:
            return StageResponse(Accept())
        targets = tuple(ComponentTarget(name, n, OverrideType.AT_LEAST) for name, n in floors.items())
        return StageResponse(Override(targets, "scheduled_floor"))


def window_of(text: str) -> Window:
    """`chat=4@28800-64800` or, every day, `chat=4@28800-64800/86400`."""
    match = re.fullmatch(r"([a-z0-9][a-z0-9_-]*)=(\d+)@([\d.]+)-([\d.]+)(?:/([\d.]+))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected NAME=REPLICAS@START-END[/EVERY] in seconds, got {text!r}")
    name, replicas, start, end, every = match.groups()
    return Window(name, int(replicas), float(start), float(end), None if every is None else float(every))


def main() -> int:
    from windtunnel.errors import PluginRefusedError
    from windtunnel.live.plugins.announce import Announcer
    from windtunnel.live.plugins.auth import secret_of
    from windtunnel.live.plugins.endpoint import Tls, endpoint_of
    from windtunnel.live.plugins.plugin_server import serve

    args = parsed()
    tls = Tls(args.client_ca, args.cert, args.key) if args.cert else None
    announcer = None
    if args.register is not None:
        endpoint = args.endpoint or endpoint_of(args.listen, encrypted=tls is not None)
        registration = Registration(args.id, Stage.CONSTRAIN, args.priority, endpoint, execution_interval_s=args.interval_s,
                                    hold_policy=HoldPolicy.HOLD_LAST if args.hold_last else HoldPolicy.ACCEPT_WHEN_IDLE,
                                    protocol_version=args.protocol_version)
        registry_tls = Tls(args.registry_ca, args.cert, args.key) if args.registry_ca else None

        def announcer() -> Announcer:  # made on the plugin's own loop
            return Announcer(endpoint_of(args.register, encrypted=registry_tls is not None), registration,
                             lambda: secret_of(args.token) if args.token else "", tls=registry_tls, allow_insecure=args.allow_insecure,
                             replace=args.replace)
    try:
        serve(ScheduledFloor(args.floor), args.listen, tls=tls, allow_insecure=args.allow_insecure, announcer=announcer)
    except PluginRefusedError as refused:
        print(f"refused: {refused.message}", file=sys.stderr)
        return 2
    return 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", default="unix:/tmp/scheduled-floor.sock", help="unix:PATH or HOST:PORT")
    parser.add_argument("--floor", action="append", type=window_of, default=[], metavar="NAME=REPLICAS@START-END[/EVERY]")
    parser.add_argument("--allow-insecure", action="store_true", help="plaintext over TCP, both ways")
    parser.add_argument("--cert", help="this plugin's own certificate, as a server and towards the registry")
    parser.add_argument("--key")
    parser.add_argument("--client-ca", help="callers need a certificate of this CA")
    own = parser.add_argument_group("registering with a planner")
    own.add_argument("--register", metavar="HOST:PORT", help="the planner's registry, or unix:PATH")
    own.add_argument("--token", metavar="env:NAME|file:PATH", help="where the secret is")
    own.add_argument("--registry-ca", help="the CA of the registry's certificate")
    own.add_argument("--id", default="scheduled_floor")
    own.add_argument("--priority", type=int, default=100)
    own.add_argument("--endpoint", help="where the planner calls this plugin, default: --listen")
    own.add_argument("--interval-s", type=float, default=0.0, help="asked this often; 0: at every tick")
    own.add_argument("--hold-last", action="store_true", help="the last floor stays while the plugin does not answer")
    own.add_argument("--replace", action="store_true", help="unregister an earlier one of the same id first")
    own.add_argument("--protocol-version", default="1.0")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
