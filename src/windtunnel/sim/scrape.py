"""What policies see of engines, and when: metrics read at an interval, out of phase, late, lost, or in part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from windtunnel.errors import ConfigValueError
from windtunnel.events import Event, Scrape, Scraped
from windtunnel.policy.param import check_number
from windtunnel.sim.agenda import ARRIVAL, Agenda
from windtunnel.sources.dist import Dist
from windtunnel.sources.seeding import generator

if TYPE_CHECKING:
    from windtunnel.sim.faults import Faults
    from windtunnel.sim.fleet import SimFleet
    from windtunnel.sim.lifecycle import SimReplica

FIELDS = ("running", "waiting", "kv_used_fraction", "preemptions", "input_tokens_total", "output_tokens_total", "cached_tokens_total",
          "num_blocks", "sleeping")
_READY = "ready"


@dataclass(frozen=True, slots=True)
class ScrapeModel:
    """interval_s: between two looks at a replica; phase "random": each replica at its own offset, 0: all at the same times.

    delay_s: from the look to its delivery, a number or a law drawn per look (late ones may overtake each other); drop_p: share that is lost;
    fields: what the engine exports (None: all it can); the rest reads None, never 0. exact: also at once with every dispatch, finish and
    cancel, as no real fleet can: an oracle to compare with.
    """

    interval_s: float = 1.0
    phase: Literal["random", 0] = 0
    delay_s: float | Dist = 0.0
    drop_p: float = 0.0
    fields: tuple[str, ...] | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        check_number("interval_s", self.interval_s, above=0.0)
        check_number("drop_p", self.drop_p, lo=0.0, hi=1.0)
        if self.phase not in ("random", 0):
            raise ConfigValueError("phase", f'expected "random" or 0, got {self.phase!r}')
        if not isinstance(self.delay_s, Dist):
            check_number("delay_s", self.delay_s, lo=0.0)
        for name in self.fields or ():
            if name not in FIELDS:
                raise ConfigValueError("fields", f"expected some of {', '.join(FIELDS)}, got {name!r}")


class Scraper:
    """Delivers `Scraped` of every ready replica as its pool's model says. A look is closed form: O(1), and it never cuts a run."""

    def __init__(self, fleet: SimFleet, agenda: Agenda, deliver: Callable[[Event], None], faults: Faults | None, *, seed: int,
                 replication: int = 0) -> None:
        self._fleet, self._agenda, self._deliver, self._seed, self._replication = fleet, agenda, deliver, seed, replication
        self._faults = faults if faults is not None and faults.metrics else None
        for pool in fleet.config.pools.values():
            rng = generator(seed, f"pool/{pool.name}/scrape", replication)
            if pool.scrape.phase == 0:
                self._together(pool.name, pool.scrape, rng)
        fleet.on_ready = self._first_look

    def now(self, name: str) -> None:
        """The replica's state has just changed: told at once where the pool's model is exact, not late, lost or faulty."""
        replica = self._fleet.replicas[name]
        if replica.pool.scrape.exact and replica.state == _READY:
            self._deliver(Scraped(name, _hidden(scrape_of(replica, self._agenda.now), replica.pool.scrape)))

    def _together(self, pool: str, model: ScrapeModel, rng: np.random.Generator) -> None:
        """All replicas of a pool at the same times: one agenda entry a look."""
        def look(_: Any) -> None:
            for replica in list(self._fleet.replicas.values()):
                if replica.pool.name == pool and replica.state == _READY:
                    self._look(replica, model, rng)
            self._agenda.at(self._agenda.now + model.interval_s, ARRIVAL, look)

        self._agenda.at(self._agenda.now + model.interval_s, ARRIVAL, look)

    def _first_look(self, replica: SimReplica) -> None:
        """A replica has become ready: its own looks begin at an offset of its own."""
        model = replica.pool.scrape
        if model.phase == 0:
            return
        rng = generator(self._seed, f"pool/{replica.pool.name}/replica/{replica.ordinal}/scrape", self._replication)
        version = replica.version

        def look(_: Any) -> None:
            if replica.state == _READY and replica.version == version:
                self._look(replica, model, rng)
                self._agenda.at(self._agenda.now + model.interval_s, ARRIVAL, look)

        self._agenda.at(self._agenda.now + model.interval_s * float(rng.random()), ARRIVAL, look)

    def _look(self, replica: SimReplica, model: ScrapeModel, rng: np.random.Generator) -> None:
        now = self._agenda.now
        if model.drop_p and rng.random() < model.drop_p:
            return
        late_s = float(model.delay_s.sample(rng, 1)[0]) if isinstance(model.delay_s, Dist) else model.delay_s
        scrape = _hidden(scrape_of(replica, now), model)
        if self._faults is not None:
            said = self._faults.scrape(replica.name, scrape)
            if said is None:
                return
            scrape, late_s = said[0], late_s + said[1]
        event = Scraped(replica.name, scrape)
        if late_s:
            self._agenda.at(now + late_s, ARRIVAL, lambda _: self._deliver(event))
        else:
            self._deliver(event)


def _hidden(scrape: Scrape, model: ScrapeModel) -> Scrape:
    """Only what the engine exports."""
    if model.fields is None:
        return scrape
    hidden: dict[str, Any] = dict.fromkeys(name for name in FIELDS if name not in model.fields)
    return replace(scrape, **hidden)


def scrape_of(replica: SimReplica, now: float) -> Scrape:
    """What the engine's metrics would say at `now`; changes nothing."""
    engine = replica.engine
    state = engine.state_at(now)
    return Scrape(now, state.running, state.waiting, state.kv_used_fraction, engine.preemptions, engine.prompt_tokens, engine.output_tokens,
                  engine.cached_tokens, replica.pool.engine.num_blocks, bool(engine.asleep))
