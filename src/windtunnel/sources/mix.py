"""Several sources as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from heapq import merge
from operator import attrgetter

from windtunnel.effects import Close, Reject, WakeAt
from windtunnel.errors import ConfigValueError
from windtunnel.events import Arrived, Event, Finished, Progressed, Request, Woke
from windtunnel.sources.source import Ask, Loop, Source, check_books


class Mix:
    """Sources merged by time, of equal times the earlier entry's first; each is told of its own requests and wakes.

    Request ids must differ between the sources; names of sources must, too.
    """

    def __init__(self, sources: Iterable[Source], *, name: str = "mix") -> None:
        self.sources, self.name = tuple(sources), name
        if not self.sources:
            raise ConfigValueError("sources", "expected at least one source, got none")
        names = [source.name for source in self.sources]
        for one in names:
            if names.count(one) > 1:
                raise ConfigValueError("sources", f"two sources have the name {one!r}")
        loops: set[Loop] = {source.loop for source in self.sources}
        self.loop: Loop = loops.pop() if len(loops) == 1 else "mixed"
        self.needs: frozenset[str] = frozenset().union(*(source.needs for source in self.sources))
        self._owners: dict[str, int] = {}

    @property
    def endless(self) -> bool:
        """True if one of the sources never ends."""
        return any(getattr(source, "endless", False) for source in self.sources)

    def stream(self) -> Iterator[Request] | None:
        streams = [(i, stream) for i, source in enumerate(self.sources) if (stream := source.stream()) is not None]
        return merge(*(self._owned(i, stream) for i, stream in streams), key=attrgetter("arrived_s")) if streams else None

    def start(self, now: float) -> Sequence[Ask]:
        return [own for i, source in enumerate(self.sources) for own in self._taken(i, source.start(now))]

    def handle(self, what: Event | Reject | Close, now: float) -> Sequence[Ask]:
        if isinstance(what, Woke):
            i, _, key = what.key.partition(":")
            return self._taken(int(i), self.sources[int(i)].handle(Woke(key), now))
        if isinstance(what, Progressed):  # of a whole replica: for all who asked
            return [own for i, source in enumerate(self.sources) if "progress" in source.needs
                    for own in self._taken(i, source.handle(what, now))]
        request_id = getattr(what, "request_id", None)
        ended = isinstance(what, (Finished, Reject, Close))
        owner = self._owners.pop(request_id, None) if ended and request_id else self._owners.get(request_id or "")
        return () if owner is None else self._taken(owner, self.sources[owner].handle(what, now))

    def done(self) -> bool:
        return all(source.done() for source in self.sources)

    def check(self) -> None:
        """Each source that keeps books checks them."""
        for source in self.sources:
            check_books(source)

    def _owned(self, i: int, requests: Iterator[Request]) -> Iterator[Request]:
        for request in requests:
            self._own(i, request)
            yield request

    def _own(self, i: int, request: Request) -> None:
        owner = self._owners.setdefault(request.id, i)
        if owner != i:
            names = f"{self.sources[owner].name} and {self.sources[i].name}"
            raise ConfigValueError("sources", f"{names} both have a request {request.id!r}")

    def _taken(self, i: int, asks: Sequence[Ask]) -> Sequence[Ask]:
        if not asks:
            return ()
        out: list[Ask] = []
        for ask in asks:
            if isinstance(ask, Arrived):
                self._own(i, ask.request)
            out.append(replace(ask, key=f"{i}:{ask.key}") if isinstance(ask, WakeAt) else ask)
        return out
