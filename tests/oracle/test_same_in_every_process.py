"""The same scenario and seed give the same log, in any process, whatever its hash seed."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import hashlib
from windtunnel.lab.validation.station import fly
from windtunnel.sim.service import ServiceConfig
from windtunnel.sources.arrivals import ArrivalSource
from windtunnel.sources.dist import Exponential, Hyperexponential
from windtunnel import Scenario
from pathlib import Path
source = ArrivalSource(0.8, input_tokens=1, output_tokens=1, service_s=Hyperexponential(1.0, 2.0), count=500, rng=7,
                       tenants={"a": 1, "b": 2, "c": 1}, priorities={"interactive": 1, "batch": 1}, patience_s=Exponential(9.0))
f = fly(source, ServiceConfig(2, "preemptive"), limit=6)
digest = hashlib.sha256(b"".join(getattr(f, n).tobytes() for n in ("ids", "arrived_s", "ended_s", "wait_s", "done")))
run = Scenario.load(Path("sims/tenant-flood.yaml"), overrides=["duration_s=20"]).run(record="full")
digest.update(run.requests.to_csv().encode())
print(digest.hexdigest())
"""


def digest(hash_seed: str) -> str:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": hash_seed})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_SV_5_a_fresh_process_with_another_hash_seed_gives_the_same_run() -> None:
    assert len(digest("1")) == 64
    assert digest("1") == digest("4242")
