"""The planner's slot in `Control`: whatever sizes the pools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from windtunnel.effects import Effect
from windtunnel.events import Event


class Planner(Protocol):
    """events: the event types it is handed. Set by `Control`, pure reads: waiting, the requests that wait now; in_flight, own requests
    on a replica. needs: observations that the world must give.

    Effects are ScaleTo (absolute, by pool name), Drain, Ask, Note and WakeAt with the keys "planner" and "planner.deadline".
    """

    events: frozenset[type]
    waiting: Callable[[], int]
    in_flight: Callable[[str], int]

    @property
    def needs(self) -> frozenset[str]: ...

    def start(self, now: float) -> Sequence[Effect]: ...
    def handle(self, event: Event, now: float) -> Sequence[Effect]: ...
    def view(self) -> Mapping[str, Any]: ...
