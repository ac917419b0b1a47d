"""Routers that draw: random by weight, and the least loaded of d distinct draws (Mitzenmacher, 2001)."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated

from windtunnel.errors import ConfigError
from windtunnel.events import Request
from windtunnel.policy.param import BuildContext, Param, Rng, check_number
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.least import By, least_of
from windtunnel.policy.routing.replica import Replica
from windtunnel.policy.routing.router import TRIED, Choice, NoReplica, ReplicaChange


class _Drawing:
    """What both have in common: a generator, and nothing to learn from what was sent or ended."""

    needs: frozenset[str] = frozenset()

    def __init__(self, rng: Rng, *, pools: tuple[str, ...] = ()) -> None:
        self.rng, self.pools = rng, pools

    def pick(self, request: Request, fleet: Fleet, now: float) -> Choice | NoReplica:
        """Nothing is drawn if there is no candidate."""
        candidates = fleet.candidates(self.pools, request)
        if not candidates:
            return NoReplica(fleet.absence(self.pools, request.replica))
        choice = self._choose(candidates, request, fleet, now)
        return Choice(choice.replica, choice.reason + TRIED, choice.score) if choice.replica in request.tried else choice

    @abstractmethod
    def _choose(self, candidates: tuple[Replica, ...], request: Request, fleet: Fleet, now: float) -> Choice:
        """One of the candidates, of which there is at least one."""

    def sent(self, request: Request, choice: Choice, now: float) -> None:
        """Nothing to learn."""

    def done(self, request: Request, replica: str, outcome: str, now: float) -> None:
        """Nothing to learn."""

    def changed(self, change: ReplicaChange, now: float) -> None:
        """Nothing to learn."""


class RandomRouter(_Drawing):
    """Probability in proportion to weight; one `random()` per pick."""

    def __init__(self, rng: Rng, *, pools: tuple[str, ...] = ()) -> None:
        super().__init__(rng, pools=pools)
        self._sums_of: tuple[Replica, ...] = ()
        self._members = -1
        self._sums: list[float] = []

    def _choose(self, candidates: tuple[Replica, ...], request: Request, fleet: Fleet, now: float) -> Choice:
        if candidates is not self._sums_of or fleet.members != self._members:
            self._sums_of, self._members, self._sums = candidates, fleet.members, list(accumulate(r.weight for r in candidates))
        at = bisect_right(self._sums, self.rng.random() * self._sums[-1])
        return Choice(candidates[min(at, len(candidates) - 1)].id, "random")


class PowerOfTwo(_Drawing):
    """The least loaded of d distinct draws; with d or fewer candidates the least loaded of all, without a draw.

    Equal weights: one `randrange` per draw; else one `random()` per draw, in proportion to weight. Raises ConfigValueError unless d is
    2 to 8.
    """

    def __init__(self, rng: Rng, d: int = 2, by: By = "requests", *, pools: tuple[str, ...] = ()) -> None:
        super().__init__(rng, pools=pools)
        check_number("d", d, lo=2, hi=8, whole=True)
        self.d, self.by = d, by

    def _choose(self, candidates: tuple[Replica, ...], request: Request, fleet: Fleet, now: float) -> Choice:
        drawn: Sequence[Replica] = candidates
        if len(candidates) > self.d:
            first = candidates[0].weight
            alike = all(r.weight == first for r in candidates)
            at = sorted(self._draw_alike(len(candidates)) if alike else self._draw_weighted([r.weight for r in candidates]))
            drawn = [candidates[i] for i in at]
        best, score = least_of(drawn, request, fleet, now, by=self.by)
        return Choice(best.id, "p2c", score)

    def _draw_alike(self, n: int) -> list[int]:
        """d distinct indexes; the k-th draw is over the n - k that are left, shifted past those taken."""
        taken: list[int] = []
        for k in range(self.d):
            i = self.rng.randrange(n - k)
            for earlier in sorted(taken):
                i += i >= earlier
            taken.append(i)
        return taken

    def _draw_weighted(self, weights: list[float]) -> list[int]:
        left = list(range(len(weights)))
        taken = []
        for _ in range(self.d):
            sums = list(accumulate(weights[i] for i in left))
            at = min(bisect_right(sums, self.rng.random() * sums[-1]), len(left) - 1)
            taken.append(left.pop(at))
        return taken


def _rng(ctx: BuildContext, router: str) -> Rng:
    if ctx.rng is None:
        raise ConfigError(f"the {router} router needs a generator")
    return ctx.rng


@dataclass(frozen=True, slots=True)
class RandomConfig:
    """Config of the random router: no parameters."""

    def build(self, ctx: BuildContext) -> RandomRouter:
        return RandomRouter(_rng(ctx, "random"), pools=tuple(p.name for p in ctx.pools))


@dataclass(frozen=True, slots=True)
class PowerOfTwoConfig:
    """Config of power of d choices."""

    d: Annotated[int, Param(2, 8, 1, "replicas", "choices", "replicas drawn per request")] = 2
    by: Annotated[By, Param(choices=("requests", "tokens"), label="least", help="what counts as work")] = "requests"

    def __post_init__(self) -> None:
        check_number("d", self.d, lo=2, hi=8, whole=True)

    def build(self, ctx: BuildContext) -> PowerOfTwo:
        return PowerOfTwo(_rng(ctx, "power_of_two"), self.d, self.by, pools=tuple(p.name for p in ctx.pools))
