"""Who takes part in the planning: plugins come and go, also by command, and settings change between ticks."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import iscoroutinefunction
from typing import Any

from windtunnel.effects import NOTHING, Effect
from windtunnel.errors import PlannerConfigError, PluginRefusedError
from windtunnel.events import Commanded
from windtunnel.policy.planning.plain import registration_of
from windtunnel.policy.planning.planner_state import PlannerState
from windtunnel.policy.planning.plugin import Attached, Registration
from windtunnel.policy.planning.roster import Entry
from windtunnel.policy.planning.settings import PlannerSettings, check_reconfigurable


class Membership(PlannerState):
    """The plugins of a planner, on top of its state."""

    def _attach(self, attached: Attached) -> None:
        reg = attached.registration
        try:
            self.register(reg, 0.0, plugin=attached.plugin)
        except PluginRefusedError as refused:
            raise PlannerConfigError(f"planner.plugins.{reg.plugin_id}: {refused.message}") from None
        if attached.call is not None:
            self.call_models[reg.plugin_id] = attached.call

    def register(self, reg: Registration, now: float, subject: str = "", *, plugin: Any = None, external: bool = False) -> Entry:
        """From the next tick on. Raises PluginRefusedError."""
        asked = getattr(plugin, reg.stage, None) if plugin is not None else None
        if reg.endpoint:
            transport = reg.endpoint.partition(":")[0]
        elif external or plugin is None or reg.offload or iscoroutinefunction(asked):
            transport = "async"
        else:
            transport = "inline"
        try:
            entry = self.roster.register(reg, now, subject, plugin, external=external, transport=transport)
        except PluginRefusedError as refused:
            self.journal.count("registrations_total", "refused")
            self.journal.add("registration_refused", str(reg.plugin_id), reason=refused.message)
            raise
        self.observer.remember(entry.window_s, now)
        if transport == "inline":
            self.plugins[reg.plugin_id] = plugin
            if hasattr(plugin, "waiting"):
                plugin.waiting = self._waiting
            if hasattr(plugin, "running"):
                plugin.running = self._running_in
        self.journal.count("registrations_total", "accepted")
        self.journal.add("registered", reg.plugin_id, stage=entry.stage.value, priority=reg.priority, subject=subject)
        return entry

    def unregister(self, plugin_id: str, reason: str = "unregistered") -> bool:
        """Out from now on; an answer that is still to come is dropped."""
        entry = self.roster.unregister(plugin_id, reason)
        self.plugins.pop(plugin_id, None)
        if entry is not None:
            self.journal.add("unregistered", plugin_id, reason=reason)
        return entry is not None

    def reconfigure(self, settings: PlannerSettings, now: float) -> None:
        """Between ticks: new minima, budgets, SLO, stabilising or predictor. Raises PlannerConfigError for anything else.

        A plan that is being computed is discarded; held answers are forgotten, every plugin is due at the next tick.
        """
        check_reconfigurable(self.settings, settings)
        self.settings, self.generation, self.journal.now = settings, self.generation + 1, now
        self.rollout.max_gpus = settings.budget.max_gpus
        for plugin in self.plugins.values():
            hook = getattr(plugin, "reconfigured", None)
            if hook is not None:
                hook(settings)
            elif hasattr(plugin, "settings"):
                plugin.settings = settings
        self.pipeline.invalidate("config_reload")
        self.journal.add("config_reloaded", generation=self.generation)
        self._retell = self.journal.on

    def _commanded(self, event: Commanded, now: float) -> Sequence[Effect]:
        """Registrations travel as commands, so that a log holds them."""
        args = event.args or {}
        if event.name == "planner.register":
            try:
                self.register(registration_of(args["registration"]), now, args.get("subject", ""), external=True)
            except PluginRefusedError:
                return NOTHING  # it is in the record; whoever asked has asked `roster.refusal` before
        elif event.name == "planner.unregister":
            self.unregister(args["plugin_id"], args.get("reason", "unregistered"))
        elif event.name == "planner.heartbeat":
            self.roster.heartbeat(args["plugin_id"], now)
        return NOTHING
