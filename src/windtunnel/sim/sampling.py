"""Looking at a running simulation: gauges on a grid for the record. Closed form; changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from windtunnel.policy.control import Control
from windtunnel.sim.agenda import ARRIVAL, Agenda
from windtunnel.sim.fleet import SimFleet
from windtunnel.sim.lifecycle import BOOTING, PROVISIONING, READY

SAMPLE = ARRIVAL + 2  # after everything else of that time
STRANDED_S = 600.0  # run seconds without any progress after which what waits can never be served


class Sampler:
    """Samples every `every_s` run seconds into `sample(now, name, key, value)`; calls `stranded` when nothing moves any more."""

    def __init__(self, control: Control, fleet: SimFleet, sample: Callable[[float, str, str, float], None], agenda: Agenda, every_s: float,
                 stranded: Callable[[], None]) -> None:
        self.control, self.fleet, self.agenda = control, fleet, agenda
        self._sample, self._every_s, self._stranded = sample, every_s, stranded
        self._moved_at, self._seen = 0.0, -1
        agenda.at(0.0, SAMPLE, self._tick)

    def _tick(self, _: Any) -> None:
        now = self.agenda.now
        self.gauges(now)
        busy = any(r.state in (PROVISIONING, BOOTING) or (r.state == READY and not r.engine.idle) for r in self.fleet.replicas.values())
        arrivals_and_ends = self.control.seq if busy else self.control.open_count
        if busy or arrivals_and_ends != self._seen or not self.control.open_count:
            self._moved_at, self._seen = now, arrivals_and_ends
        elif now - self._moved_at > STRANDED_S:
            self._stranded()
            return
        self.agenda.at(now + self._every_s, SAMPLE, self._tick)

    def gauges(self, now: float) -> None:
        """One sample of every lane, pool and ready replica."""
        sample = self._sample
        for lane in self.control.lanes:
            pressure = lane.admission.snapshot(lane.resource, now)
            sample(now, "waiting", lane.name, len(lane.queue))
            sample(now, "in_flight", lane.name, pressure.in_flight)
            sample(now, "limit", lane.name, min(pressure.limit, pressure.effective_max))
        for name in self.fleet.config.pools:
            ready, booting, draining = self.fleet.counts(name)
            sample(now, "replicas_ready", name, ready)
            sample(now, "replicas_booting", name, booting)
            sample(now, "replicas_draining", name, draining)
        for replica in self.fleet.replicas.values():
            if replica.state == READY:
                state = replica.engine.state_at(now)
                sample(now, "running", replica.name, state.running)
                if state.kv_used_fraction is not None:
                    sample(now, "kv_used_fraction", replica.name, state.kv_used_fraction)
