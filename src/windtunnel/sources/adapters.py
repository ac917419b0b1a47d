"""Which LoRA adapter a request asks for: a label drawn at its source, as engines with `lora: {by: label}` read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from windtunnel.effects import Close, Reject
from windtunnel.errors import ConfigValueError
from windtunnel.events import Arrived, Event, Request
from windtunnel.sources.shares import Shares
from windtunnel.sources.source import Ask, Source

LABEL, BASE, BULK = "adapter", "", 256


class Adapters:
    """`inner`, whose requests carry an adapter. shares: of all requests, by adapter; what is left of 1 asks for the base model.

    rng: a generator of their own, so that nothing else about the requests changes. Raises ConfigValueError for shares above 1 together.
    """

    def __init__(self, inner: Source, shares: Mapping[str, float], rng: np.random.Generator) -> None:
        rest = 1.0 - sum(shares.values())
        if rest < -1e-9 or BASE in shares:
            raise ConfigValueError("adapters", f"expected named shares with a sum <= 1, got {dict(shares)!r}")
        self._shares = Shares("adapters", {**shares, BASE: rest if rest > 1e-9 else 0.0})
        self.name, self.loop, self.needs = inner.name, inner.loop, inner.needs
        self.endless = getattr(inner, "endless", False)
        self._inner, self._rng, self._drawn = inner, rng, list[str]()

    def stream(self) -> Iterator[Request] | None:
        inner = self._inner.stream()
        return None if inner is None else map(self._labelled, inner)

    def start(self, now: float) -> Sequence[Ask]:
        return self._taken(self._inner.start(now))

    def handle(self, what: Event | Reject | Close, now: float) -> Sequence[Ask]:
        return self._taken(self._inner.handle(what, now))

    def done(self) -> bool:
        return self._inner.done()

    def _taken(self, asks: Sequence[Ask]) -> Sequence[Ask]:
        return [Arrived(self._labelled(ask.request)) if isinstance(ask, Arrived) else ask for ask in asks]

    def _labelled(self, request: Request) -> Request:
        if not self._drawn:
            self._drawn = self._shares.draw(self._rng, BULK)[::-1]
        adapter = self._drawn.pop()
        return request if adapter == BASE else replace(request, labels=(*request.labels, (LABEL, adapter)))
