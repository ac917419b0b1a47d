"""What a person waits for: imports, a what-if, a sweep on two processes; and what stepping every iteration would cost.

    python sims/bench/interactive.py [--repeats 5] [--json FILE]

Wall seconds for the what-if and the sweep, CPU seconds elsewhere. The sweep is 16 points of a thousand chat requests.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from measuring import report

from windtunnel.lab.scenario import Scenario
from windtunnel.lab.world_simulated import Simulated

BARS = {"import_cpu_s": 0.6, "worker_start_s": 1.5, "what_if_s": 0.25, "step_us": 10.0}
AT_LEAST = {"sweep_speedup": 1.7, "step_every_ratio": 5.0}
POINTS = 16
IMPORT = "import time; t = time.process_time(); {}; print(time.process_time() - t)"
ready_at = 0.0  # in a worker: when it had flown once
LAZY, WHOLE = "import windtunnel", "from windtunnel import Scenario; Scenario.load('peer-chat-10k')"


def chat(requests: int) -> Scenario:
    """The chat requests of so long that about so many arrive."""
    return Scenario.load("peer-chat-10k").with_({"source.ops": [{"window": {"t0": 0, "t1": requests / 16.0}}]})


def import_cpu_s(what: str) -> float:
    return float(subprocess.run([sys.executable, "-c", IMPORT.format(what)], capture_output=True, text=True, check=True).stdout)


def what_if(limit: int) -> tuple[float, int]:
    """(wall s, requests) of a slider's move: rebuild with another limit, fly two thousand requests, summarise."""
    scenario = chat(2_000)
    start = time.perf_counter()
    run = scenario.with_({"control.admission": {"limit": {"kind": "aimd", "initial_limit": limit}}}).run()
    return time.perf_counter() - start, int(run.summary().to_dict()["completed"])


def point(seed: int) -> int:
    return int(chat(1_000).run(seed=seed).requests.output_tokens.sum())


def warm(all_ready: Any) -> None:
    """A worker flies once, and so has imported all it needs for that, then waits for the others: none takes two workers' share."""
    global ready_at
    point(0)
    ready_at = time.time()
    all_ready.wait()


def when_ready(_: int) -> float:
    return ready_at


def sweeps(repeats: int) -> tuple[float, float, bool]:
    """(how many times as quick the sweep is on two processes as on one, wall s until the first of two workers was ready, whether both
    made the same output tokens). Medians of sweeps by turns, for the machine is not ours alone."""
    context, wall_s, tokens = get_context("spawn"), {1: list[float](), 2: list[float]()}, {}
    with ExitStack() as stack:
        pools = {}
        for n in wall_s:
            start = time.time()
            pools[n] = stack.enter_context(ProcessPoolExecutor(n, context, warm, (context.Barrier(n),)))
            began = min(pools[n].map(when_ready, range(n))) - start
        for _ in range(repeats):
            for n, pool in pools.items():
                start = time.time()
                tokens[n] = list(pool.map(point, range(POINTS)))
                wall_s[n].append(time.time() - start)
    return statistics.median(wall_s[1]) / statistics.median(wall_s[2]), began, tokens[1] == tokens[2]


def stepping(step_every: bool) -> tuple[float, int, int]:
    """(CPU s, engine steps, output tokens) of the 10 000 chat requests, run by run or step by step."""
    scenario = Scenario.load("peer-chat-10k")
    _, control, source = scenario.build()
    world = Simulated(scenario.build_fleet(), seed=scenario.seed, step_every=step_every)
    start = time.process_time()
    run = world.run(control, source)
    return time.process_time() - start, int(run.replicas.steps.sum()), int(run.requests.output_tokens.sum())


def measure(repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    speed = {name: statistics.median(import_cpu_s(what) for _ in range(repeats)) for name, what in (
        ("import_cpu_s", LAZY), ("scenario_cpu_s", WHOLE))}
    what_if(32)  # warm
    told = [what_if(40 + i) for i in range(repeats)]
    speed["what_if_s"] = statistics.median(s for s, _ in told)
    speed["sweep_speedup"], speed["worker_start_s"], same = sweeps(repeats)
    fast = [stepping(False) for _ in range(repeats)]
    every = [stepping(True) for _ in range(min(3, repeats))]
    fast_s, every_s, steps = statistics.median(f[0] for f in fast), statistics.median(e[0] for e in every), every[0][1]
    speed["step_every_ratio"], speed["step_us"] = every_s / fast_s, every_s / steps * 1e6
    simulated = {"what_if_requests": told[0][1], "sweep_same": same, "steps": (fast[0][1], steps),
                 "output_tokens": (fast[0][2], every[0][2])}
    return speed, simulated


def verdict(name: str, value: float) -> str:
    """The bar of a row and whether it is met; rows without one are for information."""
    if name in BARS:
        return f"bar at most {BARS[name]:g}: {'met' if value <= BARS[name] else 'MISSED'}"
    if name in AT_LEAST:
        return f"bar at least {AT_LEAST[name]:g}: {'met' if value >= AT_LEAST[name] else 'MISSED'}"
    return "no bar"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    speed, simulated = measure(args.repeats)
    same = simulated["sweep_same"] and len(set(simulated["steps"])) == len(set(simulated["output_tokens"])) == 1
    for name, value in speed.items():
        print(f"{name:20}{value:9.3f}   {verdict(name, value)}")
    print(f"simulated           {json.dumps(simulated)}")
    report.write(args.json, speed, simulated)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
