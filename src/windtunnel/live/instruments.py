"""What may be read of a live run while it goes on, and after."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from windtunnel.live.gate import Gate
from windtunnel.live.rig import Rig

MANY, LATE_S = 10_000, 1.0  # inbox length and loop lag from which doors should refuse


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a flight is. now: run s; state: starting running stopping stopped; mode: shadow dry_run armed stopped.

    arrived, finished, ended count requests (finished is a part of ended); open and in_flight are requests and attempts alive now;
    refused: effects that the gate held back, by reason; lag_p99_s: lateness of open-loop arrivals; why: what ended it, or "".
    """

    now: float
    state: str
    mode: str
    seq: int
    arrived: int
    finished: int
    ended: int
    open: int
    in_flight: int
    policy_errors: int
    refused: Mapping[str, int]
    lag_p99_s: float | None
    loop_lag_s: float
    why: str

    @property
    def done(self) -> bool:
        return self.state == "stopped"


class Instruments:
    """All may be read from any thread. Who flies sets them: `LiveDriver`."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._rig: Rig | None = None
        self._error: Exception | None = None
        self._why, self._state = "", "starting"
        self._over = threading.Event()

    def progress(self) -> Progress:
        """Where the run stands now."""
        if self._rig is None:
            return Progress(0.0, self._state, self._gate.state, 0, 0, 0, 0, 0, 0, 0, {}, None, 0.0, self._why)
        core, patrol = self._rig.core, self._rig.patrol
        return Progress(
            core.now, self._state, self._gate.state, core.seq, core.arrived, core.finished, core.ended, len(core.open), len(core.attempts.alive),
            core.policy_errors, dict(self._gate.refused), core.hosted.lag_p99_s(), patrol.loop_lag_s, self._why or core.why,
        )

    def view(self) -> Any:
        """The last published snapshot of the control (at most 4 a second), or None before the first."""
        return self._rig.patrol.view if self._rig is not None else None

    @property
    def mode(self) -> str:
        """shadow, dry_run, armed or stopped: what the effects see, not what was asked for."""
        return self._gate.state

    @property
    def now(self) -> float:
        """Run second of the last event."""
        return self._rig.core.now if self._rig is not None else 0.0

    @property
    def t0(self) -> float | None:
        """Zero of the run's clock on the machine's monotonic clock; None before the start."""
        return self._rig.clock.t0 if self._rig is not None else None

    @property
    def error(self) -> Exception | None:
        """What broke the run: a refused arming, a recorder or source that raised, books that do not balance. None if nothing did."""
        return self._error

    @property
    def last_policy_error(self) -> Exception | None:
        """What the control raised last; its request ended, the run went on."""
        return self._rig.core.last_policy_error if self._rig is not None else None

    @property
    def complete(self) -> bool:
        """The run reached its own end: sources done, nothing open, nothing broke."""
        return self._over.is_set() and self._error is None and self._rig is not None and self._rig.core.why == "done"

    @property
    def congested(self) -> bool:
        """Doors should refuse: the inbox is long or the loop is late."""
        rig = self._rig
        return rig is not None and (rig.patrol.loop_lag_s > LATE_S or len(rig.core.inbox) > MANY)
