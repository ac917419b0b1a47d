"""What prefix caching costs the simulation: a whole public trace of long prompts, and chat in which every block is looked up, filled, evicted.

    python sims/bench/prefixes.py [--repeats 5] [--json FILE]

Mooncake's conversation trace (12 031 requests, 145 million prompt tokens in hashed blocks of 512) on 16 replicas; and the 10 000 chat requests
with unique hashes of 16-token blocks (36 a request), beside the same requests without hashes.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engine import WORKLOAD
from measuring import report

from windtunnel.lab.scenario import Scenario
from windtunnel.sources.traces.open import Trace
from windtunnel.sources.traces.row import TraceRow

BAR_TRACE_S, BAR_HASHED_US = 2.0, 45.0
BLOCK = 16


def hashed_chat(to: Path) -> None:
    """The chat requests as a Parquet trace, each 16-token block of a prompt with a hash of its own."""
    used, rows = 0, []
    with WORKLOAD.open() as src:
        for i, row in enumerate(csv.DictReader(src)):
            tokens = int(row["input_tokens"])
            blocks = -(-tokens // BLOCK)
            rows.append(TraceRow(str(i), float(row["arrival_s"]), tokens, int(row["output_tokens"]), blocks=tuple(range(used, used + blocks))))
            used += blocks
    Trace.from_rows(rows, block_size=BLOCK, own_ids=False).write(to)


def conversation() -> Scenario:
    """The whole trace at its recorded times; nobody is turned away."""
    return Scenario.load("mooncake-conversation").with_({
        "duration_s": None, "warmup_s": 0, "grace_s": 1e6, "fleet.pools.chat.replicas": 16, "source.ops": [], "control.queue": {"kind": "fair"}})


def chat(path: Path) -> Scenario:
    return Scenario.load("peer-chat-10k").with_({
        "source.path": str(path), "source.format": "own", "fleet.pools.chat.engine.cache_block_tokens": BLOCK})


def fly(scenario: Scenario) -> tuple[float, dict[str, Any]]:
    """CPU seconds of one whole run, and what was simulated."""
    start = time.process_time()
    run = scenario.run()
    cpu_s = time.process_time() - start
    requests, replicas = run.requests, run.replicas
    return cpu_s, {"requests": int((requests.outcome == "success").sum()), "input_tokens": int(requests.input_tokens.sum()),
                   "output_tokens": int(requests.output_tokens.sum()), "blocks_looked_up": int(replicas.prefix_query_blocks.sum()),
                   "blocks_hit": int(replicas.prefix_hit_blocks.sum())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        hashed = Path(folder) / "hashed.parquet"
        hashed_chat(hashed)
        scenarios = {"conversation": conversation(), "chat": Scenario.load("peer-chat-10k"), "hashed chat": chat(hashed)}
        simulated = {name: fly(s)[1] for name, s in scenarios.items()}  # warms imports and caches, too
        took: dict[str, list[float]] = {name: [] for name in scenarios}
        for _ in range(args.repeats):
            for name, scenario in scenarios.items():
                took[name].append(fly(scenario)[0])
    cpu_s = {name: statistics.median(times) for name, times in took.items()}
    us = {name: s / simulated[name]["requests"] * 1e6 for name, s in cpu_s.items()}
    hits = simulated["conversation"]["blocks_hit"] / simulated["conversation"]["blocks_looked_up"]
    print(f"Mooncake conversation, 16 replicas   {cpu_s['conversation']:6.2f} s CPU (bar {BAR_TRACE_S:g})   {us['conversation']:6.1f} us a request   "
          f"{hits:.1%} of the blocks hit")
    print(f"chat, 36 hashed blocks a request     {us['hashed chat']:6.1f} us a request (bar {BAR_HASHED_US:g})   "
          f"x {us['hashed chat'] / us['chat']:.2f} of without hashes ({us['chat']:.1f})")
    report.write(args.json, {"cpu_s": cpu_s, "us_per_request": us, "repeats": args.repeats}, simulated)
    return 0 if cpu_s["conversation"] <= 2 * BAR_TRACE_S and us["hashed chat"] <= 3 * us["chat"] else 1  # a shared machine


if __name__ == "__main__":
    sys.exit(main())
