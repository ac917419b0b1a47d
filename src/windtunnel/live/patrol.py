"""What a live driver does by the clock: poll the stop file, publish the view, sample the series, report token counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from windtunnel.live.loop import ControlLoop
from windtunnel.live.replica import READY
from windtunnel.live.stopfile import StopFile

STOP_POLL_S, VIEW_S, SAMPLE_S, PROGRESS_S = 0.2, 0.25, 1.0, 0.25


class Patrol:
    """Runs beside the loop until `end`. asked(cut) is called while the stop file exists.

    view: the newest snapshot; loop_lag_s: how late the loop is.
    """

    def __init__(self, core: ControlLoop, stop_file: StopFile, asked: Callable[[bool], None], pools: Iterable[str]) -> None:
        self._core, self._stop_file, self._asked, self._pools = core, stop_file, asked, tuple(pools)
        self.view: Any = None
        self.loop_lag_s = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        duties = [
            (self._stop, STOP_POLL_S, "the stop file"), (self._view, VIEW_S, "the control's view"), (self._gauges, SAMPLE_S, "the record"),
        ]
        if self._core.attempts.tells_progress:
            duties.append((self._progress, PROGRESS_S, "the driver"))
        self._tasks = [asyncio.create_task(self._walk(*duty)) for duty in duties]

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _walk(self, duty: Callable[[], None], every_s: float, who: str) -> None:
        loop = asyncio.get_running_loop()
        seen: Exception | None = None
        while True:
            try:
                duty()
            except Exception as error:
                if seen is None:
                    self._core.broken(who, error)
                seen = error
            due = loop.time() + every_s
            await asyncio.sleep(every_s)
            self.loop_lag_s = max(0.0, loop.time() - due)

    def _stop(self) -> None:
        asked = self._stop_file.asked()
        if asked is not None:
            self._asked(asked == "cut")

    def _view(self) -> None:
        self.view = self._core.control.view()

    def _progress(self) -> None:
        self._core.attempts.report_progress()

    def _gauges(self) -> None:
        core = self._core
        now, sample, view = core.clock.now(), core.recorder.sample, core.control.view()
        for lane in view.lanes:
            sample(now, "waiting", lane.name, lane.waiting)
            sample(now, "in_flight", lane.name, lane.limit.in_flight)
            sample(now, "limit", lane.name, min(lane.limit.limit, lane.limit.effective_max))
        for pool in self._pools:
            sample(now, "replicas_ready", pool, sum(r.endpoint.pool == pool and r.state == READY for r in core.watch.replicas))
