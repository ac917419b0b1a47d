"""What an engine says of its forward passes, for policies that ask: the last step, at most once an interval."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from windtunnel.events import fact
from windtunnel.policy.param import check_number
from windtunnel.sim.agenda import COMPLETION
from windtunnel.sim.stepmodels.model import Batch

if TYPE_CHECKING:
    from windtunnel.sim.batching.handover import HandOver

IDLE_S = 1.0  # an idle engine reports zeros so often


@fact
class ForwardPass:
    """The step that ended last. Seconds; tokens, requests; decode_kv: tokens attended by its decodes; queued: what waits in the engine."""

    at_s: float
    step_s: float
    prefill_tokens: int
    prefill_seqs: int
    decode_seqs: int
    decode_kv: int
    queued_prefill_tokens: int
    queued_decode_kv: int


class Reports:
    """Calls `tell(report)` at the first boundary after `interval_s` since the last report, and each second while the engine is idle."""

    __slots__ = ("_idle", "_last_s", "_step", "interval_s", "tell")

    def __init__(self, tell: Callable[[ForwardPass], None], interval_s: float = 0.1) -> None:
        check_number("fpm_interval_s", interval_s, lo=0.0)
        self.tell, self.interval_s = tell, interval_s
        self._last_s, self._idle = 0.0, False
        self._step: tuple[float, int, int, int, int] = (0.0, 0, 0, 0, 0)

    def due_s(self, now: float) -> float:
        """The boundary at or after this time must be a report's."""
        return max(now, self._last_s + self.interval_s)

    def scheduled(self, batch: Batch, step_s: float) -> None:
        """A run of such steps begins."""
        self._step = (step_s, sum(q for q, _ in batch.prefill), len(batch.prefill), batch.decode_seqs, int(batch.decode_kv))

    def ended(self, engine: HandOver, now: float, steps: int, slope_s: float) -> None:
        """A run has ended: is a report due?"""
        if now >= self._last_s + self.interval_s:
            step_s, tokens, prefills, decodes, kv = self._step
            later = steps - 1
            prefill_kv, decode_kv = engine.queued()
            self._last_s = now
            self.tell(ForwardPass(now, step_s + slope_s * later, tokens, prefills, decodes, kv + int(decodes * (engine._g or 1) * later),
                                  prefill_kv, decode_kv))
        if not engine._here:
            self.idle(engine)

    def idle(self, engine: HandOver) -> None:
        """Zeros each second from now on, while nobody is here."""
        if not self._idle:
            self._idle = True
            engine.agenda.at(engine.agenda._now + IDLE_S, COMPLETION, lambda _: self._nothing(engine))

    def _nothing(self, engine: HandOver) -> None:
        self._idle = False
        if not engine._here:
            now = engine.agenda._now
            self._last_s = now
            self.tell(ForwardPass(now, 0.0, 0, 0, 0, 0, 0, 0))
            self.idle(engine)
