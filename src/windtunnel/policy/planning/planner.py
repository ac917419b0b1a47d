"""The planner's slot in `Control`: whatever sizes the pools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from windtunnel.effects import Effect
from windtunnel.events import Event


class Planner(Protocol):
    """events: the event types it is handed; waiting: set by `Control`, the requests that wait now (a pure read).

    Effects are ScaleTo (absolute, by pool name), Note and one WakeAt with the key "planner".
    """

    events: frozenset[type]
    waiting: Callable[[], int]

    def start(self, now: float) -> Sequence[Effect]: ...
    def handle(self, event: Event, now: float) -> Sequence[Effect]: ...
    def view(self) -> Mapping[str, Any]: ...
