"""What routing decisions cost in reference steps, beside their bars: ratios, so that a slow machine does not fail them.

    python sims/bench/routing.py [--json FILE]

A step adds one to a counter in a dict of 64 keys, CPU time, measured just before and just after each row.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Callable
from pathlib import Path

from measuring import report

from windtunnel.events import ReplicaReady, Request
from windtunnel.policy.routing.affinity import PrefixAffinity
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.least import LeastOutstanding
from windtunnel.policy.routing.ring import BoundedHash
from windtunnel.policy.routing.router import Choice, Router

REPLICAS, IN_FLIGHT, ASKED = 64, 600, 500
BARS = {"least_outstanding": 125.0, "prefix_affinity, hit": 750.0, "prefix_affinity, miss": 750.0, "prefix insert at the bound": 2500.0,
        "bounded_hash": 150.0}


def best(work: Callable[[], object], times: int) -> float:
    """CPU seconds of the quickest of `times` rounds."""
    seconds = []
    for _ in range(times):
        begun = time.process_time()
        work()
        seconds.append(time.process_time() - begun)
    return min(seconds)


def step_s() -> float:
    """CPU seconds of a reference step."""
    rng = random.Random(1)
    counts = {f"key-{i}": 0 for i in range(64)}
    seq = [f"key-{rng.randrange(64)}" for _ in range(100_000)]

    def work() -> None:
        for key in seq:
            counts[key] = counts[key] + 1

    return best(work, 7) / len(seq)


def steps(work: Callable[[], object], n: int) -> float:
    """Reference steps of each of n things that `work` does; the better of two tries, as other work may share the machine."""
    def once() -> float:
        before = step_s()
        spent = best(work, 5) / n
        return spent / ((before + step_s()) / 2)

    return min(once(), once())


def served(router: Router, replicas: int = REPLICAS, kv_tokens: int | None = None) -> Fleet:
    """A fleet with 600 requests in flight that this router has placed."""
    fleet = Fleet()
    for i in range(replicas):
        fleet.ready(ReplicaReady(f"r{i}", "p", slots=64, kv_tokens=kv_tokens), 0.0)
    for i in range(IN_FLIGHT):
        send(router, fleet, Request(f"q{i}", "t", "m", 0, 0.0, 100, 50))
    return fleet


def send(router: Router, fleet: Fleet, request: Request) -> str:
    choice = router.pick(request, fleet, 1.0)
    assert isinstance(choice, Choice)
    router.sent(request, choice, 1.0)
    fleet.sent(request, choice.replica, 1.0)
    return choice.replica


def prompt(i: int) -> tuple[int, ...]:
    """A hundred blocks of its own."""
    return tuple(range(1000 * i, 1000 * i + 100))


def least(replicas: int = REPLICAS) -> float:
    """Pick, sent and done."""
    router = LeastOutstanding()
    fleet = served(router, replicas)
    names = itertools.count()

    def work() -> None:
        for _ in range(ASKED):
            request = Request(f"n{next(names)}", "t", "m", 0, 0.0, 100, 50)
            replica = send(router, fleet, request)
            router.done(request, replica, "success", 2.0)
            fleet.done(request.id, replica, 2.0, success=True)

    return steps(work, ASKED)


def affinity(hit: bool) -> float:
    """A pick for a prompt of 100 blocks, with 100 000 blocks cached."""
    router = PrefixAffinity()
    fleet = served(router)
    for i in range(1000):
        send(router, fleet, Request(f"p{i}", "t", "m", 0, 0.0, 1600, 50, blocks=prompt(i)))
    asked = [Request(f"?{i}", "t", "m", 0, 0.0, 1600, 50, blocks=prompt(i if hit else i + 5000)) for i in range(ASKED)]
    reasons = {router.pick(request, fleet, 1.0).reason for request in asked}
    assert reasons == ({"prefix"} if hit else {"prefix_miss"})
    return steps(lambda: [router.pick(request, fleet, 1.0) for request in asked], ASKED)


def insert(bound: int = 2000) -> float:
    """100 blocks remembered of a replica that holds as many as it can."""
    index, rounds = PrefixAffinity().index, itertools.count()
    for i in range(30):
        index.insert("r0", prompt(-i - 1), bound)

    def work() -> None:
        for _ in range(50):
            index.insert("r0", prompt(next(rounds)), bound)

    spent = steps(work, 50)
    assert len(index.held("r0")) == bound == len(index.holders)
    return spent


def ring() -> float:
    """A pick on a ring of 64 replicas with 100 points each."""
    router = BoundedHash()
    fleet = served(router)
    asked = [Request(f"?{i}", "t", "m", 0, 0.0, route_key=f"session-{i}") for i in range(ASKED)]
    return steps(lambda: [router.pick(request, fleet, 1.0) for request in asked], ASKED)


def measure() -> dict[str, float]:
    """Reference steps of each row of BARS, and by how much sixteen times the replicas slow `least_outstanding` down."""
    rows = {"least_outstanding": least(), "prefix_affinity, hit": affinity(True), "prefix_affinity, miss": affinity(False),
            "prefix insert at the bound": insert(), "bounded_hash": ring()}
    return rows | {"least_outstanding, 1024 replicas / 64": least(1024) / rows["least_outstanding"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    given = parser.parse_args()
    rows = measure()
    for name, value in rows.items():
        bar = BARS.get(name, 2.0)
        print(f"{name:40} {value:8.1f}   bar at most {bar:g}: {'met' if value <= bar else 'MISSED'}")
    report.write(given.json, rows, {"requests_in_flight": IN_FLIGHT, "replicas": REPLICAS})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
