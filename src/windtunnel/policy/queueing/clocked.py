"""What every queue that keeps its items itself has: a version that moves with it, and a clock that may not run backwards."""

from __future__ import annotations

from windtunnel.policy.queueing.item import went_backwards


class Clocked:
    """sequence_version: moves with every change. `now` may not be less than in the call before that changed something."""

    def __init__(self) -> None:
        self.sequence_version = 0
        self._now = float("-inf")

    def _look(self, now: float) -> None:
        if now < self._now:
            raise went_backwards(now, self._now)

    def _tick(self, now: float) -> None:
        self._look(now)
        self._now = now
