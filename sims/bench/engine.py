"""CPU microseconds per simulated request: control, fair queue, AIMD, routing, KV blocks, scrapes and the record, on 10 000 chat requests.

    python sims/bench/engine.py [--repeats 5] [--peers [DIR]] [--json FILE]

Ratios are measured side by side in this one process start: against a bare heap loop of three events per request and, with --peers, against
other simulators on the same request file. Each of those gets an environment of its own under DIR (default: in the temporary folder), made
on first use. No ratio is printed where the requests or tokens that were simulated are not the same.
"""

from __future__ import annotations

import argparse
import heapq
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from measuring import report, side_by_side
from measuring.side_by_side import PEERS, Peer, PeerUnavailable

from windtunnel import compiled
from windtunnel.lab.scenario import Scenario

ROOT = Path(__file__).resolve().parents[2]
WORKLOAD = ROOT / "data" / "workloads" / "chat_10k_r16.csv"
BAR_US, BAR_RATIO = 28.0, 24.0  # what is wanted
FORM = "compiled" if compiled.in_use() else "plain Python (`windtunnel compile` halves it)"
PLAIN_RATIO = 50.0  # what plain Python must keep


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
    values, requests = run.summary().to_dict(), run.requests
    return cpu_s, {
        "requests": values["completed"], "input_tokens": int(requests["input_tokens"].sum()),
        "output_tokens": int(requests["output_tokens"].sum()), "makespan_s": values["makespan_s"],
        "ttft_p50_ms": values["ttft_s"]["p50"] * 1e3, "tpot_p50_ms": values["tpot_s"]["p50"] * 1e3,
    }


class Beside:
    """One peer's runs, taken in turn with ours."""

    def __init__(self, peer: Peer, folder: Path) -> None:
        self.peer, self.took, self.why_not = peer, list[float](), ""
        self.simulated: dict[str, Any] = {}
        try:
            self._python = side_by_side.interpreter(peer, folder)
        except PeerUnavailable as error:
            self.why_not = str(error)

    def fly(self, simulated: dict[str, Any]) -> None:
        """Once more, unless it is known not to work or to do other work than ours."""
        if self.why_not:
            return
        try:
            told = side_by_side.fly(self.peer, self._python, WORKLOAD)
        except PeerUnavailable as error:
            self.why_not = str(error)
            return
        self.simulated = told["simulated"]
        differs = side_by_side.difference(simulated, self.simulated)
        self.why_not = f"no ratio, it did other work: {differs}" if differs else ""
        self.took.append(told["speed"]["cpu_s"])

    def row(self, us: float, n: int) -> dict[str, Any]:
        """Print its line; what the JSON says of it."""
        if self.why_not:
            print(f"{self.peer.name:<21}{self.why_not}")
            return {"refused": self.why_not}
        peer_us = statistics.median(self.took) / n * 1e6
        print(f"{self.peer.name:<21}{peer_us:8.1f} us CPU a request   windtunnel / it = {us / peer_us:.3f} (bar {self.peer.most})")
        return {"us_per_request": peer_us, "ratio": us / peer_us, "bar": self.peer.most, "repeats": len(self.took)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peers", type=Path, nargs="?", const=side_by_side.ENVIRONMENTS, metavar="DIR")
    args = parser.parse_args()

    scenario, n = Scenario.load("peer-chat-10k"), 10_000
    _, simulated = ours(scenario)  # warm caches and imports
    peers = [Beside(peer, args.peers) for peer in PEERS] if args.peers else []
    refs, mine = [], []
    for _ in range(args.repeats):
        refs.append(reference_loop(n))
        mine.append(ours(scenario)[0])
        for peer in peers:
            peer.fly(simulated)
    ref_us, us = (statistics.median(x) / n * 1e6 for x in (refs, mine))
    print(f"windtunnel           {us:8.1f} us CPU a request   (min {min(mine) / n * 1e6:.1f}, bar {BAR_US:g}), {FORM}")
    print(f"reference loop       {ref_us:8.2f} us CPU a request   windtunnel / it = {us / ref_us:.1f} (bar {BAR_RATIO:g})")
    speed: dict[str, Any] = {"us_per_request": us, "reference_us": ref_us, "ratio": us / ref_us, "repeats": args.repeats}
    speed["peers"] = {peer.peer.name: peer.row(us, n) for peer in peers}
    print(f"simulated            {json.dumps(simulated)}")
    report.write(args.json, speed, {"windtunnel": simulated} | {p.peer.name: p.simulated for p in peers})
    return 0 if us / ref_us <= (BAR_RATIO if compiled.in_use() else PLAIN_RATIO) else 1


if __name__ == "__main__":
    sys.exit(main())
