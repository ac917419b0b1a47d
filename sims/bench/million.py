"""Growth of the simulation: CPU per request and memory from ten thousand to a million requests, from one replica to 256, and in overload.

    python sims/bench/million.py [--quick] [--json FILE]

Every row runs in a process of its own; ratios are to the first row. The bars: time and memory per request at a million within 1.15 of
those at ten thousand, 64 replicas within 1.6 (256 within 2.2), 50 000 waiting within 1.5; a million in 30 s CPU and 1.5 GB.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from measuring import report

from windtunnel.lab.scenario import Scenario

BAR_CPU_S, BAR_MB = 30.0, 1500.0  # of a million requests
PER_REPLICA_RPS = 16.0
LENGTHS = {"input_tokens": {"kind": "lognormal", "mean": 330, "cv": 1.0, "max": 4000},
           "output_tokens": {"kind": "lognormal", "mean": 190, "cv": 0.8, "max": 2000}}


def fly(requests: int, replicas: int, load: float) -> dict[str, float]:
    """One run: CPU µs per request, peak memory over that after the imports (MB), requests waiting at most."""
    scenario = Scenario.load("peer-chat-10k@affine").with_({
        "source": {"kind": "arrivals", "rate_rps": PER_REPLICA_RPS * replicas * load, "count": requests, **LENGTHS},
        "fleet.pools.chat.replicas": replicas, "control.queue": {"kind": "fair"}, "grace_s": 1e6, "duration_s": None})
    scenario.with_({"source.count": 300}).run()  # imports and caches
    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.process_time()
    run = scenario.run()
    cpu_s = time.process_time() - start
    waiting = run.series[run.series.name == "waiting"].value.max()
    assert len(run.requests) == requests
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"us": cpu_s / requests * 1e6, "cpu_s": cpu_s, "mb": peak_mb - before_mb, "peak_mb": peak_mb, "waiting": float(waiting),
            "requests": float(requests), "output_tokens": float(run.requests.output_tokens.sum())}


def apart(*what: float) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, "--one", json.dumps(what)], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        n, replicas, load = json.loads(args.one)
        print(json.dumps(fly(int(n), int(replicas), load)))
        return 0
    tenth = 10 if args.quick else 1
    rows = [("10 k, one replica", 10_000, 1, 1.0, 1.0), ("100 k, one replica", 100_000 // tenth, 1, 1.0, 1.15),
            ("1 M, one replica", 1_000_000 // tenth, 1, 1.0, 1.15), ("100 k, 64 replicas", 100_000 // tenth, 64, 1.0, 1.6),
            ("100 k, 256 replicas", 100_000 // tenth, 256, 1.0, 2.2),
            ("100 k, one replica, overload", 100_000 // tenth, 1, 8.0, 1.5)]
    first, worst, speed = None, 0.0, {}
    for name, n, replicas, load, bar in rows:
        made = apart(n, replicas, load)
        first = first or made
        ratio = made["us"] / first["us"]
        worst = max(worst, ratio / bar)
        speed[name] = made | {"ratio": ratio, "bar": bar}
        print(f"{name:34} {made['us']:6.1f} us a request   x {ratio:.2f} (bar {bar:.2f})   {made['cpu_s']:6.1f} s CPU   {made['mb']:7.0f} MB   "
              f"most waiting {made['waiting']:,.0f}", flush=True)
        if n == 1_000_000:
            met = made["cpu_s"] <= BAR_CPU_S and made["peak_mb"] <= BAR_MB
            print(f"{'':34} bar {BAR_CPU_S:g} s CPU, {BAR_MB:,.0f} MB peak (it was {made['peak_mb']:,.0f}): {'met' if met else 'MISSED'}", flush=True)
    report.write(args.json, speed, {name: {k: row[k] for k in ("requests", "output_tokens")} for name, row in speed.items()})
    return 0 if worst <= 1.5 else 1  # a shared machine; a quadratic step would be far beyond


if __name__ == "__main__":
    sys.exit(main())
