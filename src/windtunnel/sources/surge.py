"""More or less traffic for a while: arrivals of an open loop multiplied or thinned inside windows of run seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush

import numpy as np

from windtunnel.effects import Close, Reject
from windtunnel.errors import ConfigValueError
from windtunnel.events import Event, Request
from windtunnel.sources.source import Ask, Source


@dataclass(frozen=True, slots=True)
class Surge:
    """In [from_s, to_s) every arrival counts `factor` times: 3 adds two copies, 0.25 keeps one in four. tenant "": everybody's."""

    from_s: float
    to_s: float
    factor: float
    tenant: str = ""


class Surges:
    """An open-loop source whose arrivals are multiplied; overlapping windows multiply.

    A copy has the id `{id}+{n}` and arrives at a random time before the next arrival, so that a Poisson stream stays nearly one. Raises
    ConfigValueError for a source that only reacts: what answers to its own ends cannot be multiplied from outside.
    """

    def __init__(self, inner: Source, surges: Sequence[Surge], rng: np.random.Generator) -> None:
        self.name, self.loop, self.needs = inner.name, inner.loop, inner.needs
        self._inner, self._surges, self._rng = inner, tuple(surges), rng
        self.endless = getattr(inner, "endless", False)
        self._over = False

    def stream(self) -> Iterator[Request] | None:
        inner = self._inner.stream()
        if inner is None:
            raise ConfigValueError("faults", f"source {self.name!r} only reacts; a load fault needs arrivals at their own times")
        return self._multiplied(inner)

    def start(self, now: float) -> Sequence[Ask]:
        return self._inner.start(now)

    def handle(self, what: Event | Reject | Close, now: float) -> Sequence[Ask]:
        return self._inner.handle(what, now)

    def done(self) -> bool:
        return self._over and self._inner.done()

    def _multiplied(self, requests: Iterator[Request]) -> Iterator[Request]:
        copies: list[tuple[float, int, Request]] = []
        made = 0
        ahead = next(requests, None)
        while ahead is not None:
            request, ahead = ahead, next(requests, None)
            factor = self._factor(request)
            n = int(factor) + (1 if factor % 1.0 and self._rng.random() < factor % 1.0 else 0)
            gap_s = 0.0 if ahead is None else ahead.arrived_s - request.arrived_s
            for i in range(1, n):
                at = request.arrived_s + float(self._rng.random()) * gap_s
                lag_s = at - request.arrived_s
                deadline = None if request.deadline_s is None else request.deadline_s + lag_s
                intended = None if request.intended_s is None else request.intended_s + lag_s
                made += 1
                heappush(copies, (at, made, replace(request, id=f"{request.id}+{i}", arrived_s=at, deadline_s=deadline, intended_s=intended)))
            if n:
                yield request
            while copies and (ahead is None or copies[0][0] <= ahead.arrived_s):
                yield heappop(copies)[2]
        self._over = True

    def _factor(self, request: Request) -> float:
        factor = 1.0
        for surge in self._surges:
            if surge.from_s <= request.arrived_s < surge.to_s and surge.tenant in ("", request.tenant):
                factor *= surge.factor
        return factor
