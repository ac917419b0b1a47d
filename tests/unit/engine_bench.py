"""For tests: an engine alone on its agenda, with a step model of one second unless another is given."""

from __future__ import annotations

from typing import Any

from windtunnel.sim.agenda import ARRIVAL, Agenda
from windtunnel.sim.engine import Attempt, EngineConfig, SimEngine
from windtunnel.sim.stepmodels.affine import Affine

SECOND = Affine(1.0, 0.0, 0.0, 0.0)  # every step lasts one second
AFFINE = Affine(6e-3, 2.6e-5, 2e-5, 2.4e-8)


class Bench:
    """An engine on its agenda. told: (what, id, s); refused: (status, reason, retry after s) by id."""

    def __init__(self, config: EngineConfig | None = None, model: Any = SECOND, **options: Any) -> None:
        self.agenda, self.told, self.refused = Agenda(), [], {}
        self.engine = SimEngine(
            "r", config or EngineConfig(), model, self.agenda, on_finish=lambda a: self.tell("finish", a), check=True, pieces=True,
            on_cancelled=lambda a: self.tell("cancel", a), on_first=lambda a: self.tell("first", a), **options)

    def tell(self, what: str, a: Attempt) -> None:
        self.told.append((what, a.id, self.agenda.now))

    def send(self, id: str, prompt: int, output: int, *, at_s: float = 0.0, priority: int = 0,
             blocks: tuple[int, ...] | None = None) -> Attempt:
        a = Attempt(id, 1, prompt, output, priority, blocks)

        def submit(_: object) -> None:
            refusal = self.engine.submit(a)
            if refusal is not None:
                self.refused[id] = (refusal.status, refusal.reason, refusal.retry_after_s)

        self.agenda.at(at_s, ARRIVAL, submit)
        return a

    def at(self, at_s: float, act: Any) -> None:
        self.agenda.at(at_s, ARRIVAL, lambda _: act())

    def tokens(self, a: Attempt) -> list[float]:
        assert self.engine.pieces is not None
        return [self.engine.pieces.token_time(a, n) for n in range(1, a.output + 1)]

    def run(self) -> SimEngine:
        """To the end, at which nobody and nothing is left."""
        self.agenda.run()
        assert self.engine.idle
        assert self.engine.kv.used(self.engine.D) == 0
        return self.engine
