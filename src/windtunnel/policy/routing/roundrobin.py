"""Smooth weighted round robin: weights 5, 1, 1 give A A B A C A A."""

from __future__ import annotations

from dataclasses import dataclass

from windtunnel.events import Request
from windtunnel.policy.param import BuildContext
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.router import Choice, NoReplica, ReplicaChange


@dataclass(frozen=True, slots=True)
class RoundRobinConfig:
    """Config of round robin: no parameters; weights are the replicas'."""

    def build(self, ctx: BuildContext) -> RoundRobin:
        return RoundRobin(pools=tuple(p.name for p in ctx.pools))


class RoundRobin:
    """Every candidate's counter grows by its weight at `sent`, the chosen one's falls by the sum; the largest counter + weight is next."""

    def __init__(self, *, pools: tuple[str, ...] = ()) -> None:
        self.pools = pools
        self.needs: frozenset[str] = frozenset()
        self._counters: dict[str, float] = {}
        self._picked: list[tuple[str, float]] = []

    def pick(self, request: Request, fleet: Fleet, now: float) -> Choice | NoReplica:
        pools = self.pools or tuple(dict.fromkeys(r.pool for r in fleet.replicas.values()))
        candidates = fleet.candidates(pools, request)
        if not candidates:
            return NoReplica(fleet.absence(pools))
        best = min(candidates, key=lambda r: (-(self._counters.get(r.id, 0.0) + r.weight), r.ordinal))
        self._picked = [(r.id, r.weight) for r in candidates]
        return Choice(best.id, "round_robin")

    def sent(self, request: Request, choice: Choice, now: float) -> None:
        counters = self._counters
        for id, weight in self._picked:
            counters[id] = counters.get(id, 0.0) + weight
        counters[choice.replica] = counters.get(choice.replica, 0.0) - sum(weight for _, weight in self._picked)

    def done(self, request: Request, replica: str, outcome: str, now: float) -> None:
        """Ends do not matter to a rotation."""

    def changed(self, change: ReplicaChange, now: float) -> None:
        if change.kind == "gone":
            self._counters.pop(change.replica, None)
