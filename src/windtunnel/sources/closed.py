"""A closed loop: a fixed number of clients, each of which thinks, asks, and waits for the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from windtunnel.effects import Close, Reject, WakeAt
from windtunnel.events import Arrived, Event, Finished, Request, Truth, Woke
from windtunnel.policy.param import check_number
from windtunnel.sources.dist import Dist, tokens
from windtunnel.sources.source import Ask, Loop

CHUNK = 1024


class ThinkingClients:
    """`clients` clients; each thinks for think_s, sends one request, and thinks again when that has ended, however it ended.

    Ends after `count` requests. service_s: seconds of work, for engines that serve in seconds. Each law draws from its own child of `rng`.
    """

    loop: Loop = "closed"
    needs: frozenset[str] = frozenset()

    def __init__(self, clients: int, think_s: Dist, *, count: int, input_tokens: Dist, output_tokens: Dist, service_s: Dist | None = None,
                 rng: np.random.Generator | int = 0, name: str = "clients", model: str = "", tenant: str = "default") -> None:
        check_number("clients", clients, lo=1, whole=True)
        check_number("count", count, lo=1, whole=True)
        think, work, into, out = (rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng)).spawn(4)
        self.name, self.model, self._tenant, self._clients, self._count = name, model, tenant, clients, count
        self._think = _endless(think_s, think)
        self._work: Iterator[float | None] = iter(lambda: None, 0) if service_s is None else _endless(service_s, work)
        self._inputs, self._outputs = _counts(input_tokens, into), _counts(output_tokens, out)
        self._sent = self._asked = 0
        self._open: set[str] = set()

    def stream(self) -> Iterator[Request] | None:
        return None

    def start(self, now: float) -> Sequence[Ask]:
        return [ask for _ in range(self._clients) for ask in self._wish(now)]

    def handle(self, what: Event | Reject | Close, now: float) -> Sequence[Ask]:
        if isinstance(what, Woke):
            return self._send(now)
        if isinstance(what, (Finished, Reject, Close)) and what.request_id in self._open:
            self._open.discard(what.request_id)
            return self._wish(now)
        return ()

    def done(self) -> bool:
        return self._sent >= self._count

    def _wish(self, now: float) -> Sequence[Ask]:
        """A wake for the end of thinking; none when all requests are promised."""
        if self._asked >= self._count:
            return ()
        self._asked += 1
        return (WakeAt(now + next(self._think), f"{self.name}/{self._asked}"),)

    def _send(self, now: float) -> Sequence[Ask]:
        id_ = f"{self.name}-{self._sent}"
        self._sent += 1
        self._open.add(id_)
        output = next(self._outputs)
        return (Arrived(Request(id_, self._tenant, self.model, 0, now, next(self._inputs), output, truth=Truth(output, next(self._work)))),)


def _endless(law: Dist, rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield from law.sample(rng, CHUNK).tolist()


def _counts(law: Dist, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from tokens(law, rng, CHUNK)
