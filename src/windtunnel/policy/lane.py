"""A lane: one model service. Its queue, its concurrency limit and its router; lanes do not block each other."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

from windtunnel.errors import ConfigValueError
from windtunnel.events import Finished, Request
from windtunnel.policy.routing.replica import PoolTokens

if TYPE_CHECKING:
    from windtunnel.policy.admission.denial import Denial
    from windtunnel.policy.admission.gates import Gates
    from windtunnel.policy.admission.request import RequestAdmission
    from windtunnel.policy.queueing.fair import Queue
    from windtunnel.policy.queueing.item import QueueItem, QueueView
    from windtunnel.policy.routing.router import Router

SIGNALS = ("ttft", "per_token", "rtt")
UNKNOWN_SLOTS_CAP = 64
NO_CAP = 1 << 30
RATE_FRESH_S = 0.1  # run s for which a rate over 10 s is as good as new


class Meter(Protocol):
    """A queue that charges for service as it is given: output tokens so far of a committed item, and its end."""

    def charge(self, item_id: str, output_tokens: int, now: float) -> None: ...
    def settle(self, item_id: str, output_tokens: int | None, now: float) -> None: ...


class Lane:
    """The pools that answer one kind of request together, and what decides for them.

    cap: "slots" (the limit's ceiling follows the slots of the ready replicas), or a fixed number, or None for no ceiling.
    cost: what a request costs in the fair queue: "requests" (1 each) or "tokens" (input + expected output, by the counts in `tokens`: those of its
    first pool, or of the decode side's).
    signal: the latency that limits learn from: "ttft" (dispatch to first token), "per_token" (s per token after the first), or "rtt"
    (dispatch to end, which follows the length of the answer more than the load).
    sides: groups of its pools of which each must have a replica (prefill and decode); left out: all pools together.
    waiting: who waits in the queue; asked whether it is empty at every arrival and end, so that queues may offer a bare `members`.
    gates: what may refuse a request before it is queued; they include the breaker then. None: only the admission's breaker may.
    """

    __slots__ = ("_ahead_of", "_rate_rps", "_rate_until_s", "admission", "cap", "cost", "dirty", "gates", "guarded", "meter", "models", "name",
                 "pools", "queue", "resource", "router", "sides", "signal", "skip", "tokens", "unready_since_s", "waiting")

    def __init__(self, name: str, *, queue: Queue, admission: RequestAdmission, router: Router, pools: tuple[str, ...] = (),
                 models: frozenset[str] = frozenset(), cap: Literal["slots"] | int | None = "slots",
                 cost: Literal["requests", "tokens"] = "requests", gates: Gates | None = None,
                 signal: Literal["ttft", "per_token", "rtt"] = "ttft", sides: tuple[tuple[str, ...], ...] = ()) -> None:
        if signal not in SIGNALS:
            raise ConfigValueError("signal", f"expected one of {', '.join(SIGNALS)}, got {signal!r}")
        self.name, self.queue, self.admission, self.router = name, queue, admission, router
        self.waiting: Sized = getattr(queue, "members", queue)
        self.pools, self.models, self.cap, self.cost = pools or (name,), models, cap, cost
        self.resource, self.gates, self.signal = name, gates, signal
        self.sides = sides or (self.pools,)
        self.guarded = gates is not None or admission.breaker is not None  # does an arrival have to pass more than the queue and the limit?
        self.tokens = PoolTokens()
        self.dirty = False
        self.skip: set[str] = set()  # heads that this pump cannot place although the lane is open
        self.unready_since_s: float | None = 0.0  # since when no replica is ready; None while one is
        admission.register(self.resource, self.first_cap(), 0.0)
        self.meter: Meter | None = None
        self._ahead_of: Callable[[QueueItem, float], int] | None = None
        self._rate_rps: float | None = None
        self._rate_until_s = 0.0
        self._look_into_queue()

    def _look_into_queue(self) -> None:
        """Queues that refuse by a rate of completions learn this lane's; one that charges for service is told of it; one that counts tokens
        sets the cost of requests; one that is not served in order of arrival says how many go before an item."""
        queue: Any = self.queue
        while queue is not None:
            if hasattr(queue, "charge"):
                self.meter = queue
            self.cost = getattr(queue, "counts", self.cost)
            self._ahead_of = getattr(queue, "ahead", self._ahead_of)
            if getattr(queue, "completion_rate", False) is None:
                queue.completion_rate = partial(self.admission.completion_rate, self.resource)
            queue = getattr(queue, "inner", None)

    def may_shed(self, allowed: bool) -> None:
        """May a queue let go of waiting requests for more urgent ones?"""
        queue: Any = self.queue
        while queue is not None:
            if hasattr(queue, "may_shed"):
                queue.may_shed = allowed
            queue = getattr(queue, "inner", None)

    def latency_s(self, event: Finished, sent_s: float, now: float) -> float | None:
        """What limits learn of an answer, s, where that is not the time to its first token; None if it does not say."""
        if self.signal == "rtt":
            return now - sent_s
        tokens, first_s = event.output_tokens, event.first_token_s
        return None if tokens is None or tokens < 2 or first_s is None else (now - first_s) / (tokens - 1)

    def when(self, denial: Denial, now: float) -> Denial:
        """A denial of a gate or of the queue with the time at which trying again makes sense, where completions per second tell it."""
        ahead = {"band": len(self.queue) + 1, "queue_delay": len(self.queue) + 1, "token_budget": 1}.get(denial.reason)
        rate_rps = self.admission.completion_rate(self.resource, now)
        if ahead is None or not rate_rps:
            return denial
        return replace(denial, retry_after_s=ahead / rate_rps)

    def predicted_start_s(self, item: QueueItem, now: float) -> float | None:
        """Run second at which a newcomer that has just been queued is expected to start: who goes before it over the measured completions
        per second (at most 0.1 s old); None while that rate is unknown."""
        if now >= self._rate_until_s:
            self._rate_rps, self._rate_until_s = self.admission.completion_rate(self.resource, now), now + RATE_FRESH_S
        rate_rps, ahead_of = self._rate_rps, self._ahead_of
        if not rate_rps:
            return None
        return now + (len(self.waiting) - 1 if ahead_of is None else ahead_of(item, now)) / rate_rps

    def first_cap(self) -> int:
        """The ceiling before any replica is known."""
        if self.cap == "slots":
            return UNKNOWN_SLOTS_CAP
        return NO_CAP if self.cap is None else self.cap

    def follow(self, slots: int | None, now: float) -> None:
        """The slots of the ready replicas changed; unknown slots keep the default ceiling."""
        if self.cap == "slots":
            self.admission.set_cap(self.resource, max(1, slots) if slots is not None else UNKNOWN_SLOTS_CAP, now)

    def serves(self, ready: bool, now: float) -> bool:
        """Is a replica ready now? True if the last one has just gone."""
        went = not ready and self.unready_since_s is None
        if ready or went:
            self.unready_since_s = None if ready else now
        return went

    def eligible(self, item: QueueItem, view: QueueView) -> bool:
        return item.id not in self.skip

    def cost_of(self, request: Request) -> float:
        """The request's cost in the queue: 1, or the tokens that the ledger would charge it with if it were sent now (at least 1)."""
        return 1.0 if self.cost == "requests" else float(max(1, self.tokens.charge(request)))
