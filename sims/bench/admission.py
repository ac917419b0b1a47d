"""What request admission costs, in units of one heappush + heappop pair measured in the same process, beside its bars.

    python sims/bench/admission.py

Lease and release; with a thousand waiters: one grant, enqueue, cancel; every limit's sample; every gate's part of a request.
Best of five medians each, fixed inputs: a slow machine does not fail a bar, a loop over all waiters does.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Any

from windtunnel.events import Request
from windtunnel.live.waiting import WaitingRoom
from windtunnel.policy.admission.aimd import Aimd
from windtunnel.policy.admission.aimd_netflix import AimdNetflix
from windtunnel.policy.admission.bands import BandsGate
from windtunnel.policy.admission.budget import Budget, BudgetGate
from windtunnel.policy.admission.endpoints import RequestAdmissionConfig
from windtunnel.policy.admission.envoy_gradient import EnvoyGradient
from windtunnel.policy.admission.gates import Gate, Gates, Used
from windtunnel.policy.admission.gcra import GcraGate
from windtunnel.policy.admission.gradient2 import Gradient2
from windtunnel.policy.admission.limit import Fixed, Sample
from windtunnel.policy.admission.quota import QuotaGate, TenantQuota
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.admission.retry_budget import RetryBudgetGate
from windtunnel.policy.admission.throttle import ThrottleGate
from windtunnel.policy.admission.token_budget import TokenBudgetGate
from windtunnel.policy.admission.vegas import Vegas
from windtunnel.policy.admission.waiters import Granted, RequestItem, Waiting
from windtunnel.policy.admission.waiting import WaitingAdmission
from windtunnel.policy.param import BuildContext

REPEATS = 5
CONTEXT = BuildContext(rng=Random(1))


def unit_s(n: int = 20_000) -> float:
    """Seconds of one heappush + heappop pair on a heap of 256 3-tuples: U."""
    heap = [(float(i), i, "x") for i in range(256)]

    def pair(i: int) -> None:
        heappush(heap, (float(i % 512), i, "x"))
        heappop(heap)

    def bare(i: int) -> None:
        """The call alone."""

    return max(1e-9, median_s(pair, n) - median_s(bare, n))


def median_s(step: Callable[[int], Any], n: int, batch: int = 20) -> float:
    """Seconds of one call: the best of five medians over batches."""
    best = float("inf")
    clock = time.perf_counter
    for _ in range(REPEATS):
        took = []
        for start in range(0, n, batch):
            t0 = clock()
            for i in range(start, start + batch):
                step(i)
            took.append((clock() - t0) / batch)
        best = min(best, statistics.median(took))
    return best


def lease_cycle(n: int = 20_000) -> float:
    """try_acquire + release(success), AIMD, nobody waits: seconds."""
    a = RequestAdmission(Aimd().build(CONTEXT))
    a.register("r", 64, 0.0)

    def cycle(i: int) -> None:
        a.release(a.try_acquire("r", 1.0), "success", 1.0, rtt_s=0.1)  # type: ignore[arg-type]

    return median_s(cycle, n)


def full_room(waiters: int, *, timeout_s: float | None = 1e6) -> tuple[WaitingAdmission, Any]:
    """An admission with one slot taken and so many in line; and the lease of the slot."""
    a = WaitingAdmission(RequestAdmissionConfig(Fixed(1)))
    a.register("r", 1, 0.0)
    lease = a.try_acquire("r", 0.0)
    for _ in range(waiters):
        a.enqueue(RequestItem("r", queue_wait_timeout_s=timeout_s), 0.0)
    return a, lease


def one_grant(waiters: int = 1000, n: int = 4000) -> float:
    """release + drain of one grant while `waiters` wait (each served one comes back): seconds, without the coming back."""
    a, lease = full_room(waiters)
    held, took = [lease], []
    clock = time.perf_counter
    for _ in range(n):
        t0 = clock()
        a.release(held[0], "success", 0.0)
        (out,) = a.drain(0.0)
        took.append(clock() - t0)
        assert isinstance(out, Granted)
        held[0] = out.lease
        a.enqueue(RequestItem("r", queue_wait_timeout_s=1e6), 0.0)
    return statistics.median(took)


def enqueue_and_cancel(waiters: int = 1000, n: int = 4000) -> float:
    """One comes and leaves again while `waiters` wait: seconds."""
    a, _ = full_room(waiters)

    def visit(i: int) -> None:
        got = a.enqueue(RequestItem("r", queue_wait_timeout_s=1e6), 0.0)
        assert isinstance(got, Waiting)
        a.cancel(got.waiter_id, 0.0)

    return median_s(visit, n)


def expiry(waiters: int) -> float:
    """Seconds per waiter when all of them expire at once."""
    best = float("inf")
    for _ in range(REPEATS):
        a, _ = full_room(waiters, timeout_s=5.0)
        t0 = time.perf_counter()
        assert len(a.drain(5.0)) == waiters
        best = min(best, (time.perf_counter() - t0) / waiters)
    return best


LIMITS: dict[str, Any] = {
    "aimd": Aimd(), "aimd_netflix": AimdNetflix(), "vegas": Vegas(), "gradient2": Gradient2(), "envoy_gradient": EnvoyGradient(),
}


def limit_sample(config: Any, n: int = 10_000) -> float:
    """Seconds of one sample."""
    limit, step = config.build(CONTEXT)(1000), itertools.count()

    def feed(i: int) -> None:
        limit.on_sample(Sample("success", 0.1 + i % 7 / 100, 50, limit.limit, limit.epoch), 0.01 * next(step))

    return median_s(feed, n)


def gate_parts() -> dict[str, Gate]:
    """One of each, wide open."""
    return {
        "quota": QuotaGate({"default": TenantQuota(10_000, 1e12, None, 1e9)}), "budget": BudgetGate({"default": Budget(tokens=10**12)}),
        "gcra": GcraGate(1e9, 1e9).build(CONTEXT), "retry_budget": RetryBudgetGate().build(CONTEXT), "bands": BandsGate().build(CONTEXT),
        "throttle": ThrottleGate().build(CONTEXT), "token_budget": TokenBudgetGate(prefill_tokens_per_s=1e9, ttft_slo_s=10.0).build(CONTEXT),
    }


def gate_cycle(gates: Gates, n: int = 10_000, tenants: int = 64) -> float:
    """check + dispatched + first_token + settle of one request: seconds."""
    requests = [Request(f"r{i}", f"t{i % tenants}", "m", 0, 0.0, 100, 100) for i in range(512)]
    used = Used("success", 0.0, 100, 50)

    step = itertools.count()  # the clock runs on over the repeats

    def pass_through(i: int) -> None:
        n = next(step)
        request, now = requests[n % 512], 1e-3 * n
        assert gates.check(request, now) is None
        gates.dispatched(request, 0.0, now)
        gates.first_token(request, now)
        gates.settle(request, used, now)

    return median_s(pass_through, n)


async def crowd(waiters: int, slots: int = 16, service_s: float = 0.001) -> float:
    """Wall seconds in which a live event loop serves so many who come at once."""
    admission = WaitingAdmission(RequestAdmissionConfig(Fixed(slots)))
    admission.register("r", slots, 0.0)
    room = WaitingRoom(admission)

    async def one() -> None:
        lease = await room.lease(RequestItem("r"))
        await asyncio.sleep(service_s)
        room.release(lease, "success")

    start = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(waiters)))
    return time.perf_counter() - start


def main() -> None:
    u = unit_s()
    print(f"U, one heappush + heappop pair        {u * 1e6:8.2f} us")

    def say(name: str, seconds: float, bar: float | None = None) -> None:
        verdict = "" if bar is None else f"   bar {bar:g} U {'ok' if seconds <= bar * u else 'MISSED'}"
        print(f"{name:<38}{seconds * 1e6:8.2f} us {seconds / u:7.1f} U{verdict}")

    say("try_acquire + release", lease_cycle(), 15)
    say("release + drain of a grant, 1000 wait", one_grant(), 30)
    for waiters in (64, 1000, 16_000):
        say(f"enqueue + cancel, {waiters} wait", enqueue_and_cancel(waiters))
    for waiters in (1000, 16_000):
        say(f"an expiry among {waiters}", expiry(waiters))
    for name, config in LIMITS.items():
        say(f"sample of {name}", limit_sample(config))
    for name, gate in gate_parts().items():
        say(f"gate {name}", gate_cycle(Gates([gate])))
    say("all gates", gate_cycle(Gates(gate_parts().values())))
    say("gate quota, 512 tenants", gate_cycle(Gates([gate_parts()["quota"]]), tenants=512))
    for waiters, bar_s in ((64, 0.06), (1000, 0.175)):
        wall_s = min(asyncio.run(crowd(waiters)) for _ in range(REPEATS))
        print(f"live, {waiters} at once on 16 slots of 1 ms  {wall_s:7.4f} s   bar {bar_s} s {'ok' if wall_s <= bar_s else 'MISSED'}")


if __name__ == "__main__":
    main()
