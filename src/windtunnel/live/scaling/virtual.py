"""Replicas without a process: stand-ins that answer from this process, for tests, dry runs and demonstrations."""

from __future__ import annotations

from windtunnel.live.fleet import Endpoint


class VirtualLauncher:
    """Replicas of engine `mock`. Their boot delay is none: the world's looks make them ready within a second."""

    def __init__(self, pool: str, *, model: str = "", role: str = "agg", slots: int | None = None) -> None:
        self._pool, self._model, self._role, self._slots = pool, model, role, slots
        self._alive: set[str] = set()

    def launch(self, name: str, ordinal: int) -> Endpoint:
        self._alive.add(name)
        return Endpoint(name, self._pool, "mock", self._model, f"mock://{name}", f"mock://{name}", self._role, 1.0, self._slots)

    def alive(self, name: str) -> bool:
        return name in self._alive

    def kill(self, name: str) -> None:
        """As if its machine were gone."""
        self._alive.discard(name)

    async def end(self, name: str) -> None:
        self._alive.discard(name)
