"""From measurements of a running engine to a profile that the simulator can use, and how wrong it is on what it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from windtunnel.errors import ConfigError
from windtunnel.lab.calibrate.probe import Cell, Measured
from windtunnel.sim.agenda import ARRIVAL, Agenda
from windtunnel.sim.engine import Attempt, EngineConfig, HostCosts, SimEngine
from windtunnel.sim.stepmodels.model import Provenance
from windtunnel.sim.stepmodels.table import Table

STAGGER_S = 1e-3
METRICS = ("ttft_s", "tpot_s", "tokens_per_s")


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """decode_s: seconds of a decode step by batch, medians; kv_s_per_token: more per attended token; prefill_s: of whole
    prompts by tokens; ingress_s: per request before the engine. slots: calls at once; ctx_tokens: context of one call."""

    engine: str
    decode_s: tuple[tuple[int, float], ...]
    prefill_s: tuple[tuple[int, float], ...]
    kv_s_per_token: float
    ingress_s: float
    slots: int
    ctx_tokens: int | None
    source: str

    def step_model(self) -> Table:
        return Table(self.decode_s, 0.0, self.kv_s_per_token, self.prefill_s, Provenance("measured", self.engine, self.source, "calibrated"))

    def config(self) -> EngineConfig:
        context = None if self.ctx_tokens is None else self.ctx_tokens * self.slots
        return EngineConfig(policy="slots", max_num_seqs=self.slots, n_ctx=context, prefix_cache=False, host=HostCosts(ingress_s=self.ingress_s))

    def plain(self) -> dict[str, Any]:
        """As the `profile` and `engine` of a pool in a scenario."""
        return {
            "profile": {"kind": "table", "decode_s": [[b, round(s, 7)] for b, s in self.decode_s],
                        "prefill_s_per_token": 0.0, "prefill_s": [[n, round(s, 6)] for n, s in self.prefill_s],
                        "kv_s_per_token": round(self.kv_s_per_token, 12)},
            "engine": {"policy": "slots", "max_num_seqs": self.slots, "prefix_cache": False,
                       **({} if self.ctx_tokens is None else {"n_ctx": self.ctx_tokens * self.slots}),
                       "host": {"ingress_s": round(self.ingress_s, 6)}},
        }


SWEEP = ((1, 2, 4, 8, 16), (64, 512, 2048), (64, 256))  # requests at once, prompt tokens, output tokens


def sweep_cells(slots: int, ctx_tokens: int | None) -> list[Cell]:
    """Every combination of SWEEP that an engine of so many slots, each with so much context, can serve; one wave of each."""
    at_once, prompts, outputs = SWEEP
    return [Cell(b, n, out, rounds=1) for b in at_once for n in prompts for out in outputs
            if b <= slots and (ctx_tokens is None or n + out <= ctx_tokens)]


def plan(slots: int, ctx_tokens: int | None, full: bool = False) -> tuple[list[Cell], list[Cell]]:
    """(cells to fit, cells held back): other prompt lengths, closed loops and open arrivals are never fitted.

    full: `sweep_cells` are fitted too, which takes minutes a round rather than seconds.
    """
    longest = min(512, (ctx_tokens or 4096) // 3)
    short, out = 32, 96
    batches = [b for b in (1, 2, 3, 4, 6, 8, 12, 16) if b <= min(slots, 16)]
    fitted = [Cell(b, n, out, rounds=1) for b in batches for n in (short, longest)]
    fitted += sweep_cells(slots, ctx_tokens) if full else []
    fitted += [Cell(1, n, 8, rounds=2) for n in (8, longest // 4, longest // 2, longest)]
    most = batches[-1]
    between = longest // 3
    held = [Cell(b, between, 32, rounds=4) for b in dict.fromkeys((1, most))]
    held += [Cell(most, 2 * short, 64, rounds=3), Cell(max(1, most // 2), longest // 2 + 7, 24, rounds=4)]
    return fitted, held


def fit(measured: Sequence[Measured], *, engine: str, slots: int, ctx_tokens: int | None, source: str) -> EngineProfile:
    """Medians per batch; the growth with context and the prefill rate are median slopes (Theil 1950, Sen 1968), robust to a busy machine.

    A prompt's time is the median by length at one call at once; its line through no tokens is what the engine takes before it begins.
    Raises ConfigError if a single decode or prefill could not be measured.
    """
    waves: dict[int, list[tuple[float, float]]] = {}
    for m in measured:
        if m.cell.rounds == 1 and m.step_s:
            kv = m.cell.concurrency * (m.cell.input_tokens + m.cell.output_tokens / 2)
            waves.setdefault(m.cell.concurrency, []).extend((kv, s) for s in m.step_s)
    if 1 not in waves:
        raise ConfigError("no decode step could be measured: every request failed or was too short")
    kv_slope = max(0.0, median([s for b in waves.values() for s in slopes(b)] or [0.0]))
    decode = tuple((b, max(1e-6, median([s - kv_slope * kv for kv, s in points]))) for b, points in sorted(waves.items()))
    first: dict[int, list[float]] = {}
    for m in measured:
        if m.cell.concurrency == 1:
            first.setdefault(m.cell.input_tokens, []).extend(r.ttft_s for r in m.requests)
    knots = [(n, median(times)) for n, times in sorted(first.items())]
    (n0, t0), (n1, t1) = knots[0], knots[min(1, len(knots) - 1)]
    rate = max(0.0, (t1 - t0) / (n1 - n0)) if n1 > n0 else 0.0
    ingress_s = max(0.0, t0 - decode[0][1] - rate * n0)  # what a prompt without tokens would take
    prefill = tuple(zip((n for n, _ in knots), _rising([max(0.0, t - decode[0][1] - ingress_s) for _, t in knots])))
    return EngineProfile(engine, decode, prefill, kv_slope, ingress_s, slots, ctx_tokens, source)


def _rising(values: Sequence[float]) -> list[float]:
    """Never less than before: what a busy moment turned round is put right."""
    return list(accumulate(values, max))


def slopes(points: Sequence[tuple[float, float]]) -> list[float]:
    """Of the lines through every two points."""
    return [(y2 - y1) / (x2 - x1) for i, (x1, y1) in enumerate(points) for x2, y2 in points[i + 1:] if x2 != x1]


def simulate(profile: EngineProfile, measured: Measured) -> dict[str, float]:
    """What the simulator makes of a cell: its closed loop, or the very arrival times of an open one. Medians, and tokens per second."""
    agenda, cell = Agenda(), measured.cell
    done: list[Attempt] = []
    left: list[int] = []

    def submit(n: int, _: object = None) -> None:
        attempt = Attempt(f"r{n}", 1, cell.input_tokens, cell.output_tokens)
        refusal = engine.submit(attempt)
        if refusal is not None:
            raise ConfigError(f"the simulated engine refuses {cell.name}: {refusal.reason}")

    def finished(attempt: Attempt) -> None:
        done.append(attempt)
        if left:
            submit(left.pop())

    engine = SimEngine("calibrated", profile.config(), profile.step_model(), agenda, on_finish=finished, on_cancelled=lambda a: None)
    if cell.open_rps is None:
        total = cell.concurrency * cell.rounds
        left = list(range(total - 1, cell.concurrency - 1, -1))
        for n in range(cell.concurrency):  # clients never start at the very same instant
            agenda.at(n * STAGGER_S, ARRIVAL, partial(submit, n))
    else:
        for n, request in enumerate(measured.requests):
            agenda.at(request.arrival_s, ARRIVAL, partial(submit, n))
    agenda.run()
    times = np.array([(a.submitted_s, a.first_token_s, a.finished_s) for a in done], dtype=float)
    sent, first, last = times.T
    return {"ttft_s": float(np.median(first - sent)), "tpot_s": float(np.median(last - first)) / max(1, cell.output_tokens - 1),
            "tokens_per_s": len(done) * cell.output_tokens / float(last.max())}


def observed(measured: Measured) -> dict[str, float]:
    """Medians of a cell, and its tokens per second."""
    tpot = [r.tpot_s for r in measured.requests if r.tpot_s is not None]
    return {"ttft_s": median([r.ttft_s for r in measured.requests]), "tpot_s": median(tpot), "tokens_per_s": measured.tokens_per_s}


def merged(measured: Sequence[Measured]) -> list[Measured]:
    """Repeats of a cell as one: all their requests, and the seconds that its median throughput would have taken."""
    by_cell: dict[Cell, list[Measured]] = {}
    for m in measured:
        if m.requests:
            by_cell.setdefault(m.cell, []).append(m)
    out = []
    for cell, repeats in by_cell.items():
        requests = [r for m in repeats for r in m.requests]
        rate = median([m.tokens_per_s for m in repeats])
        out.append(Measured(cell, requests, [], sum(r.output_tokens for r in requests) / rate))
    return out


def errors(profile: EngineProfile, held_back: Sequence[Measured]) -> pd.DataFrame:
    """One row per held-back cell and metric: measured, simulated, signed error in percent, n requests."""
    rows = []
    for m in held_back:
        if not m.requests:
            continue
        seen, said = observed(m), simulate(profile, m)
        for metric in METRICS:
            error = 100.0 * (said[metric] / seen[metric] - 1.0)
            rows.append({"cell": m.cell.name, "metric": metric, "measured": seen[metric], "simulated": said[metric], "error_percent": error,
                         "requests": len(m.requests)})
    return pd.DataFrame(rows, columns=["cell", "metric", "measured", "simulated", "error_percent", "requests"])


def medians(table: pd.DataFrame) -> dict[str, float]:
    """Median absolute error in percent by metric."""
    return {str(metric): float(rows["error_percent"].abs().median()) for metric, rows in table.groupby("metric", sort=False)}
