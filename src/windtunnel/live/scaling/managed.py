"""A connector that owns its replicas: it launches them, drains them, and ends them when they are empty."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from windtunnel.effects import Drain, ScaleTo
from windtunnel.live.fleet import Endpoint
from windtunnel.live.scaling.scaler import PoolCount, Roster, ScaleReply

POLL_S = 0.1
RETRY_S, RETRY_MAX_S = 5.0, 300.0


class Launcher(Protocol):
    """Starts and ends single replicas of one pool. `launch` may raise OSError; `end` is idempotent and never raises."""

    def launch(self, name: str, ordinal: int) -> Endpoint: ...
    def alive(self, name: str) -> bool: ...
    async def end(self, name: str) -> None: ...


@dataclass(slots=True)
class Member:
    """One replica that this connector started. leaving: it drains, until the loop second `until`."""

    name: str
    pool: str
    ordinal: int
    leaving: bool = False
    until: float = 0.0
    reason: str = ""


class ManagedScaler:
    """Targets by pool; downs before ups; starting replicas go first, then those with the least in flight, the newest first.

    drain_timeout_s: how long a draining replica may finish its streams. A replica that dies is replaced, after a pause that doubles
    from 5 s to 300 s while its successors die, too. Everything runs on the world's loop. `aclose` ends all that was started.
    """

    def __init__(self, launchers: Mapping[str, Launcher], roster: Roster, *, drain_timeout_s: float = 120.0) -> None:
        self._launchers, self._roster, self._drain_timeout_s = dict(launchers), roster, drain_timeout_s
        self._members: dict[str, Member] = {}
        self._targets: dict[str, int] = dict.fromkeys(launchers, 0)
        self._started: dict[str, int] = dict.fromkeys(launchers, 0)
        self._pause_s: dict[str, float] = dict.fromkeys(launchers, RETRY_S)
        self._not_before: dict[str, float] = dict.fromkeys(launchers, 0.0)
        self._last_plan = -1
        self._loop = asyncio.get_running_loop()
        self._duty: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    async def observe(self) -> Mapping[str, PoolCount]:
        """Counts by pool, from the members and what the world says of them."""
        counts = {}
        for pool, target in self._targets.items():
            mine = [m for m in self._members.values() if m.pool == pool]
            staying = [m for m in mine if not m.leaving]
            ready = sum(self._roster.serves(m.name) for m in staying)
            counts[pool] = PoolCount(ready, len(staying) - ready, len(mine) - len(staying), target)
        return counts

    async def apply(self, plan: ScaleTo) -> ScaleReply:
        """Take the targets of a plan and begin to carry them out."""
        if plan.plan_id < self._last_plan:
            return ScaleReply("superseded", f"plan {self._last_plan} is newer")
        unknown = [pool for pool, _ in plan.targets if pool not in self._launchers]
        if unknown:
            return ScaleReply("refused", f"no connector for pool {unknown[0]!r}")
        self._last_plan = plan.plan_id
        before = dict(self._targets)
        self._targets.update(plan.targets)
        self._step()
        if self._duty is None:
            self._duty = self._loop.create_task(self._keep_going())
        return ScaleReply("unchanged" if before == self._targets else "accepted")

    async def drain(self, order: Drain) -> None:
        """Drain one replica, or bring it back while it still serves."""
        member = self._members.get(order.replica)
        if member is None:
            return
        if order.undo:
            self._targets[member.pool] += member.leaving
            member.leaving = False
            return
        if member.leaving:
            return
        left_s = self._drain_timeout_s if order.deadline_at is None else max(0.0, order.deadline_at - self._loop.time())
        self._leave(member, order.reason or "drained", min(left_s, self._drain_timeout_s))
        self._targets[member.pool] = max(0, self._targets[member.pool] - 1)

    async def aclose(self) -> None:
        """End everything that was started here."""
        if self._duty is not None:
            self._duty.cancel()
        await asyncio.gather(*(self._launchers[m.pool].end(m.name) for m in self._members.values()), *self._ending)
        self._members.clear()

    # -- one look every tenth of a second ---------------------------------------------------------------------------------------------

    async def _keep_going(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            self._step()

    def _step(self) -> None:
        now = self._loop.time()
        for member in list(self._members.values()):
            if not self._launchers[member.pool].alive(member.name):
                self._died(member, now)
            elif member.leaving and (now >= member.until or not self._roster.in_flight(member.name)):
                self._end(member)
            elif self._roster.serves(member.name):
                self._pause_s[member.pool] = RETRY_S
        for pool, target in self._targets.items():
            staying = [m for m in self._members.values() if m.pool == pool and not m.leaving]
            for member in sorted(staying, key=self._first_to_go)[: max(0, len(staying) - target)]:
                self._leave(member, "scaled_down", self._drain_timeout_s)
        for pool, target in self._targets.items():
            if now >= self._not_before[pool]:
                for _ in range(target - sum(m.pool == pool and not m.leaving for m in self._members.values())):
                    self._launch(pool)

    def _first_to_go(self, member: Member) -> tuple[bool, int, int]:
        return (self._roster.serves(member.name), self._roster.in_flight(member.name), -member.ordinal)

    def _launch(self, pool: str) -> None:
        ordinal = self._started[pool]
        self._started[pool] += 1
        name = f"{pool}-{ordinal}"
        try:
            endpoint = self._launchers[pool].launch(name, ordinal)
        except OSError:
            self._back_off(pool, self._loop.time())
            return
        self._members[name] = Member(name, pool, ordinal)
        self._roster.add(endpoint)

    def _leave(self, member: Member, reason: str, timeout_s: float) -> None:
        if member.leaving:
            return
        member.leaving, member.reason, member.until = True, reason, self._loop.time() + timeout_s
        self._roster.notice(member.name, reason, timeout_s)

    def _end(self, member: Member) -> None:
        """Gone from the world first, so that nothing is sent to a process that is going."""
        late = self._roster.in_flight(member.name) > 0
        del self._members[member.name]
        self._roster.remove(member.name, "drain_timeout" if late else member.reason)
        task = self._loop.create_task(self._launchers[member.pool].end(member.name))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _died(self, member: Member, now: float) -> None:
        del self._members[member.name]
        self._roster.remove(member.name, member.reason if member.leaving else "crash")
        if not member.leaving:
            self._back_off(member.pool, now)

    def _back_off(self, pool: str, now: float) -> None:
        self._not_before[pool] = now + self._pause_s[pool]
        self._pause_s[pool] = min(RETRY_MAX_S, 2 * self._pause_s[pool])
