"""Pipeline parallelism: the layers of a model on p stages, and p groups of requests that take turns on them.

A group's step passes all stages, so it lasts as long as on one of p times the size, plus the hops between the stages; while it is on a later
stage, the next group's step is on the first. Steps are taken one by one. The KV cache is shared out evenly, as by the virtual engines of
vLLM 0.6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from windtunnel.policy.param import check_number
from windtunnel.sim.agenda import STEP_START, Agenda
from windtunnel.sim.attempt import Attempt, EngineState, Refusal
from windtunnel.sim.batching.runs import NEVER
from windtunnel.sim.engine import SimEngine
from windtunnel.sim.engine_config import EngineConfig
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


class _Stage:
    """The first stage: one step at a time. free_s: run s."""

    __slots__ = ("free_s",)

    def __init__(self) -> None:
        self.free_s = 0.0


class _Group(SimEngine):
    """The requests that go through the stages together."""

    __slots__ = ("_first_stage", "_pp")

    def __init__(self, stage: _Stage, pp: int, *args: Any, **options: Any) -> None:
        self._first_stage, self._pp = stage, pp
        super().__init__(*args, **{**options, "step_every": True})

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


def _total(name: str) -> Any:
    return property(lambda self: sum(getattr(group, name) for group in self.groups), doc=f"Of all groups: {name}.")


class PipelineEngine:
    """One replica of `pp` stages behind the interface of `SimEngine`. A request joins the group with the fewest, the first of equals.

    busy_s, prefill_s: of one stage on average. Prefixes are found within a group only.
    """

    def __init__(self, name: str, config: EngineConfig, model: StepModel, agenda: Agenda, pp: int, *, on_finish: Callable[[Attempt], None],
                 on_cancelled: Callable[[Attempt], None], **options: Any) -> None:
        check_number("pp", pp, lo=2, whole=True)
        self.name, self.config, self.agenda = name, config, agenda
        self._where: dict[tuple[str, int], _Group] = {}
        part = replace(config, max_num_seqs=-(-config.max_num_seqs // pp), num_blocks=config.num_blocks and config.num_blocks // pp)
        stage = _Stage()

        def leaving(tell: Callable[[Attempt], None]) -> Callable[[Attempt], None]:
            def left(a: Attempt) -> None:
                tell(a)
                self._where.pop((a.id, a.dispatch), None)

            return left

        options |= {"on_finish": leaving(on_finish), "on_cancelled": leaving(on_cancelled)}
        self.groups = [_Group(stage, pp, f"{name}/{i}", part, model, agenda, **options) for i in range(pp)]
        self.cache = None

    load, running, waiting, steps, events = (_total(n) for n in ("load", "running", "waiting", "steps", "events"))
    output_tokens, prompt_tokens, preemptions = (_total(n) for n in ("output_tokens", "prompt_tokens", "preemptions"))
    prefix_hit_blocks, prefix_query_blocks, evictions = (_total(n) for n in ("prefix_hit_blocks", "prefix_query_blocks", "evictions"))
    prefix_query_tokens, cached_tokens, per_step_steps = (_total(n) for n in ("prefix_query_tokens", "cached_tokens", "steps"))

    @property
    def idle(self) -> bool:
        return all(group.idle for group in self.groups)

    @property
    def asleep(self) -> int:
        return self.groups[0].asleep

    @property
    def busy_s(self) -> float:
        return sum(group.busy_s for group in self.groups) / len(self.groups)

    @property
    def prefill_s(self) -> float:
        return sum(group.prefill_s for group in self.groups) / len(self.groups)

    def parts(self) -> Iterator[SimEngine]:
        yield from self.groups

    def part_of(self, a: Attempt) -> SimEngine | None:
        return self._where.get((a.id, a.dispatch))

    def submit(self, a: Attempt) -> Refusal | None:
        """To the smallest group, which may refuse it."""
        group = min(self.groups, key=lambda g: g.load)
        refusal = group.submit(a)
        if refusal is None:
            self._where[a.id, a.dispatch] = group
        return refusal

    def cancel(self, attempt_id: str, dispatch: int) -> bool:
        group = self._where.get((attempt_id, dispatch))
        return group is not None and group.cancel(attempt_id, dispatch)

    def drop_all(self, reason: str) -> list[Attempt]:
        dropped = [a for group in self.groups for a in group.drop_all(reason)]
        return dropped

    def set_speed(self, factor: float) -> None:
        for group in self.groups:
            group.set_speed(factor)

    def pause(self) -> None:
        for group in self.groups:
            group.pause()

    def resume(self) -> None:
        for group in self.groups:
            group.resume()

    def state_at(self, t: float) -> EngineState:
        states = [group.state_at(t) for group in self.groups]
        used = [s.kv_used_fraction for s in states if s.kv_used_fraction is not None]
        return EngineState(sum(s.running for s in states), sum(s.waiting for s in states), sum(used) / len(used) if used else None,
                           sum(s.generated for s in states))

    def progress_at(self, t: float) -> tuple[tuple[str, int], ...]:
        return tuple(count for group in self.groups for count in group.progress_at(t))
