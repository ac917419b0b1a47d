"""Real time: the run's clock, timers by key, and the open-loop delivery of requests at their time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

from windtunnel.events import Request

BURST = 64  # requests delivered in one turn of the loop; more at one time must not hold up the streams


class RunClock:
    """Run seconds: `loop.time() - t0`, never going back. `start` sets t0; a shadow is given its main world's."""

    __slots__ = ("_last", "_time", "t0")

    def __init__(self, loop: asyncio.AbstractEventLoop, t0: float | None = None) -> None:
        self._time = loop.time
        self.t0 = loop.time() if t0 is None else t0
        self._last = 0.0

    def start(self) -> None:
        """Now is zero."""
        self.t0, self._last = self._time(), 0.0

    def now(self) -> float:
        now = self._time() - self.t0
        if now < self._last:
            return self._last
        self._last = now
        return now


class Timers:
    """One TimerHandle per key: `at=None` cancels, a second `set` replaces. Times are run seconds."""

    __slots__ = ("_clock", "_handles", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: RunClock) -> None:
        self._loop, self._clock = loop, clock
        self._handles: dict[str, asyncio.TimerHandle] = {}

    def set(self, key: str, at: float | None, fire: Callable[[str], None]) -> None:
        old = self._handles.pop(key, None)
        if old is not None:
            old.cancel()
        if at is not None:
            self._handles[key] = self._loop.call_at(self._clock.t0 + at, self._fire, key, fire)

    def _fire(self, key: str, fire: Callable[[str], None]) -> None:
        self._handles.pop(key, None)
        fire(key)

    def clear(self) -> None:
        for handle in self._handles.values():
            handle.cancel()
        self._handles.clear()

    def __len__(self) -> int:
        return len(self._handles)


class Feed:
    """Delivers a source's open-loop requests at their time, holding exactly one ahead.

    A request is always delivered as a copy whose `arrived_s` is the true time; its schedule stays in `intended_s`.
    lags: the newest 4096 values of arrived_s - intended_s (s).
    """

    __slots__ = ("_clock", "_deliver", "_failed", "_handle", "_loop", "_next", "_stream", "lags")

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: RunClock, stream: Iterator[Request],
                 deliver: Callable[[Request], None], failed: Callable[[Exception], None]) -> None:
        self._loop, self._clock, self._stream, self._deliver, self._failed = loop, clock, stream, deliver, failed
        self._handle: asyncio.Handle | None = None
        self._next: Request | None = None
        self.lags: deque[float] = deque(maxlen=4096)

    def start(self) -> None:
        self._pull()
        self._arm()

    @property
    def over(self) -> bool:
        return self._next is None

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._next = self._handle = None

    def _pull(self) -> None:
        try:
            self._next = next(self._stream, None)
        except Exception as error:
            self._next = None
            self._failed(error)

    def _arm(self) -> None:
        if self._next is not None:
            self._handle = self._loop.call_at(self._clock.t0 + self._next.arrived_s, self._due)

    def _due(self) -> None:
        for _ in range(BURST):
            request = self._next
            if request is None:
                return
            now = self._clock.now()
            if request.arrived_s > now:
                break
            self._pull()
            intended_s = request.arrived_s if request.intended_s is None else request.intended_s
            self.lags.append(now - intended_s)
            self._deliver(replace(request, arrived_s=now, intended_s=intended_s))
        self._arm()


def p99(values: deque[float]) -> float | None:
    """The value below which 99 % of these lie (nearest rank), or None of nothing."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(0.99 * len(ranked)))] if ranked else None
