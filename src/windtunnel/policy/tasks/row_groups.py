"""How many row groups are open at once: a fixed number, or a target that grows while nothing blocks."""

from __future__ import annotations

from collections.abc import Mapping

from windtunnel.policy.param import check_number

LEAST_ROWS = 8192
QUEUED_PER_SLOT = 4


class RowGroupGate:
    """Row groups in their order. adaptive: start with one, +1 when nothing blocks (two ticks in a row if work is queued).

    Guards of the adaptive target: rows of open groups <= min(records, max(3 x buffer_size, 8192)), queued <= 4 x in_flight_cap.
    """

    def __init__(self, sizes: Mapping[int, int], *, concurrency: int = 3, adaptive: bool = False, buffer_size: int = 1000,
                 in_flight_cap: int = 1024) -> None:
        check_number("max_concurrent_row_groups", concurrency, lo=1, whole=True)
        check_number("buffer_size", buffer_size, lo=1, whole=True)
        check_number("max_in_flight_tasks", in_flight_cap, lo=1, whole=True)
        self._sizes, self._waiting = dict(sizes), list(sizes)[::-1]
        self.adaptive, self.target = adaptive, 1 if adaptive else concurrency
        self.max_rows = min(sum(sizes.values()), max(3 * buffer_size, LEAST_ROWS)) if adaptive else None
        self._max_queued = QUEUED_PER_SLOT * in_flight_cap if adaptive else None
        self.open: dict[int, int] = {}
        self._quiet = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def next(self, queued: int) -> int | str | None:
        """The next row group to open, or the reason why it must wait (`rows`, `queued`); None if the target is met or nothing waits."""
        if not self._waiting or len(self.open) >= self.target:
            return None
        rg = self._waiting[-1]
        if self.open and self.max_rows is not None and sum(self.open.values()) + self._sizes[rg] > self.max_rows:
            return "rows"
        if self.open and self._max_queued is not None and queued > self._max_queued:
            return "queued"
        self.open[rg] = self._sizes[self._waiting.pop()]
        return rg

    def closed(self, rg: int) -> None:
        self.open.pop(rg, None)

    def give_up(self) -> None:
        """Nothing more is opened."""
        self._waiting.clear()

    def tick(self, *, queued: int, room: bool) -> bool:
        """After a pass: is there room for more tasks? True when the target has grown; it never shrinks."""
        if not self.adaptive or not self._waiting or len(self.open) < self.target:
            return False
        self._quiet = self._quiet + 1 if room else 0
        if self._quiet < (2 if queued else 1):
            return False
        self._quiet = 0
        self.target += 1
        return True
