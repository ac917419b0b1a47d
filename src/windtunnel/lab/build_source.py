"""From a scenario's source to a running one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.random import Generator

from windtunnel.effects import Close, Reject
from windtunnel.errors import ConfigValueError, WindtunnelError
from windtunnel.events import Event, Request
from windtunnel.lab import locate
from windtunnel.lab.client_spec import build_clients
from windtunnel.lab.dist_spec import build_dist
from windtunnel.lab.pipeline_spec import PipelineSpec
from windtunnel.lab.source_spec import ArrivalsSpec, MixSpec, TraceSpec
from windtunnel.sources.adapters import Adapters
from windtunnel.sources.arrivals import ArrivalSource
from windtunnel.sources.mix import Mix
from windtunnel.sources.seeding import generator
from windtunnel.sources.source import Ask, Source
from windtunnel.sources.surge import Surge, Surges
from windtunnel.sources.trace import TraceSource
from windtunnel.sources.traces.open import open_trace
from windtunnel.sources.traces.prompts import Prompts


@dataclass(frozen=True, slots=True)
class Setting:
    """What all sources of a scenario share. base: folder that paths are beside; live: make prompt texts for real engines; notes: tell what
    their own schedulers decide."""

    base: Path
    seed: int
    replication: int = 0
    duration_s: float | None = None
    model: str = ""
    live: bool = False
    surges: tuple[Surge, ...] = ()
    notes: bool = False


def source_of(spec: Any, setting: Setting) -> Source:
    """A fresh source that ends at the setting's duration."""
    if isinstance(spec, MixSpec):
        return _with_clients(spec, Mix([source_of(s, setting) for s in spec.sources]), setting)
    if isinstance(spec, PipelineSpec) and setting.surges:
        raise ConfigValueError("faults", "a load fault needs arrivals at their own times; a pipeline makes its own")
    if isinstance(spec, PipelineSpec):  # it gives up what is left by itself, and must be told of the ends until then
        return spec.build(setting.base, seed=setting.seed, replication=setting.replication, stop_at_s=setting.duration_s, live=setting.live,
                          notes=setting.notes)
    return _with_clients(spec, _until(_surging(_adapted(spec, _plain(spec, setting), setting), setting), setting), setting)


def _adapted(spec: TraceSpec | ArrivalsSpec, source: Source, setting: Setting) -> Source:
    if not spec.adapters:
        return source
    return Adapters(source, spec.adapters, generator(setting.seed, f"source/{source.name}/adapters", setting.replication))


def hash_tokens(spec: Any, base: Path) -> int | None:
    """Tokens of one prefix hash in the traces of a source; None: none has hashes, or they are of several sizes."""
    if isinstance(spec, MixSpec):
        sizes = {hash_tokens(s, base) for s in spec.sources} - {None}
        return sizes.pop() if len(sizes) == 1 else None
    if not isinstance(spec, TraceSpec):
        return None
    try:
        return open_trace(locate.data_file(spec.path, base), spec.format, spec.on_error).block_size
    except WindtunnelError:
        return None  # the source tells, when it is built


def _surging(source: Source, setting: Setting) -> Source:
    if not setting.surges:
        return source
    return Surges(source, setting.surges, generator(setting.seed, f"source/{source.name}/surge", setting.replication))


def _until(source: Source, setting: Setting) -> Source:
    return source if setting.duration_s is None else Until(source, setting.duration_s)


def _with_clients(spec: Any, source: Source, setting: Setting) -> Source:
    return source if spec.clients is None else build_clients(spec.clients, source, setting.base, setting.seed, setting.replication)


def _plain(spec: TraceSpec | ArrivalsSpec, setting: Setting) -> Source:
    rng = generator(setting.seed, f"source/{spec.name}", setting.replication)
    model = setting.model if spec.model is None else spec.model
    return _arrivals(spec, setting, rng, model) if isinstance(spec, ArrivalsSpec) else _trace(spec, setting, rng, model)


def _arrivals(spec: ArrivalsSpec, setting: Setting, rng: Generator, model: str) -> Source:
    rate, priorities = spec.config(), dict[str, float](**spec.priorities)
    return ArrivalSource(
        rate.rate_rps, pattern=rate.pattern, shape=rate.shape, cv=rate.cv, series=rate.series, max_in_flight=rate.max_in_flight,
        input_tokens=build_dist(spec.input_tokens, setting.base, "input_tokens"),
        output_tokens=build_dist(spec.output_tokens, setting.base, "output_tokens"), tenants=spec.tenants, priorities=priorities,
        count=spec.count, duration_s=setting.duration_s, rng=rng, name=spec.name, model=model, bound=spec.bound,
        prompts=Prompts(spec.name) if setting.live else None,
        service_s=None if spec.service_s is None else build_dist(spec.service_s, setting.base, "service_s"),
        patience_s=None if spec.patience_s is None else build_dist(spec.patience_s, setting.base, "patience_s"))


def _trace(spec: TraceSpec, setting: Setting, rng: Generator, model: str) -> Source:
    load: Any = spec.load
    trace = open_trace(locate.data_file(spec.path, setting.base), spec.format, spec.on_error)
    prompts = Prompts(spec.name, trace.block_size or 512) if setting.live else None
    # The operations' choices stay with the seed: two replications of a sampled trace replay the same rows.
    return TraceSource(trace, name=spec.name, model=model, ops=[op.operation(setting.base) for op in spec.ops], tenant=spec.tenant,
                       priority=spec.priority, bound=spec.bound, load=load.config(), rng=rng, seed=setting.seed, prompts=prompts)


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
        if now < self._until_s:
            return self._inner.handle(what, now)
        self._cut = True
        return ()

    def done(self) -> bool:
        return self._cut or self._inner.done()
