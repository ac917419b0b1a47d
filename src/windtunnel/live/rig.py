"""The parts of one live run, put together on its loop and taken down again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from windtunnel.live.clock import RunClock
from windtunnel.live.fleet import LiveFleet
from windtunnel.live.gate import Gate
from windtunnel.live.hosted import Hosted
from windtunnel.live.loop import ControlLoop
from windtunnel.live.patrol import Patrol
from windtunnel.live.record import Recorder
from windtunnel.live.scaling.connect import connect
from windtunnel.live.scraper import Watch
from windtunnel.live.shadow import ShadowAdapter
from windtunnel.live.stopfile import StopFile
from windtunnel.policy.control import Control
from windtunnel.sources.source import Source

if TYPE_CHECKING:
    from windtunnel.live.plugins.host import PluginHost
    from windtunnel.policy.planning.outside import Outside


class Rig:
    """core: the control's loop, which the sources feed; watch: over the endpoints; patrol: what is done by the clock.

    stop(cut): called while the stop file exists. To be made on the loop that it runs on.
    """

    def __init__(self, control: Control, sources: Sequence[Source], fleet: LiveFleet, recorder: Recorder, gate: Gate, clock: RunClock, *,
                 shadow: ShadowAdapter | None, taps: list[Callable[[Any], None]], stop_grace_s: float, stop_file: StopFile,
                 stop: Callable[[bool], None], engines: Callable[..., Any]) -> None:
        self.clock, self._fleet, self._gate, self._shadow = clock, fleet, gate, shadow
        self.core = core = ControlLoop(control, recorder, gate, clock, shadow=shadow, taps=taps, stop_grace_s=stop_grace_s)
        core.hosted = Hosted(sources, asyncio.get_running_loop(), clock, core.deliver, lambda name, e: core.broken(f"the source {name!r}", e),
                             core.maybe_land, core.noted)
        endpoints = fleet.endpoints() if shadow is None else ()
        core.watch = self.watch = Watch(endpoints, engines, clock, core.deliver, core.attempts.replica_lost, scrape="scrape" in control.needs)
        self._host = self._plugins_elsewhere()
        core.attempts.replicas = self.watch.current
        core.attempts.tells_progress = "progress" in control.needs | core.hosted.hears
        self.patrol = Patrol(core, stop_file, stop, fleet.pools)

    def _plugins_elsewhere(self) -> PluginHost | None:
        """A planner's connections; a shadow has none. gRPC is loaded for those that need it alone."""
        core = self.core
        planner = getattr(core.control, "planner", None)
        outside: Outside | None = getattr(planner, "outside", None)
        if outside is None or not (outside.externals or outside.registry) or self._shadow is not None:
            return None
        from windtunnel.live.plugins.host import PluginHost

        host = PluginHost(planner, outside, core.deliver, self.clock.now, over=core.landed.is_set)
        core.asking.clients = host.clients
        return host

    def bind(self) -> None:
        """Take the address at which the planner's plugins register, if they do."""
        if self._host is not None:
            self._host.bind()

    async def fly(self) -> None:
        """From the first request to the end of the run."""
        core = self.core
        self.watch.begin()
        core.plans.scaler = await connect(self._fleet, self.watch, real=self._gate.mode == "armed" and self._gate.scaling)
        if self._host is not None:
            await self._host.open()
        core.hosted.start()
        core.maybe_land()
        self.patrol.begin()
        await core.landed.wait()
        await self.patrol.end()

    async def down(self) -> Exception | None:
        """Leave nothing behind: streams, connections, timers; the last view and the replicas' rows are written. Returns what broke first."""
        core = self.core
        self._gate.close()
        core.hosted.stop()
        if self._host is not None:
            await self._host.aclose()
        tasks = list(core.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=2.0)
        broke: Exception | None = None
        try:
            await core.plans.scaler.aclose()
        except Exception as error:
            broke = error
        await self.watch.end()
        broke = broke or core.error
        try:
            self.patrol.view = core.control.view()
            for row in self.watch.rows:
                core.recorder.replica_row(row)
        except Exception as error:
            broke = broke or error
        return broke
