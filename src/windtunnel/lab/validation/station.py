"""One run of a queueing model through the real control and driver, kept as arrays."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windtunnel import effects as fx
from windtunnel import events as ev
from windtunnel.policy.admission.limit import Fixed, Unlimited
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.control import Control
from windtunnel.policy.lane import Lane
from windtunnel.policy.param import BuildContext
from windtunnel.policy.queueing.fifo import FifoQueue
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.least import LeastOutstanding
from windtunnel.policy.routing.router import Router
from windtunnel.sim.driver import SimDriver
from windtunnel.sim.engine import EngineConfig
from windtunnel.sim.fleet_config import FleetConfig, Pool
from windtunnel.sim.service import ServiceConfig
from windtunnel.sim.stepmodels.affine import Affine
from windtunnel.sim.stepmodels.model import StepModel
from windtunnel.sources.source import Source

Floats = NDArray[np.float64]
NEVER = float("nan")
WIDTH = 7
SAMPLE_S = 1.0 + 5.0**0.5  # between two looks at the gauges; in no ratio with service times, so that equal ones do not lock in


class Columns:
    """A recorder that keeps arrival, start and end of every request, in order of ends, and nothing else: 56 bytes a request."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[float, int, float]] = {}
        self.numbers = array("d")  # WIDTH a request: position in the source, arrived, started, ended, service, priority, done
        self.replicas: list[Mapping[str, Any]] = []
        self.looks = 0
        self.seen = {"waiting": 0.0, "in_flight": 0.0, "running": 0.0}

    def step(self, seq: int, now: float, event: ev.Event, effects: Sequence[fx.Effect], verdicts: Any = None) -> None:
        if type(event) is ev.Arrived:
            r = event.request
            self._open[r.id] = (now, r.priority, r.truth.service_s or 0.0 if r.truth is not None else 0.0)
        elif type(event) is ev.Finished:
            self._end(event.request_id, NEVER if event.started_s is None else event.started_s, now, 1.0)
        for effect in effects:
            if type(effect) is fx.Reject or type(effect) is fx.Close:
                self._end(effect.request_id, NEVER, now, 0.0)

    def _end(self, id_: str, started_s: float, now: float, done: float) -> None:
        arrived_s, priority, service_s = self._open.pop(id_)
        self.numbers.extend((float(id_.rpartition("-")[2]), arrived_s, started_s, now, service_s, priority, done))

    def error(self, seq: int, now: float, event: ev.Event, error: BaseException) -> None:
        """The driver raises it."""

    def sample(self, now: float, name: str, key: str, value: float) -> None:
        if name in self.seen:
            self.seen[name] += value
        self.looks += name == "waiting"

    def note(self, now: float, note: Any) -> None:
        """Not kept."""

    def replica_row(self, row: Mapping[str, Any], /) -> None:
        self.replicas.append(row)

    def flown(self) -> Flown:
        """What was kept, as arrays."""
        ids, arrived, started, ended, service, priority, done = np.frombuffer(self.numbers).reshape(-1, WIDTH).T.copy()
        return Flown(ids.astype(np.int64), arrived, ended, started - arrived, ended - arrived, service, priority.astype(np.int64),
                     done.astype(bool), self.replicas, {name: total / max(1, self.looks) for name, total in self.seen.items()})


@dataclass(slots=True)
class Flown:
    """A run as arrays in order of ends. wait_s: arrival to start; sojourn_s: arrival to end; done: served to the end.

    ids: position of each request in its source (the number behind the last dash). gauges: means over the run of what the control says waits and
    is in flight, and of what the engines say runs, looked at from outside every SAMPLE_S.
    """

    ids: NDArray[np.int64]
    arrived_s: Floats
    ended_s: Floats
    wait_s: Floats
    sojourn_s: Floats
    service_s: Floats
    priority: NDArray[np.int64]
    done: NDArray[np.bool_]
    replicas: list[Mapping[str, Any]] = field(default_factory=list)
    gauges: Mapping[str, float] = field(default_factory=dict)

    def in_order_of_arrival(self) -> Flown:
        order = np.lexsort((self.ids, self.arrived_s))
        return Flown(self.ids[order], self.arrived_s[order], self.ended_s[order], self.wait_s[order], self.sojourn_s[order],
                     self.service_s[order], self.priority[order], self.done[order], self.replicas, self.gauges)


def fly(source: Source, engine: ServiceConfig | EngineConfig, *, replicas: int = 1, limit: int | None = None, router: Router | None = None,
        step_model: StepModel | None = None, check: bool = False) -> Flown:
    """Fly `source` against equal replicas. limit: requests in flight at most, so that the rest waits in the control; None: all go on at once."""
    record = Columns()
    driver = SimDriver(_control(limit, router or LeastOutstanding(), record), source, _fleet(engine, replicas, step_model), record,
                       sample_s=SAMPLE_S, check=check)
    driver.advance()
    if driver.error is not None:
        raise driver.error
    driver.finish()
    return record.flown()


def _control(limit: int | None, router: Router, record: Columns) -> Control:
    config: Any = Unlimited() if limit is None else Fixed(limit)
    admission = RequestAdmission(config.build(BuildContext()))
    lane = Lane("p", queue=FifoQueue(), admission=admission, router=router, pools=("p",), cap=limit)
    return Control(lanes=(lane,), fleet=Fleet())


def _fleet(engine: ServiceConfig | EngineConfig, replicas: int, step_model: StepModel | None) -> FleetConfig:
    pool = Pool(name="p", model="", gpu="none", engine=engine, step_model=step_model or Affine(), replicas=replicas)
    return FleetConfig({"p": pool})
