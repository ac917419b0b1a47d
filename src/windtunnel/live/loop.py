"""The live driver's loop, on the owner's thread: handle, gate, record, apply or answer, then the sources hear."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from windtunnel import effects as fx
from windtunnel.effects import Effect
from windtunnel.errors import EngineStoppedError
from windtunnel.events import Arrived, Cancelled, Commanded, Event, Failed, Finished, FirstToken, Progressed, ScaleAnswered, Started, Woke
from windtunnel.live.asking import Asking
from windtunnel.live.attempts import Attempts
from windtunnel.live.clock import RunClock, Timers
from windtunnel.live.gate import Gate
from windtunnel.live.hosted import Hosted
from windtunnel.live.record import Record, Recorder
from windtunnel.live.scaling.plans import Plans
from windtunnel.live.scraper import Watch
from windtunnel.live.shadow import ShadowAdapter
from windtunnel.policy.control import Control

log = logging.getLogger(__name__)
LET_GO_S = 5.0  # how long a cut stream's engine may take to let go before its attempt is ended without it
POLICY_ERRORS = 3
_WORDS: Mapping[type, str] = {Started: "started", FirstToken: "first_token", Progressed: "progress"}


class ControlLoop:
    """One control, fed one event at a time. Everything here runs on the loop's own thread.

    landed is set when it is over; why says what ended it; error is what broke it, or None.
    """

    def __init__(self, control: Control, recorder: Recorder, gate: Gate, clock: RunClock, *, shadow: ShadowAdapter | None,
                 taps: list[Callable[[Any], None]], stop_grace_s: float) -> None:
        self.control, self.recorder, self.gate, self.clock = control, recorder, gate, clock
        self._loop = asyncio.get_running_loop()
        self._shadow, self._taps, self._stop_grace_s = shadow, taps, stop_grace_s
        self._timers = Timers(self._loop, clock)
        self.hosted: Hosted  # these two are set right after: they deliver here
        self.watch: Watch
        self.plans = Plans(self.deliver, self.soon)
        self.asking = Asking(clock.now, local_only=shadow is not None)
        self.inbox: deque[Event] = deque()
        self.attempts = Attempts(gate, clock, self.soon, deliver=self.deliver, heard=self.heard, settled=self.maybe_land)
        self.tasks: set[asyncio.Task[None]] = set()
        self.open: set[str] = set()
        self.seq = self.arrived = self.finished = self.ended = self.policy_errors = 0
        self.now, self.why = 0.0, ""
        self.error: Exception | None = None
        self.last_policy_error: Exception | None = None
        self.landed = asyncio.Event()
        self._draining = self.stopping = self._cut = False
        self._record = Record(recorder, lambda error: self.broken("the recorder", error))
        self._late: asyncio.TimerHandle | None = None
        self._apply: dict[type, Callable[[Any], None]] = {
            fx.Dispatch: self.attempts.dispatch, fx.Cancel: self.attempts.cancel, fx.WakeAt: self._wake,
            fx.ScaleTo: self.plans.scale, fx.Drain: self.plans.drain, fx.Ask: self._ask, fx.Reject: self._end, fx.Close: self._end,
        }

    # -- the one way of every event -------------------------------------------------------------------------------------------------

    def deliver(self, event: Event) -> None:
        """Take an event now, or after those being handled."""
        self.inbox.append(event)
        if self._draining:
            return
        self._draining = True
        try:
            while self.inbox:
                self._one(self.inbox.popleft())
        finally:
            self._draining = False
        if not self.attempts.alive and (self.stopping or not self.open):
            self.maybe_land()

    def posted(self, what: Event | fx.Reject | fx.Close) -> None:
        """An event from outside; in a shadow it is told in the shadow's own terms. Ends (Reject, Close) are for shadows only."""
        if self.landed.is_set():
            return
        if self._shadow is not None:
            for event in self._shadow.translate(what):
                self.deliver(event)
        elif not isinstance(what, fx.Reject | fx.Close):
            self.deliver(what)

    def _one(self, event: Event) -> None:
        now = self.now = self.clock.now()
        self.seq += 1
        if isinstance(event, Arrived):
            self.arrived += 1
            self.open.add(event.request.id)
        try:
            effects = self.control.handle(event, now)
        except Exception as error:
            self._policy_failed(event, now, error)
            return
        verdicts = self.gate.verdicts(effects, now)
        if not self._record.step(self.seq, now, event, effects, verdicts):  # nothing more leaves
            verdicts = tuple(w or "recorder_failed" if isinstance(e, fx.Dispatch) else w
                             for e, w in zip(effects, verdicts or (None,) * len(effects)))
        self._tap(event)
        self._carry_out(effects, verdicts)
        if isinstance(event, Finished) and event.request_id in self.open:
            self.finished += 1
            self._forget(event.request_id)
            self.hosted.tell(event.request_id, event)

    def _carry_out(self, effects: Sequence[Effect], verdicts: tuple[str | None, ...] | None) -> None:
        if self._shadow is not None:
            self._shadow.observe(effects)
        for i, effect in enumerate(effects):
            why = None if verdicts is None else verdicts[i]
            if why is not None:
                self._refuse(effect, why)
                continue
            act = self._apply.get(type(effect))
            if act is None:
                continue
            try:
                act(effect)
            except Exception as error:
                self._apply_failed(effect, error)

    def _apply_failed(self, effect: Effect, error: Exception) -> None:
        self.broken("the driver", error)
        if isinstance(effect, fx.Dispatch):
            self.attempts.failed_to_begin(effect, f"driver_{type(error).__name__}")

    def _refuse(self, effect: Effect, why: str) -> None:
        """Answer what may not leave, so that the control's books close; a shadow's close by what the main world does."""
        if self._shadow is not None:
            if isinstance(effect, fx.Reject | fx.Close):
                self._forget(effect.request_id)
        elif isinstance(effect, fx.Dispatch):
            self.deliver(Failed(effect.request.id, effect.dispatch, effect.replica, "local_cancelled", why))
        elif isinstance(effect, fx.ScaleTo):
            self.deliver(ScaleAnswered(effect.plan_id, "refused", why))

    def _end(self, effect: fx.Reject | fx.Close) -> None:
        if effect.request_id in self.open:
            self._forget(effect.request_id)
            self.hosted.tell(effect.request_id, effect)
        self._tap(effect)

    def _forget(self, request_id: str) -> None:
        if request_id in self.open:
            self.open.discard(request_id)
            self.ended += 1

    def _tap(self, what: Any) -> None:
        for hear in tuple(self._taps):
            try:
                hear(what)
            except EngineStoppedError:
                continue  # a run that listens and is over, or has not begun
            except Exception as error:  # a listener must not disturb what it listens to
                self._taps.remove(hear)
                log.warning("a listener of this run failed and hears no more: %r", error)

    # -- effects --------------------------------------------------------------------------------------------------------------------

    def heard(self, event: Started | FirstToken | Progressed) -> None:
        """Started, FirstToken, Progressed: to the control and to sources, each only if they need it."""
        word = _WORDS[type(event)]
        if word in self.control.needs:
            self.deliver(event)
        if word in self.hosted.hears:
            for request_id in [r for r, _ in event.counts] if isinstance(event, Progressed) else [event.request_id]:
                self.hosted.hear(request_id, word, event)

    def noted(self, note: fx.Note) -> None:
        """A source told something for the record only."""
        self._record.note(self.clock.now(), note)

    def _wake(self, effect: fx.WakeAt) -> None:
        self._timers.set(effect.key, effect.at, lambda key: self.deliver(Woke(key)))

    def soon(self, work: Coroutine[Any, Any, None], gone: Callable[[asyncio.Task[None]], None] | None = None) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self.tasks.add(task)
        if gone is not None:
            task.add_done_callback(gone)
        task.add_done_callback(self.tasks.discard)
        return task

    def _ask(self, effect: fx.Ask) -> None:
        self.soon(self._asked(effect))

    async def _asked(self, effect: fx.Ask) -> None:
        self.deliver(await self.asking.ask(effect))

    # -- when something raises ------------------------------------------------------------------------------------------------------

    def _policy_failed(self, event: Event, now: float, error: Exception) -> None:
        """The event's request ends here and now; the third time an armed world stops by itself, and any whose books no longer balance."""
        self.policy_errors += 1
        self.last_policy_error = error
        self._record.error(self.seq, now, event, error)
        self._banish(_request_of(event))
        self._tap(event)
        try:
            self.control.check()
        except Exception as unbalanced:
            self.broken("the control", unbalanced)
            return
        if self.policy_errors >= POLICY_ERRORS and self.gate.mode == "armed":
            self.stop(False, f"the control raised {POLICY_ERRORS} times, last {type(error).__name__}: {error}")

    def _banish(self, request_id: str | None) -> None:
        """End a request that the control can no longer be trusted with, and tell the control that its client has left."""
        if request_id is None or request_id in self.attempts.banished:
            return
        self.attempts.banished.add(request_id)
        if request_id in self.open:
            self._forget(request_id)
            self.hosted.tell(request_id, fx.Close(request_id, "failed", "unexpected_exception", "policy_error"))
        self.attempts.stop_banished(request_id)
        self.deliver(Cancelled(request_id, None, "policy_error", "unexpected_exception"))

    def broken(self, who: str, error: Exception) -> None:
        """A defect outside the control's one event: nothing more leaves, and the run says why."""
        if self.error is None:
            self.error = error
        self.gate.close()
        self._loop.call_soon(self.stop, False, f"{who} raised {type(error).__name__}: {error}")

    # -- the end --------------------------------------------------------------------------------------------------------------------

    def stop(self, cut: bool, why: str) -> None:
        """Once: sources end, the control refuses all that waits. Again, or with `cut`: the streams end, too."""
        self.gate.close()
        if self.landed.is_set():
            return
        if not self.stopping:
            self.stopping, self.why = True, why
            self.hosted.stop()
            self._late = self._loop.call_later(self._stop_grace_s, self._cut_all)
            self.deliver(Commanded("stop"))
        if cut:
            self._cut_all()
        if not self.attempts.alive:
            self.maybe_land()

    def _cut_all(self) -> None:
        if self._cut:
            return
        self._cut = True
        self.attempts.stop_all()
        if self._late is not None:
            self._late.cancel()
        self._late = self._loop.call_later(LET_GO_S, self.attempts.abandon_all)

    def maybe_land(self) -> None:
        """The run is over if it was stopped and no stream is left, or if nothing is open and nothing will come."""
        if self._draining or self.landed.is_set():
            return
        if not self.stopping and (self.open or self.attempts.alive or self._shadow is not None or not self.hosted.done()):
            return
        if self.stopping and (self.attempts.alive or self.inbox):
            return
        self.why = self.why or "done"
        self.gate.close()
        self._timers.clear()
        self.hosted.stop()
        if self._late is not None:
            self._late.cancel()
        for request_id in sorted(self.open):  # the control has lost them; their clients must not wait for ever
            self._forget(request_id)
            self.hosted.tell(request_id, fx.Close(request_id, "failed", "unexpected_exception", "stopped"))
        self.landed.set()


def _request_of(event: Event) -> str | None:
    return event.request.id if isinstance(event, Arrived) else getattr(event, "request_id", None)
