"""Latest wins: while a knob moves, only the newest setting is worth simulating. One worker thread, one mailbox, no asyncio."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

DEBOUNCE_S = 0.15
SLICE_S = 0.02


class LatestWins:
    """`ask(job)` returns at once; the worker waits until nothing newer came for 150 ms, then flies the job in slices.

    job() -> a flight with `advance(budget_s)`, `cancel()` and `result()`; publish(result) and failed(error) run on the worker thread, only
    for the newest job. Counters: `seen` asks, `started` and `finished` flights.
    """

    def __init__(self, publish: Callable[[Any], None], failed: Callable[[Exception], None],
                 progress: Callable[[Any], None] = lambda _: None) -> None:
        self._publish, self._failed, self._progress = publish, failed, progress
        self._lock = threading.Condition()
        self._job: Callable[[], Any] | None = None
        self._asked_at = 0.0
        self._closed = False
        self.seen = self.started = self.finished = 0
        self._thread: threading.Thread | None = None

    def ask(self, job: Callable[[], Any]) -> None:
        """Replace whatever waits or flies by `job`."""
        with self._lock:
            self._job, self._asked_at = job, time.monotonic()
            self.seen += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="windtunnel-cockpit", daemon=True)
                self._thread.start()
            self._lock.notify()

    def run_now(self, job: Callable[[], Any]) -> Any:
        """Fly here and now, in the caller's thread; what waits is dropped. Publishes and returns the result; raises what the job raises."""
        with self._lock:
            self._job = None
            self.seen += 1
            self.started += 1
        flight = job()
        flight.advance()
        result = flight.result()
        self.finished += 1
        self._publish(result)
        return result

    def close(self) -> None:
        """End the worker; harmless twice."""
        with self._lock:
            self._closed, self._job = True, None
            self._lock.notify()
        if self._thread is not None:
            self._thread.join(5.0)

    def _next(self) -> Callable[[], Any] | None:
        """The newest job, once nothing newer came for the debounce time; None at the end."""
        with self._lock:
            while not self._closed:
                if self._job is None:
                    self._lock.wait()
                    continue
                rest_s = self._asked_at + DEBOUNCE_S - time.monotonic()
                if rest_s > 0:
                    self._lock.wait(rest_s)
                    continue
                job, self._job = self._job, None
                self.started += 1
                return job
        return None

    def _overtaken(self) -> bool:
        with self._lock:
            return self._closed or self._job is not None

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._fly(job)
            except Exception as error:
                self._failed(error)

    def _fly(self, job: Callable[[], Any]) -> None:
        flight = job()
        while True:
            state = flight.advance(SLICE_S)
            if self._overtaken():
                flight.cancel()
                return
            if state.done:
                break
            self._progress(state)
        result = flight.result()
        self.finished += 1
        self._publish(result)
