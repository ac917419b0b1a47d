"""What planning costs: a tick with plugins in this process, over gRPC, in memory, in bytes, and as a share of a simulated run.

    python sims/bench/planner.py [--quick] [--json FILE]

A tick in process is set beside an empty generator loop of the same shape, measured in turn with it: five yields, twelve method calls, no
planner. gRPC ticks ask a plugin in a process of its own, four stages one after another, over a unix socket and over loopback TCP.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from planning.in_a_run import in_a_run
from planning.in_process import in_process, memory
from planning.over_grpc import over_grpc
from planning.rows import Row

ROWS: list[Callable[..., list[Row]]] = [in_process, over_grpc, in_a_run, memory]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer ticks")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for make in ROWS:
        for row in make(quick=args.quick):
            rows.append(row)
            p99 = "" if row.p99 is None else f"  p99 {row.p99:9.3f}"
            ratio = "" if row.ratio is None else f"  / reference {row.ratio:6.1f}"
            bars = ", ".join(f"{bar:g}" for bar in (row.bar, row.bar_p99) if bar is not None)
            bar = f"  bar {bars}  {'ok' if row.passed else 'ABOVE'}" if bars else ""
            print(f"{row.name:<46}{row.value:11.4f} {row.unit:<9}{p99}{ratio}{bar}", flush=True)
    if args.json:
        result = {"rows": [{**asdict(row), "passed": row.passed} for row in rows], "python": platform.python_version(),
                  "machine": platform.processor() or platform.machine(), "load_average": os.getloadavg()[0]}
        args.json.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
