"""Dynamo's offline replay (ai-dynamo 1.4.2, Rust) on a file of requests, with its own step times or those of a grid. Run in Dynamo's own
environment.

    python dynamo_replay.py requests.csv out.json [grid.npz]

The grid is what `windtunnel scenario timing` writes. No prefix is shared: every 512-token block of a prompt has a hash of its own.
"""

from __future__ import annotations

import csv
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.update(DYN_LOG="error", HF_HUB_OFFLINE="1")

BLOCK = 512
ENGINE = {"engine_type": "vllm", "num_gpu_blocks": 7000, "block_size": 64, "max_num_seqs": 256, "max_num_batched_tokens": 8192,
          "enable_prefix_caching": True, "enable_chunked_prefill": True}


def as_mooncake(requests: Path, to: Path) -> None:
    """The same requests as JSON lines with block hashes, times in ms."""
    used = 0
    with requests.open() as src, to.open("w") as out:
        for row in csv.DictReader(src):
            blocks = -(-int(row["input_tokens"]) // BLOCK)
            out.write(json.dumps({
                "timestamp": round(float(row["arrival_s"]) * 1000, 3), "input_length": int(row["input_tokens"]),
                "output_length": int(row["output_tokens"]), "hash_ids": list(range(used, used + blocks))}) + "\n")
            used += blocks


def main() -> None:
    from dynamo.mocker import MockEngineArgs
    from dynamo.replay import run_trace_replay

    requests, out = Path(sys.argv[1]), Path(sys.argv[2])
    engine = {**ENGINE, "planner_profile_data": sys.argv[3]} if len(sys.argv) > 3 else ENGINE
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.jsonl"
        as_mooncake(requests, trace)
        start = time.process_time()
        told = dict(run_trace_replay(str(trace), replay_mode="offline", router_mode="round_robin", trace_block_size=BLOCK,
                                     extra_engine_args=MockEngineArgs.from_json(json.dumps(engine)), num_workers=1))
        cpu_s = time.process_time() - start
    out.write_text(json.dumps({
        "speed": {"cpu_s": cpu_s},
        "simulated": {"requests": told["completed_requests"], "input_tokens": told["total_input_tokens"],
                      "output_tokens": told["total_output_tokens"], "makespan_s": told["duration_ms"] / 1e3,
                      "mean_ttft_s": told["mean_ttft_ms"] / 1e3, "mean_tpot_s": told["mean_tpot_ms"] / 1e3}}))


if __name__ == "__main__":
    main()
