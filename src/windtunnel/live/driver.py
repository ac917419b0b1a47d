"""The live world's driver: one Control on real time, in a thread of its own with its own loop, so a busy notebook cannot stall it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from time import monotonic
from typing import Any

from windtunnel.effects import Close, Reject
from windtunnel.errors import ArmRefusedError, ConfigNeedsError, ConfigValueError, EngineStoppedError
from windtunnel.events import Event
from windtunnel.live.arming import Check, FleetLock, check_consent, dry_run_check, refuse_if_red
from windtunnel.live.calm import calm_gc
from windtunnel.live.clock import RunClock
from windtunnel.live.engines import make_engine
from windtunnel.live.fleet import LiveFleet
from windtunnel.live.gate import MODES, Caps, Gate, Usage
from windtunnel.live.instruments import Instruments
from windtunnel.live.record import Recorder
from windtunnel.live.rig import Rig
from windtunnel.live.shadow import ShadowAdapter
from windtunnel.live.stopfile import StopFile
from windtunnel.policy.control import Control
from windtunnel.sources.source import Source

GIVES = frozenset({"started", "first_token", "progress", "scrape", "prefix_blocks", "route_key", "token_counts", "interruptible",
                   "ends"})
UNKNOWN = frozenset({"fpm"})  # engines tell no steps over HTTP: who asks for them has to do without, as when reports are late
SECOND_STOP_S = 5.0  # a second stop within this time means: cut


class LiveDriver(Instruments):
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
        super().__init__(Gate(mode, caps, scaling and mode == "armed", Usage(fleet.prices())))
        self._stop_file, self._lock = StopFile(name), FleetLock(fleet.name, name)
        self._stop_grace_s, self._engines = stop_grace_s, engines
        self._shadow = ShadowAdapter() if mode == "shadow" else None
        self._taps: list[Callable[[Any], None]] = []
        self.checks: tuple[Check, ...] = ()
        self._asked_at: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._started = threading.Event()

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
        if self._rig is not None and not self._rig.core.landed.is_set():
            self._state = "stopping" if self._state == "running" else self._state
            self._rig.core.stop(cut, why)

    # -- while it runs ----------------------------------------------------------------------------------------------------------------

    def post(self, event: Event | Reject | Close) -> None:
        """Hand in an event; it enters at the loop's next turn. Raises EngineStoppedError before the start and once the run is over."""
        rig, loop = self._rig, self._loop
        if rig is None or loop is None or self._over.is_set():
            raise EngineStoppedError(f"the live run {self.name!r} {'is over' if self._over.is_set() else 'has not begun'}")
        try:
            loop.call_soon_threadsafe(rig.core.posted, event)
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
        rig = Rig(self.control, self.sources, self.fleet, self.recorder, self._gate, clock, shadow=self._shadow, taps=self._taps,
                  stop_grace_s=self._stop_grace_s, stop_file=self._stop_file, stop=lambda cut: self._stop_here(cut, "stop file"),
                  engines=self._engines)
        self._rig, self._loop = rig, loop
        try:
            await rig.watch.look_at_all()
            if "interruptible" in self.control.needs and (fixed := rig.watch.never_stops()):
                raise ConfigNeedsError("interruptible", "hard pre-emption", "live", hint=f"replica {fixed} cannot stop a running request")
            if self._gate.mode == "armed":
                self.checks = tuple(rig.watch.checks())
                refuse_if_red(self.checks)
            if t0 is None:
                clock.start()
            rig.bind()
            if self._gate.closed:  # stopped while the endpoints were looked at
                rig.core.why = self._why
                return
            self._state = "running"
            self._started.set()
            await rig.fly()
        finally:
            broke = await rig.down()
            self._error = self._error or broke

    def _clean_up(self) -> None:
        self._lock.release()
        self._stop_file.close()

    # -- arming -------------------------------------------------------------------------------------------------------------------------

    async def _arm(self, caps: Caps, scaling: bool, min_dry_run_s: float) -> tuple[Check, ...]:
        assert self._rig is not None
        core, watch = self._rig.core, self._rig.watch
        await watch.look_at_all()
        self.checks = (*watch.checks(), dry_run_check(core.clock.now(), min_dry_run_s, core.policy_errors, core.last_policy_error))
        refuse_if_red(self.checks)
        if self._gate.closed:
            raise ArmRefusedError("this world was stopped; a new one is needed")
        self._lock.take()
        self._gate.caps, self._gate.scaling, self._gate.mode = caps, scaling, "armed"
        return self.checks
