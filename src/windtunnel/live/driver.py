"""The live world's driver: one Control on real time, in a thread of its own with its own loop, so a busy notebook cannot stall it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from windtunnel.effects import Close, Reject
from windtunnel.errors import ArmRefusedError, ConfigNeedsError, ConfigValueError, EngineStoppedError
from windtunnel.events import Event
from windtunnel.live.arming import Check, FleetLock, check_consent, refuse_if_red
from windtunnel.live.calm import calm_gc
from windtunnel.live.clock import RunClock
from windtunnel.live.engines import make_engine
from windtunnel.live.fleet import LiveFleet
from windtunnel.live.gate import MODES, Caps, Gate, Usage
from windtunnel.live.hosted import Hosted
from windtunnel.live.loop import ControlLoop, Recorder
from windtunnel.live.patrol import Patrol
from windtunnel.live.scaling.connect import connect
from windtunnel.live.scraper import Watch
from windtunnel.live.shadow import ShadowAdapter
from windtunnel.live.stopfile import StopFile
from windtunnel.policy.control import Control
from windtunnel.sources.source import Source

if TYPE_CHECKING:
    from windtunnel.live.plugins.host import PluginHost
    from windtunnel.policy.planning.outside import Outside

GIVES = frozenset({"started", "first_token", "progress", "scrape", "prefix_blocks", "route_key", "token_counts", "interruptible"})
UNKNOWN = frozenset({"fpm"})  # engines tell no steps over HTTP: who asks for them has to do without, as when reports are late
SECOND_STOP_S = 5.0  # a second stop within this time means: cut
MANY, LATE_S = 10_000, 1.0  # inbox length and loop lag from which doors should refuse


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a flight is. now: run s; state: starting running stopping stopped; mode: shadow dry_run armed stopped.

    arrived, finished, ended count requests (finished is a part of ended); open and in_flight are requests and attempts alive now;
    refused: effects that the gate held back, by reason; lag_p99_s: lateness of open-loop arrivals; why: what ended it, or "".
    """

    now: float
    state: str
    mode: str
    seq: int
    arrived: int
    finished: int
    ended: int
    open: int
    in_flight: int
    policy_errors: int
    refused: Mapping[str, int]
    lag_p99_s: float | None
    loop_lag_s: float
    why: str

    @property
    def done(self) -> bool:
        return self.state == "stopped"


class LiveDriver:
    """Runs one control and its sources against a fleet of real engines; all public methods may be called from any thread.

    mode: "shadow" (events are posted by another world, effects dropped), "dry_run" (default: attempts are answered by a stand-in in this
    process, nothing but GET leaves), or "armed", which needs `phrase` ("ARM <fleet name>") and `caps`. seed: for the record only.
    name: the run's, unique among this user's live runs. stop_grace_s: how long streams in flight may go on after a stop.
    Raises ConfigNeedsError, ConfigValueError, ArmRefusedError.
    """

    def __init__(self, control: Control, sources: Sequence[Source] | Source, fleet: LiveFleet, recorder: Recorder, *, mode: str = "dry_run",
                 caps: Caps | None = None, phrase: str | None = None, scaling: bool = False, seed: int = 0, name: str = "live",
                 stop_grace_s: float = 30.0, engines: Callable[..., Any] = make_engine) -> None:
        if mode not in MODES:
            raise ConfigValueError("mode", f"expected one of {', '.join(MODES)}, got {mode!r}")
        if mode == "armed":
            caps = check_consent(fleet.name, phrase, caps, scaling=scaling)
            started = [name for name, pool in fleet.pools.items() if pool.scaling is not None and pool.scaling.kind == "exec"]
            if started and not scaling:
                raise ArmRefusedError(f"the engines of pool {started[0]!r} are started by its connector", hint="arm with scaling, or list its urls")
        self.control, self.fleet, self.recorder, self.name, self.seed = control, fleet, recorder, name, seed
        self.sources: tuple[Source, ...] = tuple(sources) if isinstance(sources, Sequence) else (sources,)
        if mode == "shadow" and self.sources:
            raise ConfigValueError("sources", "a shadow has none: its events are posted by the world that serves the traffic")
        needs = control.needs.union(*(s.needs for s in self.sources))
        if "handover" in needs:
            raise ConfigNeedsError("handover", "a router that splits prefill and decode", "live",
                                   hint="engines move KV among themselves: send to one pool of role agg, or fly this in simulation")
        if missing := needs - GIVES - UNKNOWN:
            raise ConfigNeedsError(min(missing), "the control or a source", "live")
        self._gate = Gate(mode, caps, scaling and mode == "armed", Usage(fleet.prices()))
        self._stop_file, self._lock = StopFile(name), FleetLock(fleet.name, name)
        self._stop_grace_s, self._engines = stop_grace_s, engines
        self._shadow = ShadowAdapter() if mode == "shadow" else None
        self._taps: list[Callable[[Any], None]] = []
        self._error: Exception | None = None
        self._why, self._state = "", "starting"
        self.checks: tuple[Check, ...] = ()
        self._asked_at: float | None = None
        self._core: ControlLoop | None = None
        self._patrol: Patrol | None = None
        self._host: PluginHost | None = None
        self._clock: RunClock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._started, self._over = threading.Event(), threading.Event()

    # -- start and end ----------------------------------------------------------------------------------------------------------------

    def start(self, *, t0: float | None = None) -> None:
        """Start the thread; returns when every endpoint was looked at once. t0: a shadow takes its main driver's.

        Raises ArmRefusedError (with every red sentence), ConfigError, EngineStoppedError (started before, or stopped already).
        """
        if self._thread is not None or self._gate.closed:
            raise EngineStoppedError("a live driver runs once; make a new one")
        self._stop_file.open()
        try:
            if self._gate.mode == "armed":
                self._lock.take()
            self._thread = threading.Thread(target=self._main, args=(t0,), name=f"windtunnel-{self.name}", daemon=True)
            self._thread.start()
        except BaseException:
            self._clean_up()
            raise
        self._started.wait()
        if self._over.is_set() and self._error is not None:
            self._thread.join()
            raise self._error

    def run_blocking(self) -> None:
        """Start, and return when it is over. Ctrl-C stops, a second one cuts the streams. Raises what broke the run, if anything did."""
        try:
            self.start()
            self.wait()
        except KeyboardInterrupt:
            self.stop(why="interrupted")
            try:
                self.wait()
            except KeyboardInterrupt:
                self.stop(cut=True)
                self.wait()
        if self._error is not None:
            raise self._error

    def wait(self, timeout: float | None = None) -> bool:
        """True when it is over, within `timeout` s."""
        over = self._over.wait(timeout)
        if over and self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        return over

    def stop(self, cut: bool = False, *, why: str = "stopped") -> None:
        """Close the gate now; waiting requests end, streams get the grace. `cut`, or a second stop within 5 s, ends them too.

        Final, idempotent, never raises, returns at once.
        """
        self._gate.close()
        now, before = monotonic(), self._asked_at
        if before is None:
            self._asked_at = now
        elif now - before <= SECOND_STOP_S:
            cut = True
        if self._loop is None:
            self._why = self._why or why
            if self._thread is None:
                self._state = "stopped"
                self._over.set()
            return
        try:
            self._loop.call_soon_threadsafe(self._stop_here, cut, why)
        except RuntimeError:
            return  # the loop is over, and so is the run

    def _stop_here(self, cut: bool, why: str) -> None:
        self._why = self._why or why
        if self._core is not None and not self._core.landed.is_set():
            self._state = "stopping" if self._state == "running" else self._state
            self._core.stop(cut, why)

    # -- while it runs ----------------------------------------------------------------------------------------------------------------

    def post(self, event: Event | Reject | Close) -> None:
        """Hand in an event; it enters at the loop's next turn. Raises EngineStoppedError before the start and once the run is over."""
        core, loop = self._core, self._loop
        if core is None or loop is None or self._over.is_set():
            raise EngineStoppedError(f"the live run {self.name!r} {'is over' if self._over.is_set() else 'has not begun'}")
        try:
            loop.call_soon_threadsafe(core.posted, event)
        except RuntimeError:
            raise EngineStoppedError(f"the live run {self.name!r} is over") from None

    def tap(self, hear: Callable[[Any], None]) -> None:
        """`hear` gets every event and every end (Reject, Close), in order, on the driver's thread: give it a shadow's `post`."""
        self._taps.append(hear)

    def arm(self, phrase: str, caps: Caps | None = None, *, scaling: bool = False, min_dry_run_s: float = 0.0,
            timeout_s: float = 60.0) -> tuple[Check, ...]:
        """Let effects out, if phrase and caps are right and every check is green; returns the checklist.

        min_dry_run_s: how long the run must have gone dry without an error of the control. Raises ArmRefusedError, which changes
        nothing. Not to be called from the driver's own thread.
        """
        caps = check_consent(self.fleet.name, phrase, caps, scaling=scaling)
        if self._gate.closed or self._over.is_set():
            raise ArmRefusedError("this world was stopped; a new one is needed")
        if self._shadow is not None:
            raise ArmRefusedError("a shadow drives no engines; make a world in dry run and arm that")
        if self._loop is None or self._state != "running":
            raise ArmRefusedError("nothing is running yet; start the run first")
        asked = asyncio.run_coroutine_threadsafe(self._arm(caps, scaling, min_dry_run_s), self._loop)
        try:
            return asked.result(timeout_s)
        except (TimeoutError, CancelledError):
            raise ArmRefusedError("not armed: the checks did not end in time, or the run did before them") from None
        finally:
            asked.cancel()  # whoever gave up waiting must not find the world armed later

    def disarm(self) -> None:
        """Back to dry run: streams in flight go on, new attempts go to the stand-in. Harmless when not armed."""
        if self._gate.mode == "armed" and not self._gate.closed:
            self._gate.mode, self._gate.scaling = "dry_run", False
            self._lock.release()

    def progress(self) -> Progress:
        """Where the run stands now."""
        core, patrol = self._core, self._patrol
        if core is None or patrol is None:
            return Progress(0.0, self._state, self._gate.state, 0, 0, 0, 0, 0, 0, 0, {}, None, 0.0, self._why)
        return Progress(
            core.now, self._state, self._gate.state, core.seq, core.arrived, core.finished, core.ended, len(core.open), len(core.attempts),
            core.policy_errors, dict(self._gate.refused), core.hosted.lag_p99_s(), patrol.loop_lag_s, self._why or core.why,
        )

    def view(self) -> Any:
        """The last published snapshot of the control (at most 4 a second), or None before the first."""
        return self._patrol.view if self._patrol is not None else None

    @property
    def mode(self) -> str:
        """shadow, dry_run, armed or stopped: what the effects see, not what was asked for."""
        return self._gate.state

    @property
    def now(self) -> float:
        """Run second of the last event."""
        return self._core.now if self._core is not None else 0.0

    @property
    def t0(self) -> float | None:
        """Zero of the run's clock on the machine's monotonic clock; None before the start."""
        return self._clock.t0 if self._clock is not None else None

    @property
    def error(self) -> Exception | None:
        """What broke the run: a refused arming, a recorder or source that raised, books that do not balance. None if nothing did."""
        return self._error

    @property
    def last_policy_error(self) -> Exception | None:
        """What the control raised last; its request ended, the run went on."""
        return self._core.last_policy_error if self._core is not None else None

    @property
    def complete(self) -> bool:
        """The run reached its own end: sources done, nothing open, nothing broke."""
        return self._over.is_set() and self._error is None and self._core is not None and self._core.why == "done"

    @property
    def congested(self) -> bool:
        """Doors should refuse: the inbox is long or the loop is late."""
        core, patrol = self._core, self._patrol
        return core is not None and patrol is not None and (patrol.loop_lag_s > LATE_S or len(core.inbox) > MANY)

    # -- the driver's own thread --------------------------------------------------------------------------------------------------------

    def _main(self, t0: float | None) -> None:
        try:
            with calm_gc(), asyncio.Runner() as runner:
                runner.run(self._fly(t0))
        except Exception as error:
            self._error = self._error or error
        finally:
            self._gate.close()
            self._clean_up()
            self._state = "stopped"
            self._over.set()
            self._started.set()

    async def _fly(self, t0: float | None) -> None:
        loop = asyncio.get_running_loop()
        clock = RunClock(loop, t0)
        core = ControlLoop(self.control, self.recorder, self._gate, clock, shadow=self._shadow, taps=self._taps,
                           stop_grace_s=self._stop_grace_s)
        core.hosted = Hosted(self.sources, loop, clock, core.deliver, lambda name, e: core.broken(f"the source {name!r}", e),
                             core.maybe_land)
        endpoints = self.fleet.endpoints() if self._shadow is None else ()
        core.watch = watch = Watch(endpoints, self._engines, clock, core.deliver, core.replica_lost,
                                   scrape="scrape" in self.control.needs)
        self._host = self._plugins_elsewhere(core, clock)
        core.wants_progress = "progress" in self.control.needs | core.hosted.hears
        self._patrol = Patrol(core, self._stop_file, lambda cut: self._stop_here(cut, "stop file"), self.fleet.pools)
        self._clock, self._core, self._loop = clock, core, loop
        try:
            await watch.look_at_all()
            if "interruptible" in self.control.needs and (fixed := watch.never_stops()):
                raise ConfigNeedsError("interruptible", "hard pre-emption", "live", hint=f"replica {fixed} cannot stop a running request")
            if self._gate.mode == "armed":
                self._check(watch)
            if t0 is None:
                clock.start()
            if self._host is not None:
                self._host.bind()
            await self._airborne(core, watch, self._patrol)
        finally:
            await self._shut(core, watch)

    async def _airborne(self, core: ControlLoop, watch: Watch, patrol: Patrol) -> None:
        if self._gate.closed:  # stopped while the endpoints were looked at
            core.why = self._why
            return
        self._state = "running"
        self._started.set()
        watch.begin()
        core.scaler = await connect(self.fleet, watch, real=self._gate.mode == "armed" and self._gate.scaling)
        if self._host is not None:
            await self._host.open()
        core.hosted.start()
        core.maybe_land()
        patrol.begin()
        await core.landed.wait()
        await patrol.end()

    async def _shut(self, core: ControlLoop, watch: Watch) -> None:
        """Leave nothing behind: streams, connections, timers; the last view and the replicas' rows are written."""
        self._gate.close()
        core.hosted.stop()
        if self._host is not None:
            await self._host.aclose()
        tasks = list(core.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=2.0)
        try:
            await core.scaler.aclose()
        except Exception as error:
            self._error = self._error or error
        await watch.end()
        self._error = self._error or core.error
        try:
            self._patrol.view = self.control.view()  # type: ignore[union-attr]
            for row in watch.rows:
                self.recorder.replica_row(row)
        except Exception as error:
            self._error = self._error or error

    def _plugins_elsewhere(self, core: ControlLoop, clock: RunClock) -> PluginHost | None:
        """A planner's connections; a shadow has none. gRPC is loaded for those that need it alone."""
        planner = getattr(self.control, "planner", None)
        outside: Outside | None = getattr(planner, "outside", None)
        if outside is None or not (outside.externals or outside.registry) or self._shadow is not None:
            return None
        from windtunnel.live.plugins.host import PluginHost

        host = PluginHost(planner, outside, core.deliver, clock.now, over=core.landed.is_set)
        core.asking.clients = host.clients
        return host

    def _clean_up(self) -> None:
        self._lock.release()
        self._stop_file.close()

    # -- arming -------------------------------------------------------------------------------------------------------------------------

    def _check(self, watch: Watch) -> tuple[Check, ...]:
        self.checks = tuple(watch.checks())
        refuse_if_red(self.checks)
        return self.checks

    async def _arm(self, caps: Caps, scaling: bool, min_dry_run_s: float) -> tuple[Check, ...]:
        core = self._core
        assert core is not None
        await core.watch.look_at_all()
        errors, dry_s = core.policy_errors, core.clock.now()
        text = f"dry run of {dry_s:.0f} s without an error of the control"
        if errors:
            text = f"the control raised {errors} times in dry run, last: {core.last_policy_error}"
        elif dry_s < min_dry_run_s:
            text = f"dry run of {dry_s:.0f} s is too short; {min_dry_run_s:g} s are asked for"
        self.checks = (*core.watch.checks(), Check("dry run", not errors and dry_s >= min_dry_run_s, text))
        refuse_if_red(self.checks)
        if self._gate.closed:
            raise ArmRefusedError("this world was stopped; a new one is needed")
        self._lock.take()
        self._gate.caps, self._gate.scaling, self._gate.mode = caps, scaling, "armed"
        return self.checks
