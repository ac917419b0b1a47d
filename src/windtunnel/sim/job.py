"""An attempt at a station: it carries its seconds of work."""

from __future__ import annotations

from windtunnel.sim.attempt import Attempt


class Job(Attempt):
    """An attempt that carries its seconds of work; left_s: what is still to do, valid while it is not being served."""

    __slots__ = ("ends_at", "left_s", "rank", "service_s")

    def __init__(self, id: str, dispatch: int, prompt: int, output: int, priority: int, service_s: float) -> None:
        super().__init__(id, dispatch, prompt, output, priority)
        self.service_s = self.left_s = service_s
        self.ends_at = 0.0  # while served: run s; under ps: in served seconds of the station
        self.rank: tuple[float, ...] = ()
