"""Strict against bounded-borrow sharing on small pipelines, end to end in simulation: paired iterations on the same seeds.

    python sims/bench/ab.py [--iterations N]

Per shape: one warm-up, then pairs. Neutral: the mean wall time rises by at most 5 %. A claim (`better`, `worse`) must survive dropping
the fastest and the slowest pair. Output hashes of both sides must be equal, and nothing may be left at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from windtunnel.lab.artifact import artifact_of
from windtunnel.lab.paired import Paired, paired
from windtunnel.lab.run import Run
from windtunnel.lab.scenario import Scenario
from windtunnel.sources.pipeline import PipelineSource

LARGE, SMALL = "Llama-3.1-70B", "Llama-3.1-8B"
OUT = {"kind": "lognormal", "mean": 60, "cv": 0.5, "max": 300}


def ask(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "input_tokens": 100, "output_tokens": OUT, **more}


SHAPES: dict[str, dict[str, Any]] = {
    "narrow serial": {"a": ask(SMALL), "b": ask(SMALL, needs=["a"]), "c": ask(SMALL, needs=["b"]), "d": ask(SMALL, needs=["c"])},
    "wide roots": {**{f"root{n}": ask(SMALL) for n in range(6)}, "all": ask(SMALL, needs=[f"root{n}" for n in range(6)])},
    "generate to judge": {"answer": ask(LARGE), "judge": ask(SMALL, needs=["answer"], output_tokens=8)},
    "heavy root": {"root": ask(LARGE, output_tokens={"kind": "lognormal", "mean": 300, "cv": 0.5, "max": 900}), "quick": ask(SMALL, output_tokens=8),
                   "after": ask(SMALL, needs=["quick"], output_tokens=8)},
    "dynamic requests": {"none": {"local_s": 0.02}, "one": ask(SMALL, needs=["none"]),
                         "many": ask(SMALL, needs=["one"], requests=4, parallel=True, output_tokens=8)},
    "cross-provider cool-down": {"a": ask(LARGE), "b": ask(SMALL)},
}
FAULTS = {"cross-provider cool-down": [{"kind": "errors", "pool": "large", "at_s": 0.5, "for_s": 2.0, "status": 429}]}


def scenario(shape: str, sharing: str, rows: int = 40) -> Scenario:
    columns = SHAPES[shape]
    models = {c["model"] for c in columns.values() if "model" in c}
    pools = {"large": {"model": LARGE, "gpu": "h100_sxm", "tp": 4}, "small": {"model": SMALL, "gpu": "h100_sxm"}}
    return Scenario.load(json.dumps({
        "windtunnel": 1, "name": shape.replace(" ", "-"), "seed": 1, "fleet": {"pools": pools},
        "source": {"kind": "pipeline", "rows": rows, "buffer_size": 20, "max_in_flight_tasks": 8, "columns": columns, "sharing": {"kind": sharing},
                   "max_parallel_requests": dict.fromkeys(models, 8)},
        "control": {"queue": {"kind": "fair"}, "admission": {"limit": {"kind": "fixed", "limit": 16}}},
        "faults": FAULTS.get(shape, [])}, indent=1))


def fly(shape: str, sharing: str, seed: int, rows: int = 40) -> tuple[Run, PipelineSource]:
    world, control, source = scenario(shape, sharing, rows).build(seed=seed, check=True)
    assert isinstance(source, PipelineSource)
    return world.run(control, source), source


def compare(shape: str, iterations: int = 5, rows: int = 40) -> tuple[Paired, Mapping[str, float]]:
    """Bounded borrowing against strict, seed by seed; numbers beside it: hidden waiters, idle gap, what is left, unequal outputs."""
    flights = {  # the first of each is the warm-up
        sharing: [fly(shape, sharing, seed, rows) for seed in range(iterations + 1)][1:] for sharing in ("strict", "bounded_borrow")}
    made = {sharing: artifact_of(shape, each) for sharing, each in flights.items()}
    walls = {sharing: [i.wall_time_seconds for i in artifact.iterations] for sharing, artifact in made.items()}
    unequal = sum(a.output_hashes != b.output_hashes for a, b in zip(made["strict"].iterations, made["bounded_borrow"].iterations))
    left = sum(len(s.scheduler.running) + len(s.scheduler.queue) + len(s.scheduler.deferred) + len(s.scheduler.admission.active)
               for each in flights.values() for _, s in each)
    worst = {name: max(artifact.derived_metrics[name].max for artifact in made.values())
             for name in ("hidden_scheduler_resource_waiters", "ready_idle_gap")}
    return paired(walls["strict"], walls["bounded_borrow"]), {**worst, "left": float(left), "unequal outputs": float(unequal)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=5)
    iterations = max(5, parser.parse_args().iterations)
    print(f"{'shape':<28}{'pairs':>6}{'strict s':>10}{'bounded s':>11}{'change':>9}{'trimmed':>9}  claim     neutral  zeros")
    good = True
    for shape in SHAPES:
        found, zeros = compare(shape, iterations)
        fine = found.neutral and not any(zeros.values())
        good &= fine
        print(f"{shape:<28}{found.pairs:6d}{found.base_mean:10.3f}{found.candidate_mean:11.3f}{found.change:9.1%}{found.trimmed_change:9.1%}"
              f"  {found.claim:<10}{'yes' if found.neutral else 'NO':<9}{'yes' if not any(zeros.values()) else zeros}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
