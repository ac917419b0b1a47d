"""CPU microseconds per simulated request: control, fair queue, AIMD, routing, KV blocks, scrapes and the record, on 10 000 chat requests.

    python sims/bench/engine.py [--repeats 5] [--json FILE] [--peers DIR --vidur-python P --dynamo-python P]

Ratios are measured side by side in this one process start: against a bare heap loop of three events per request, and, where other
simulators are installed (each in an environment of its own), against those on the same request file.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from windtunnel.lab.scenario import Scenario

ROOT = Path(__file__).resolve().parents[2]
WORKLOAD = ROOT / "data" / "workloads" / "chat_10k_r16.csv"
BAR_US = 60.0


def reference_loop(n: int) -> float:
    """CPU seconds of pushing and popping three events per request on a bare heap: the floor of any event simulator in this language."""
    start = time.process_time()
    heap: list[tuple[float, int, int]] = []
    for i in range(n):
        for k in range(3):
            heapq.heappush(heap, (i + k * 0.1, k, i))
        if len(heap) > 60:
            for _ in range(3):
                heapq.heappop(heap)
    while heap:
        heapq.heappop(heap)
    return time.process_time() - start


def ours(scenario: Scenario) -> tuple[float, dict[str, Any]]:
    """CPU seconds of one whole run, building of control, source and fleet included, and what was simulated."""
    start = time.process_time()
    run = scenario.run()
    cpu_s = time.process_time() - start
    values = run.summary().to_dict()
    requests = run.requests
    return cpu_s, {
        "requests": values["requests"], "completed": values["completed"], "makespan_s": values["makespan_s"],
        "ttft_p50_ms": values["ttft_s"]["p50"] * 1e3, "tpot_p50_ms": values["tpot_s"]["p50"] * 1e3,
        "output_tokens": int(requests["output_tokens"].sum()),
    }


def peer(python: str, script: Path, *options: str) -> dict[str, Any]:
    """Run another simulator's script in its own environment; its JSON has `speed.cpu_s` and `simulated`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [python, str(script), "--workload", str(WORKLOAD), "--out", str(out), *options]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
        return dict(json.loads(out.read_text()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peers", type=Path, help="folder with vidur_baseline.py and dynamo_replay_baseline.py")
    parser.add_argument("--vidur-python")
    parser.add_argument("--dynamo-python")
    args = parser.parse_args()

    scenario = Scenario.load("peer-chat-10k")
    n = 10_000
    ours(scenario)  # warm caches and imports
    refs, mine, simulated = [], [], {}
    for _ in range(args.repeats):
        refs.append(reference_loop(n))
        cpu_s, simulated = ours(scenario)
        mine.append(cpu_s)
    ref_us, us = (statistics.median(x) / n * 1e6 for x in (refs, mine))
    print(f"windtunnel       {us:8.1f} us CPU a request   (min {min(mine) / n * 1e6:.1f}, bar {BAR_US:g})")
    print(f"reference loop   {ref_us:8.2f} us CPU a request   windtunnel / reference = {us / ref_us:.1f}")
    result: dict[str, Any] = {
        "speed": {"us_per_request": us, "reference_us": ref_us, "ratio": us / ref_us, "repeats": args.repeats}, "simulated": simulated,
        "python": platform.python_version(), "machine": platform.processor() or platform.machine(), "load_average": os.getloadavg()[0],
    }
    scripts = {"vidur 0.0.26": ("vidur_baseline.py", args.vidur_python), "dynamo replay 1.4.2": ("dynamo_replay_baseline.py", args.dynamo_python)}
    for name, (script, python) in scripts.items():
        if args.peers is None or python is None:
            print(f"{name:<17}not measured: give --peers and its interpreter")
            continue
        answer = peer(python, args.peers / script)
        tokens = answer["simulated"].get("total_output_tokens", answer["simulated"].get("output_tokens"))
        if tokens is not None and int(tokens) != simulated["output_tokens"]:
            print(f"{name:<17}no ratio: it simulated {tokens} output tokens, we {simulated['output_tokens']}")
            continue
        peer_us = (answer["speed"].get("cpu_s") or answer["speed"]["loop_cpu_s"]) / n * 1e6
        result["speed"][name] = peer_us
        print(f"{name:<17}{peer_us:8.1f} us CPU a request   windtunnel / it = {us / peer_us:.3f}")
    print(f"simulated        {json.dumps(simulated)}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    return 0 if us <= BAR_US or us / ref_us <= 50 else 1


if __name__ == "__main__":
    sys.exit(main())
