"""The fleet ledger: which replicas there are, and what this control has running on each. Own in-flight is exact, never stale."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from windtunnel.errors import ConfigValueError, PolicyError
from windtunnel.events import ReplicaBooting, ReplicaReady, Request, Scrape, Scraped

BOOTING, READY, DRAINING, GONE = "booting", "ready", "draining", "gone"
MEAN_OVER = 256  # completed outputs behind the expected output of a pool
NOMINAL_OUTPUT, NOMINAL_INPUT = 256, 1024


class Replica:
    """The live entry of one replica; `in_flight` counts own dispatches without an end."""

    __slots__ = ("flights", "history", "id", "in_flight", "in_flight_tokens", "kv_tokens", "last_sent_seq", "ordinal", "pool", "prefill_tokens",
                 "ready_s", "role", "scrape", "slots", "state", "weight")

    def __init__(self, id: str, pool: str, role: str, ordinal: int) -> None:
        self.id, self.pool, self.role, self.ordinal = id, pool, role, ordinal
        self.state, self.ready_s, self.weight = BOOTING, 0.0, 1.0
        self.slots: int | None = None
        self.kv_tokens: int | None = None
        self.in_flight = self.in_flight_tokens = self.prefill_tokens = 0
        self.last_sent_seq = -1
        self.scrape: Scrape | None = None
        self.flights: dict[str, tuple[int, int, int]] = {}  # request id -> (dispatch, charge tokens, prefill tokens still counted)
        self.history: deque[tuple[float, int]] | None = None  # (time, own in flight after it), kept once a scrape was seen


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """A frozen picture of one replica."""

    id: str
    pool: str
    role: str
    ordinal: int
    weight: float
    slots: int | None
    kv_tokens: int | None
    state: str
    ready_s: float
    in_flight: int
    in_flight_tokens: int
    prefill_tokens: int
    scrape: Scrape | None
    last_sent_seq: int


class _PoolMeans:
    """Running means of the last 256 known inputs and completed outputs of a pool."""

    __slots__ = ("inputs", "outputs", "sum_in", "sum_out")

    def __init__(self) -> None:
        self.inputs: deque[int] = deque()
        self.outputs: deque[int] = deque()
        self.sum_in = self.sum_out = 0

    def saw_input(self, tokens: int) -> None:
        self.inputs.append(tokens)
        self.sum_in += tokens
        if len(self.inputs) > MEAN_OVER:
            self.sum_in -= self.inputs.popleft()

    def saw_output(self, tokens: int) -> None:
        self.outputs.append(tokens)
        self.sum_out += tokens
        if len(self.outputs) > MEAN_OVER:
            self.sum_out -= self.outputs.popleft()

    def charge(self, request: Request) -> int:
        """input + expected output; the bound and the mean of past outputs, whichever is smaller."""
        mean_out = self.sum_out // len(self.outputs) if self.outputs else NOMINAL_OUTPUT
        tokens_in = request.input_tokens
        if tokens_in is None:
            tokens_in = self.sum_in // len(self.inputs) if self.inputs else NOMINAL_INPUT
        return tokens_in + (mean_out if request.max_tokens is None else min(request.max_tokens, mean_out))


class Fleet:
    """Owned and changed by `Control` alone, from events; routers read it. `version` grows with every change of membership."""

    def __init__(self, *, scrape_interval_s: float = 1.0, stale_after_s: float | None = None, ledger_window_s: float = 30.0) -> None:
        self.stale_after_s = 3 * scrape_interval_s if stale_after_s is None else stale_after_s
        self.ledger_window_s = ledger_window_s
        self.replicas: dict[str, Replica] = {}
        self.version = self.sequence = self.late_done = 0
        self.scraping = False  # has any scrape been seen?
        self._ordinals: dict[str, int] = {}
        self._means: dict[str, _PoolMeans] = {}
        self._counts: dict[tuple[str, str], int] = {}

    # -- membership ---------------------------------------------------------------------------------------------------------------

    def _entry(self, id: str, pool: str, role: str) -> Replica:
        replica = self.replicas.get(id)
        if replica is None:
            ordinal = self._ordinals.get(pool, 0)
            self._ordinals[pool] = ordinal + 1
            replica = self.replicas[id] = Replica(id, pool, role, ordinal)
            self._means.setdefault(pool, _PoolMeans())
            self._count(replica, +1)
        return replica

    def _count(self, replica: Replica, by: int) -> None:
        key = (replica.pool, replica.state)
        self._counts[key] = self._counts.get(key, 0) + by

    def _move(self, replica: Replica, state: str) -> None:
        self._count(replica, -1)
        replica.state = state
        self._count(replica, +1)
        self.version += 1

    def booting(self, event: ReplicaBooting, now: float) -> None:
        self._entry(event.replica, event.pool, event.role)
        self.version += 1

    def ready(self, event: ReplicaReady, now: float) -> None:
        """Raises ConfigValueError for a weight that is not finite and positive."""
        if not (math.isfinite(event.weight) and event.weight > 0):
            raise ConfigValueError("weight", f"replica {event.replica!r}: expected a finite number > 0, got {event.weight!r}")
        replica = self._entry(event.replica, event.pool, event.role)
        replica.weight, replica.slots, replica.kv_tokens, replica.ready_s = event.weight, event.slots, event.kv_tokens, now
        self._move(replica, READY)

    def draining(self, id: str, now: float) -> None:
        replica = self.replicas.get(id)
        if replica is not None:
            self._move(replica, DRAINING)

    def gone(self, id: str, now: float) -> None:
        replica = self.replicas.pop(id, None)
        if replica is not None:
            self._move(replica, GONE)

    def scraped(self, event: Scraped, now: float) -> None:
        """Keep the newest scrape by its sampling time; a late older one changes nothing."""
        replica = self.replicas.get(event.replica)
        if replica is None or (replica.scrape is not None and event.scrape.sampled_s <= replica.scrape.sampled_s):
            return
        replica.scrape = event.scrape
        self.scraping = True
        if replica.history is None:
            replica.history = deque([(event.scrape.sampled_s, replica.in_flight)])

    # -- traffic ------------------------------------------------------------------------------------------------------------------

    def sent(self, request: Request, id: str, now: float, dispatch: int = 1) -> int:
        """Count an attempt on a replica; returns the tokens it is charged with, taken back exactly at `done`."""
        replica = self.replicas[id]
        if request.id in replica.flights:
            raise PolicyError(f"request {request.id!r} is already in flight on {id!r}")
        means = self._means[replica.pool]
        charge = means.charge(request)
        if request.input_tokens is not None:
            means.saw_input(request.input_tokens)
        prefill = request.input_tokens or 0
        replica.flights[request.id] = (dispatch, charge, prefill)
        replica.in_flight += 1
        replica.in_flight_tokens += charge
        replica.prefill_tokens += prefill
        replica.last_sent_seq = self.sequence
        self.sequence += 1
        if replica.history is not None:
            self._remember(replica, now)
        return charge

    def first_token(self, request_id: str, id: str) -> None:
        replica = self.replicas.get(id)
        flight = replica.flights.get(request_id) if replica is not None else None
        if replica is not None and flight is not None:
            replica.prefill_tokens -= flight[2]
            replica.flights[request_id] = (flight[0], flight[1], 0)

    def done(self, request_id: str, id: str, now: float, *, success: bool, output_tokens: int | None = None) -> None:
        """The attempt ended; unknown or repeated ends are counted in `late_done` and change nothing."""
        replica = self.replicas.get(id)
        flight = replica.flights.pop(request_id, None) if replica is not None else None
        if replica is None or flight is None:
            self.late_done += 1
            return
        replica.in_flight -= 1
        replica.in_flight_tokens -= flight[1]
        replica.prefill_tokens -= flight[2]
        if success and output_tokens is not None:
            self._means[replica.pool].saw_output(output_tokens)
        if replica.history is not None:
            self._remember(replica, now)

    def _remember(self, replica: Replica, now: float) -> None:
        history = replica.history
        assert history is not None
        history.append((now, replica.in_flight))
        while len(history) > 1 and history[1][0] < now - self.ledger_window_s:
            history.popleft()

    # -- reads --------------------------------------------------------------------------------------------------------------------

    def load(self, id: str, now: float) -> int:
        """Own requests in flight plus, with a fresh scrape, other people's: running + waiting beyond our own at the sampling time."""
        replica = self.replicas[id]
        scrape = replica.scrape
        if scrape is None or now - scrape.sampled_s > self.stale_after_s or scrape.running is None or scrape.waiting is None:
            return replica.in_flight
        return replica.in_flight + max(0, scrape.running + scrape.waiting - self._own_at(replica, scrape.sampled_s))

    @staticmethod
    def _own_at(replica: Replica, t: float) -> int:
        own = 0
        for at, count in replica.history or ():
            if at > t:
                break
            own = count
        return own

    def candidates(self, pools: tuple[str, ...], request: Request) -> list[Replica]:
        """Ready replicas of the pools, without those the request has tried, unless it has tried them all."""
        ready = [r for r in self.replicas.values() if r.state == READY and r.pool in pools]
        if request.replica is not None:
            return [r for r in ready if r.id == request.replica]
        untried = [r for r in ready if r.id not in request.tried] if request.tried else ready
        return untried or ready

    def absence(self, pools: tuple[str, ...]) -> str:
        """Why there is no candidate."""
        if any(self._counts.get((p, BOOTING)) for p in pools):
            return "none_ready"
        return "all_draining" if any(self._counts.get((p, DRAINING)) for p in pools) else "no_replica"

    def ready_count(self, pools: tuple[str, ...]) -> int:
        return sum(self._counts.get((p, READY), 0) for p in pools)

    def coming_count(self, pools: tuple[str, ...]) -> int:
        """Replicas that are booting or draining: something there is, or will be."""
        return sum(self._counts.get((p, BOOTING), 0) + self._counts.get((p, DRAINING), 0) for p in pools)

    def slots(self, pools: tuple[str, ...]) -> int | None:
        """Requests that the ready replicas run at once; None if one does not say or none is ready."""
        known = [r.slots for r in self.replicas.values() if r.state == READY and r.pool in pools]
        return None if not known or None in known else sum(s for s in known if s is not None)

    def in_flight_of(self, id: str) -> list[tuple[str, int]]:
        """(request id, dispatch) of the attempts on a replica, in dispatch order."""
        replica = self.replicas.get(id)
        return [] if replica is None else [(request_id, flight[0]) for request_id, flight in replica.flights.items()]

    def view(self, now: float) -> tuple[ReplicaView, ...]:
        """All replicas, frozen; a stale scrape reads as None."""
        names = [n for n in ReplicaView.__dataclass_fields__ if n != "scrape"]
        out = []
        for r in self.replicas.values():
            fresh = r.scrape if r.scrape is not None and now - r.scrape.sampled_s <= self.stale_after_s else None
            out.append(ReplicaView(**{n: getattr(r, n) for n in names}, scrape=fresh))
        return tuple(out)


