"""From a scenario's source to a running one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from windtunnel.effects import Close, Reject
from windtunnel.events import Event, Request
from windtunnel.lab import locate
from windtunnel.lab.dist_spec import build_dist
from windtunnel.lab.source_spec import ArrivalsSpec, MixSpec, TraceSpec
from windtunnel.sources.arrivals import ArrivalSource
from windtunnel.sources.mix import Mix
from windtunnel.sources.seeding import generator
from windtunnel.sources.source import Ask, Source
from windtunnel.sources.trace import TraceSource
from windtunnel.sources.traces.open import open_trace
from windtunnel.sources.traces.prompts import Prompts


def source_of(spec: Any, base: Path, seed: int, *, replication: int, duration_s: float | None, model: str, live: bool) -> Source:
    """A fresh source; see `build.build_source`."""
    made: Source
    if isinstance(spec, MixSpec):
        made = Mix([_one(s, base, seed, replication, duration_s, model, live) for s in spec.sources])
    else:
        made = _one(spec, base, seed, replication, duration_s, model, live)
    return made if duration_s is None else Until(made, duration_s)


def _one(spec: TraceSpec | ArrivalsSpec, base: Path, seed: int, replication: int, duration_s: float | None, model: str, live: bool) -> Source:
    rng = generator(seed, f"source/{spec.name}", replication)
    chosen = model if spec.model is None else spec.model
    if isinstance(spec, ArrivalsSpec):
        rate = spec.config()
        return ArrivalSource(
            rate.rate_rps, pattern=rate.pattern, shape=rate.shape, cv=rate.cv, series=rate.series, max_in_flight=rate.max_in_flight,
            input_tokens=build_dist(spec.input_tokens, base, "input_tokens"), output_tokens=build_dist(spec.output_tokens, base, "output_tokens"),
            tenants=spec.tenants, priorities=spec.priorities, count=spec.count, duration_s=duration_s, rng=rng, name=spec.name, model=chosen,
            bound=spec.bound, prompts=Prompts(spec.name) if live else None)
    trace = open_trace(locate.data_file(spec.path, base), spec.format, spec.on_error)
    prompts = Prompts(spec.name, trace.block_size or 512) if live else None
    # The operations' choices stay with the seed: two replications of a sampled trace replay the same rows at other times.
    return TraceSource(trace, name=spec.name, model=chosen, ops=[op.operation(base) for op in spec.ops], tenant=spec.tenant,
                       priority=spec.priority, bound=spec.bound, load=spec.load.config(), rng=rng, seed=seed, prompts=prompts)


class Until:
    """A source whose arrivals end at `until_s` (run seconds); what is open then is still told of its ends."""

    def __init__(self, inner: Source, until_s: float) -> None:
        self.name, self.loop, self.needs = inner.name, inner.loop, inner.needs
        self._inner, self._until_s, self._cut = inner, until_s, False

    def stream(self) -> Iterator[Request] | None:
        inner = self._inner.stream()
        return None if inner is None else self._before(inner)

    def _before(self, requests: Iterator[Request]) -> Iterator[Request]:
        for request in requests:
            if request.arrived_s >= self._until_s:
                break
            yield request
        self._cut = True

    def start(self, now: float) -> Sequence[Ask]:
        return self._inner.start(now)

    def handle(self, what: Event | Reject | Close, now: float) -> Sequence[Ask]:
        return self._inner.handle(what, now) if now < self._until_s else ()

    def done(self) -> bool:
        return self._cut or self._inner.done()
