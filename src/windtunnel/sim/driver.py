"""The simulated world's driver: carries effects out on a SimPy agenda and turns what happens into events.

The request path (arrive, handle, dispatch, submit, finish) is plain callbacks; nothing here runs per token.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

from windtunnel import effects as fx
from windtunnel.effects import Effect
from windtunnel.errors import ConfigNeedsError, PolicyError, WindtunnelError
from windtunnel.events import Arrived, Cancelled, Event, Failed, Finished, FirstToken, Progressed, Request, Started, Woke
from windtunnel.policy.control import Control
from windtunnel.sim.agenda import ARRIVAL, COMPLETION, Agenda, Call
from windtunnel.sim.asking import Asking
from windtunnel.sim.decodes import Decodes
from windtunnel.sim.engine import Attempt
from windtunnel.sim.faults import Fault, Faults
from windtunnel.sim.fleet import DRAINING, READY, FleetConfig, Pool, SimFleet
from windtunnel.sim.followers import Followers
from windtunnel.sim.pd import Handoffs, pairs_of
from windtunnel.sim.sampling import SAMPLE, Sampler
from windtunnel.sim.scrape import Scraper
from windtunnel.sim.service import Job
from windtunnel.sim.step_reports import REPORT_S, teller
from windtunnel.sources.seeding import PolicyRng
from windtunnel.sources.source import Source, check_books

GIVES = frozenset({"fpm", "handover", "started", "first_token", "progress", "scrape", "prefix_blocks", "route_key", "token_counts"})
HEARD = {FirstToken: "first_token", Progressed: "progress", Started: "started"}  # what a source may ask to be told, beside ends
PROGRESS_S = 0.25  # run s between two reports of a replica whose batch does not change
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
        missing = (control.needs | source.needs) - GIVES
        if missing:
            raise ConfigNeedsError(sorted(missing)[0], "the control or the source", "simulated")
        self.control, self.source, self.recorder = control, source, recorder
        self.agenda = Agenda()
        self._needs = control.needs | source.needs
        self._heard = {kind for kind, word in HEARD.items() if word in source.needs}
        self._until, self._grace_s, self._sample_s, self._check = until, grace_s, sample_s, check
        self._step_every, self._seeds = step_every, (seed, replication)
        self._broken: set[tuple[str, int]] = set()  # attempts that a fault ended at their first token, until the engine lets go
        self.fleet = SimFleet(fleet, self.agenda, self._deliver, seed=seed, replication=replication, engine_options=self._engine_options)
        self._network_s = fleet.network_s
        self.handoffs = self._handoffs(fleet)
        self._decodes = Decodes(self.fleet) if itl else None
        self.faults = Faults(faults, self.fleet, self.agenda, lambda note: recorder.note(self.agenda._now, note), seed=seed,
                             replication=replication, until=until) if faults else None
        self.fleet.note = lambda note: recorder.note(self.agenda._now, note)
        self._inbox: deque[Event] = deque()
        self._draining = self._over = self._cancelled = False
        self._seed, self._replication = seed, replication
        self._asking: Asking | None = None
        self._told_s: dict[str, float] = {}
        self._exact = "scrape" in self._needs and any(pool.scrape.exact for pool in fleet.pools.values())
        self._followers = Followers(self.fleet.replicas, self.agenda, self._tell_progress)
        self._cut = False  # the planned time ended before the source did
        self._wakes: dict[tuple[str, str], int] = {}
        self._stream: Iterator[Request] | None = None
        self._next: Request | None = None
        self._reactive = True
        self.seq = self.ended = 0
        self.error: WindtunnelError | None = None
        self._apply: dict[type, Callable[[Any], None]] = {
            fx.Dispatch: self._dispatch if fleet.network_s else self._submit, fx.WakeAt: self._wake_control,
            fx.Cancel: self._cancel_far if fleet.network_s else self._cancel,
            fx.Reject: self._ended, fx.Close: self._ended, fx.ScaleTo: self.fleet.scale_to, fx.Drain: self.fleet.drain,
            fx.Ask: self._ask,
        }
        self._start()

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
                self._wake("source", item)
            elif type(item) is fx.Note:
                self.recorder.note(self.agenda._now, item)
            else:
                self._inbox.append(item)
        if made and not self._draining and self._inbox:
            self._deliver(self._inbox.popleft())

    # -- effects ------------------------------------------------------------------------------------------------------------------

    def _dispatch(self, effect: fx.Dispatch) -> None:
        self.agenda.at(self.agenda._now + self._network_s, ARRIVAL, lambda _: self._submit(effect))

    def _submit(self, effect: fx.Dispatch) -> None:
        request = effect.request
        replica = self.fleet.replicas.get(effect.replica)
        if replica is None or replica.state != READY:
            self._fail(request.id, effect.dispatch, effect.replica, 503, "engine_unavailable")
            return
        if self.faults is not None and self.faults.replies and (status := self.faults.refuses(effect.replica)) is not None:
            self._fail(request.id, effect.dispatch, effect.replica, status, f"http_{status}")
            return
        truth = request.truth
        output = truth.output_tokens if truth is not None else (request.max_tokens or 1)
        if truth is not None and truth.service_s is not None:
            attempt: Attempt = Job(request.id, effect.dispatch, request.input_tokens or 1, output, request.priority, truth.service_s)
        else:
            attempt = Attempt(request.id, effect.dispatch, request.input_tokens or 1, output, request.priority, request.blocks)
        if effect.prefill is not None:
            self._submit_pair(effect, attempt)
            if self._exact:
                self.scraper.now(effect.prefill)
                self.scraper.now(effect.replica)
            return
        refusal = replica.engine.submit(attempt)
        if refusal is not None:
            self._fail(request.id, effect.dispatch, effect.replica, refusal.status, refusal.reason, refusal.retry_after_s)
        elif self._exact:
            self.scraper.now(effect.replica)

    def _submit_pair(self, effect: fx.Dispatch, attempt: Attempt) -> None:
        if self.handoffs is None:
            raise PolicyError(f"request {effect.request.id!r} was sent to {effect.replica!r} with a prefill on {effect.prefill!r}: this fleet "
                              "has no prefill and decode pools")
        self.handoffs.submit(effect, attempt)

    def _handoffs(self, config: FleetConfig) -> Handoffs | None:
        """What moves KV between pools that share requests; None if no pool does."""
        if not pairs_of(config):
            return None

        def refuse(effect: fx.Dispatch, replica: str, status: int, reason: str, retry_after_s: float | None) -> None:
            self._fail(effect.request.id, effect.dispatch, replica, status, reason, retry_after_s)

        def fails(replica: str) -> int | None:
            return None if self.faults is None or not self.faults.replies else self.faults.refuses(replica)

        made = Handoffs(self.fleet, self.agenda, deliver=self._deliver, back=self._back, refuse=refuse, fails=fails)
        self.fleet.on_gone, self.fleet.on_link = made.lost, made.relink
        return made

    def _fail(self, request_id: str, dispatch: int, replica: str, status: int, reason: str, retry_after_s: float | None = None,
              first_token_s: float | None = None) -> None:
        """The engine refused: 429, 503 with Retry-After and a full engine queue are overload, 4xx the client's mistake."""
        if status == 429 or reason == "engine_queue_full" or (status == 503 and retry_after_s is not None):
            outcome = "rate_limited"
        elif 400 <= status < 500:
            outcome = "local_cancelled"
        else:
            outcome = "provider_failure"
        tokens = None if first_token_s is None else 1
        self._back(Failed(request_id, dispatch, replica, outcome, reason, status, retry_after_s, tokens, None, first_token_s))

    def _back(self, event: Event) -> None:
        """An answer on its way to the control, through the network if there is one."""
        if self._network_s:
            self.agenda.at(self.agenda._now + self._network_s, ARRIVAL, lambda _: self._deliver(event))
        else:
            self._deliver(event)

    def _cancel(self, effect: fx.Cancel) -> None:
        if not self._let_go(effect):
            self._back(Failed(effect.request_id, effect.dispatch, effect.replica, "local_cancelled", effect.reason))

    def _cancel_far(self, effect: fx.Cancel) -> None:
        """Behind its dispatch on the same way; an engine that does not know the attempt any more has answered it already."""
        def arrives(_: Any) -> None:
            self._let_go(effect)

        self.agenda.at(self.agenda._now + self._network_s, ARRIVAL, arrives)

    def _let_go(self, effect: fx.Cancel) -> bool:
        if self.handoffs is not None and self.handoffs.cancel(effect):
            return True
        replica = self.fleet.replicas.get(effect.replica)
        return replica is not None and replica.engine.cancel(effect.request_id, effect.dispatch)

    def _wake_control(self, effect: fx.WakeAt) -> None:
        self._wake("control", effect)

    def _wake(self, owner: str, effect: fx.WakeAt) -> None:
        """A later one with the same key replaces it; a replaced or cancelled wake finds another version and does nothing."""
        slot = (owner, effect.key)
        version = self._wakes[slot] = self._wakes.get(slot, 0) + 1
        if effect.at is None:
            return

        def due(_: Any) -> None:
            if self._wakes[slot] != version:
                return
            if owner == "control":
                self._deliver(Woke(effect.key))
            else:
                self._from_source(self.source.handle(Woke(effect.key), self.agenda._now))

        now = self.agenda._now
        self.agenda.at(max(effect.at, now), ARRIVAL, due)
        if owner == "source" and "progress" in self.source.needs:
            self.agenda.at(max(effect.at - self._network_s, now), COMPLETION, lambda _: self._tell_source(slot, version))

    def _ask(self, effect: fx.Ask) -> None:
        if self._asking is None:
            models = getattr(self.control.planner, "call_models", {})
            self._asking = Asking(self.agenda, self._deliver, models, PolicyRng(self._seed, "planner/calls", self._replication))
        self._asking.ask(effect)

    # -- engines ------------------------------------------------------------------------------------------------------------------

    def _engine_options(self, name: str, pool: Pool) -> dict[str, Any]:
        """Callbacks of the engine of replica `name`."""
        paired = self.handoffs is not None and pool.link is not None
        options: dict[str, Any] = {"step_every": self._step_every, "check": self._check}

        tells_progress = "progress" in self._needs
        back = self._back if self._network_s else self._deliver

        def finished(attempt: Attempt) -> None:
            replica = self.fleet.replicas[name]
            if tells_progress:
                self._tell_progress(name)
            if self._exact:
                self.scraper.now(name)
            replica.requests += 1
            first, delay = attempt.first_token_s, self._network_s
            if delay and first is not None:
                first += delay
            back(Finished(attempt.id, attempt.dispatch, name, attempt.generated, attempt.prompt, attempt.cached_tokens, attempt.started_s, first,
                          "length", pair_numbers(attempt) if paired else engine_numbers(attempt) if attempt.preemptions else None))
            if replica.state == DRAINING:
                self.fleet.emptied(replica)

        def cancelled(attempt: Attempt) -> None:
            if (attempt.id, attempt.dispatch) in self._broken:  # its failure was told at its first token
                self._broken.discard((attempt.id, attempt.dispatch))
                self.fleet.emptied(self.fleet.replicas[name])
                return
            if tells_progress:
                self._tell_progress(name)
            if self._exact:
                self.scraper.now(name)
            self._back(Failed(attempt.id, attempt.dispatch, name, "local_cancelled", "cancelled", None, None, attempt.generated,
                              attempt.started_s, attempt.first_token_s))
            self.fleet.emptied(self.fleet.replicas[name])

        options["on_finish"], options["on_cancelled"] = finished, cancelled
        if self.faults is not None and self.faults.breaks_off:
            options["on_first"] = lambda a: self._first(a, name)
        elif "first_token" in self._needs:
            options["on_first"] = lambda a: self._back(FirstToken(a.id, a.dispatch, name))
        if "fpm" in self._needs:
            options["on_report"] = teller(name, self.fleet.replicas, self.agenda, self._back, self.faults)
            options["fpm_interval_s"] = REPORT_S
        if "started" in self._needs or tells_progress:
            options["on_started"] = lambda a: self._begun(a, name)
        if getattr(pool.engine, "lora", None) is not None:
            options["adapter_of"] = self._by_label if pool.engine.lora.by == "label" else self._by_tenant  # type: ignore[union-attr]
        if self.handoffs is not None and paired:
            options = self.handoffs.options(name, pool, options)
        return options if self._decodes is None else self._decodes.options(name, options)

    def _by_tenant(self, request_id: str) -> str | None:
        opened = self.control.flow.open.get(request_id)
        return None if opened is None else opened.request.tenant

    def _by_label(self, request_id: str) -> str | None:
        opened = self.control.flow.open.get(request_id)
        return None if opened is None else dict(opened.request.labels).get("adapter")

    def _begun(self, attempt: Attempt, name: str) -> None:
        if "progress" in self._needs:
            self._followers.begun(name)
        if "started" in self._needs:
            self._back(Started(attempt.id, attempt.dispatch, name))

    def _first(self, attempt: Attempt, name: str) -> None:
        """A first token where replies may break off right after it; an answer that ends with it is complete."""
        status = self.faults.refuses(name, "first_token") if self.faults is not None else None
        if status is not None and self.fleet.replicas[name].engine.cancel(attempt.id, attempt.dispatch):
            self._broken.add((attempt.id, attempt.dispatch))
            self._fail(attempt.id, attempt.dispatch, name, status, f"http_{status}", None, self.agenda._now)
        elif "first_token" in self._needs:
            self._back(FirstToken(attempt.id, attempt.dispatch, name))

    # -- start, arrivals, samples, end ----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        agenda = self.agenda
        agenda.at(0.0, ARRIVAL, lambda _: self.fleet.start())
        agenda.at(0.0, ARRIVAL, lambda _: self._from_source(self.source.start(0.0)))
        self._arrival = Call(self._arrive)
        self._stream = self.source.stream()
        self._reactive = self.source.loop != "open"
        self._pull()
        self.sampler = Sampler(self.control, self.fleet, self.recorder.sample, agenda, self._sample_s, self._stranded)
        if "progress" in self._needs:
            agenda.at(PROGRESS_S, ARRIVAL, self._progress_tick)
        if "scrape" in self._needs:
            self.scraper = Scraper(self.fleet, agenda, self._deliver, self.faults, seed=self._seeds[0], replication=self._seeds[1])
        if self._until is not None:
            agenda.at(self._until, SAMPLE, lambda _: None)  # a moment at which the run may be over
            agenda.at(self._until + self._grace_s, ARRIVAL, self._leave)

    def _pull(self) -> None:
        """Hold exactly one request of the stream ahead."""
        request = next(self._stream, None) if self._stream is not None else None
        if request is None or (self._until is not None and request.arrived_s >= self._until):
            self._cut = request is not None
            self._stream = self._next = None
            self.agenda.over = self._quiet
            return
        self._next = request
        self.agenda.put(request.arrived_s, ARRIVAL, self._arrival)

    def _tell_progress(self, name: str) -> None:
        """How far the requests of a replica are, before its batch changes: once per instant."""
        now = self.agenda._now
        if self._told_s.get(name) != now:
            self._told_s[name] = now
            self._followers.told(name)
            counts = self.fleet.replicas[name].engine.progress_at(now)
            if counts:
                self._back(Progressed(name, counts))

    def _tell_source(self, slot: tuple[str, str], version: int) -> None:
        """What clients will have received when they wake and judge how long nothing came; the control hears of it in its own time."""
        if self._wakes[slot] != version:
            return
        replicas = [r for r in self.fleet.replicas.values() if r.state in (READY, DRAINING)]
        counts = tuple(count for r in replicas for count in r.engine.progress_at(self.agenda._now))
        if counts and self._network_s:
            self.agenda.at(self.agenda._now + self._network_s, COMPLETION, lambda _: self._tell(Progressed("", counts)))
        elif counts:
            self._tell(Progressed("", counts))

    def _progress_tick(self, _: Any) -> None:
        """Between changes of the batch progress is at most this old."""
        for name, replica in list(self.fleet.replicas.items()):
            if replica.state in (READY, DRAINING):
                self._tell_progress(name)
        self.agenda.at(self.agenda._now + PROGRESS_S, ARRIVAL, self._progress_tick)

    def _arrive(self, _: Any) -> None:
        request = self._next
        self._pull()
        self._deliver(Arrived(request))  # type: ignore[arg-type]

    def _quiet(self) -> bool:
        """Nothing more can happen that matters: no arrivals, nothing open, and no planned time left in which a fleet still costs and shrinks."""
        if self._until is not None and self.agenda._now < self._until:
            return False
        return not self.control.open_count and (self._cut or self.source.done()) and self.seq > 0

    def _leave(self, _: Any) -> None:
        """The planned time and its grace are over: clients still waiting or served leave."""
        self._cut, self._stream, self._next, self.agenda.over = True, None, None, self._quiet
        for request_id in self.control.open_ids():
            self._deliver(Cancelled(request_id, None, "run_end"))

    def _stranded(self) -> None:
        """Nothing has moved for long and nothing will: no work in any engine, no boot, no arrival to come."""
        if self._stream is None and (self._cut or self.source.done()):
            self._over = True
            self._end()

    def _end(self) -> None:
        """Also reached when nothing is scheduled any more: what still waits then could never be served."""
        for request_id in self.control.open_ids():
            self._deliver(Cancelled(request_id, None, "stranded"))
        self._over = True

    def finish(self) -> None:
        """Write the last sample and the replica rows; call once, when the flight is over."""
        now = self.agenda._now
        self.sampler.gauges(now)
        self.fleet.finish(now)
        for row in sorted(self.fleet.rows, key=lambda r: (r["pool"], r["ordinal"])):
            self.recorder.replica_row(row)
        if self._decodes is not None:
            recorder: Any = self.recorder  # one that was asked for gaps between tokens
            for name, rows in self._decodes.steps():
                recorder.pieces(name, rows)
            recorder.decodes(self._decodes.rows)


def engine_numbers(attempt: Attempt) -> dict[str, Any]:
    """What only the engine knows of a finished attempt."""
    return {"preemptions": attempt.preemptions, "recomputed_tokens": attempt.recomputed_tokens, "swapped_blocks": attempt.swapped_blocks}


def pair_numbers(attempt: Attempt) -> dict[str, Any] | None:
    """The same of an attempt that may have come from another replica; None when there is nothing to tell."""
    numbers = engine_numbers(attempt) if attempt.preemptions else None
    kv_bytes = getattr(attempt, "kv_bytes", None)
    if kv_bytes is None:
        return numbers
    return {**(numbers or {}), "kv_wait_s": attempt.kv_wait_s, "kv_transfer_s": attempt.kv_transfer_s, "kv_bytes": kv_bytes}
