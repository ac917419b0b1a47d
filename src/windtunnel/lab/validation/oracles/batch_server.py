"""A batch server that asks its queue at every admission: the engine of the fair-queueing paper (Sheng et al., OSDI 2024), queue inside.

Decode steps of 23.5 ms + 2.2 µs per resident token, prefills of 10 ms + 0.21 ms per token, at most 3072 tokens a prefill, at least ten
decode steps between admissions, a pool of 10 000 tokens of which a request is admitted only if all that run can come to their end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from windtunnel.events import Request
from windtunnel.policy.queueing.fair import Queue
from windtunnel.policy.queueing.item import Group, QueueItem, QueueView

POOL, PREFILL, EVERY = 10_000, 3072, 10
TOKENS, W_OUT = 256, 2.0
JITTER = 0.015  # of step times, ±, evenly


@dataclass(frozen=True, slots=True)
class Sent:
    """A request: when, whose, tokens in and out."""

    at_s: float
    client: str
    tokens_in: int = TOKENS
    tokens_out: int = TOKENS


@dataclass(slots=True)
class Served:
    """ttft_s by client; service: input + 2 x output tokens by client; gap: largest difference of two clients' service while both wait;
    gap_at: its value at run seconds that were asked for; tokens: in and out; backlogged: service by client in the time when all waited."""

    ttft_s: dict[str, list[float]] = field(default_factory=dict)
    service: dict[str, float] = field(default_factory=dict)
    backlogged: dict[str, float] = field(default_factory=dict)
    gap: float = 0.0
    gap_at: dict[float, float] = field(default_factory=dict)
    tokens: int = 0
    end_s: float = 0.0

    def mean_ttft_s(self, client: str) -> float:
        return sum(self.ttft_s[client]) / len(self.ttft_s[client])


@dataclass(slots=True)
class Running:
    """A request in the batch, and the tokens made for it."""

    sent: Sent
    item_id: str
    made: int = 1


def evenly(rates: Mapping[str, float], until_s: float, rng: Random) -> list[Sent]:
    """Clients that send at even distances, each with a phase of its own."""
    out = []
    for client, rate in rates.items():
        phase = rng.random()
        out += [Sent((n + phase) / rate, client) for n in range(int(rate * until_s - phase) + 1)]
    return sorted(out, key=lambda s: s.at_s)


class BatchServer:
    """One flight of `sends` through `queue`. weights by client; look_at_s: when to note the gap."""

    def __init__(self, queue: Queue, sends: Sequence[Sent], rng: Random, *, weights: Mapping[str, float] | None = None,
                 look_at_s: Sequence[float] = ()) -> None:
        self.queue, self.rng, self.weights = queue, rng, dict(weights or {})
        self.now = 0.0
        self.out = Served()
        self._sends, self._next = list(sends), 0
        self._running: list[Running] = []
        self._waiting: dict[str, int] = {s.client: 0 for s in sends}
        self._of: dict[str, Sent] = {}
        self._looks = sorted(look_at_s, reverse=True)
        self._marked: dict[str, float] | None = None  # service of each when all began to wait
        self._charge: Any = getattr(queue, "charge", None)
        self._settle: Any = getattr(queue, "settle", None)
        self.out.service = dict.fromkeys(self._waiting, 0.0)
        self.out.backlogged = dict.fromkeys(self._waiting, 0.0)

    def serve(self, until_s: float | None = None) -> Served:
        """To the end, or until run second `until_s`."""
        since = EVERY
        while (self._running or len(self.queue) or self._next < len(self._sends)) and (until_s is None or self.now < until_s):
            if not self._running and not len(self.queue):
                self.now = max(self.now, self._sends[self._next].at_s)
            self._arrive()
            if since >= EVERY or not self._running:
                batch = self._admit()
                if batch:
                    self._prefill(batch)
                    since = 0
                    self._compare()
                    continue
            self._decode()
            since += 1
            self._compare()
        self._no_longer_all()
        self.out.end_s = self.now
        return self.out

    def _arrive(self) -> None:
        while self._next < len(self._sends) and self._sends[self._next].at_s <= self.now:
            sent = self._sends[self._next]
            self._next += 1
            item_id = f"q{self._next}"
            request = Request(item_id, sent.client, "m", 0, sent.at_s, sent.tokens_in, sent.tokens_out)
            group = Group(sent.client, self.weights.get(sent.client, 1.0))
            self.queue.offer([QueueItem(item_id, group, arrived_at=sent.at_s, request=request)], self.now)
            self._of[item_id] = sent
            self._waiting[sent.client] += 1

    def _admit(self) -> list[Running]:
        """Heads in the queue's order, as long as the pool and the prefill hold them."""
        batch: list[Running] = []

        def fits(item: QueueItem, view: QueueView) -> bool:
            sent = self._of[item.id]
            if sum(r.sent.tokens_in for r in batch) + sent.tokens_in > PREFILL:
                return False
            return peak([*self._running, *batch, Running(sent, item.id)]) <= POOL

        while (selection := self.queue.select(fits, self.now)) is not None:
            item = self.queue.commit(selection, self.now)
            assert item is not None
            batch.append(Running(self._of[item.id], item.id))
            self._waiting[batch[-1].sent.client] -= 1
        return batch

    def _step(self, seconds: float) -> None:
        self.now += seconds * (1.0 + self.rng.uniform(-JITTER, JITTER))

    def _prefill(self, batch: list[Running]) -> None:
        """The prompts, and with them the first tokens."""
        self._step(0.010 + 2.1e-4 * sum(r.sent.tokens_in for r in batch))
        for r in batch:
            self.out.ttft_s.setdefault(r.sent.client, []).append(self.now - r.sent.at_s)
            self.out.service[r.sent.client] += r.sent.tokens_in
            self.out.tokens += r.sent.tokens_in
            self._made(r)
        self._running += [r for r in batch if r.made < r.sent.tokens_out]

    def _decode(self) -> None:
        self._step(0.0235 + 2.2e-6 * sum(r.sent.tokens_in + r.made for r in self._running))
        for r in self._running:
            r.made += 1
            self._made(r)
        self._running = [r for r in self._running if r.made < r.sent.tokens_out]

    def _made(self, r: Running) -> None:
        """One more token of it is there."""
        self.out.service[r.sent.client] += W_OUT
        self.out.tokens += 1
        if self._charge is not None:
            self._charge(r.item_id, r.made, self.now)
            if r.made >= r.sent.tokens_out:
                self._settle(r.item_id, r.made, self.now)

    def _compare(self) -> None:
        service, out = self.out.service, self.out
        if all(self._waiting.values()):
            if self._marked is None:
                self._marked = dict(service)
            if len(service) == 2:
                a, b = service.values()
                a0, b0 = self._marked.values()
                out.gap = max(out.gap, abs(a - b - a0 + b0))
        else:
            self._no_longer_all()
        while self._looks and self.now >= self._looks[-1]:
            out.gap_at[self._looks.pop()] = out.gap


    def _no_longer_all(self) -> None:
        """Somebody has nothing waiting: what was served until now counts, what follows does not."""
        for client, before in (self._marked or {}).items():
            self.out.backlogged[client] += self.out.service[client] - before
        self._marked = None


def peak(running: Sequence[Running]) -> int:
    """Most tokens that these ever hold together, if nobody else comes: they leave in order of what they have left to make."""
    used = most = 0
    for n, r in enumerate(sorted(running, key=lambda r: r.made - r.sent.tokens_out), 1):
        used += r.sent.tokens_in + r.made
        most = max(most, used + n * (r.sent.tokens_out - r.made))
    return most
