"""Awaiting a lease on a real event loop: speed, order, one timer, and every way in which a wait ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from windtunnel.errors import PolicyDeniedError, PolicyError
from windtunnel.live.waiting import WaitingRoom
from windtunnel.policy.admission.aimd import Aimd
from windtunnel.policy.admission.denial import Denial
from windtunnel.policy.admission.endpoints import RequestAdmissionConfig
from windtunnel.policy.admission.lease import RequestLease
from windtunnel.policy.admission.limit import Fixed
from windtunnel.policy.admission.waiters import RequestItem
from windtunnel.policy.admission.waiting import WaitingAdmission


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20.0))


def room_of(slots: int, limit: Any = None) -> WaitingRoom:
    admission = WaitingAdmission(RequestAdmissionConfig(limit or Fixed(slots)))
    admission.register("r", slots, 0.0)
    return WaitingRoom(admission)


def reason_of(error: BaseException | object) -> str:
    assert isinstance(error, PolicyDeniedError) and isinstance(error.denial, Denial)
    return str(error.denial.reason)


async def crowd(n: int, slots: int, service_s: float) -> tuple[float, list[int], int]:
    """Wall seconds for n requests at once, the order in which they were let in, and the most timers that stood at a time."""
    room, order, timers = room_of(slots), list[int](), 0
    loop = asyncio.get_running_loop()

    async def one(i: int) -> None:
        nonlocal timers
        lease = await room.lease(RequestItem("r", queue_wait_timeout_s=60.0))
        order.append(i)
        timers = max(timers, sum(1 for h in loop._scheduled if not h.cancelled() and "_woke" in repr(h)) if i % 100 == 0 else 0)  # type: ignore[attr-defined]
        await asyncio.sleep(service_s)
        room.release(lease, "success")

    start = loop.time()
    await asyncio.gather(*(one(i) for i in range(n)))
    wall_s = loop.time() - start
    assert (room.waiting, room.admission.in_flight("r"), room.admission.waiting) == (0, 0, 0)
    return wall_s, order, timers


async def semaphore(n: int, slots: int, service_s: float) -> float:
    """Wall seconds of the same crowd at asyncio's own semaphore."""
    slot, loop = asyncio.Semaphore(slots), asyncio.get_running_loop()

    async def one() -> None:
        async with slot:
            await asyncio.sleep(service_s)

    start = loop.time()
    await asyncio.gather(*(one() for _ in range(n)))
    return loop.time() - start


@pytest.mark.parametrize("waiters", [1000, 64])
def test_PF_4_a_crowd_is_served_in_order_with_one_timer_and_no_poll(waiters: int) -> None:
    """How long it takes against the ideal is printed by sims/bench/admission.py; a poll would be a hundred times a semaphore's wall."""
    ratios = []
    for _ in range(5):
        wall_s, order, timers = run(crowd(waiters, 16, 0.001))
        assert order == list(range(waiters)) and timers <= 1
        ratios.append(wall_s / run(semaphore(waiters, 16, 0.001)))
        if ratios[-1] <= 4:
            break
    assert min(ratios) <= 4, ratios


def test_RA_9_the_end_of_a_pause_wakes_without_any_release() -> None:
    async def work() -> float:
        room = room_of(4, Aimd(cooldown_s=0.05))
        room.release(await room.lease(RequestItem("r")), "rate_limited")
        start = room.clock.now()
        room.release(await room.lease(RequestItem("r")), "success")
        return room.clock.now() - start

    assert 0.045 <= run(work()) < 1.0


def test_RA_6_a_wait_has_an_end_and_says_why() -> None:
    async def work() -> None:
        room = room_of(1)
        lease = await room.lease(RequestItem("r"))
        start = room.clock.now()
        with pytest.raises(PolicyDeniedError, match="no lease for r: queue_timeout") as denied:
            await room.lease(RequestItem("r", queue_wait_timeout_s=0.03))
        assert reason_of(denied.value) == "queue_timeout" and room.clock.now() - start >= 0.03
        with pytest.raises(PolicyDeniedError, match="hard_policy_denial"):
            await room.lease(RequestItem("nobody"))
        assert room.release(lease, "success") == "released" and room.release(lease, "success") == "duplicate"

    run(work())


def test_RA_10_a_cancelled_waiter_leaves_and_one_that_was_just_granted_gives_it_back() -> None:
    async def work() -> None:
        room = room_of(1)
        lease = await room.lease(RequestItem("r"))
        tasks = [asyncio.create_task(room.lease(RequestItem("r"))) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.sleep(0)
        assert room.admission.waiting == 2
        room.release(lease, "success")
        tasks[1].cancel()  # granted in this very turn, not yet resumed
        last = await tasks[2]
        assert [t.cancelled() for t in tasks[:2]] == [True, True]
        assert room.admission.in_flight("r") == 1
        room.release(last, "success")
        assert room.admission.in_flight("r") == room.waiting == 0

    run(work())


def test_holding_releases_on_every_way_out() -> None:
    async def work() -> list[str | None]:
        room, seen = room_of(1), list[str | None]()

        def last() -> str | None:
            return room.admission.snapshot("r", room.clock.now()).last_outcome

        async with room.holding(RequestItem("r")) as lease:
            assert isinstance(lease, RequestLease)
        seen.append(last())
        with pytest.raises(ZeroDivisionError):
            async with room.holding(RequestItem("r")):
                raise ZeroDivisionError
        seen.append(last())

        async def slow() -> None:
            async with room.holding(RequestItem("r")):
                await asyncio.sleep(60)

        task = asyncio.create_task(slow())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        seen.append(last())
        assert room.admission.in_flight("r") == 0
        return seen

    assert run(work()) == ["success", "unexpected_exception", "local_cancelled"]


def test_shutdown_tells_all_who_wait() -> None:
    async def work() -> None:
        room = room_of(1)
        lease = await room.lease(RequestItem("r"))
        tasks = [asyncio.create_task(room.lease(RequestItem("r"))) for _ in range(3)]
        await asyncio.sleep(0)
        room.shutdown()
        assert [reason_of(e) for e in await asyncio.gather(*tasks, return_exceptions=True)] == ["shutdown"] * 3
        assert room.release(lease, "success") == "released"

    run(work())


def test_RA_2_a_raised_cap_is_seen_when_told() -> None:
    async def work() -> None:
        room = room_of(1, Fixed(8))
        lease = await room.lease(RequestItem("r"))
        task = asyncio.create_task(room.lease(RequestItem("r")))
        await asyncio.sleep(0)
        room.admission.set_cap("r", 2, room.clock.now())
        room.changed()
        second = await task
        assert (room.admission.in_flight("r"), room.waiting) == (2, 0)
        assert room.release(second, "success") == room.release(lease, "success") == "released"

    run(work())


def test_RA_12_other_threads_may_block_and_the_loops_own_may_not() -> None:
    async def work() -> None:
        room, loop = room_of(1), asyncio.get_running_loop()
        with pytest.raises(PolicyError, match="event loop's thread"):
            room.lease_blocking(RequestItem("r"))
        with ThreadPoolExecutor(2) as pool:
            lease = await loop.run_in_executor(pool, room.lease_blocking, RequestItem("r"))
            with pytest.raises(TimeoutError):
                await loop.run_in_executor(pool, room.lease_blocking, RequestItem("r"), 0.02)
            with pytest.raises(PolicyDeniedError, match="queue_timeout"):
                await loop.run_in_executor(pool, room.lease_blocking, RequestItem("r", queue_wait_timeout_s=0.01))
        assert room.waiting == 0
        room.release(lease, "success")

    run(work())
