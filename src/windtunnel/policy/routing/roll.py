"""Which replicas there are, and which of them may take a request."""

from __future__ import annotations

from windtunnel.errors import PolicyError
from windtunnel.events import ReplicaBooting, ReplicaReady, Request
from windtunnel.policy.param import check_number
from windtunnel.policy.routing.replica import BOOTING, DRAINING, READY, PoolTokens, Replica


class Roll:
    """The replicas that have come and not gone. An empty tuple of pools means all pools. members grows with every change of a replica's state."""

    def __init__(self) -> None:
        self.replicas: dict[str, Replica] = {}
        self.members = self._joined = 0
        self._tokens: dict[str, PoolTokens] = {}
        self._serving: dict[tuple[str, ...], tuple[int, tuple[Replica, ...]]] = {}

    # -- they come and go -----------------------------------------------------------------------------------------------------------

    def booting(self, event: ReplicaBooting, now: float) -> None:
        """Asked for, or one boot stage on; a replica that served before is out until it is ready again."""
        self._move(self._entry(event.replica, event.pool, event.role), BOOTING)

    def ready(self, event: ReplicaReady, now: float) -> None:
        """Serves (again). Raises ConfigValueError for a weight that is not finite and positive."""
        check_number(f"{event.replica}.weight", event.weight, above=0.0)
        r = self._entry(event.replica, event.pool, event.role)
        r.weight, r.slots, r.kv_tokens, r.ready_s = event.weight, event.slots, event.kv_tokens, now
        self._move(r, READY)

    def draining(self, id: str, now: float) -> None:
        """No new work for it; what it has goes on. Unknown ids are ignored."""
        if (r := self.replicas.get(id)) is not None:
            self._move(r, DRAINING)

    def undrain(self, id: str, now: float) -> None:
        """A draining replica takes work again, or goes on booting if it never served."""
        r = self.replicas.get(id)
        if r is not None and r.state == DRAINING:
            self._move(r, BOOTING if r.ready_s is None else READY)

    def _entry(self, id: str, pool: str, role: str) -> Replica:
        r = self.replicas.get(id)
        if r is None:
            r = self.replicas[id] = Replica(id, pool, role, self._joined, self.tokens_of(pool))
            self._joined += 1
        elif r.pool != pool:
            raise PolicyError(f"replica {id!r} of pool {r.pool!r} cannot be in pool {pool!r}, too")
        return r

    def _move(self, r: Replica, state: str) -> None:
        r.state = state
        self.members += 1

    def tokens_of(self, pool: str) -> PoolTokens:
        """The counts of a pool, which may still have no replica."""
        return self._tokens.setdefault(pool, PoolTokens())

    # -- reads --------------------------------------------------------------------------------------------------------------------

    def serving(self, pools: tuple[str, ...]) -> tuple[Replica, ...]:
        """The ready replicas of the pools, in ordinal order."""
        cached = self._serving.get(pools)
        if cached is None or cached[0] != self.members:
            found = (r for r in self.replicas.values() if r.state == READY and (not pools or r.pool in pools))
            cached = self._serving[pools] = (self.members, tuple(sorted(found, key=lambda r: r.ordinal)))
        return cached[1]

    def candidates(self, pools: tuple[str, ...], request: Request) -> tuple[Replica, ...]:
        """Who may take a request, in ordinal order: serving replicas (of its pool, or the one it is fixed to), without those it has
        tried, unless it has tried them all."""
        if request.pool is not None and (not pools or request.pool in pools):
            pools = (request.pool,)
        found = self.serving(pools)
        if request.replica is not None:
            found = tuple(r for r in found if r.id == request.replica)
        if request.tried:
            return tuple(r for r in found if r.id not in request.tried) or found
        return found

    def absence(self, pools: tuple[str, ...], replica: str | None = None) -> str:
        """Why there is no candidate: no_replica, none_ready or all_draining. replica: the only one that would do."""
        states = {r.state for r in self._of(pools) if replica is None or r.id == replica}
        return "none_ready" if BOOTING in states else "all_draining" if DRAINING in states else "no_replica"

    def _of(self, pools: tuple[str, ...]) -> list[Replica]:
        return [r for r in self.replicas.values() if not pools or r.pool in pools]

    def ready_count(self, pools: tuple[str, ...]) -> int:
        return len(self.serving(pools))

    def coming_count(self, pools: tuple[str, ...]) -> int:
        """Replicas that are booting or draining: something there is, or will be."""
        return len(self._of(pools)) - len(self.serving(pools))

    def slots(self, pools: tuple[str, ...]) -> int | None:
        """Requests that the ready replicas run at once; None if one does not say or none is ready."""
        known = [r.slots for r in self.serving(pools)]
        return None if not known or None in known else sum(s for s in known if s is not None)
