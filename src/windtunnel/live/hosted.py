"""The sources of a live driver: their requests at their time, their wakes, and who is told of which end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from windtunnel.effects import Note, WakeAt
from windtunnel.events import Arrived, Cancelled, Event, Request, Woke
from windtunnel.live.clock import Feed, RunClock, Timers, p99
from windtunnel.sources.source import Source


class Hosted:
    """Sources on the driver's loop. Requests belong to the source that made them; wake keys are apart per source.

    deliver: takes what sources make to the control; failed: takes what a source raises, with its name; settled: called after a source's
    own wake, which may have been the last thing to come without any event for the control; noted: takes what is for the record only.
    """

    def __init__(self, sources: Sequence[Source], loop: asyncio.AbstractEventLoop, clock: RunClock, deliver: Callable[[Event], Any],
                 failed: Callable[[str, Exception], None], settled: Callable[[], None], noted: Callable[[Note], None]) -> None:
        self._sources, self._loop, self._clock, self._deliver, self._failed = tuple(sources), loop, clock, deliver, failed
        self._settled, self._noted = settled, noted
        self._timers = tuple(Timers(loop, clock) for _ in sources)
        self._feeds: list[Feed] = []
        self._owner: dict[str, int] = {}
        self.hears = frozenset[str]().union(*(s.needs for s in sources))
        self._begun = self._stopped = False

    def start(self) -> None:
        for i, source in enumerate(self._sources):
            try:
                stream = source.stream()
                made = source.start(self._clock.now())
            except Exception as error:
                self._failed(source.name, error)
                return
            if stream is not None:
                feed = Feed(self._loop, self._clock, stream, self._arrival(i), self._raised(source))
                self._feeds.append(feed)
                feed.start()
            self._take(i, made)
        self._begun = True

    def stop(self) -> None:
        """Nothing more comes from here; ends are still told."""
        self._stopped = True
        for feed in self._feeds:
            feed.stop()
        for timers in self._timers:
            timers.clear()

    def done(self) -> bool:
        """Nothing more will come without an event. Without sources this is never so: a door decides when it is over."""
        return self._begun and bool(self._sources) and all(f.over for f in self._feeds) and all(s.done() for s in self._sources)

    def tell(self, request_id: str, what: Any) -> None:
        """An end (Finished, Reject or Close) of a request, to the source that made it."""
        owner = self._owner.pop(request_id, None)
        if owner is not None:
            self._hear(owner, what)

    def hear(self, request_id: str, word: str, what: Any) -> None:
        """An event on the way of a request (`started`, `first_token`, `progress`), if its source needs it."""
        owner = self._owner.get(request_id)
        if owner is not None and word in self._sources[owner].needs:
            self._hear(owner, what)

    def lag_p99_s(self) -> float | None:
        """99th percentile of arrived_s - intended_s over the newest requests (s), the worst source's; None before any."""
        lags = [p99(feed.lags) for feed in self._feeds if feed.lags]
        return max((lag for lag in lags if lag is not None), default=None)

    def _arrival(self, i: int) -> Callable[[Request], None]:
        def arrive(request: Request) -> None:
            self._owner[request.id] = i
            self._deliver(Arrived(request))
        return arrive

    def _raised(self, source: Source) -> Callable[[Exception], None]:
        return lambda error: self._failed(source.name, error)

    def _hear(self, i: int, what: Any) -> None:
        try:
            made = self._sources[i].handle(what, self._clock.now())
        except Exception as error:
            self._failed(self._sources[i].name, error)
            return
        self._take(i, made)

    def _woke(self, i: int, key: str) -> None:
        self._hear(i, Woke(key))
        self._settled()

    def _take(self, i: int, made: Sequence[Arrived | Cancelled | WakeAt | Note]) -> None:
        for item in made:
            if isinstance(item, Note):
                self._noted(item)
            elif self._stopped:  # a source that answers a refusal with a retry must not keep a stopped world alive
                continue
            elif isinstance(item, WakeAt):
                self._timers[i].set(item.key, item.at, lambda key: self._woke(i, key))
            elif isinstance(item, Arrived):
                self._owner[item.request.id] = i
                self._deliver(item)
            elif isinstance(item, Cancelled):
                self._deliver(item)
