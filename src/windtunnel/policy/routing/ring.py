"""Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2018): a key stays where it is, and nobody gets too much."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Annotated

from windtunnel.events import Request
from windtunnel.policy.param import BuildContext, Param, check_number
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.hashing import h64
from windtunnel.policy.routing.replica import Replica
from windtunnel.policy.routing.router import Choice, NoReplica, ReplicaChange, reason_of
from windtunnel.policy.routing.share import Shares, bound


@dataclass(frozen=True, slots=True)
class BoundedHashConfig:
    """Config. eps: by how much a replica may exceed its share of the load before its keys go on to the next; points: on the ring, of a
    replica of weight 1 (more points spread keys more evenly)."""

    eps: Annotated[float, Param(0.05, 2, 0.05, label="excess", help="how far over its share of the load a replica may be")] = 0.25
    points: Annotated[int, Param(10, 1000, 10, "points", "points", "places on the ring of a replica of weight 1", "log")] = 100

    def __post_init__(self) -> None:
        check_number("eps", self.eps, above=0.0)
        check_number("points", self.points, lo=1, whole=True)

    def build(self, ctx: BuildContext) -> BoundedHash:
        return BoundedHash(self, pools=tuple(p.name for p in ctx.pools))


def key_of(request: Request) -> str:
    """What keeps requests together: the route key, else the root of its session, else its first prompt block, else its tenant."""
    if request.route_key is not None:
        return request.route_key
    if request.turn is not None:
        return request.turn.root or request.turn.session
    if request.blocks:
        return str(request.blocks[0])
    return request.tenant or request.id


class BoundedHash:
    """Each replica has points on a ring; a key belongs to the first point at or after its own place, going round. A replica that has its
    share of the load (1 + eps times the mean, by weight) is passed by; somebody always has room.

    A replica that comes or goes moves only the keys that are nearest to its points. Reasons: ring, ring_spill (the first was full).
    O(log points) per pick, and a step for every point that is passed by.
    """

    def __init__(self, config: BoundedHashConfig | None = None, *, pools: tuple[str, ...] = ()) -> None:
        self.config, self.pools = config or BoundedHashConfig(), pools
        self.needs: frozenset[str] = frozenset({"prefix_blocks", "route_key"})
        self._shares = Shares(pools)
        self._fleet: Fleet | None = None
        self._members = -1
        self._serving: tuple[tuple[str, float], ...] = ()
        self._places: list[int] = []
        self._owners: list[str] = []
        self._points: dict[str, list[int]] = {}  # by replica: its hashes, as many as were ever needed

    def pick(self, request: Request, fleet: Fleet, now: float) -> Choice | NoReplica:
        if fleet.members != self._members or fleet is not self._fleet:
            self._rebuild(fleet)
        candidates = self._shares.candidates(request, fleet)
        if not candidates:
            return NoReplica(fleet.absence(self.pools, request.replica))
        load, weight = self._shares.total(candidates, fleet, now)
        eps, owners, n = self.config.eps, self._owners, len(self._owners)
        at, full = bisect_left(self._places, h64(key_of(request))), set[str]()
        for i in range(at, at + n):
            id = owners[i % n]
            r = candidates.get(id)
            if r is None or id in full:
                continue
            if fleet.load_of(r, now) + 1 <= bound(eps, load, weight, r.weight):
                return Choice(r.id, reason_of("ring_spill" if full else "ring", r.id, request))
            full.add(id)
        raise AssertionError("every replica has more than its share")

    def sent(self, request: Request, choice: Choice, now: float) -> None:
        self._shares.sent(choice.replica)

    def done(self, request: Request, replica: str, outcome: str, now: float) -> None:
        self._shares.done(replica)

    def changed(self, change: ReplicaChange, now: float) -> None:
        """Who serves is read from the ledger at the next pick; ids are not used again."""
        if change.kind == "gone":
            self._points.pop(change.replica, None)

    def _rebuild(self, fleet: Fleet) -> None:
        """The ring of the replicas that serve now, unless they are the same as before."""
        self._fleet, self._members = fleet, fleet.members
        serving = fleet.serving(self.pools)
        if (now := tuple((r.id, r.weight) for r in serving)) == self._serving:
            return
        self._serving = now
        ring = sorted((place, r.ordinal, r.id) for r in serving for place in self._points_of(r))
        self._places, self._owners = [place for place, _, _ in ring], [id for _, _, id in ring]

    def _points_of(self, r: Replica) -> list[int]:
        n = max(1, round(self.config.points * r.weight))
        points = self._points.setdefault(r.id, [])
        points.extend(h64(f"{r.id}#{i}") for i in range(len(points), n))
        return points[:n]
