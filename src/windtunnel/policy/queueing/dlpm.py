"""Deficit longest prefix match: cache locality first, bounded by a deficit per client (Cao et al., "Locality-aware fair scheduling", 2025)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Annotated, Any

from windtunnel.events import Request
from windtunnel.policy.param import BuildContext, Param, check_number
from windtunnel.policy.queueing.fair import Eligible
from windtunnel.policy.queueing.item import QueueItem, Selection
from windtunnel.policy.queueing.keyed import KeyedQueue
from windtunnel.policy.routing.replica import NOMINAL_INPUT

Entry = tuple[int, int, QueueItem]


class DlpmQueue(KeyedQueue):
    """Among the clients (groups) whose deficit is above 0, the item with the longest matched prefix; ties by arrival.

    matched(request): prompt tokens that a cache is expected to hold, asked once, when the item is offered. A commit charges the other
    prompt tokens, `charge` and `settle` `w_out` per output token. When no client that waits has a deficit above 0, each gets
    `quantum_tokens` times its weight, as often as one of them needs. Two backlogged clients differ by at most 2·(largest charge + quantum).
    """

    needs = frozenset({"progress"})

    def __init__(self, config: Dlpm | None = None, *, matched: Callable[[Request], int] | None = None) -> None:
        self.config = config or Dlpm()
        self._matched_of = matched
        self._matched: dict[str, int] = {}
        super().__init__(lambda item: -self._matched[item.id])
        self.deficits: dict[str, float] = {}
        self._waiting: dict[str, int] = {}  # items by client
        self._weights: dict[str, float] = {}
        self._parked: dict[str, list[Entry]] = {}  # of clients without deficit, off the heap until they have some
        self._produced: dict[str, tuple[str, int]] = {}

    def _add(self, item: QueueItem, place: int) -> None:
        client, request = item.group.key, item.request
        self._matched[item.id] = self._matched_of(request) if self._matched_of is not None and request is not None else 0
        self._waiting[client] = self._waiting.get(client, 0) + 1
        self._weights[client] = item.group.weight
        self.deficits.setdefault(client, 0.0)
        super()._add(item, place)

    def _take(self, item_id: str) -> QueueItem | None:
        item = super()._take(item_id)
        if item is not None:
            client = item.group.key
            self._waiting[client] -= 1
            if not self._waiting[client]:
                del self._waiting[client]
        return item

    def select(self, eligible: Eligible, now: float) -> Selection | None:
        """The longest match of a client that has a deficit, or will have one after the rounds of quanta that `commit` then books."""
        rounds = self._rounds()
        self._park(rounds)
        return super().select(lambda item, view: self._deficit(item.group.key, rounds) > 0 and eligible(item, view), now)

    def commit(self, selection: Selection, now: float) -> QueueItem | None:
        rounds = self._rounds()
        waiting = tuple(self._waiting) if rounds else ()
        item = super().commit(selection, now)
        if item is not None:
            for client in waiting:
                self.deficits[client] = self._deficit(client, rounds)
            request = item.request
            tokens_in = NOMINAL_INPUT if request is None or request.input_tokens is None else request.input_tokens
            self._produced[item.id] = (item.group.key, 0)
            self.deficits[item.group.key] -= max(0, tokens_in - self._matched.pop(item.id, 0))
        return item

    def discard(self, item_id: str, now: float) -> QueueItem | None:
        item = super().discard(item_id, now)
        if item is not None:
            self._matched.pop(item_id, None)
        return item

    def straight(self, item: QueueItem, now: float) -> bool:
        """offer + select + commit in one, on an empty queue; False, and nothing done, on any other."""
        if len(self):
            return False
        self.offer((item,), now)
        return self.commit(Selection(item, self.view(), self.sequence_version), now) is not None

    def charge(self, item_id: str, output_tokens: int, now: float) -> None:
        """So many output tokens in all has a committed item by now; unknown items and lower counts change nothing."""
        client, before = self._produced.get(item_id, ("", output_tokens))
        if output_tokens > before:
            self._produced[item_id] = (client, output_tokens)
            self.deficits[client] -= self.config.w_out * (output_tokens - before)

    def settle(self, item_id: str, output_tokens: int | None, now: float) -> None:
        """A committed item has ended, however; None: no more tokens than were told of."""
        if isinstance(item_id, str):
            self.charge(item_id, output_tokens or 0, now)
            self._produced.pop(item_id, None)

    def _deficit(self, client: str, rounds: int) -> float:
        return self.deficits[client] + rounds * self.config.quantum_tokens * self._weights[client]

    def _rounds(self) -> int:
        """Quanta for every waiting client until one of them has a deficit above 0; 0 if one has."""
        waiting, deficits = self._waiting, self.deficits
        if not waiting or any(deficits[c] > 0 for c in waiting):
            return 0
        quantum = self.config.quantum_tokens
        return min(int(-deficits[c] // (quantum * self._weights[c])) + 1 for c in waiting)

    def _park(self, rounds: int) -> None:
        """Items of clients without deficit leave the heap, so that they are not met again and again; back they come with it."""
        heap: list[Any] = self._heap
        for client in [c for c in self._parked if c not in self._waiting or self._deficit(c, rounds) > 0]:
            for entry in self._parked.pop(client):
                heappush(heap, entry)
        while heap:
            entry = heap[0]
            client = entry[2].group.key
            if not self._is_live(entry):
                heappop(heap)
            elif self._deficit(client, rounds) <= 0:
                self._parked.setdefault(client, []).append(heappop(heap))
            else:
                return


@dataclass(frozen=True, slots=True)
class Dlpm:
    """Config of the deficit longest-prefix-match queue."""

    quantum_tokens: Annotated[float, Param(64, 65536, 64, "tokens", "quantum", "service a client may be ahead by")] = 4096.0
    w_out: Annotated[float, Param(0, 10, 0.1, label="output weight", help="charge per output token")] = 2.0

    def __post_init__(self) -> None:
        check_number("quantum_tokens", self.quantum_tokens, above=0.0)
        check_number("w_out", self.w_out, lo=0.0)

    def build(self, ctx: BuildContext) -> DlpmQueue:
        return DlpmQueue(self)
