"""Dispatches and cancels on their way to simulated engines, and the answers on their way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from windtunnel.effects import Cancel, Dispatch
from windtunnel.errors import PolicyError
from windtunnel.events import Event, Failed
from windtunnel.sim.agenda import ARRIVAL, Agenda
from windtunnel.sim.engine import Attempt
from windtunnel.sim.faults import Faults
from windtunnel.sim.fleet import SimFleet
from windtunnel.sim.job import Job
from windtunnel.sim.lifecycle import READY
from windtunnel.sim.pd import Handoffs, pairs_of


class Dispatching:
    """Carries `Dispatch` and `Cancel` out; the fleet's network_s is one way of each, and of every answer.

    back(event): an answer on its way to the control, through the network if there is one. handoffs: what moves KV between pools that share
    requests; None if no pool does. changed(replica): called when a dispatch has changed a replica; None: nobody asks.
    """

    def __init__(self, fleet: SimFleet, agenda: Agenda, deliver: Callable[[Event], None], faults: Faults | None) -> None:
        self._fleet, self._agenda, self._deliver = fleet, agenda, deliver
        self.network_s = fleet.config.network_s
        self._fails = faults.refuses if faults is not None and faults.replies else None
        far = bool(self.network_s)
        self.dispatch = self._dispatch_far if far else self._submit
        self.cancel = self._cancel_far if far else self._cancel
        self.back: Callable[[Event], None] = self._back_far if far else deliver
        self.changed: Callable[[str], None] | None = None
        self.handoffs = self._handoffs()

    def fail(self, request_id: str, dispatch: int, replica: str, status: int, reason: str, retry_after_s: float | None = None,
             first_token_s: float | None = None) -> None:
        """The engine refused: 429, 503 with Retry-After and a full engine queue are overload, 4xx the client's mistake."""
        if status == 429 or reason == "engine_queue_full" or (status == 503 and retry_after_s is not None):
            outcome = "rate_limited"
        elif 400 <= status < 500:
            outcome = "local_cancelled"
        else:
            outcome = "provider_failure"
        tokens = None if first_token_s is None else 1
        self.back(Failed(request_id, dispatch, replica, outcome, reason, status, retry_after_s, tokens, None, first_token_s))

    def _back_far(self, event: Event) -> None:
        self._agenda.at(self._agenda._now + self.network_s, ARRIVAL, lambda _: self._deliver(event))

    # -- dispatches -----------------------------------------------------------------------------------------------------------------

    def _dispatch_far(self, effect: Dispatch) -> None:
        self._agenda.at(self._agenda._now + self.network_s, ARRIVAL, lambda _: self._submit(effect))

    def _submit(self, effect: Dispatch) -> None:
        request = effect.request
        replica = self._fleet.replicas.get(effect.replica)
        if replica is None or replica.state != READY:
            self.fail(request.id, effect.dispatch, effect.replica, 503, "engine_unavailable")
            return
        if self._fails is not None and (status := self._fails(effect.replica)) is not None:
            self.fail(request.id, effect.dispatch, effect.replica, status, f"http_{status}")
            return
        truth = request.truth
        output = truth.output_tokens if truth is not None else (request.max_tokens or 1)
        try:
            if truth is not None and truth.service_s is not None:
                attempt: Attempt = Job(request.id, effect.dispatch, request.input_tokens or 1, output, request.priority, truth.service_s)
            else:
                attempt = Attempt(request.id, effect.dispatch, request.input_tokens or 1, output, request.priority, request.blocks)
        except TypeError:  # counts that are no whole numbers: the compiled form refuses them here, plain Python's engine at its door
            self.fail(request.id, effect.dispatch, effect.replica, 400, "invalid_request")
            return
        if effect.prefill is not None:
            self._submit_pair(effect, effect.prefill, attempt)
            return
        refusal = replica.engine.submit(attempt)
        if refusal is not None:
            self.fail(request.id, effect.dispatch, effect.replica, refusal.status, refusal.reason, refusal.retry_after_s)
        elif self.changed is not None:
            self.changed(effect.replica)

    def _submit_pair(self, effect: Dispatch, prefill: str, attempt: Attempt) -> None:
        if self.handoffs is None:
            raise PolicyError(f"request {effect.request.id!r} was sent to {effect.replica!r} with a prefill on {prefill!r}: this fleet "
                              "has no prefill and decode pools")
        self.handoffs.submit(effect, attempt)
        if self.changed is not None:
            self.changed(prefill)
            self.changed(effect.replica)

    def _handoffs(self) -> Handoffs | None:
        if not pairs_of(self._fleet.config):
            return None

        def refuse(effect: Dispatch, replica: str, status: int, reason: str, retry_after_s: float | None) -> None:
            self.fail(effect.request.id, effect.dispatch, replica, status, reason, retry_after_s)

        made = Handoffs(self._fleet, self._agenda, deliver=self._deliver, back=self.back, refuse=refuse,
                        fails=self._fails or (lambda replica: None))
        self._fleet.on_gone, self._fleet.on_link = made.lost, made.relink
        return made

    # -- cancels --------------------------------------------------------------------------------------------------------------------

    def _cancel(self, effect: Cancel) -> None:
        if not self._let_go(effect):
            self.back(Failed(effect.request_id, effect.dispatch, effect.replica, "local_cancelled", effect.reason))

    def _cancel_far(self, effect: Cancel) -> None:
        """Behind its dispatch on the same way; an engine that does not know the attempt any more has answered it already."""
        def arrives(_: Any) -> None:
            self._let_go(effect)

        self._agenda.at(self._agenda._now + self.network_s, ARRIVAL, arrives)

    def _let_go(self, effect: Cancel) -> bool:
        if self.handoffs is not None and self.handoffs.cancel(effect):
            return True
        replica = self._fleet.replicas.get(effect.replica)
        return replica is not None and replica.engine.cancel(effect.request_id, effect.dispatch)
