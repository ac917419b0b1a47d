"""From `RequestAdmission` with waiters to asyncio: await a lease. The only such bridge: one timer for all waiters, and no poll."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from windtunnel.errors import PolicyDeniedError, PolicyError
from windtunnel.live.clock import RunClock
from windtunnel.policy.admission.denial import Denial
from windtunnel.policy.admission.waiters import AlreadyGranted, Expired, Granted, RequestItem, Waiting

if TYPE_CHECKING:
    from windtunnel.policy.admission.lease import RequestLease
    from windtunnel.policy.admission.request import ReleaseReason
    from windtunnel.policy.admission.waiting import WaitingAdmission

Answer = Granted | Expired


class WaitingRoom:
    """Owns the admission: everybody else goes through here, on one event loop. Make it inside of that loop.

    A wait ends with a lease, with PolicyDeniedError, or with the cancellation of its task; a lease that comes too late goes back by itself.
    """

    def __init__(self, admission: WaitingAdmission, clock: RunClock | None = None) -> None:
        self.admission = admission
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self.clock = clock or RunClock(self._loop)
        self._waiting: dict[str, asyncio.Future[Answer]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due: float | None = None

    async def lease(self, item: RequestItem) -> RequestLease:
        """A lease, now or when it is the item's turn; release it once. Raises PolicyDeniedError with the denial."""
        got = self.admission.enqueue(item, self.clock.now())
        if isinstance(got, Denial):
            raise _denied(got)
        if not isinstance(got, Waiting):
            return got
        future = self._waiting[got.waiter_id] = self._loop.create_future()
        self._settle()
        try:
            answer = await future
        except asyncio.CancelledError:
            self._leave(got.waiter_id)
            raise
        if isinstance(answer, Expired):
            raise _denied(answer.denial)
        return answer.lease

    def _leave(self, waiter_id: str) -> None:
        """The task that waited was cancelled, before its turn or just after."""
        self._waiting.pop(waiter_id, None)
        now = self.clock.now()
        said = self.admission.cancel(waiter_id, now)
        if isinstance(said, AlreadyGranted):
            self.admission.release(said.lease, "local_cancelled", now)
        self._settle()

    def release(self, lease: RequestLease, outcome: str, *, retry_after_s: float | None = None, rtt_s: float | None = None) -> ReleaseReason:
        """Give a lease back and let the next ones in; never raises for one that is not active."""
        said = self.admission.release(lease, outcome, self.clock.now(), retry_after_s=retry_after_s, rtt_s=rtt_s)
        self._settle()
        return said

    @asynccontextmanager
    async def holding(self, item: RequestItem) -> AsyncIterator[RequestLease]:
        """A lease for the time of a block: success at its end, `local_cancelled` or `unexpected_exception` if it is left otherwise."""
        lease = await self.lease(item)
        outcome = "unexpected_exception"
        try:
            yield lease
            outcome = "success"
        except asyncio.CancelledError:
            outcome = "local_cancelled"
            raise
        finally:
            self.release(lease, outcome)

    def lease_blocking(self, item: RequestItem, timeout_s: float | None = None) -> RequestLease:
        """`lease` for other threads. Raises PolicyError on the event loop's own thread, which it would stop for ever."""
        if threading.get_ident() == self._thread:
            raise PolicyError("lease_blocking was called on the event loop's thread; await lease there")
        future = asyncio.run_coroutine_threadsafe(self.lease(item), self._loop)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            future.cancel()
            raise

    def changed(self) -> None:
        """Look again: a resource or a cap of the admission was changed directly."""
        self._settle()

    def shutdown(self) -> None:
        """Nothing is let in any more; all who wait are told so."""
        self._tell(self.admission.shutdown(self.clock.now()))
        self._arm(None)

    def _settle(self) -> None:
        """After every change: who can go goes, and the one timer stands at the next thing that time alone does."""
        if self._waiting:
            self._tell(self.admission.drain(self.clock.now()))
        self._arm(self.admission.next_deadline() if self._waiting else None)

    def _tell(self, answers: Sequence[Granted | Expired]) -> None:
        for answer in answers:
            future = self._waiting.pop(answer.waiter_id, None)
            if future is not None and not future.done():
                future.set_result(answer)

    def _arm(self, at: float | None) -> None:
        if at == self._due:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due = at
        self._timer = None if at is None else self._loop.call_at(self.clock.t0 + at, self._woke)

    def _woke(self) -> None:
        self._timer = self._due = None
        self._settle()

    @property
    def waiting(self) -> int:
        return len(self._waiting)


def _denied(denial: Denial) -> PolicyDeniedError:
    again = "" if denial.retry_after_s is None else f"; try again in {denial.retry_after_s:.3g} s"
    return PolicyDeniedError(f"no lease for {denial.resource}: {denial.reason}{again}", denial=denial)
