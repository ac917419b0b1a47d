"""A replica whose work is given in seconds: a queueing station instead of an engine step loop.

It serves each request for its own `Truth.service_s`, behind the same control, driver and fleet as `SimEngine`; queueing theory says what comes
out, so it is the yardstick of everything in front of it, and a model of a server whose steps are of no interest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import Param, check_number
from windtunnel.sim.agenda import Agenda
from windtunnel.sim.attempt import GONE, RUNNING, WAITING, Attempt, EngineState, Refusal
from windtunnel.sim.job import Job
from windtunnel.sources.dist import Dist

DISCIPLINES = ("fcfs", "ps", "priority", "preemptive", "sjf", "srpt")
MANY = 1 << 30  # servers of a station where nobody waits


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """A station of `servers` equal servers.

    discipline: who is served first: fcfs, priority and sjf never interrupt, preemptive (by priority) and srpt do and resume later; ps shares
    the servers equally. capacity: requests here at most, served ones included, the rest is refused. batch: up to so many are served
    together, for the first one's seconds. setup_s: seconds to start again after running empty. batch and setup_s need one server and fcfs.
    """

    servers: Annotated[int, Param(lo=1, hi=1024, step=1, label="servers", help="requests served at once")] = 1
    discipline: Annotated[str, Param(choices=DISCIPLINES, label="discipline", help="who is served first")] = "fcfs"
    capacity: Annotated[int | None, Param(lo=1, help="requests here at most, served ones included", knob=False)] = None
    batch: Annotated[int | None, Param(lo=1, help="up to so many are served together", knob=False)] = None
    setup_s: float | Dist | None = None
    reject_status: Annotated[int, Param(lo=400, hi=599, help="HTTP status when full", knob=False)] = 503

    def __post_init__(self) -> None:
        check_number("servers", self.servers, lo=1, whole=True)
        check_number("reject_status", self.reject_status, lo=400, hi=599, whole=True)
        if self.discipline not in DISCIPLINES:
            raise ConfigValueError("discipline", f"expected {', '.join(DISCIPLINES)}; got {self.discipline!r}")
        for name in ("capacity", "batch"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), lo=1, whole=True)
        if isinstance(self.setup_s, (int, float)):
            check_number("setup_s", self.setup_s, lo=0.0)
        if (self.batch is not None or self.setup_s is not None) and (self.servers, self.discipline) != (1, "fcfs"):
            raise ConfigValueError("batch" if self.batch is not None else "setup_s", "needs one server and fcfs")
        if self.capacity is not None and self.capacity < self.servers:
            raise ConfigValueError("capacity", f"{self.capacity} is below servers {self.servers}")

    @property
    def max_num_seqs(self) -> int:
        """What a pool shows as its slots."""
        return self.servers * (self.batch or 1)

    @property
    def num_blocks(self) -> None:
        """There is no KV cache."""

    @property
    def draws(self) -> bool:
        """Does it need a generator?"""
        return self.setup_s is not None and not isinstance(self.setup_s, (int, float))


class Station(ABC):
    """What all disciplines share: who is here, counters, refusals. A discipline says how one comes, goes and is interrupted.

    told: `Callbacks`; what else a step loop is told means nothing here. An answer comes whole: its first token is its end. busy_s: seconds
    with anybody here; served_s: server-seconds of finished requests; served with speed 1.
    """

    def __init__(self, name: str, config: ServiceConfig, agenda: Agenda, *, rng: np.random.Generator | None = None,
                 check: bool = False, **told: Any) -> None:
        self.name, self.config, self.agenda, self.rng = name, config, agenda, rng
        self._on_finish, self._on_cancelled = told["on_finish"], told["on_cancelled"]
        self._on_first, self._on_started = told.get("on_first"), told.get("on_started")
        self._check = check
        self._here: dict[tuple[str, int], Job] = {}
        self._order = 0
        self._slow = 1.0  # wall seconds per second of work
        self._busy_since = 0.0
        self.steps = self.events = self.prompt_tokens = self.output_tokens = self.preemptions = self.running = 0
        self.prefix_hit_blocks = self.prefix_query_blocks = self.prefix_query_tokens = self.setups = 0
        self.cached_tokens = self.evictions = self.asleep = 0
        self.busy_s = self.served_s = 0.0
        self.pieces = self.cache = None

    def parts(self) -> tuple[Any, ...]:
        """There is no step loop."""
        return ()

    def part_of(self, a: Attempt) -> None:
        return None

    @property
    def idle(self) -> bool:
        return not self._here

    @property
    def load(self) -> int:
        """Requests here, served or waiting."""
        return len(self._here)

    @property
    def waiting(self) -> int:
        return len(self._here) - self.running

    def submit(self, a: Attempt) -> Refusal | None:
        """Take a job now, or refuse it when `capacity` are here. ConfigValueError for an attempt without seconds of work."""
        if not isinstance(a, Job):
            raise ConfigValueError("service_s", f"request {a.id} has no service time", hint="give the source a service_s")
        if self.config.capacity is not None and len(self._here) >= self.config.capacity:
            return Refusal(self.config.reject_status, "engine_queue_full")
        now = a.submitted_s = self.agenda._now
        if not self._here:
            self._busy_since = now
        self._here[a.id, a.dispatch] = a
        self._order += 1
        a.order, a.state = self._order, WAITING
        self.prompt_tokens += a.prompt
        self._come(a, now)
        return None

    def cancel(self, attempt_id: str, dispatch: int) -> bool:
        """Gone now, waiting or served; unknown or finished: False."""
        a = self._here.get((attempt_id, dispatch))
        if a is None:
            return False
        now = self.agenda._now
        served = a.state == RUNNING
        self._forget(a, now)
        a.cancelled = True
        self._interrupted(a, served, now)
        self._on_cancelled(a)
        return True

    def drop_all(self, reason: str) -> list[Attempt]:
        """The replica is lost: everything here is dropped, in order of arrival."""
        gone: list[Attempt] = list(self._here.values())
        now = self.agenda._now
        for a in list(self._here.values()):
            self._forget(a, now)
        self._clear()
        return gone

    def state_at(self, t: float) -> EngineState:
        """Now, or any t before the next change; changes nothing."""
        return EngineState(self.running, self.waiting, None, self.output_tokens)

    def progress_at(self, t: float) -> tuple[tuple[str, int], ...]:
        """Nothing of an answer is seen before its end."""
        return tuple((a.id, 0) for a in self._here.values() if a.state == RUNNING)

    def set_speed(self, factor: float) -> None:
        """Work takes `factor` times as long from now on, also what is being served."""
        check_number("factor", factor, above=0.0)
        self._retime(self._slow, factor, self.agenda._now)
        self._slow = factor

    # -- for the disciplines --------------------------------------------------------------------------------------------------------

    def _forget(self, a: Job, now: float) -> None:
        del self._here[a.id, a.dispatch]
        if a.state == RUNNING:
            self.running -= 1
        a.state = GONE
        if not self._here:
            self.busy_s += now - self._busy_since

    def _begin(self, a: Job, now: float) -> None:
        a.state = RUNNING
        self.running += 1
        if a.started_s is None:
            a.started_s = now
            if self._on_started is not None:
                self._on_started(a)

    def _done(self, a: Job, now: float) -> None:
        """Book the end; the callbacks come after the next one was taken, with the station consistent."""
        self._forget(a, now)
        a.finished_s = a.first_token_s = now
        a.generated = a.output
        self.steps += 1
        self.output_tokens += a.output
        self.served_s += a.service_s

    def _tell(self, a: Job) -> None:
        if self._on_first is not None:
            self._on_first(a)
        self._on_finish(a)

    @abstractmethod
    def _come(self, a: Job, now: float) -> None:
        """A new one: serve it or let it wait."""

    @abstractmethod
    def _interrupted(self, a: Job, served: bool, now: float) -> None:
        """It was cancelled, and is forgotten already; served: it held a server."""

    @abstractmethod
    def _retime(self, old: float, new: float, now: float) -> None:
        """Wall seconds per second of work change from `old` to `new`."""

    @abstractmethod
    def _clear(self) -> None:
        """Everybody is gone at once."""


def service_engine(name: str, config: ServiceConfig, agenda: Agenda, **options: Any) -> Station:
    """The station of a configuration; options: the callbacks, `rng` (only a random setup_s draws from it)."""
    from windtunnel.sim.service_bulk import Bulk
    from windtunnel.sim.service_servers import Servers
    from windtunnel.sim.service_shared import Shared

    if config.batch is not None or config.setup_s is not None:
        return Bulk(name, config, agenda, **options)
    kind = Shared if config.discipline == "ps" else Servers
    return kind(name, config, agenda, **options)
