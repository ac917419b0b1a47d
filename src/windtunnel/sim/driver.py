"""The simulated world's driver: the one loop that every event passes. What becomes of a dispatch is in `dispatching`, what engines tell in
`engine_news`; the request path (arrive, handle, dispatch, submit, finish) is plain callbacks, and nothing runs per token.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Protocol

from windtunnel import effects as fx
from windtunnel.effects import Effect
from windtunnel.errors import ConfigNeedsError, PolicyError, WindtunnelError
from windtunnel.events import Cancelled, Event, Finished, FirstToken, Progressed, Started
from windtunnel.policy.control import Control
from windtunnel.sim.agenda import ARRIVAL, Agenda
from windtunnel.sim.arriving import Arriving
from windtunnel.sim.asking import Asking
from windtunnel.sim.decodes import Decodes
from windtunnel.sim.dispatching import Dispatching
from windtunnel.sim.engine_news import EngineNews
from windtunnel.sim.fault_config import Fault
from windtunnel.sim.faults import Faults
from windtunnel.sim.fleet import SimFleet
from windtunnel.sim.fleet_config import FleetConfig, Pool
from windtunnel.sim.progress_reports import ProgressReports
from windtunnel.sim.sampling import SAMPLE, Sampler
from windtunnel.sim.scrape import Scraper
from windtunnel.sim.wakes import Wakes
from windtunnel.sources.seeding import PolicyRng
from windtunnel.sources.source import Source, check_books

GIVES = frozenset({"fpm", "handover", "started", "first_token", "progress", "scrape", "prefix_blocks", "route_key", "token_counts",
                   "interruptible", "ends"})
HEARD = {FirstToken: "first_token", Progressed: "progress", Started: "started"}  # what a source may ask to be told, beside ends
SLICE = 256  # agenda entries between two looks at the wall clock


class Recorder(Protocol):
    """What a driver tells the record."""

    def step(self, seq: int, now: float, event: Event, effects: Sequence[Effect], verdicts: Any = None) -> None: ...
    def error(self, seq: int, now: float, event: Event, error: BaseException) -> None: ...
    def sample(self, now: float, name: str, key: str, value: float) -> None: ...
    def replica_row(self, row: Mapping[str, Any], /) -> None: ...
    def note(self, now: float, note: fx.Note) -> None: ...


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a flight is: run seconds, requests that ended, requests open; done says that it is over."""

    now: float
    done: bool
    finished: int
    in_flight: int


class SimDriver:
    """Runs one control and one source against a simulated fleet.

    itl: record who decoded in which step, for the gaps between tokens.
    until: the planned end, to which the run goes on if work ends before; arrivals at or after it are not delivered, what still runs gets
    `grace_s`, then its clients leave. sample_s: grid of the series.
    check=True asserts conservation after every event. Deterministic: same inputs, same log, however `advance` is sliced.
    """

    def __init__(self, control: Control, source: Source, fleet: FleetConfig, recorder: Recorder, *, seed: int = 0, replication: int = 0,
                 until: float | None = None, grace_s: float = 30.0, sample_s: float = 1.0, check: bool = False, step_every: bool = False,
                 faults: Sequence[Fault] = (), itl: bool = False) -> None:
        needs = control.needs | source.needs
        if missing := needs - GIVES:
            raise ConfigNeedsError(sorted(missing)[0], "the control or the source", "simulated")
        self.control, self.source, self.recorder = control, source, recorder
        self.agenda = agenda = Agenda()
        self._heard = {kind for kind, word in HEARD.items() if word in source.needs}
        self._check, self._step_every, self._until = check, step_every, until
        self.fleet = SimFleet(fleet, agenda, self._deliver, seed=seed, replication=replication, engine_options=self._engine_options)
        self.fleet.note = self._note
        self.faults = Faults(faults, self.fleet, agenda, self._note, seed=seed, replication=replication, until=until) if faults else None
        dispatching = Dispatching(self.fleet, agenda, self._deliver, self.faults)
        self.handoffs = dispatching.handoffs
        progress = ProgressReports(self.fleet, agenda, dispatching.back) if "progress" in needs else None
        self._news = EngineNews(control, self.fleet, agenda, dispatching, progress, self.faults, needs)
        self._decodes = Decodes(self.fleet) if itl else None
        asking = Asking(agenda, self._deliver, getattr(control.planner, "call_models", {}), PolicyRng(seed, "planner/calls", replication))
        told_first = None if progress is None or "progress" not in source.needs else partial(progress.tell_clients, self._tell, fleet.network_s)
        self._source_wakes = Wakes(agenda, self._tell, told_first, fleet.network_s)
        self._inbox: deque[Event] = deque()
        self._draining = self._over = self._cancelled = False
        self.seq = self.ended = 0
        self.error: WindtunnelError | None = None
        self._apply: dict[type, Callable[[Any], None]] = {
            fx.Dispatch: dispatching.dispatch, fx.Cancel: dispatching.cancel, fx.WakeAt: Wakes(agenda, self._deliver).wake,
            fx.Reject: self._ended, fx.Close: self._ended, fx.ScaleTo: self.fleet.scale_to, fx.Drain: self.fleet.drain,
            fx.Ask: asking.ask,
        }
        agenda.at(0.0, ARRIVAL, lambda _: self.fleet.start())
        agenda.at(0.0, ARRIVAL, lambda _: self._from_source(source.start(0.0)))
        self._arriving = Arriving(source.stream(), agenda, self._deliver, until, self._quiet)
        self._reactive = source.loop != "open" or "ends" in source.needs
        self._arriving.pull()
        self.sampler = Sampler(control, self.fleet, recorder.sample, agenda, sample_s, self._stranded)
        if progress is not None:
            self.fleet.on_ending = partial(progress.tell, through=self._deliver)  # a loss is told at once, not over the network
            progress.start()
        if "scrape" in needs:
            scraper = Scraper(self.fleet, agenda, self._deliver, self.faults, seed=seed, replication=replication)
            if any(pool.scrape.exact for pool in fleet.pools.values()):
                dispatching.changed = scraper.now
        if until is not None:
            agenda.at(until, SAMPLE, lambda _: None)  # a moment at which the run may be over
            agenda.at(until + grace_s, ARRIVAL, self._leave)

    # -- stepping -----------------------------------------------------------------------------------------------------------------

    def advance(self, budget_s: float = float("inf")) -> Progress:
        """Run for at most about `budget_s` wall seconds; never stops inside an event."""
        stop_at = perf_counter() + budget_s
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            while not self._over:
                if self._cancelled:
                    self._over = True
                elif self.agenda.run_some(SLICE):
                    self._end()
                if perf_counter() >= stop_at:
                    break
        except WindtunnelError as error:
            self._over, self.error = True, error
        finally:
            if was_enabled:
                gc.enable()
        return self.progress()

    def cancel(self) -> None:
        """Stop at the next slice; safe from any thread. What was recorded stays a valid, incomplete run."""
        self._cancelled = True

    @property
    def complete(self) -> bool:
        return self._over and not self._cancelled and self.error is None

    def progress(self) -> Progress:
        return Progress(self.agenda.now, self._over, self.ended, self.control.open_count)

    # -- the loop: every event passes here, in order --------------------------------------------------------------------------------

    def _deliver(self, event: Event) -> None:
        """Hand an event to the control and carry out what it says; events that this causes come after it, in order."""
        inbox = self._inbox
        if self._draining:
            inbox.append(event)
            return
        self._draining = True
        try:
            self._handle(event)
            while inbox:
                self._handle(inbox.popleft())
        finally:
            self._draining = False

    def _handle(self, event: Event) -> None:
        now = self.agenda._now
        self.seq = seq = self.seq + 1
        try:
            effects = self.control.handle(event, now)
        except Exception as error:
            self.recorder.error(seq, now, event, error)
            raise PolicyError(f"the control raised {type(error).__name__} at seq {seq}, {now:.6f} s, on {event!r}: {error}") from error
        self.recorder.step(seq, now, event, effects)
        for effect in effects:
            act = self._apply.get(type(effect))
            if act is not None:
                act(effect)
        kind = type(event)
        if kind is Finished:
            self.ended += 1
            if self._reactive:
                self._tell(event)
        elif kind in self._heard:
            self._tell(event)
        if self._check:
            self.control.check()
            check_books(self.source)

    def _ended(self, what: Any) -> None:
        """A request has ended: the source hears of it, after the control's effects were carried out."""
        self.ended += 1
        if self._reactive:
            self._tell(what)

    def _tell(self, what: Any) -> None:
        self._from_source(self.source.handle(what, self.agenda._now))

    def _from_source(self, made: Sequence[Any]) -> None:
        for item in made:
            if type(item) is fx.WakeAt:
                self._source_wakes.wake(item)
            elif type(item) is fx.Note:
                self._note(item)
            else:
                self._inbox.append(item)
        if made and not self._draining and self._inbox:
            self._deliver(self._inbox.popleft())

    def _note(self, note: fx.Note) -> None:
        self.recorder.note(self.agenda._now, note)

    def _engine_options(self, name: str, pool: Pool) -> dict[str, Any]:
        options: dict[str, Any] = {"step_every": self._step_every, "check": self._check, **self._news.options(name, pool)}
        if self.handoffs is not None and pool.link is not None:
            options = self.handoffs.options(name, pool, options)
        return options if self._decodes is None else self._decodes.options(name, options)

    # -- arrivals, end ---------------------------------------------------------------------------------------------------------------

    def _quiet(self) -> bool:
        """Nothing more can happen that matters: no arrivals, nothing open, and no planned time left in which a fleet still costs and shrinks."""
        if self._until is not None and self.agenda._now < self._until:
            return False
        return not self.control.open_count and (self._arriving.cut or self.source.done()) and self.seq > 0

    def _leave(self, _: Any) -> None:
        """The planned time and its grace are over: clients still waiting or served leave."""
        self._arriving.end(cut=True)
        for request_id in self.control.open_ids():
            self._deliver(Cancelled(request_id, None, "run_end"))

    def _stranded(self) -> None:
        """Nothing has moved for long and nothing will: no work in any engine, no boot, no arrival to come."""
        if self._arriving.ended and (self._arriving.cut or self.source.done()):
            self._over = True
            self._end()

    def _end(self) -> None:
        """Also reached when nothing is scheduled any more: what still waits then could never be served."""
        for request_id in self.control.open_ids():
            self._deliver(Cancelled(request_id, None, "stranded"))
        self._over = True

    def finish(self) -> None:
        """Write the last sample and the replica rows; call once, when the flight is over."""
        self.sampler.gauges(self.agenda._now)
        self.fleet.finish(self.agenda._now)
        for row in sorted(self.fleet.rows, key=lambda r: (r["pool"], r["ordinal"])):
            self.recorder.replica_row(row)
        if self._decodes is not None:
            recorder: Any = self.recorder  # one that was asked for gaps between tokens
            for name, rows in self._decodes.steps():
                recorder.pieces(name, rows)
            recorder.decodes(self._decodes.rows)
