"""Routers that draw: random by weight, and the least loaded of d distinct draws (Mitzenmacher, 2001)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from windtunnel.events import Request
from windtunnel.policy.param import BuildContext, Param, Rng, check_number
from windtunnel.policy.routing.fleet import Fleet, Replica
from windtunnel.policy.routing.router import Choice, NoReplica, ReplicaChange


class _Drawing:
    """What both have in common: a generator, and nothing to learn from what was sent or ended."""

    needs: frozenset[str] = frozenset()

    def __init__(self, rng: Rng, *, pools: tuple[str, ...] = ()) -> None:
        self.rng, self.pools = rng, pools

    def _candidates(self, request: Request, fleet: Fleet) -> list[Replica] | NoReplica:
        pools = self.pools or tuple(dict.fromkeys(r.pool for r in fleet.replicas.values()))
        found = fleet.candidates(pools, request)
        return found or NoReplica(fleet.absence(pools))

    def _draw(self, candidates: list[Replica]) -> Replica:
        """One by weight, with one draw."""
        at = self.rng.random() * sum(r.weight for r in candidates)
        for r in candidates:
            at -= r.weight
            if at < 0:
                return r
        return candidates[-1]

    def sent(self, request: Request, choice: Choice, now: float) -> None:
        """Nothing to learn."""

    def done(self, request: Request, replica: str, outcome: str, now: float) -> None:
        """Nothing to learn."""

    def changed(self, change: ReplicaChange, now: float) -> None:
        """Nothing to learn."""


class RandomRouter(_Drawing):
    """Probability in proportion to weight; one draw per pick."""

    def pick(self, request: Request, fleet: Fleet, now: float) -> Choice | NoReplica:
        found = self._candidates(request, fleet)
        return found if isinstance(found, NoReplica) else Choice(self._draw(found).id, "random")


class PowerOfTwo(_Drawing):
    """The least loaded of d distinct draws; with d or fewer candidates the least loaded of all, without a draw."""

    def __init__(self, rng: Rng, d: int = 2, by: Literal["requests", "tokens"] = "requests", *, pools: tuple[str, ...] = ()) -> None:
        super().__init__(rng, pools=pools)
        check_number("d", d, lo=2, hi=8, whole=True)
        self.d, self.by = d, by

    def pick(self, request: Request, fleet: Fleet, now: float) -> Choice | NoReplica:
        found = self._candidates(request, fleet)
        if isinstance(found, NoReplica):
            return found
        pool = list(found)
        drawn: list[Replica] = []
        if len(pool) <= self.d:
            drawn = pool
        else:
            for _ in range(self.d):
                one = self._draw(pool)
                pool.remove(one)
                drawn.append(one)

        def score(r: Replica) -> tuple[float, int, int]:
            work = r.in_flight_tokens if self.by == "tokens" else fleet.load(r.id, now) + 1
            return work / r.weight, r.last_sent_seq, r.ordinal

        best = min(drawn, key=score)
        return Choice(best.id, "p2c", score(best)[0])


@dataclass(frozen=True, slots=True)
class RandomConfig:
    """Config of the random router: no parameters."""

    def build(self, ctx: BuildContext) -> RandomRouter:
        assert ctx.rng is not None
        return RandomRouter(ctx.rng, pools=tuple(p.name for p in ctx.pools))


@dataclass(frozen=True, slots=True)
class PowerOfTwoConfig:
    """Config of power of d choices."""

    d: Annotated[int, Param(2, 8, 1, "replicas", "choices", "replicas drawn per request")] = 2
    by: Annotated[Literal["requests", "tokens"], Param(choices=("requests", "tokens"), label="least", help="what counts as work")] = "requests"

    def __post_init__(self) -> None:
        check_number("d", self.d, lo=2, hi=8, whole=True)

    def build(self, ctx: BuildContext) -> PowerOfTwo:
        assert ctx.rng is not None
        return PowerOfTwo(ctx.rng, self.d, self.by, pools=tuple(p.name for p in ctx.pools))
