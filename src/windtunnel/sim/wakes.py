"""Wakes on the simulated clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from windtunnel.effects import WakeAt
from windtunnel.events import Woke
from windtunnel.sim.agenda import ARRIVAL, COMPLETION, Agenda


class Wakes:
    """The wakes that one party, the control or the source, has asked for; `tell(Woke)` when one is due, `before()` lead_s earlier."""

    def __init__(self, agenda: Agenda, tell: Callable[[Woke], None], before: Callable[[], None] | None = None, lead_s: float = 0.0) -> None:
        self._agenda, self._tell, self._before, self._lead_s = agenda, tell, before, lead_s
        self._versions: dict[str, int] = {}

    def wake(self, effect: WakeAt) -> None:
        """A later one with the same key replaces it; a replaced or cancelled wake finds another version and does nothing."""
        key = effect.key
        version = self._versions[key] = self._versions.get(key, 0) + 1
        if effect.at is None:
            return

        def due(_: Any) -> None:
            if self._versions[key] == version:
                self._tell(Woke(key))

        now, before = self._agenda._now, self._before
        self._agenda.at(max(effect.at, now), ARRIVAL, due)
        if before is not None:
            def soon(_: Any) -> None:
                if self._versions[key] == version:
                    before()

            self._agenda.at(max(effect.at - self._lead_s, now), COMPLETION, soon)
