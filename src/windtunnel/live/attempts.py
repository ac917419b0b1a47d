"""All attempts under way on real engines: each begun by a dispatch, each with exactly one end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from windtunnel.effects import Cancel, Dispatch
from windtunnel.errors import PolicyError
from windtunnel.events import Event, Failed, Finished, FirstToken, Progressed, ReplicaGone, Started
from windtunnel.live.attempt import LiveAttempt
from windtunnel.live.clock import RunClock
from windtunnel.live.gate import Gate

if TYPE_CHECKING:
    from windtunnel.live.replica import LiveReplica


class Soon(Protocol):
    """Begins work on the loop; `gone` is called with its task when that is over."""

    def __call__(self, work: Coroutine[Any, Any, None], gone: Callable[[asyncio.Task[None]], None] | None = None) -> asyncio.Task[None]: ...


class Attempts:
    """alive: by request and dispatch. replicas: who may be sent to, by name. banished: requests that the control can no longer be trusted with.

    deliver: to the control; heard: what comes before an end; settled: called when the last attempt ends without a word. tells_progress: does
    anybody want `Progressed`?
    """

    def __init__(self, gate: Gate, clock: RunClock, soon: Soon, *, deliver: Callable[[Event], None],
                 heard: Callable[[Started | FirstToken | Progressed], None], settled: Callable[[], None]) -> None:
        self._gate, self._clock, self._soon = gate, clock, soon
        self._deliver, self._heard, self._settled = deliver, heard, settled
        self.replicas: Mapping[str, LiveReplica] = {}
        self.alive: dict[tuple[str, int], LiveAttempt] = {}
        self.banished: set[str] = set()
        self.tells_progress = False

    def dispatch(self, effect: Dispatch) -> None:
        request, dry = effect.request, self._gate.mode != "armed"
        if effect.prefill is not None:
            raise PolicyError(f"request {request.id!r} was to be prefilled on {effect.prefill!r}: the live world does not split prefill and decode")
        replica = self.replicas.get(effect.replica)
        if request.id in self.banished:
            self.failed_to_begin(effect, "policy_error")
            return
        if replica is None:
            self.failed_to_begin(effect, "replica_gone", "provider_failure")
            return
        attempt = LiveAttempt(effect, replica, self._clock, self._gate, dry=dry, over=self._over, heard=self._heard,
                              progressed=self._progressed if self.tells_progress else None)
        self.alive[(request.id, effect.dispatch)] = attempt
        attempt.task = self._soon(attempt.run(), attempt.gone)

    def _over(self, attempt: LiveAttempt, event: Finished | Failed) -> None:
        """Called exactly once per attempt; `muted` ones are ended by their replica's loss and say nothing."""
        if self.tells_progress:
            self.report_progress(attempt.dispatch.replica)
        self.alive.pop(attempt.key, None)
        self._gate.ended()
        if not attempt.muted:
            self._deliver(event)
        elif not self.alive:
            self._settled()

    def failed_to_begin(self, effect: Dispatch, why: str, outcome: str = "unexpected_exception") -> None:
        """It ends before it began: its dispatch raised, or there is nobody to send it to."""
        self._gate.ended()
        self.alive.pop((effect.request.id, effect.dispatch), None)
        self._deliver(Failed(effect.request.id, effect.dispatch, effect.replica, outcome, why))

    def _progressed(self, attempt: LiveAttempt) -> None:
        self.report_progress(attempt.dispatch.replica)

    def report_progress(self, replica: str | None = None) -> None:
        """One Progressed per replica with output since the last: right before its batch changes, and by the clock."""
        by_replica: dict[str, list[tuple[str, int]]] = {}
        for attempt in self.alive.values():
            if attempt.tokens != attempt.reported and replica in (None, attempt.dispatch.replica):
                attempt.reported = attempt.tokens
                by_replica.setdefault(attempt.dispatch.replica, []).append((attempt.key[0], attempt.tokens))
        for name, counts in by_replica.items():
            self._heard(Progressed(name, tuple(counts)))

    # -- stopping -------------------------------------------------------------------------------------------------------------------

    def cancel(self, effect: Cancel) -> None:
        attempt = self.alive.get((effect.request_id, effect.dispatch))
        if attempt is None:
            self._deliver(Failed(effect.request_id, effect.dispatch, effect.replica, "local_cancelled", effect.reason))
        else:
            attempt.stop(effect.reason)

    def replica_lost(self, event: ReplicaGone) -> None:
        """One event says it all: the attempts that ran there end without a word of their own."""
        for attempt in list(self.alive.values()):
            if attempt.dispatch.replica == event.replica:
                attempt.muted = True
                attempt.stop(event.reason)
        if self.tells_progress:
            self.report_progress(event.replica)
        self._deliver(event)

    def stop_banished(self, request_id: str) -> None:
        """What still runs of a request that the control can no longer be trusted with."""
        for attempt in [a for a in self.alive.values() if a.key[0] == request_id]:
            attempt.stop("policy_error", "unexpected_exception")

    def stop_all(self) -> None:
        """Leave the streams; each ends when its engine has let go."""
        for attempt in list(self.alive.values()):
            attempt.stop("stopped")

    def abandon_all(self) -> None:
        """End them without waiting for their engines any longer."""
        for attempt in list(self.alive.values()):
            attempt.abandon("stopped")
