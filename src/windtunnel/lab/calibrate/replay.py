"""The same requests, or the same closed loop, through a simulated engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from windtunnel.errors import ConfigInfeasibleError
from windtunnel.lab.calibrate.observe import PointObs, RequestObs
from windtunnel.sim.agenda import ARRIVAL, Agenda
from windtunnel.sim.engine import Attempt, EngineConfig, SimEngine
from windtunnel.sim.stepmodels.model import StepModel


@dataclass(frozen=True, slots=True)
class Replayed:
    """requests: as they were asked, with simulated times; preemptions, steps and the prefix cache's hit share of the whole run."""

    requests: list[RequestObs]
    preemptions: int
    steps: int
    hit_share: float


def replay(requests: Sequence[RequestObs], step_model: StepModel, config: EngineConfig, *, request_s: float = 0.0) -> Replayed:
    """Arrivals, lengths and prompt blocks of `requests` through one engine; `request_s` passes between arrival and its queue.

    Raises ConfigInfeasibleError for a request that this engine refuses.
    """
    agenda = Agenda()
    engine = SimEngine("replay", config, step_model, agenda, on_finish=_nothing, on_cancelled=_nothing)
    attempts = [Attempt(str(i), 1, r.input_tokens, r.output_tokens, blocks=r.blocks) for i, r in enumerate(requests)]
    for r, a in zip(requests, attempts):
        agenda.at(r.arrival_s + request_s, ARRIVAL, _submitting(engine, a))
    agenda.run()
    out = [RequestObs(r.arrival_s, r.input_tokens, r.output_tokens, _known(a.first_token_s), _known(a.finished_s), a.started_s, r.blocks, r.id)
           for r, a in zip(requests, attempts)]
    prompts = sum(a.prompt for a in attempts)
    return Replayed(out, sum(a.preemptions for a in attempts), engine.steps, sum(a.cached_tokens for a in attempts) / prompts if prompts else 0.0)


def replay_point(point: PointObs, step_model: StepModel, config: EngineConfig, *, rounds: int = 10, shortest: float = 0.8,
                 seed: int = 0) -> PointObs:
    """A closed loop of `concurrency` clients, all starting at once, each with the next request when one ends, `rounds` × concurrency in all.

    Lengths are uniform between `shortest` and 1 of the nominal ones (1: all alike). Returns the simulated mean TTFT and TPOT.
    """
    rng = np.random.default_rng(seed)
    total = rounds * point.concurrency
    lengths = [np.maximum(1, np.round(nominal * rng.uniform(shortest, 1.0, total))).astype(int) for nominal in (point.isl, point.osl)]
    agenda, left = Agenda(), iter(range(total))
    done: list[Attempt] = []

    def send(_: object = None) -> None:
        i = next(left, None)
        if i is not None:
            _submitting(engine, Attempt(str(i), 1, int(lengths[0][i]), int(lengths[1][i])))(None)

    def ended(a: Attempt) -> None:
        done.append(a)
        send()

    engine = SimEngine("loop", config, step_model, agenda, on_finish=ended, on_cancelled=_nothing)
    for _ in range(point.concurrency):
        agenda.at(0.0, ARRIVAL, send)
    agenda.run()
    ttft = float(np.mean([_known(a.first_token_s) - a.submitted_s for a in done]))
    tpot = float(np.mean([(_known(a.finished_s) - _known(a.first_token_s)) / max(1, a.output - 1) for a in done]))
    return PointObs(point.id, point.model, point.gpu, point.engine, point.version, point.dtype, point.isl, point.osl, point.concurrency, ttft,
                    max(tpot, 1e-9), point.gpus, point.ep, point.dp, "simulated")


def _submitting(engine: SimEngine, a: Attempt):  # type: ignore[no-untyped-def]
    def submit(_: object) -> None:
        refusal = engine.submit(a)
        if refusal is not None:
            raise ConfigInfeasibleError(f"request {a.id} of {a.prompt} + {a.output} tokens is refused: {refusal.reason}")

    return submit


def _known(seconds: float | None) -> float:
    assert seconds is not None
    return seconds


def _nothing(a: Attempt) -> None:
    """Nobody listens."""
