"""A group of requests that go through the stages of a pipeline together, and what its steps last."""

from __future__ import annotations

from dataclasses import dataclass

from windtunnel.policy.param import check_number
from windtunnel.sim.agenda import STEP_START
from windtunnel.sim.batching.runs import NEVER
from windtunnel.sim.engine import SimEngine
from windtunnel.sim.stepmodels.model import Batch, Provenance, StepModel


@dataclass(frozen=True, slots=True)
class Piped:
    """A step model on `pp` stages: its own seconds, plus pp - 1 hops of the activations of all tokens: bytes_per_token / link_bw (bytes/s)
    + latency_s each."""

    inner: StepModel
    pp: int
    bytes_per_token: float
    link_bw: float
    latency_s: float = 5e-6

    def __post_init__(self) -> None:
        check_number("pp", self.pp, lo=1, whole=True)
        check_number("link_bw", self.link_bw, above=0.0)
        for name in ("bytes_per_token", "latency_s"):
            check_number(name, getattr(self, name), lo=0.0)

    @property
    def provenance(self) -> Provenance:
        return self.inner.provenance

    @property
    def beyond(self) -> str:
        """What the model was asked beyond its measurements."""
        return getattr(self.inner, "beyond", "")

    def hops_s(self, b: Batch) -> float:
        return (self.pp - 1) * (b.tokens * self.bytes_per_token / self.link_bw + self.latency_s)

    def seconds(self, b: Batch) -> float:
        return self.inner.seconds(b) + self.hops_s(b)

    def run(self, b: Batch, k: int) -> tuple[float, float, int]:
        A, B, lasts = self.inner.run(b, k)
        return A + self.hops_s(b), B, lasts


class Stage:
    """The first stage: one step at a time. free_s: run s."""

    __slots__ = ("free_s",)

    def __init__(self) -> None:
        self.free_s = 0.0


class Group(SimEngine):
    """The requests that go through the stages together."""

    __slots__ = ("_first_stage", "_pp")

    def follow(self, stage: Stage, pp: int) -> Group:
        """Before the first request: the first stage that it shares with the other groups, of `pp`."""
        self._first_stage, self._pp = stage, pp
        return self

    def time_after(self, steps: int) -> float | None:
        """As ever; while it waits for the first stage: when that is free."""
        at, free_s = super().time_after(steps), self._first_stage.free_s
        return free_s if at is None and self._here and free_s > self.agenda._now else at

    def _start(self, _: object = None) -> None:
        stage, now = self._first_stage, self.agenda._now
        if self._start_pending and self._here and now < stage.free_s:
            self.agenda.at(stage.free_s, STEP_START, self._start)
            return
        idle = self._due == NEVER
        super()._start()
        if idle and self._due != NEVER:
            hops_s = self.model.hops_s(self._batch) if isinstance(self.model, Piped) else 0.0
            stage.free_s = now + (self._A - hops_s) / self._pp
