"""One tick of planning: PREDICT, PROPOSE, RECONCILE, CONSTRAIN. A generator that yields what it asks and is sent the answers.

It knows no clock and calls nobody: a driver answers inline, after a modelled delay, or with real calls.
"""

from __future__ import annotations

from collections.abc import Mapping

from windtunnel.errors import PluginCallError
from windtunnel.policy.planning.audit import Journal
from windtunnel.policy.planning.calls import Answer, Answers, Call, CallError
from windtunnel.policy.planning.contract import PipelineContext, TrafficMetrics
from windtunnel.policy.planning.merge import TieBreak
from windtunnel.policy.planning.roster import Roster
from windtunnel.policy.planning.tick import Tick
from windtunnel.policy.planning.tick_outcome import Baseline, Ticking, TickOutcome


class Pipeline:
    """Owns the order of stages, cadence, caches and deadlines; keeps nothing of a tick but what the roster's entries hold.

    scale_s: the grid's step; tick_max_s: a tick that takes longer ends without a plan.
    """

    def __init__(self, roster: Roster, *, tick_max_s: float = 30.0, tie_break: TieBreak = "registration",
                 journal: Journal | None = None) -> None:
        self.roster, self.tick_max_s, self.tie_break = roster, tick_max_s, tie_break
        self.scale_s = roster.settings.scale_interval_s
        self.journal = journal or Journal()
        self.gathers = 0

    def tick(self, ctx: PipelineContext, baseline: Baseline, *, tick_at: float, now: float,
             windows: Mapping[float, TrafficMetrics | None] | None = None) -> Ticking:
        """Plan for grid time `tick_at`, started at `now`. windows: traffic by length of window; absent: everyone sees ctx's.

        Raises nothing that a plugin does: failures are answers.
        """
        return Tick(self, ctx, baseline, tick_at, now, windows or {}).run()

    def invalidate(self, reason: str) -> None:
        """Forget all held answers and make everyone due at the next tick."""
        for entry in self.roster.snapshot().entries:
            if entry.clear():
                self.journal.add("cache_cleared", entry.plugin_id, why=reason)
            entry.anchor = float("-inf")


def answer_inline(call: Call) -> Answer:
    """Ask an in-process plugin here and now; whatever it raises becomes a CallError."""
    try:
        ask = getattr(call.target, call.stage._value_, None)  # a plain str: found in the type's own cache
        if ask is None:
            return Answer(call.plugin_id, None, CallError("unknown_method", f"no method {call.stage.value}"))
        return Answer(call.plugin_id, ask(call.request))
    except PluginCallError as error:
        return Answer(call.plugin_id, None, CallError(error.kind, str(error)))  # type: ignore[arg-type]
    except NotImplementedError as error:
        return Answer(call.plugin_id, None, CallError("unknown_method", str(error)))
    except Exception as error:
        return Answer(call.plugin_id, None, CallError("raised", f"{type(error).__name__}: {error}"))


def run_inline(ticking: Ticking) -> TickOutcome:
    """Answer every call in this thread, in no time."""
    try:
        gather = next(ticking)
        while True:
            items = tuple([answer_inline(call) for call in gather.calls])
            gather = ticking.send(Answers(gather.gather_id, items, gather.calls[0].request.now))
    except StopIteration as done:
        outcome: TickOutcome = done.value
        return outcome
