"""The built-in plugins of a planner, by its settings, as they register."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from windtunnel.policy.planning.budget_constrain import BudgetConstrain
from windtunnel.policy.planning.contract import HoldPolicy, Stage
from windtunnel.policy.planning.forecast import Model
from windtunnel.policy.planning.load import LoadPropose
from windtunnel.policy.planning.load_predict import LoadPredict
from windtunnel.policy.planning.perf_model import KnownStep, PerfModel
from windtunnel.policy.planning.plugin import Attached, Registration
from windtunnel.policy.planning.reconcile import Reconcile
from windtunnel.policy.planning.settings import PlannerSettings
from windtunnel.policy.planning.sizing import Sizing
from windtunnel.policy.planning.stabilise import Stabilise
from windtunnel.policy.planning.throughput import ThroughputPropose

OBSERVED = tuple(f"observations.{block}" for block in ("traffic", "fpm", "workers"))
BUILTINS = ("builtin_load_predict", "builtin_throughput_propose", "builtin_load_propose", "builtin_reconcile", "builtin_budget_constrain",
            "builtin_stabilise")


@dataclass(frozen=True, slots=True)
class Builtins:
    """Built-in plugins, in order of registration; `attached` is what a planner takes. sizing: what they share."""

    sizing: Sizing
    attached: tuple[Attached, ...]

    def plugin(self, plugin_id: str) -> Any:
        """The plugin of that id; None if it is off."""
        return next((a.plugin for a in self.attached if a.registration.plugin_id == plugin_id), None)


def build_plugins(settings: PlannerSettings, *, perf_model: PerfModel | None = None,
                  forecaster: Callable[[], Model] | None = None, known: Mapping[str, Sequence[KnownStep]] | None = None) -> Builtins:
    """perf_model: fixed step times, None: learned from engine reports, beginning with `known` steps by role. forecaster: makes a model of
    a library; None: by settings.

    With its load loop on, the throughput loop emits bounds that hold between its ticks.
    """
    sizing = Sizing(settings, perf_model, known)
    made: list[Attached] = []

    def add(plugin_id: str, stage: Stage, priority: int, plugin: Any, needs: tuple[str, ...], interval_s: float = 0.0,
            hold: HoldPolicy = HoldPolicy.ACCEPT_WHEN_IDLE) -> None:
        if plugin_id not in settings.disabled:
            made.append(Attached(Registration(plugin_id, stage, priority, execution_interval_s=interval_s, hold_policy=hold, needs=needs), plugin))

    throughput_s, load_s = settings.throughput.interval_s, settings.load.interval_s
    if settings.throughput_on:
        predict = LoadPredict(settings, sizing, throughput_s, forecaster)
        propose = ThroughputPropose(settings, sizing, lambda: predict.reason)
        add("builtin_load_predict", Stage.PREDICT, 1000, predict, ("observations.traffic", "observations.workers"), throughput_s,
            HoldPolicy.ACCEPT_WHEN_IDLE)
        add("builtin_throughput_propose", Stage.PROPOSE, 20, propose, ("predictions", *OBSERVED), throughput_s,
            HoldPolicy.HOLD_LAST if settings.load_on else HoldPolicy.ACCEPT_WHEN_IDLE)
    if settings.load_on:
        wants_traffic = settings.target == "sla" or settings.throughput_on
        add("builtin_load_propose", Stage.PROPOSE, 10, LoadPropose(settings, sizing), OBSERVED if wants_traffic else OBSERVED[1:], load_s)
    if settings.reconcile.enabled:
        add("builtin_reconcile", Stage.RECONCILE, 100, Reconcile(settings, sizing), ("predictions", "proposal", *OBSERVED[::2]))
    add("builtin_budget_constrain", Stage.CONSTRAIN, 100, BudgetConstrain(settings, sizing), ("observations.workers",))
    if settings.stabilise.enabled:
        add("builtin_stabilise", Stage.CONSTRAIN, 100, Stabilise(settings, sizing), ("proposal", "observations.workers"))
    return Builtins(sizing, tuple(made))
