"""Least outstanding: the replica with the least own work per weight, in O(log replicas)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace
from typing import Annotated, Literal

from windtunnel.events import Request
from windtunnel.policy.param import BuildContext, Param, check_number
from windtunnel.policy.routing.fleet import READY, Fleet, Replica
from windtunnel.policy.routing.router import Choice, NoReplica, ReplicaChange

Key = tuple[float, int, int]
Entry = tuple[float, int, int, str]


@dataclass(frozen=True, slots=True)
class LeastOutstandingConfig:
    """Config. by: count requests or tokens; slow_start_s: a new replica's weight grows to full over this time (0 = off);
    respect_slots: leave out replicas whose slots are all taken."""

    by: Annotated[Literal["requests", "tokens"], Param(choices=("requests", "tokens"), label="least", help="what counts as work")] = "requests"
    slow_start_s: Annotated[float, Param(0, 300, 5, "s", "slow start", "time for a new replica to get its full share")] = 0.0
    respect_slots: Annotated[bool, Param(label="respect slots", help="do not send to a replica whose slots are all taken")] = False

    def __post_init__(self) -> None:
        check_number("slow_start_s", self.slow_start_s, lo=0.0)

    def build(self, ctx: BuildContext) -> LeastOutstanding:
        return LeastOutstanding(self, pools=tuple(p.name for p in ctx.pools))


class LeastOutstanding:
    """Compares (load + 1) / weight, or (tokens in flight + own charge) / weight; ties: longest not sent to, then smallest ordinal.

    A lazy heap: an entry is checked against the replica's present key when it surfaces, and every change of load pushes a new one, so a
    pick never scans. Requests with special wishes (tried replicas, a fixed one) and fleets with foreign load or slow start take a scan.
    """

    def __init__(self, config: LeastOutstandingConfig | None = None, *, pools: tuple[str, ...] = ()) -> None:
        self.config = config or LeastOutstandingConfig()
        self.pools = pools
        self.needs: frozenset[str] = frozenset()
        self._heap: list[Entry] = []
        self._latest: dict[str, Entry] = {}
        self._version = -1
        self._fleet: Fleet | None = None
        self._by_tokens = self.config.by == "tokens"
        self._reason = "least_tokens" if self._by_tokens else "least_requests"
        self._plain = self.config.slow_start_s == 0 and not self.config.respect_slots
        self._limit = 64

    def pick(self, request: Request, fleet: Fleet, now: float) -> Choice | NoReplica:
        if fleet.version != self._version or fleet is not self._fleet:
            self._rebuild(fleet)
        if not self._plain or request.tried or request.replica is not None or fleet.scraping:
            return self._scan(request, fleet, now)
        heap, latest, replicas = self._heap, self._latest, fleet.replicas
        while heap:
            entry = heap[0]
            id = entry[3]
            if latest[id] is not entry:
                heappop(heap)  # a newer entry of this replica is in the heap
                continue
            replica = replicas[id]
            present = (replica.in_flight_tokens if self._by_tokens else replica.in_flight + 1) / replica.weight
            if present == entry[0] and entry[1] == replica.last_sent_seq:
                return Choice(id, self._reason, present)
            latest[id] = fresh = (present, replica.last_sent_seq, replica.ordinal, id)
            heapreplace(heap, fresh)
        return NoReplica(fleet.absence(self._pools_of(fleet)))

    def sent(self, request: Request, choice: Choice, now: float) -> None:
        """The replica's load only grew: its old entry is corrected when it surfaces."""

    def done(self, request: Request, replica: str, outcome: str, now: float) -> None:
        """The load is about to fall: an entry with the new key goes in."""
        fleet = self._fleet
        if fleet is None or not self._plain:
            return
        entry = fleet.replicas.get(replica)
        if entry is None or entry.state != READY or self._version != fleet.version:
            return
        if self._by_tokens:
            flight = entry.flights.get(request.id)
            work = entry.in_flight_tokens - (flight[1] if flight else 0)
        else:
            work = entry.in_flight
        self._latest[replica] = fresh = (work / entry.weight, entry.last_sent_seq, entry.ordinal, replica)
        heappush(self._heap, fresh)
        if len(self._heap) > self._limit:
            self._rebuild(fleet, without=request.id)

    def changed(self, change: ReplicaChange, now: float) -> None:
        """Membership is read from the ledger's version at the next pick."""

    def _pools_of(self, fleet: Fleet) -> tuple[str, ...]:
        return self.pools or tuple(dict.fromkeys(r.pool for r in fleet.replicas.values()))

    def _rebuild(self, fleet: Fleet, without: str | None = None) -> None:
        """One entry per ready replica; `without`: a request whose end the ledger has not counted yet."""
        self._fleet, self._version = fleet, fleet.version
        pools = self.pools
        heap: list[Entry] = []
        for r in fleet.replicas.values():
            if r.state != READY or (pools and r.pool not in pools):
                continue
            flight = r.flights.get(without) if without else None
            work = r.in_flight_tokens - (flight[1] if flight else 0) if self._by_tokens else r.in_flight + 1 - (flight is not None)
            heappush(heap, (work / r.weight, r.last_sent_seq, r.ordinal, r.id))
        self._heap, self._latest, self._limit = heap, {e[3]: e for e in heap}, 8 * len(heap) + 64

    def _scan(self, request: Request, fleet: Fleet, now: float) -> Choice | NoReplica:
        pools = self._pools_of(fleet)
        candidates = fleet.candidates(pools, request)
        if not candidates:
            return NoReplica(fleet.absence(pools))
        if self.config.respect_slots:
            candidates = [r for r in candidates if r.slots is None or fleet.load(r.id, now) < r.slots]
            if not candidates:
                return NoReplica("all_full")
        best = min(candidates, key=self._key(request, fleet, now))
        reason = self._reason + ("+tried_again" if best.id in request.tried else "")
        return Choice(best.id, reason, self._key(request, fleet, now)(best)[0])

    def _key(self, request: Request, fleet: Fleet, now: float) -> Callable[[Replica], Key]:
        slow_s = self.config.slow_start_s

        def key(r: Replica) -> Key:
            weight = r.weight
            if slow_s > 0:
                weight *= min(1.0, max(0.1, (now - r.ready_s) / slow_s))
            work = r.in_flight_tokens if self._by_tokens else fleet.load(r.id, now) + 1
            return work / weight, r.last_sent_seq, r.ordinal

        return key
