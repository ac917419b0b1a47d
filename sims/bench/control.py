"""CPU microseconds per request inside `Control` alone: arrive, queue, acquire, route, dispatch, finish; beside a bare heap loop.

    python sims/bench/control.py [--requests 100000]

Two loads: never waiting (the straight path) and always waiting (every request passes the fair queue), on 4 and on 64 replicas.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import deque

from engine import reference_loop

from windtunnel.effects import Dispatch
from windtunnel.events import Arrived, Finished, ReplicaReady, Request
from windtunnel.policy.control import Control
from windtunnel.policy.presets import default_control


def fly(control: Control, n: int, in_flight: int, replicas: int) -> float:
    """CPU seconds of n requests with about `in_flight` of them at engines at any time."""
    for i in range(replicas):
        control.handle(ReplicaReady(f"chat-{i}", "chat", slots=64 // max(1, replicas // 4)), 0.0)
    requests = [Request(f"r{i}", f"t{i % 8}", "m", 0, i * 1e-3, 500, 100) for i in range(n)]
    running: deque[Dispatch] = deque()
    start = time.process_time()
    for i, request in enumerate(requests):
        now = i * 1e-3
        for effect in control.handle(Arrived(request), now):
            if type(effect) is Dispatch:
                running.append(effect)
        if i >= in_flight and running:
            done = running.popleft()
            for effect in control.handle(Finished(done.request.id, done.dispatch, done.replica, 100, 500, 0, now, now), now):
                if type(effect) is Dispatch:
                    running.append(effect)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=50_000)
    n = parser.parse_args().requests
    ref_us = statistics.median(reference_loop(n) for _ in range(5)) / n * 1e6
    print(f"reference loop                    {ref_us:6.2f} us a request")
    for replicas in (4, 64):
        for label, in_flight in (("straight", 100), ("queued", 300)):
            took = [fly(default_control(["chat"]), n, in_flight, replicas) for _ in range(3)]
            us = statistics.median(took) / n * 1e6
            print(f"control, {label:<9}{replicas:>3} replicas    {us:6.2f} us a request   / reference = {us / ref_us:.1f}")


if __name__ == "__main__":
    main()
