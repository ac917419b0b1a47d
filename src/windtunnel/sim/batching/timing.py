"""How long a step lasts beyond what the model says: host costs, speed, noise, speculation, padding, reports that are due."""

from __future__ import annotations

from math import exp, log, sqrt
from typing import Any

from windtunnel.sim.agenda import Agenda
from windtunnel.sim.attempt import Callbacks
from windtunnel.sim.batching.fittings import Fittings
from windtunnel.sim.batching.handover import HandOver
from windtunnel.sim.engine_config import EngineConfig
from windtunnel.sim.jump import first_boundary
from windtunnel.sim.stepmodels.model import Batch, StepModel


class Timing(HandOver):
    """Steps with a price. `_plain`: it is the model's, nothing more."""

    __slots__ = ("_batch", "_host_seq_s", "_host_step_s", "_plain", "_reports", "_rng", "_sampled", "_sigma", "_speed", "per_step_steps")

    def __init__(self, name: str, config: EngineConfig, model: StepModel, agenda: Agenda, told: Callbacks, fittings: Fittings) -> None:
        super().__init__(name, config, model, agenda, told, fittings)
        self._rng, self._reports = fittings.rng, fittings.reports
        spec, host = config.spec_decode, config.host
        self._sampled = spec is not None and spec.mode == "sampled"
        self._host_step_s, self._host_seq_s = host.step_s, host.step_per_seq_s
        self._speed = 1.0
        self._sigma = sqrt(log(1.0 + config.noise_cv**2))
        self._batch = Batch()
        self.per_step_steps = 0  # runs of one step because the model or the drafts allow no more
        limited = config.policy == "prefill_first" and (config.min_decode_steps > 0 or config.admission == "peak")
        self._plain = not (host.step_s or host.step_per_seq_s or spec or config.noise_cv or self._padded or limited or fittings.reports)

    def _time(self, batch: Batch, k: int) -> tuple[float, float, int]:
        """(A, B, steps) of a run, `model.run` with everything that comes on top."""
        kv, g = self.kv, self._g or 1
        b, chunks = batch.decode_seqs, len(batch.prefill)
        allowed = k = min(k, self._limit)
        kv_tokens = kv.attended(self.D) if b and kv.stretched else kv.base_sum + b * (self.D + 1) if b else 0  # type: ignore[attr-defined]
        if self._ghosts and b:
            b += self._ghosts
            kv_tokens += self._ghost_base + self._ghosts * (g * self.D + 1)
            batch.sampled += self._ghosts
            batch.tokens += self._ghosts
        batch.decode_seqs, batch.decode_kv = b, kv_tokens  # type: ignore[assignment]
        batch.tokens += b * (self.width - 1)
        batch.sequences = b + chunks
        model: Any = self.model  # its answer is judged here, not by the declared type
        law = model.run(batch, k if g == 1 else int((k - 1) * g) + 1)
        A, B, lasts = float(law[0]), float(law[1]), int(law[2])  # of a fractional K a model may say a whole float
        model_lasts = lasts
        if g != 1 and lasts > 1:
            B, lasts = self._stretched(batch, A, min(k, int((lasts - 1) / g + 1e-9) + 1))
        A += self._host_step_s + self._host_seq_s * batch.sequences
        spec = self.config.spec_decode
        if spec is not None and b:
            A += spec.draft_s * spec.k
        factor = self._speed
        if self._sigma:
            factor *= exp(self._sigma * float(self._rng.standard_normal()) - 0.5 * self._sigma**2)
        A, B = A * factor, B * factor
        if self._reports is not None:
            due_s = self._reports.due_s(self.agenda._now)
            lasts = min(lasts, first_boundary(self.agenda._now, A, B, due_s)) if lasts > 1 else lasts
            self._reports.scheduled(batch, A)
        if self._sampled or (model_lasts == 1 < allowed):
            self.per_step_steps += 1
        return A, B, lasts

    def _stretched(self, batch: Batch, A: float, lasts: int) -> tuple[float, int]:
        """(B, steps) when every decode gets g tokens a step: models state their law for one."""
        g, kv, prefill = self._g or 1.0, batch.decode_kv, batch.prefill
        if lasts == 1:
            return 0.0, 1
        batch.decode_kv = kv + g * batch.decode_seqs  # type: ignore[assignment]
        batch.prefill = [(q, computed + q) for q, computed in prefill]
        B = self.model.seconds(batch) - A
        batch.decode_kv, batch.prefill = kv, prefill
        return B, lasts
