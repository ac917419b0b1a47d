"""Looking at real engines: health, capabilities and metrics, by GET only. Turns what is seen into replica events.

A replica is unready after 3 failed looks and back after 2 good ones, under a new id (`chat-0~2`): ids are never used twice.
A busy engine is not a dead one: llama.cpp with 64 requests in flight took 7 s to answer /health, so a look that gets no answer in
time does not count while our streams there still say something.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from windtunnel.events import Event, ReplicaBooting, ReplicaGone, ReplicaReady, Scrape, Scraped
from windtunnel.live.arming import Check
from windtunnel.live.clock import RunClock
from windtunnel.live.engines.engine import Engine
from windtunnel.live.fleet import Endpoint
from windtunnel.live.replica import BOOTING, GONE, READY, LiveReplica, Look

LOOK_EVERY_S, LOOK_TIMEOUT_S, SCRAPE_EVERY_S, SCRAPE_TIMEOUT_S = 1.0, 2.0, 1.0, 2.0
FAILURES, SUCCESSES = 3, 2
QUIET_S = 30.0  # a stream that said nothing for so long no longer excuses its engine (a long prefill is silent for seconds)
FRESH_S, ASK_TIMEOUT_S = 5.0, 5.0


class Watch:
    """Looks at every endpoint of a fleet and delivers ReplicaBooting, ReplicaReady, ReplicaGone and, if wanted, Scraped.

    make(kind, url, name=, model=, slots=, options=) builds an engine. current: the replicas that can be sent to, by id.
    """

    def __init__(self, endpoints: tuple[Endpoint, ...], make: Callable[..., Engine], clock: RunClock, deliver: Callable[[Event], Any],
                 lost: Callable[[ReplicaGone], Any], *, scrape: bool) -> None:
        self._make, self._clock, self._deliver, self._lost, self._scrape = make, clock, deliver, lost, scrape
        self.replicas: list[LiveReplica] = []
        self.current: dict[str, LiveReplica] = {}
        self.rows: list[dict[str, Any]] = []
        self._tasks: dict[str, list[asyncio.Task[None]]] = {}  # by the endpoint's name
        self._closing: set[asyncio.Task[Any]] = set()
        for e in endpoints:
            self._join(e)

    def _join(self, e: Endpoint) -> LiveReplica:
        engine = self._make(e.engine, e.url, name=e.name, model=e.model, slots=e.slots, options=e.options)
        replica = LiveReplica(e, engine, engine, e.name)
        self.replicas.append(replica)
        return replica

    # -- life -----------------------------------------------------------------------------------------------------------------------

    async def look_at_all(self) -> None:
        """One look at each endpoint, and one scrape if metrics are wanted, all at once; emits nothing."""
        await asyncio.gather(*(self._look(r) for r in self.replicas))
        if self._scrape:
            await asyncio.gather(*(self._scrape_once(r) for r in self.replicas if r.last_look.ok))

    def never_stops(self) -> str | None:
        """A replica whose engine cannot be told to stop a call; None if all can."""
        return next((r.name for r in self.replicas if r.engine.facts.abort == "none"), None)

    def begin(self) -> None:
        """Announce what was seen, in the fleet's order, and keep looking."""
        for r in self.replicas:
            if r.last_look.ok:
                self._ready(r)
            else:
                r.failures = 1
                self._deliver(ReplicaBooting(r.name, r.endpoint.pool, r.endpoint.role, "requested"))
        for r in self.replicas:
            self._watch(r)

    def _watch(self, r: LiveReplica) -> None:
        loop = asyncio.get_running_loop()
        self._tasks[r.endpoint.name] = tasks = [loop.create_task(self._keep_looking(r))]
        if self._scrape:
            tasks.append(loop.create_task(self._keep_scraping(r)))

    async def end(self) -> None:
        """Stop looking, write the last rows, close every connection. Never raises."""
        tasks = [task for mine in self._tasks.values() for task in mine]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._closing, return_exceptions=True)
        for i, r in enumerate(self.replicas):
            if r.state != GONE:
                self.rows.append(r.row(i, None, None))
        engines = {id(e): e for r in self.replicas for e in (r.engine, r.stand_in)}
        await asyncio.gather(*(e.close() for e in engines.values()), return_exceptions=True)

    # -- replicas that a connector starts and ends ------------------------------------------------------------------------------------

    def add(self, endpoint: Endpoint) -> None:
        """Look at one more endpoint from now on; it serves once it is healthy. It may take as long as it likes to boot."""
        replica = self._join(endpoint)
        replica.since_s, replica.managed = self._clock.now(), True
        self._deliver(ReplicaBooting(replica.name, endpoint.pool, endpoint.role, "booting"))
        self._watch(replica)

    def notice(self, name: str, reason: str, timeout_s: float) -> None:
        """It will be gone within `timeout_s`: no new work for it."""
        replica = self._of(name)
        if replica is not None and replica.state != GONE:
            self._deliver(ReplicaGone(replica.name, reason, self._clock.now() + max(timeout_s, 1e-3)))

    def remove(self, name: str, reason: str) -> None:
        """It is gone for good; what still ran there has failed."""
        replica = self._of(name)
        if replica is None:
            return
        for task in self._tasks.pop(name, ()):
            task.cancel()
        if replica.state != GONE:
            self._gone(replica, Look(reason))
        self.replicas.remove(replica)
        for engine in {id(e): e for e in (replica.engine, replica.stand_in)}.values():
            task = asyncio.get_running_loop().create_task(engine.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def in_flight(self, name: str) -> int:
        """Our streams on the replica at this endpoint."""
        replica = self._of(name)
        return 0 if replica is None else replica.in_flight

    def serves(self, name: str) -> bool:
        """Is it healthy?"""
        replica = self._of(name)
        return replica is not None and replica.state == READY

    def _of(self, name: str) -> LiveReplica | None:
        return next((r for r in self.replicas if r.endpoint.name == name), None)

    def checks(self) -> list[Check]:
        """The checklist's lines on endpoints, from the last look at each: is it healthy, and does it serve the model?"""
        made = []
        for r in self.replicas:
            look, wanted, served = r.last_look, r.endpoint.model, r.can.model
            wrong = look.ok and bool(wanted) and bool(served) and not _serves(served or "", wanted)
            text = f'{r.where} serves "{served}", not "{wanted}"' if wrong else look.text or f"{r.where} answers"
            made.append(Check(f"endpoint {r.endpoint.name}", look.ok and not wrong, text))
            if self._scrape and look.ok:
                fresh = r.scraped_s is not None and self._clock.now() - r.scraped_s <= FRESH_S
                text = f"{r.where} gives metrics" if fresh else f"{r.where} gives no metrics, which the control needs"
                made.append(Check(f"metrics {r.endpoint.name}", fresh, text))
        return made

    # -- health ---------------------------------------------------------------------------------------------------------------------

    async def _look(self, r: LiveReplica) -> Look:
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                health = await r.engine.health()
            if health.ok and r.state != READY:
                async with asyncio.timeout(ASK_TIMEOUT_S):
                    r.can = await r.engine.capabilities()
            look = r.look_of(health)
        except TimeoutError:
            look = Look("hangs", f"{r.where} hangs: it took the connection but gave no answer in time")
        except Exception as error:
            look = Look("not_an_engine", f"{r.where} answers, but not like {r.kind}: {error}")
        r.last_look = look
        return look

    async def _keep_looking(self, r: LiveReplica) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            look = await self._look(r)
            if look.ok:
                r.failures, r.successes = 0, r.successes + 1
                if r.state == BOOTING or (r.state == GONE and r.successes >= SUCCESSES):
                    self._ready(r)
            elif not (look.why == "hangs" and self._excused(r)):
                r.successes, r.failures = 0, r.failures + 1
                if r.failures >= FAILURES and (r.state == READY or (r.state == BOOTING and not r.managed)):
                    self._gone(r, look)

    def _excused(self, r: LiveReplica) -> bool:
        return r.in_flight > 0 and self._clock.now() - r.heard_s < QUIET_S

    def _ready(self, r: LiveReplica) -> None:
        now = self._clock.now()
        if r.state == GONE:
            r.life += 1
            r.name, r.since_s = f"{r.endpoint.name}~{r.life}", now
            r.requests = r.output_tokens = 0
        r.state, r.ready_s, r.failures = READY, now, 0
        self.current[r.name] = r
        e, can = r.endpoint, r.can
        slots = e.slots or can.slots
        if e.engine != "mock" and r.stand_in is r.engine:
            r.stand_in = self._make("mock", f"mock://{e.name}", name=e.name, model=e.model, slots=slots)
        facts = {"engine": e.engine, "model": can.model or e.model, "version": can.version, "ctx_tokens": can.ctx_tokens}
        self._deliver(ReplicaReady(r.name, e.pool, e.role, e.weight, slots, can.kv_tokens, None,
                                   {k: v for k, v in facts.items() if v}))

    def _gone(self, r: LiveReplica, look: Look) -> None:
        self.current.pop(r.name, None)
        self.rows.append(r.row(self.replicas.index(r), self._clock.now(), look.why))
        r.state, r.ready_s = GONE, None
        self._lost(ReplicaGone(r.name, look.why))

    # -- metrics --------------------------------------------------------------------------------------------------------------------

    async def _keep_scraping(self, r: LiveReplica) -> None:
        while True:
            await asyncio.sleep(SCRAPE_EVERY_S)
            name = r.name
            scrape = await self._scrape_once(r) if r.state == READY else None
            if scrape is not None and r.name == name and r.state == READY:
                self._deliver(Scraped(name, scrape))

    async def _scrape_once(self, r: LiveReplica) -> Scrape | None:
        """None if there was no answer: an observation that is missing is unknown, not zero."""
        asked_s = self._clock.now()
        try:
            async with asyncio.timeout(SCRAPE_TIMEOUT_S):
                scrape = await r.engine.scrape(asked_s)
        except Exception:
            return None
        r.scraped_s = asked_s
        return replace(scrape, sampled_s=asked_s)


def _serves(served: str, wanted: str) -> bool:
    """Engines name models by path, file or alias: the wanted name has to be in the served one's last part, whatever its case."""
    return wanted.lower() in served.lower() or served.lower() in wanted.lower()
