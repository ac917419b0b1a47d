"""The simulated clock: a SimPy environment on which plain callbacks can be put at exact times."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush
from typing import Any

import simpy

# Order of what happens at one time: completions, then arrivals, wakes and scrapes, then the starts of engine steps.
COMPLETION, ARRIVAL, STEP_START = 0, 1, 2


class _Call:
    """The least that `Environment.step` asks of an event: one callback, never failed, no process behind it."""

    __slots__ = ("_ok", "callbacks")

    def __init__(self, callback: Callable[[Any], None]) -> None:
        self.callbacks: list[Callable[[Any], None]] | None = [callback]
        self._ok = True


class Agenda(simpy.Environment):
    """`simpy.Environment` plus `at`: about 8 times cheaper than a process, and exact (no `now + delay` rounding)."""

    def at(self, when: float, order: int, callback: Callable[[Any], None]) -> None:
        """Call `callback(event)` at the absolute time `when` (s, not before now); equal times by `order`, then as scheduled."""
        heappush(self._queue, (when, order, next(self._eid), _Call(callback)))  # type: ignore[misc, arg-type]

    def quiet_at(self, when: float) -> bool:
        """Is nothing else due at `when` or before?"""
        queue = self._queue
        return not queue or queue[0][0] > when
