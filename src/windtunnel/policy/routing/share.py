"""What a replica's fair part of the load is: the bound that keeps affinity from becoming a pile-up."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from windtunnel.events import Request
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.replica import Replica


class Shares:
    """The candidates of requests, with their load and weight in all. Kept up to date from what is sent and ends, so that a pick need not
    add them up; added up anew when replicas come and go, for requests with special wishes (tried replicas, a fixed one or pool), and while
    a scrape shows other people's load."""

    def __init__(self, pools: tuple[str, ...]) -> None:
        self._pools = pools
        self._fleet: Fleet | None = None
        self._members = -1
        self._serving: tuple[Replica, ...] = ()
        self._by_id: dict[str, Replica] = {}
        self._load = 0
        self._weight = 0.0

    def candidates(self, request: Request, fleet: Fleet) -> Mapping[str, Replica]:
        """Who may take a request, by id, in ordinal order."""
        if fleet.members != self._members or fleet is not self._fleet:
            self._fleet, self._members = fleet, fleet.members
            self._serving = serving = fleet.serving(self._pools)
            self._by_id = {r.id: r for r in serving}
            self._load, self._weight = sum(r.in_flight for r in serving), sum(r.weight for r in serving)
        found = fleet.candidates(self._pools, request)
        return self._by_id if found is self._serving else {r.id: r for r in found}

    def total(self, candidates: Mapping[str, Replica], fleet: Fleet, now: float) -> tuple[int, float]:
        """(load, weight) of candidates just asked for."""
        if candidates is self._by_id and now > fleet.scan_until:
            return self._load, self._weight
        return sum(fleet.load_of(r, now) for r in candidates.values()), sum(r.weight for r in candidates.values())

    def sent(self, replica: str) -> None:
        """One more on a replica."""
        self._load += replica in self._by_id

    def done(self, replica: str) -> None:
        """One less on a replica."""
        self._load -= replica in self._by_id


def bound(eps: float, load: int, weight: float, mine: float) -> int:
    """The most requests, the new one counted, for a replica of weight `mine`: (1 + eps) times its part of all, rounded up."""
    return ceil((1 + eps) * (load + 1) * mine / weight - 1e-9)  # less what binary fractions add to a whole number
