"""Deficit round robin: groups take turns and save up for what costs more than a turn (Shreedhar, Varghese, SIGCOMM 1995)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from math import ceil, isfinite
from typing import Annotated, Any

from windtunnel.policy.param import BuildContext, Param, check_number
from windtunnel.policy.queueing.fair import FairTaskQueue
from windtunnel.policy.queueing.item import QueueItem, bad_cost
from windtunnel.policy.queueing.order import ActiveGroup


class Turn:
    """A waiting group's place in every round, and what was left to it in the round that it was last served in."""

    __slots__ = ("deficit", "place", "round")

    def __init__(self, round_: int, place: int) -> None:
        self.round, self.place, self.deficit = round_, place, 0.0

    def rounds(self, cost: float, gain: float) -> int:
        """Rounds from then on until the deficit covers `cost`."""
        return max(0, ceil((cost - self.deficit) / gain))


class DrrQueue(FairTaskQueue):
    """In each round every waiting group gains `quantum_tokens` times its weight, and its heads go while its deficit covers their cost.

    A group that comes takes the last place of the current round; a group that has nothing left to wait for forfeits its deficit. The round
    in which a head can go is computed, not waited for: every call O(log groups), however small the quantum. A blocked head is passed over.
    Two groups that wait from the same moment on differ by at most quantum + their largest cost / weight. Costs are finite; in a lane they
    are tokens (input + expected output).
    """

    counts = "tokens"

    def __init__(self, config: Drr | None = None) -> None:
        super().__init__()
        self.config = config or Drr()
        self.round = 0
        self._turns: dict[str, Turn] = {}

    def deficit(self, key: str) -> float:
        """What is left to a group since it was served last; 0 for one that has nothing waiting."""
        turn = self._turns.get(key)
        return 0.0 if turn is None else turn.deficit

    def straight(self, item: QueueItem, now: float) -> bool:
        """offer + select + commit in one, on an empty queue; False, and nothing done, on any other."""
        if self._where:
            return False
        self._check(item)
        self._tick(now)
        self.sequence_version += 2
        return True

    def _add(self, item: QueueItem, *, front: bool = False) -> None:
        self._check(item)
        super()._add(item, front=front)

    def _check(self, item: QueueItem) -> None:
        if not (item.cost > 0 and isfinite(item.cost)):
            raise bad_cost(item)

    # -- the fair queue's places, as (round, place in it) -------------------------------------------------------------------------------

    def _first_tag(self, active: ActiveGroup) -> Any:
        turn = self._turns[active.group.key] = Turn(self.round - 1, self._order.activations + 1)
        return self._tag(turn, active.head, active.group.weight)

    def _tag(self, turn: Turn, head: QueueItem, weight: float) -> tuple[int, int]:
        return (turn.round + turn.rounds(head.cost, self.config.quantum_tokens * weight), turn.place)

    def _pay(self, active: ActiveGroup, item: QueueItem) -> Any:
        turn, weight = self._turns[active.group.key], active.group.weight
        gain = self.config.quantum_tokens * weight
        rounds = turn.rounds(item.cost, gain)
        turn.round += rounds
        turn.deficit = max(0.0, turn.deficit + rounds * gain - item.cost)
        self.round = max(self.round, turn.round)
        following = next(islice(active.line.values(), 1, 2), None)
        return None if following is None else self._tag(turn, following, weight)

    def _head_changes(self, active: ActiveGroup, head: QueueItem, weight: float) -> None:
        moves = active.head is not head or active.group.weight != weight
        super()._head_changes(active, head, weight)
        if moves:
            self._order.enter(active, self._tag(self._turns[active.group.key], head, weight))

    def _deactivate(self, active: ActiveGroup) -> None:
        super()._deactivate(active)
        del self._turns[active.group.key]


@dataclass(frozen=True, slots=True)
class Drr:
    """Config of deficit round robin."""

    quantum_tokens: Annotated[float, Param(1, 65536, 1, "tokens", "quantum", "what a tenant gains per round, times its weight")] = 1024.0

    def __post_init__(self) -> None:
        check_number("quantum_tokens", self.quantum_tokens, above=0.0)

    def build(self, ctx: BuildContext) -> DrrQueue:
        for tenant, weight in ctx.tenants.items():
            check_number(f"tenants.{tenant}.weight", weight, above=0.0)
        return DrrQueue(self)
