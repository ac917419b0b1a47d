"""Least outstanding: the replica with the least own work per weight, in O(log replicas)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from math import inf
from typing import Annotated, Literal

from windtunnel.errors import ConfigError
from windtunnel.events import Request
from windtunnel.policy.param import BuildContext, Param, Rng, check_number
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.replica import Replica
from windtunnel.policy.routing.router import Choice, NoReplica, ReplicaChange, reason_of

By = Literal["requests", "tokens"]
Ties = Literal["recent", "first", "random"]
Entry = tuple[float, int, int, Replica]  # score, last_sent_seq (0 for ties="first"), ordinal


@dataclass(frozen=True, slots=True)
class LeastOutstandingConfig:
    """Config. by: count requests or tokens; slow_start_s: a new replica's weight grows to full over this time (0 = off);
    respect_slots: leave out replicas whose slots are all taken; ties: recent = longest not sent to, first = smallest ordinal, random."""

    by: Annotated[By, Param(choices=("requests", "tokens"), label="least", help="what counts as work")] = "requests"
    ties: Annotated[Ties, Param(choices=("recent", "first", "random"), label="ties", help="who gets it among equals")] = "recent"
    slow_start_s: Annotated[float, Param(0, 300, 5, "s", "slow start", "time for a new replica to get its full share")] = 0.0
    respect_slots: Annotated[bool, Param(label="respect slots", help="do not send to a replica whose slots are all taken")] = False

    def __post_init__(self) -> None:
        check_number("slow_start_s", self.slow_start_s, lo=0.0)

    def build(self, ctx: BuildContext) -> LeastOutstanding:
        """Raises ConfigError if ties are drawn and the context has no generator."""
        return LeastOutstanding(self, pools=tuple(p.name for p in ctx.pools), rng=ctx.rng)


def weight_now(r: Replica, now: float, slow_start_s: float) -> float:
    """Its weight, or the part of it that a replica which has just become ready has earned (from a tenth up)."""
    if slow_start_s <= 0 or r.ready_s is None:
        return r.weight
    return r.weight * min(1.0, max(0.1, (now - r.ready_s) / slow_start_s))


def least_of(candidates: Iterable[Replica], request: Request, fleet: Fleet, now: float, *, by: By = "requests", ties: Ties = "recent",
             slow_start_s: float = 0.0, rng: Rng | None = None) -> tuple[Replica, float]:
    """(replica, score) with the least (load + 1) / weight, or (tokens in flight + charge) / weight; candidates in ordinal order, not none.

    Ties random: exactly one draw, over the tied.
    """
    best: list[Replica] = []
    least = inf
    for r in candidates:
        work = r.in_flight_tokens + r.tokens.charge(request) if by == "tokens" else fleet.load_of(r, now) + 1
        score = work / weight_now(r, now, slow_start_s)
        if score < least or not best:
            best, least = [r], score
        elif score == least:
            best.append(r)
    if ties == "random":
        assert rng is not None
        return best[rng.randrange(len(best))], least
    return (min(best, key=lambda r: r.last_sent_seq) if ties == "recent" else best[0]), least


class LeastOutstanding:
    """Compares (load + 1) / weight, or (tokens in flight + own charge) / weight; ties by `ties`.

    Lazy heaps with one valid entry per ready replica, never above its present score: sends only raise a score, so they wait until the
    entry surfaces; ends push a lower one. A pick scans only for requests with special wishes (tried replicas, a fixed one or pool),
    while a scrape shows other people's load, during slow start, when the best has no slot free, and for random ties.
    """

    def __init__(self, config: LeastOutstandingConfig | None = None, *, pools: tuple[str, ...] = (), rng: Rng | None = None) -> None:
        self.config = config = config or LeastOutstandingConfig()
        if config.ties == "random" and rng is None:
            raise ConfigError('ties "random" need a generator')
        self.pools, self.rng = pools, rng
        self.needs: frozenset[str] = frozenset()
        self._fleet: Fleet | None = None
        self._members = -1
        self._heaps: dict[tuple[float, str], list[Entry]] = {}  # by tokens one per weight and pool, so that the charge moves all alike
        self._only: list[Entry] | None = None  # the heap, if there is just one
        self._single: Replica | None = None  # the only one that serves
        self._entries: dict[str, Entry] = {}
        self._tokens, self._recent = config.by == "tokens", config.ties == "recent"
        self._reason = "least_tokens" if self._tokens else "least_requests"
        self._warm_s = -inf  # from then on no candidate is in slow start
        self._pinned = len(pools) != 1  # may a request's pool narrow the candidates?

    def pick(self, request: Request, fleet: Fleet, now: float) -> Choice | NoReplica:
        if fleet.members != self._members or fleet is not self._fleet:
            self._rebuild(fleet)
        if (request.tried or request.replica is not None or now <= fleet.scan_until or now < self._warm_s
                or (self._pinned and request.pool is not None)):
            return self._scan(request, fleet, now)
        if self._single is not None:
            r = self._single
            work: float = r.in_flight_tokens if self._tokens else (r.in_flight + 1) / r.weight
        elif self._only is not None:
            work, _, _, r = self._settle(self._only)
        else:
            return self._pick_of_many(request, fleet, now)
        if self.config.respect_slots and r.slots is not None and r.in_flight >= r.slots:
            return self._scan(request, fleet, now)
        return Choice(r.id, self._reason, (work + r.tokens.charge(request)) / r.weight if self._tokens else work)

    def sent(self, request: Request, choice: Choice, now: float) -> None:
        """Its score only grew: the entry is corrected when it surfaces."""

    def done(self, request: Request, replica: str, outcome: str, now: float) -> None:
        """Its score falls (before or after this call): an entry at or below the new score goes in, unless there is one."""
        if self._single is not None:
            return  # nobody to compare it with
        entry, fleet = self._entries.get(replica), self._fleet
        if entry is None or fleet is None or fleet.members != self._members:
            return  # unknown here, or the heaps are rebuilt at the next pick anyway
        r = entry[3]
        score = r.in_flight_tokens - fleet.charge_of(request.id) if self._tokens else r.in_flight / r.weight
        if score < entry[0]:
            self._entries[replica] = entry = (score, r.last_sent_seq if self._recent else 0, r.ordinal, r)
            heap = self._only if self._only is not None else self._heaps[self._key(r)]
            heappush(heap, entry)
            if len(heap) > 4 * len(self._entries) + 64:
                heap[:] = [e for e in heap if self._entries[e[3].id] is e]
                heapify(heap)

    def changed(self, change: ReplicaChange, now: float) -> None:
        """Read from the ledger's `members` at the next pick."""

    def _settle(self, heap: list[Entry]) -> Entry:
        """The top of a heap (never empty), after entries that were replaced are dropped and those too low are corrected."""
        entries, tokens, recent = self._entries, self._tokens, self._recent
        while True:
            entry = heap[0]
            r = entry[3]
            if entries[r.id] is not entry:
                heappop(heap)
                continue
            score = r.in_flight_tokens if tokens else (r.in_flight + 1) / r.weight
            seq = r.last_sent_seq if recent else 0
            if score == entry[0] and seq == entry[1]:
                return entry
            entries[r.id] = fresh = (score, seq, r.ordinal, r)
            heapreplace(heap, fresh)

    def _pick_of_many(self, request: Request, fleet: Fleet, now: float) -> Choice | NoReplica:
        """No heap, or one per weight and pool: the best of their tops."""
        if not self._heaps:
            return self._scan(request, fleet, now)
        best: tuple[float, int, int, Replica] | None = None
        for heap in self._heaps.values():
            work, seq, ordinal, r = self._settle(heap)
            entry = ((work + r.tokens.charge(request)) / r.weight, seq, ordinal, r)
            if best is None or entry < best:
                best = entry
        assert best is not None
        r = best[3]
        if self.config.respect_slots and r.slots is not None and r.in_flight >= r.slots:
            return self._scan(request, fleet, now)
        return Choice(r.id, self._reason, best[0])

    def _key(self, r: Replica) -> tuple[float, str]:
        return (r.weight, r.pool) if self._tokens else (0.0, "")

    def _rebuild(self, fleet: Fleet) -> None:
        """One exact entry per ready replica."""
        self._fleet, self._members = fleet, fleet.members
        self._heaps, self._entries = {}, {}
        slow_s, self._warm_s = self.config.slow_start_s, inf if self.config.ties == "random" else -inf
        serving = fleet.serving(self.pools)
        for r in serving:
            score = r.in_flight_tokens if self._tokens else (r.in_flight + 1) / r.weight
            self._entries[r.id] = entry = (score, r.last_sent_seq if self._recent else 0, r.ordinal, r)
            self._heaps.setdefault(self._key(r), []).append(entry)
            if slow_s > 0 and r.ready_s is not None:
                self._warm_s = max(self._warm_s, r.ready_s + slow_s + 1e-6)
        for heap in self._heaps.values():
            heapify(heap)
        self._only = next(iter(self._heaps.values())) if len(self._heaps) == 1 else None
        self._single = serving[0] if len(serving) == 1 else None

    def _scan(self, request: Request, fleet: Fleet, now: float) -> Choice | NoReplica:
        config = self.config
        candidates = fleet.candidates(self.pools, request)
        if not candidates:
            return NoReplica(fleet.absence(self.pools, request.replica))
        if config.respect_slots:
            candidates = tuple(r for r in candidates if r.slots is None or fleet.load_of(r, now) < r.slots)
            if not candidates:
                return NoReplica("all_full")
        best, score = least_of(candidates, request, fleet, now, by=config.by, ties=config.ties, slow_start_s=config.slow_start_s,
                               rng=self.rng)
        return Choice(best.id, reason_of(self._reason, best.id, request), score)
