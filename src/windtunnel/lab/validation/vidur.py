"""The same batching, step times and request files as a public simulator (Vidur 0.0.26), and its numbers."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Sequence

import numpy as np

from windtunnel.datafiles import data_path
from windtunnel.lab.validation.check import Check, within
from windtunnel.sim.agenda import ARRIVAL, Agenda
from windtunnel.sim.batching.prefill_first import prefill_first_config
from windtunnel.sim.batching.sarathi import sarathi_config
from windtunnel.sim.engine import Attempt, SimEngine
from windtunnel.sim.stepmodels.vidur import VidurRoofline

SECTION = "Another simulator (Vidur 0.0.26)"
Four = tuple[float, float, float, float]
Run = tuple[str, str, int]  # batching, request file, replicas
# steps, mean batch, makespan s, TTFT ms (mean p50 p95 p99), TPOT ms (same), E2E s (same)
EXPECTED: dict[Run, tuple[int, float, float, Four, Four, Four]] = {
    ("sarathi", "chat_1k_r16", 1): (
        7908, 24.10129, 64.596154, (33.827696, 24.148610, 95.276562, 118.173613), (8.417628, 8.266762, 9.960311, 10.977216),
        (1.616444, 1.274414, 4.023980, 6.448434)),
    ("sarathi", "chat_10k_r16", 1): (
        76914, 24.91831, 630.775498, (32.508158, 24.544773, 88.040663, 121.703248), (8.322336, 8.271641, 9.602257, 10.366639),
        (1.610699, 1.268181, 3.980849, 6.299838)),
    ("sarathi", "chat_50k_r16", 1): (
        379679, 25.24428, 3139.916706, (33.060307, 24.746736, 92.941296, 127.500673), (8.387194, 8.303186, 9.773073, 10.680572),
        (1.624928, 1.281107, 4.065115, 6.487238)),
    ("prefill_first", "chat_1k_r16", 1): (
        7419, 25.57528, 64.692432, (29.080027, 18.250212, 90.919194, 144.808037), (10.412218, 10.123206, 13.388936, 15.389192),
        (1.980898, 1.565530, 4.997037, 7.946621)),
    ("prefill_first", "chat_10k_r16", 1): (
        72255, 26.41193, 630.943065, (27.724455, 18.920206, 79.939972, 114.769153), (10.207254, 10.071729, 12.691713, 14.445193),
        (1.959979, 1.541478, 4.879662, 7.850941)),
    ("sarathi", "chat_10k_r64", 4): (
        79263, 24.17041, 161.560185, (26.382168, 18.080050, 70.606460, 110.308524), (8.181221, 8.128970, 9.223432, 9.887197),
        (1.580666, 1.246616, 3.922349, 6.205921)),
}
CONFIGS = {"sarathi": sarathi_config, "prefill_first": prefill_first_config}
REL = 1e-6
NAMES = ("mean", "p50", "p95", "p99")


def requests(name: str) -> list[tuple[float, int, int]]:
    """(arrival s, prompt, output tokens) of a request file."""
    path = data_path(f"workloads/{name}.csv.gz" if "50k" in name else f"workloads/{name}.csv")
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return [(float(r["arrival_s"]), int(r["input_tokens"]), int(r["output_tokens"])) for r in csv.DictReader(file)]


def fly(batching: str, name: str, replicas: int) -> tuple[list[SimEngine], list[tuple[float, Attempt]]]:
    """Engines alone, round robin in the order of arrival."""
    agenda, sent = Agenda(), []
    engines = [SimEngine(f"r{i}", CONFIGS[batching](num_blocks=30208), VidurRoofline(), agenda, on_finish=lambda a: None,
                         on_cancelled=lambda a: None) for i in range(replicas)]
    for i, (at_s, prompt, output) in enumerate(requests(name)):
        a = Attempt(str(i), 1, prompt, output)
        sent.append((at_s, a))
        agenda.at(at_s, ARRIVAL, lambda _, a=a, engine=engines[i % replicas]: engine.submit(a))  # type: ignore[misc]
    agenda.run()
    return engines, sent


def figures(x: Sequence[float]) -> list[float]:
    """Mean, median, 95th and 99th percentile."""
    return [float(np.mean(x)), *(float(np.percentile(x, p)) for p in (50, 95, 99))]


def run_vidur(run: Run) -> list[Check]:
    """Steps exactly, everything else to 1e-6; TTFT and TPOT in ms, the rest in s."""
    batching, name, replicas = run
    engines, sent = fly(batching, name, replicas)
    steps, batch, makespan_s, *published = EXPECTED[run]
    what, n = f"{batching}, {name}, {replicas} replica{'s' if replicas > 1 else ''}", len(sent)
    made = sum(e.steps for e in engines)
    ends = [(at, a.first_token_s or 0.0, a.finished_s or 0.0, a.output) for at, a in sent]
    ours = (figures([(first - at) * 1e3 for at, first, _, _ in ends]),
            figures([(end - first) / (output - 1) * 1e3 for _, first, end, output in ends if output > 1]),
            figures([end - at for at, _, end, _ in ends]))
    checks = [within(SECTION, what, "steps", steps, made, 0.0, n),
              within(SECTION, what, "mean batch", batch, sum(e.sequence_steps for e in engines) / made, 3e-7, n),
              within(SECTION, what, "makespan", makespan_s, max(end for _, _, end, _ in ends), REL, n, "s")]
    for metric, unit, expected, got in zip(("TTFT", "TPOT", "E2E"), ("ms", "ms", "s"), published, ours):
        checks += [within(SECTION, what, f"{metric} {q}", x, y, REL, n, unit) for q, x, y in zip(NAMES, expected, got)]
    return checks
