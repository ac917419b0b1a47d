"""Pipeline parallelism: the layers of a model on p stages, and p groups of requests that take turns on them.

A group's step passes all stages, so it lasts as long as on one of p times the size, plus the hops between the stages; while it is on a later
stage, the next group's step is on the first. Steps are taken one by one. The KV cache is shared out evenly, as by the virtual engines of
vLLM 0.6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from windtunnel.policy.param import check_number
from windtunnel.sim.agenda import Agenda
from windtunnel.sim.attempt import Attempt, EngineState, Refusal
from windtunnel.sim.engine import SimEngine
from windtunnel.sim.engine_config import EngineConfig
from windtunnel.sim.pipeline_group import Group, Stage
from windtunnel.sim.stepmodels.model import StepModel


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
        self._where: dict[tuple[str, int], Group] = {}
        part = replace(config, max_num_seqs=-(-config.max_num_seqs // pp), num_blocks=config.num_blocks and config.num_blocks // pp)
        stage = Stage()

        def leaving(tell: Callable[[Attempt], None]) -> Callable[[Attempt], None]:
            def left(a: Attempt) -> None:
                tell(a)
                self._where.pop((a.id, a.dispatch), None)

            return left

        options |= {"on_finish": leaving(on_finish), "on_cancelled": leaving(on_cancelled), "step_every": True}
        self.groups = [Group(f"{name}/{i}", part, model, agenda, **options).follow(stage, pp) for i in range(pp)]
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
