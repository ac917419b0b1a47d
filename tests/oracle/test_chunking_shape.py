"""Chunked prefill: long prompts no longer stop the tokens of others, so a strict bound costs less capacity."""

from __future__ import annotations

from functools import cache

import numpy as np

from windtunnel.lab.validation.vidur import CONFIGS
from windtunnel.sim.agenda import ARRIVAL, Agenda
from windtunnel.sim.engine import Attempt, SimEngine
from windtunnel.sim.stepmodels.model import Batch
from windtunnel.sim.stepmodels.vidur import VidurRoofline
from windtunnel.sim.tokens import itl_percentiles

LONG, SHORT, OUTPUT = 3500, 256, 100
STRICT_S, RELAXED_S = 0.030, 0.300
FULL_PREFILL_S = VidurRoofline().seconds(Batch(prefill=[(LONG, 0)], tokens=LONG, sequences=1, sampled=1))


@cache
def flown(batching: str, rate_rps: float, n: int = 500) -> tuple[float, float, float]:
    """(p99 gap between tokens s, median wait for the first step s, longest step with decodes s); every second prompt is long on average."""
    rng = np.random.default_rng(5)
    agenda, sent = Agenda(), []
    engine = SimEngine("r", CONFIGS[batching](num_blocks=30208), VidurRoofline(), agenda, on_finish=lambda a: None,
                       on_cancelled=lambda a: None, pieces=True)
    for i, at_s in enumerate(np.cumsum(rng.exponential(1.0, n)) / rate_rps):
        a = Attempt(str(i), 1, LONG if rng.random() < 0.5 else SHORT, OUTPUT)
        sent.append((float(at_s), a))
        agenda.at(float(at_s), ARRIVAL, lambda _, a=a: engine.submit(a))
    agenda.run()
    assert engine.pieces is not None and all(a.finished_s is not None for _, a in sent)
    (p99,) = itl_percentiles([engine.pieces], [99.0])
    steps = [A + B * max(0, k - 1) for A, B, k, b in zip(engine.pieces.A, engine.pieces.B, engine.pieces.k, engine.pieces.b) if b]
    return float(p99 or 0.0), float(np.median([(a.started_s or at) - at for at, a in sent])), max(steps)


def capacity(batching: str, gap_s: float) -> float:
    """The largest rate with p99 gap within bounds and a median wait of at most 2 s; 0.1 rps if none, to 2 %."""
    lo, hi = 0.1, 40.0
    while hi / lo > 1.02:
        middle = (lo * hi) ** 0.5
        p99, wait_s, _ = flown(batching, middle)
        lo, hi = (middle, hi) if p99 <= gap_s and wait_s <= 2.0 else (lo, middle)
    return lo


def test_SQ_42_whole_prompts_stall_the_others_and_chunks_do_not() -> None:
    whole, _, _ = flown("prefill_first", 4.0)
    chunks, _, longest_s = flown("sarathi", 4.0)
    assert 0.8 * FULL_PREFILL_S <= whole <= 2.2 * FULL_PREFILL_S  # one full prefill, or two that follow each other
    assert chunks <= longest_s < 0.3 * FULL_PREFILL_S


def test_SQ_42_a_strict_bound_costs_whole_prompts_their_capacity() -> None:
    strict = capacity("sarathi", STRICT_S) / capacity("prefill_first", STRICT_S)
    relaxed = capacity("sarathi", RELAXED_S) / capacity("prefill_first", RELAXED_S)
    assert strict > relaxed and strict >= 2.0
