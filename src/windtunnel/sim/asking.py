"""Answers a planner's questions in the simulated world: what the plugin says, after the delay that its call is modelled with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import iscoroutinefunction
from typing import Any

from windtunnel.effects import Ask
from windtunnel.errors import PlannerConfigError
from windtunnel.events import Answered, Event
from windtunnel.policy.param import Rng
from windtunnel.policy.planning.calls import Answer, Call, CallError
from windtunnel.policy.planning.pipeline import answer_inline
from windtunnel.policy.planning.plugin import CallModel
from windtunnel.sim.agenda import ARRIVAL, Agenda

PLAIN = CallModel()


@dataclass(slots=True)
class Asking:
    """models: by plugin id, how its calls go; without one a call takes no time. rng: draws the failures.

    Raises PlannerConfigError for a plugin that is nothing but a promise here: `async def`, or registered from outside.
    """

    agenda: Agenda
    deliver: Callable[[Event], None]
    models: Mapping[str, CallModel] = field(default_factory=dict)
    rng: Rng | None = None

    def ask(self, effect: Ask) -> None:
        """One Answered, when the last answer is there or its time is over."""
        now = self.agenda.now
        items = tuple(self._answer(call, now) for call in effect.calls)
        at = max((item.finished_at or now for item in items), default=now)
        self.agenda.at(at, ARRIVAL, lambda _: self.deliver(Answered(effect.gather_id, items)))

    def _answer(self, call: Call, now: float) -> Answer:
        model = self.models.get(call.plugin_id, PLAIN)
        plugin: Any = call.target
        if plugin is None or iscoroutinefunction(getattr(plugin, call.stage, None)) or hasattr(plugin, "aclose"):
            raise PlannerConfigError(f"control.planner.plugins: {call.plugin_id} is async or in another process; a simulated world asks plain "
                                     "methods of this process", hint="give an external plugin a stand_in, or fly it with drive")
        failed = model.failure_rate > 0 and self.rng is not None and self.rng.random() < model.failure_rate
        if model.delay_s > call.timeout_s:
            return Answer(call.plugin_id, None, CallError("timeout", f"no answer within {call.timeout_s:g} s"), now, now + call.timeout_s)
        if failed:
            return Answer(call.plugin_id, None, CallError(model.error, "modelled failure"), now, now + model.delay_s)  # type: ignore[arg-type]
        answer = answer_inline(call)
        answer.started_at, answer.finished_at = now, now + model.delay_s
        return answer
