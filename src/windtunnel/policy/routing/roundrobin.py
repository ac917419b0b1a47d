"""Smooth weighted round robin: weights 5, 1, 1 give A A B A C A A."""

from __future__ import annotations

from dataclasses import dataclass

from windtunnel.events import Request
from windtunnel.policy.param import BuildContext
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.router import Choice, NoReplica, ReplicaChange, reason_of


@dataclass(frozen=True, slots=True)
class RoundRobinConfig:
    """Config of round robin: no parameters; weights are the replicas'."""

    def build(self, ctx: BuildContext) -> RoundRobin:
        return RoundRobin(pools=tuple(p.name for p in ctx.pools))


class RoundRobin:
    """Every candidate's counter grows by its weight at `sent`, the chosen one's falls by the sum; the largest counter + weight is next.

    A new replica starts at 0, one that is gone is forgotten. O(candidates) per pick.
    """

    def __init__(self, *, pools: tuple[str, ...] = ()) -> None:
        self.pools = pools
        self.needs: frozenset[str] = frozenset()
        self._counters: dict[str, float] = {}
        self._fleet: Fleet | None = None

    def pick(self, request: Request, fleet: Fleet, now: float) -> Choice | NoReplica:
        self._fleet = fleet
        candidates = fleet.candidates(self.pools, request)
        if not candidates:
            return NoReplica(fleet.absence(self.pools, request.replica))
        counters, best, most = self._counters, candidates[0], float("-inf")
        for r in candidates:
            if (counter := counters.get(r.id, 0.0) + r.weight) > most:
                best, most = r, counter
        return Choice(best.id, reason_of("round_robin", best.id, request))

    def sent(self, request: Request, choice: Choice, now: float) -> None:
        """The turn is taken: counters move, over the candidates that this request has."""
        if self._fleet is None:
            return
        counters, total = self._counters, 0.0
        for r in self._fleet.candidates(self.pools, request):
            counters[r.id] = counters.get(r.id, 0.0) + r.weight
            total += r.weight
        counters[choice.replica] = counters.get(choice.replica, 0.0) - total

    def done(self, request: Request, replica: str, outcome: str, now: float) -> None:
        """Ends do not matter to a rotation."""

    def changed(self, change: ReplicaChange, now: float) -> None:
        if change.kind == "gone":
            self._counters.pop(change.replica, None)
